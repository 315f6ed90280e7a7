"""Starts a command on one of several nodes when all of them are there, and ends it when one of them is gone.

    python nodes.py NUM_NODES NODE_RANK HOST:PORT COMMAND...

torchrun waits for nodes that do not come, and for one that has lost its power, without a word and for long; this says
which. Node 0 listens; each node, 0 too, holds a connection to it and shows every few seconds that it is alive. Signals
are passed on; the exit status is the command's. NODES_JOIN_S and NODES_SILENCE_S are the seconds that are waited for a
node to come (600) and for a sign of it (30). Python's library alone, so that it starts at once.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

JOIN_S = float(os.environ.get("NODES_JOIN_S", "600"))
SILENCE_S = float(os.environ.get("NODES_SILENCE_S", "30"))
SIGN_S = min(2.0, SILENCE_S / 5)
END_S = float(os.environ.get("NODES_END_S", "10"))
"""A command whose node is gone mostly ends by itself; after so long it is told to."""
KILL_S = float(os.environ.get("NODES_KILL_S", "40"))
"""torchrun ends its workers within 30 s after it was told to."""
LEAVE_S = 60.0
FAILED = 1


class Hub(threading.Thread):
    """Node 0's: knows which nodes have come, and tells all of them which are gone."""

    def __init__(self, port: int, num_nodes: int) -> None:
        super().__init__(daemon=True)
        self.names: dict[int, str] = {}
        self._num_nodes = num_nodes
        self._lines: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._server = socket.create_server(("", port), backlog=max(128, num_nodes))

    def run(self) -> None:
        """Until the process ends."""
        threading.Thread(target=self._show_life, daemon=True).start()
        while True:
            connection, _ = self._server.accept()
            threading.Thread(target=self._listen, args=(connection,), daemon=True).start()

    def _show_life(self) -> None:
        while True:
            self._tell(".")
            time.sleep(SIGN_S)

    def wait_for_the_others(self) -> None:
        """Until they have ended, too: they would miss node 0."""
        deadline = time.monotonic() + LEAVE_S
        while self._lines and time.monotonic() < deadline:
            time.sleep(0.05)

    def _tell(self, message: str) -> None:
        with self._lock:
            for line in self._lines.values():
                try:
                    line.sendall(f"{message}\n".encode())
                except OSError:  # whoever reads that line finds out
                    continue

    def _listen(self, connection: socket.socket) -> None:
        rank, reason = -1, "its connection was closed"
        connection.settimeout(SILENCE_S)
        try:
            for text in connection.makefile(encoding="utf-8"):
                word, *rest = text.split()
                if word == "NODE":
                    rank = int(rest[0])
                    with self._lock:
                        self.names[rank] = rest[1]
                        self._lines[rank] = connection
                    if len(self.names) == self._num_nodes:
                        self._tell("ALL")
                elif word == "DONE":
                    with self._lock:
                        self._lines.pop(rank, None)
                    return
        except OSError as error:
            reason = f"no sign of it for {SILENCE_S:g} s" if isinstance(error, TimeoutError) else str(error)
        if rank >= 0:
            with self._lock:
                self._lines.pop(rank, None)
            self._tell(f"GONE node {rank} ({self.names[rank]}): {reason}")


class Node:
    """This node's line to node 0.

    Attributes:
        is_complete: whether all nodes have come.
        is_broken: whether one of them is gone.
    """

    def __init__(self, rank: int, host: str, port: int) -> None:
        self.is_complete, self.is_broken = threading.Event(), threading.Event()
        self._rank, self._host = rank, host
        self._is_done = False
        deadline = time.monotonic() + JOIN_S
        while True:
            try:
                self._line = socket.create_connection((host, port), timeout=SILENCE_S)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise SystemExit(f"error: node 0 at {host}:{port} did not come for {JOIN_S:g} s: {error}") from None
                time.sleep(SIGN_S)
        name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        self._line.sendall(f"NODE {rank} {name}\n".encode())
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._show_life, daemon=True).start()

    def _show_life(self) -> None:
        try:
            while not self._is_done:
                self._line.sendall(b".\n")
                time.sleep(SIGN_S)
        except OSError:
            return

    def _listen(self) -> None:
        reason = "its connection was closed"
        try:
            for text in self._line.makefile(encoding="utf-8"):
                word, _, rest = text.strip().partition(" ")
                if word == "ALL":
                    self.is_complete.set()
                elif word == "GONE":
                    self._break(rest)
        except OSError as error:
            reason = f"no sign of it for {SILENCE_S:g} s" if isinstance(error, TimeoutError) else str(error)
        self._break(f"node 0 ({self._host}): {reason}")

    def _break(self, what: str) -> None:
        if not self._is_done and not self.is_broken.is_set():
            say(
                f"error: {what}; that node is gone and this run ends, the same command goes on from its last checkpoint"
            )
            self.is_broken.set()

    def leave(self) -> None:
        """The command has ended by itself."""
        self._is_done = True
        try:
            self._line.sendall(b"DONE\n")
        except OSError:
            return


def say(text: str) -> None:
    """To stderr."""
    sys.stderr.write(f"nodes.py: {text}\n")
    sys.stderr.flush()


def wait_for_all(node: Node, hub: Hub | None, num_nodes: int) -> None:
    """Until every node has come; node 0 says from time to time which have not."""
    begun = time.monotonic()
    while not node.is_complete.wait(min(30.0, JOIN_S)):
        waited_s = time.monotonic() - begun
        if hub is not None:
            there = ", ".join(f"{rank} ({name})" for rank, name in sorted(hub.names.items()))
            missing = ", ".join(str(rank) for rank in range(num_nodes) if rank not in hub.names)
            say(f"{len(hub.names)} of {num_nodes} nodes are there after {waited_s:.0f} s: {there}; missing: {missing}")
        if waited_s >= JOIN_S or node.is_broken.is_set():
            raise SystemExit(f"error: not all of {num_nodes} nodes have come in {JOIN_S:g} s; node 0 says which")


def run(command: list[str], node: Node) -> int:
    """The command, until it ends or a node is gone; its exit status, as a shell has it."""
    process = subprocess.Popen(command)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda received, frame: process.send_signal(received))
    told: list[int] = []
    broken_at = time.monotonic()
    while process.poll() is None:
        time.sleep(0.1)
        if not node.is_broken.is_set():
            broken_at = time.monotonic()
            continue
        gone_s = time.monotonic() - broken_at
        # Once each: a second SIGTERM has torchrun leave before its workers have ended.
        for number, after_s in ((signal.SIGTERM, END_S), (signal.SIGKILL, END_S + KILL_S)):
            if gone_s > after_s and number not in told:
                process.send_signal(number)
                told.append(number)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def main() -> int:
    """See above."""
    num_nodes, rank, (host, _, port) = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].rpartition(":")
    hub = None
    if rank == 0:
        hub = Hub(int(port), num_nodes)
        hub.start()
    node = Node(rank, host, int(port))
    wait_for_all(node, hub, num_nodes)
    status = run(sys.argv[4:], node)
    node.leave()
    if hub is not None:
        hub.wait_for_the_others()
    return status or (FAILED if node.is_broken.is_set() else 0)


if __name__ == "__main__":
    sys.exit(main())
