"""A Slurm cluster on one host: a controller, and nodes that each have a name, a network and a pretended GPU.

The nodes are network namespaces on a bridge, so they reach each other as machines do, and can lose their cable. Needs
root on Debian or Ubuntu; everything it makes is gone when it ends.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

NODES = ("vconode1", "vconode2")
BRIDGE = "vco-bridge"
SUBNET = "10.213.77"
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "iproute2")
START_S = 30

SETTINGS = """\
ClusterName=box
SlurmctldHost={controller}({subnet}.254)
SlurmctldPort=6917
SlurmdPort=6918
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n.spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
SlurmdTimeout=30
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class NoClusterError(Exception):
    """Why this host cannot have one."""


def run(*command: str) -> str:
    """What a command prints.

    Raises:
        NoClusterError: it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoClusterError(f"{' '.join(command[:3])}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


def check_host() -> None:
    """Whether a cluster can be made here; what Debian has of it is installed.

    Raises:
        NoClusterError: says why not.
    """
    if os.geteuid():
        raise NoClusterError("expected root, which joins networks and starts Slurm")
    if not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "ip"))):
        if not shutil.which("apt-get"):
            raise NoClusterError("expected Debian or Ubuntu, or Slurm installed")
        run("apt-get", "update", "-qq")
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES)
    run("ip", "netns", "add", "vco-probe")
    run("ip", "netns", "delete", "vco-probe")


class SlurmBox:
    """The cluster, up inside a `with`; `SLURM_CONF` names its settings.

    Args:
        folder: new; for settings, logs and state.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> SlurmBox:
        self.folder.mkdir(parents=True)
        try:
            self._join_networks()
            self._configure()
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _join_networks(self) -> None:
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{SUBNET}.254/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for number, node in enumerate(NODES, start=1):
            cable = f"vco-cable{number}"
            run("ip", "netns", "add", node)
            run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", node)
            run("ip", "link", "set", cable, "master", BRIDGE, "up")
            run("ip", "-n", node, "address", "add", f"{SUBNET}.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                run("ip", "-n", node, "link", "set", device, "up")

    def _configure(self) -> None:
        controller, folder = os.uname().nodename.split(".")[0], self.folder
        lines = [SETTINGS.format(controller=controller, subnet=SUBNET, folder=folder)]
        hosts = ["127.0.0.1 localhost", f"{SUBNET}.254 {controller}"]
        gpus = []
        for number, node in enumerate(NODES, start=1):
            lines.append(f"NodeName={node} NodeAddr={SUBNET}.{number} CPUs=4 RealMemory=4000 Gres=gpu:1\n")
            hosts.append(f"{SUBNET}.{number} {node}")
            gpus.append(f"NodeName={node} Name=gpu File={folder / node}.gpu\n")
            (folder / f"{node}.spool").mkdir()
            (folder / f"{node}.gpu").touch()
        (folder / "state").mkdir()
        (folder / "slurm.conf").write_text("".join(lines), encoding="utf-8")
        (folder / "gres.conf").write_text("".join(gpus), encoding="utf-8")
        (folder / "hosts").write_text("\n".join(hosts) + "\n", encoding="utf-8")
        key = folder / "munge.key"
        key.touch(0o400)
        key.write_bytes(os.urandom(1024))
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")

    def _start(self) -> None:
        files = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        run("munged", "--force", *(f"--{flag}={self.folder}/munge.{end}" for flag, end in files.items()))
        run("slurmctld", "-c")
        for node in NODES:
            run(*self.on(node, "slurmd", "-N", node))
        until = time.monotonic() + START_S
        while len(self.idle()) < len(NODES):
            if time.monotonic() > until:
                raise NoClusterError(f"expected {len(NODES)} nodes within {START_S} s, found {self.idle()}")
            time.sleep(0.5)

    def on(self, node: str, *command: str) -> list[str]:
        """A command line that runs a command in a node: in its network, and where it has its own name."""
        there = f'hostname {node} && mount --bind {self.folder}/hosts /etc/hosts && exec "$@"'
        network = f"--net=/run/netns/{node}"
        return ["nsenter", network, "unshare", "--uts", "--mount", "sh", "-c", there, node, *command]

    def idle(self) -> Sequence[str]:
        """Nodes that are there and have nothing to do."""
        return run("sinfo", "--noheader", "--states=idle", "--Node", "--format=%N").split()

    def kill(self, node: str, pattern: str = "") -> int:
        """End processes of a node whose command line has a pattern, at once; gives their number."""
        count = 0
        for pid in run("ip", "netns", "pids", node).split():
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if re.search(pattern, command):
                    os.kill(int(pid), signal.SIGKILL)
                    count += 1
        return count

    def power_off(self, node: str) -> None:
        """Nothing of a node runs or answers any more."""
        run("ip", "-n", node, "link", "set", "eth0", "down")
        self.kill(node)

    def power_on(self, node: str) -> None:
        """The node is there again, as soon as it is idle."""
        run("ip", "-n", node, "link", "set", "eth0", "up")
        run(*self.on(node, "slurmd", "-N", node))

    def _end(self) -> None:
        for name in ("slurmctld", "munge"):
            with suppress(OSError, ValueError):
                os.kill(int((self.folder / f"{name}.pid").read_text()), signal.SIGKILL)
        for node in NODES:
            with suppress(NoClusterError):
                self.kill(node)
                run("ip", "netns", "delete", node)
        with suppress(NoClusterError):
            run("ip", "link", "delete", BRIDGE)
