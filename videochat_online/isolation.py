"""Calls in processes of their own, several at once, each killed after a time limit.

What decodes a broken file may hang or crash. Here that costs one result, not the whole work.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

IS_FORKED = sys.platform == "linux"

SECONDS_TO_DIE = 5.0
"""A killed process that waits for a dead disk stays: it is not waited for."""

_PR_SET_PDEATHSIG = 1
"""Option of Linux' prctl: the signal that a process gets when the thread that started it ends."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What became of a call that gave no result."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Running:
    index: int
    process: BaseProcess
    limit_s: float
    deadline_s: float

    def result(self, connection: Connection) -> Any:
        """What it sent, once there is something to read; nothing comes from one that died."""
        try:
            return connection.recv()
        except EOFError:
            self.process.join(SECONDS_TO_DIE)
            return Lost(f"the process that read it ended with {describe_exit(self.process.exitcode)}")
        finally:
            connection.close()
            self.process.join(SECONDS_TO_DIE)

    def stop(self, connection: Connection) -> Lost:
        self.process.kill()
        self.process.join(SECONDS_TO_DIE)
        connection.close()
        return Lost(f"no result within {self.limit_s:g} s")


def run_isolated(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], *, num_processes: int, limits_s: Sequence[float]
) -> Iterator[tuple[int, Any]]:
    """Yield index and result of each call as it is done; `Lost` where there is none, an error included.

    Args:
        function: function of a module; it and what it takes and gives can be pickled.
        calls: arguments of the function, call by call.
        num_processes: processes at once, at least 1.
        limits_s: seconds that each call may take.
    """
    context = process_context()
    waiting = list(range(len(calls)))[::-1]
    running: dict[Connection, _Running] = {}
    try:
        while waiting or running:
            while waiting and len(running) < num_processes:
                index = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_call, args=(sender, function, calls[index]), daemon=True)
                process.start()
                sender.close()
                limit_s = limits_s[index]
                running[receiver] = _Running(index, process, limit_s, time.monotonic() + limit_s)
            left_s = min(one.deadline_s for one in running.values()) - time.monotonic()
            ready = set(wait(list(running), max(0.0, left_s)))
            for connection, one in list(running.items()):
                if connection in ready:
                    del running[connection]
                    yield one.index, one.result(connection)
                elif time.monotonic() >= one.deadline_s:
                    del running[connection]
                    yield one.index, one.stop(connection)
    finally:
        for connection, one in running.items():
            one.stop(connection)


def _call(sender: Connection, function: Callable[..., Any], call: tuple[Any, ...]) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, which then kills this process
    sender.send(result_of(function, call))


def result_of(function: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    """What a call gives, in this process; `Lost` at an error, as of `run_isolated`."""
    try:
        return function(*call)
    except Exception as error:  # whatever a broken file brings a decoder to
        return Lost(f"{type(error).__name__}: {error}")


def die_with_parent() -> None:
    """Called in a process of `process_context`: it is killed when its parent dies, whatever either of them does.

    A parent that was killed cannot end its processes, and one that hangs in a decoder does not notice. Only on Linux;
    elsewhere nothing happens.
    """
    parent = multiprocessing.parent_process()
    if not IS_FORKED or parent is None:
        return
    kill_with_parent()
    if os.getppid() != parent.pid:  # it died before it was asked for
        os._exit(1)


def kill_with_parent() -> None:
    """Have Linux kill this process when the thread that started it ends; elsewhere nothing happens."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a system without prctl
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def process_context() -> Any:
    """How processes are started: by a fork where libraries can be used after one, as torch does for its loaders."""
    return multiprocessing.get_context("fork" if IS_FORKED else "spawn")


def describe_exit(exit_code: int | None) -> str:
    """How a process has ended: "exit status 3", "signal 9 (SIGKILL)"."""
    if exit_code is None or exit_code >= 0:
        return f"exit status {exit_code}"
    try:
        return f"signal {-exit_code} ({signal.Signals(-exit_code).name})"
    except ValueError:
        return f"signal {-exit_code}"
