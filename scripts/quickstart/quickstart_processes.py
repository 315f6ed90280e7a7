"""Runs the commands of a phase, shows how far they are, ends what is left of them."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import psutil
from rich.console import Console
from rich.text import Text

from quickstart_phases import Phase

ROOT = Path(__file__).resolve().parents[2]
SECONDS_BETWEEN_LINES = 20.0
SECONDS_BETWEEN_MEASUREMENTS = 2.0
"""Of memory: five times a second they took a seventh of a core, since the kernel walks every page for them."""
SECONDS_TO_END = 40.0  # once asked to, for all commands together; torchrun gives its workers 30
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # that the quickstart itself may be part of


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S%z")


@dataclass
class Spent:
    """What a launch of a phase took: this launch only, whether it was `resumed` or not, `finished` or not."""

    phase: str
    resumed: bool = False
    began: str = field(default_factory=_now)
    seconds: float = 0.0
    memory_bytes: int = 0  # the highest sample of what all processes held together
    finished: bool = False

    def __str__(self) -> str:
        return f"{self.seconds:5.0f} s   {self.memory_bytes / 2**30:.1f} GiB"


@dataclass(frozen=True)
class Command:
    """A command that runs, and the part of its log that this launch has written."""

    process: subprocess.Popen[bytes]
    log: Path
    since: int

    def said(self, max_bytes: int) -> list[str]:
        """The last lines of that part, the states of a progress bar each as one; the first may be cut."""
        with self.log.open("rb") as file:
            file.seek(max(self.since, file.seek(0, os.SEEK_END) - max_bytes))
            text = file.read().decode(errors="replace")
        return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


class FailedCommandError(Exception):
    """A command failed."""

    def __init__(self, name: str, command: Command) -> None:
        self.status = command.process.returncode
        end = "\n".join(command.said(20_000)[-15:])
        super().__init__(f"{name} ended with status {self.status}; the end of {command.log}:\n{end}")


def run_phase(phase: Phase, output: Path, console: Console) -> Spent:
    """Run the commands of a phase; what that took is kept in `times.json`, too.

    Raises:
        FailedCommandError: one of them failed; those that ran beside it are ended.
    """
    logs = {name: output / "logs" / f"{name}.log" for name in phase.commands}
    spent = Spent(phase.name, resumed=any(log.exists() for log in logs.values()))
    began = told = time.monotonic()
    measured, waiting = -math.inf, dict(phase.commands)
    running: dict[str, Command] = {}
    try:
        with console.status(Text(phase.name)) as status:
            while waiting or running:
                while waiting and len(running) < phase.at_once:
                    name = next(iter(waiting))
                    console.print(f"$ {shlex.join(waiting[name])}", style="dim")
                    running[name] = _start(waiting.pop(name), logs[name], phase.processes)
                time.sleep(0.2)
                if time.monotonic() - measured > SECONDS_BETWEEN_MEASUREMENTS:
                    measured, spent.memory_bytes = time.monotonic(), max(spent.memory_bytes, used_memory())
                for name in [name for name, command in running.items() if command.process.poll() is not None]:
                    command = running.pop(name)
                    if command.process.returncode:
                        raise FailedCommandError(name, command)
                news = "; ".join(f"{name}: {_last_news(command)}" for name, command in running.items())
                state = Text(f"{phase.name} {time.monotonic() - began:.0f} s  {news}")
                state.truncate(max(console.width - 4, 20))  # the spinner and this are one line
                status.update(state)
                if not console.is_terminal and time.monotonic() - told > SECONDS_BETWEEN_LINES and running:
                    told = time.monotonic()
                    console.print(f"   {told - began:.0f} s  {news}")
        spent.finished = True
    finally:
        if running:
            _end([command.process for command in running.values()])
        spent.seconds = time.monotonic() - began
        keep(spent, output / "times.json")
    return spent


def _start(command: list[str], log: Path, num_processes: int) -> Command:
    """Start a command. Its log goes on below what earlier launches wrote, under a line that says when and what."""
    with log.open("ab") as file:
        blank = "\n" if file.tell() else ""
        file.write(f"{blank}# {_now()} $ {shlex.join(command)}\n".encode())
        file.flush()
        since = file.tell()  # before the command moves it
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=_variables(num_processes),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children can be ended with it
            close_fds=False,  # it holds the lock, too, should this process be killed
        )
        return Command(process, log, since)


def _variables(num_processes: int) -> dict[str, str]:
    """The environment of a command, which is to run on this machine only."""
    outer = {name for name in os.environ if name in OF_A_LAUNCHER or name.startswith("SLURM_")}
    return {name: value for name, value in os.environ.items() if name not in outer} | {
        # Two threads on two busy cores wait for each other most of the time.
        "OMP_NUM_THREADS": "1",
        **{"GPUS": str(num_processes), "NNODES": "1", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"},
        "MASTER_PORT": str(20000 + os.getpid() % 20000),  # so that two quickstarts do not meet
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        # The programs of this environment, whether it is active or not.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
    }


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End commands with all that is below them, at once and for good; from then on nothing interrupts this process."""
    _ignore_interruptions()
    alive = [process for process in processes if process.poll() is None]  # two may have ended at once
    # torchrun's workers have sessions of their own.
    below = [child for process in alive for child in psutil.Process(process.pid).children(recursive=True)]
    for process in alive:
        os.killpg(process.pid, signal.SIGTERM)
    until = time.monotonic() + SECONDS_TO_END
    for process in alive:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
    for process in [process for process in alive if process.poll() is None]:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for child in below:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _ignore_interruptions() -> None:
    for number in INTERRUPTIONS:
        signal.signal(number, signal.SIG_IGN)


def interrupt(number: int, frame: object) -> NoReturn:
    """Once: a second Ctrl-C would leave commands running, which have sessions of their own."""
    _ignore_interruptions()
    raise KeyboardInterrupt


def keep(spent: Spent, times: Path) -> None:
    """Add what a launch took to those before it."""
    earlier = json.loads(times.read_text("utf-8")) if times.exists() else []
    write_json(times, [*earlier, asdict(spent)])


def write_json(path: Path, value: Any) -> None:
    """Write a file, whole or not at all."""
    part = path.with_name(f".{path.name}")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def used_memory() -> int:
    """Bytes of this process and all below it; pages that several share are counted once."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            facts = process.memory_full_info()
            total += getattr(facts, "pss", facts.rss)
        except psutil.Error:
            continue  # it has just ended
    return total


def _last_news(command: Command) -> str:
    """The latest word on progress in a log: a bar, a loss, or its last line."""
    lines = [line.strip() for line in command.said(4000)]
    told = [line for line in lines if re.search(r"\d+/\d+|'loss'", line)]
    return ([*lines, *told] or ["starts"])[-1][:100]
