#!/usr/bin/env python
"""The whole of it in small: make streams, train through both stages, evaluate, compare. Minutes on two CPU cores.

    bash scripts/quickstart.sh [--seed 0] [--output outputs/quickstart] [--preset quickstart|full] [--from_scratch]

Each phase runs commands that can be run by hand: they are printed, what they say goes to logs. Each goes on where it
was interrupted and leaves alone what is finished, so that the same command again resumes. At the end come a table, a
plot, and the claims that the table has to bear out; exit status 1 if it does not, 2 if something cannot be used.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil
from rich.console import Console
from rich.text import Text

from quickstart_claims import show_comparison
from videochat_online.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PYRAMID = ("--capacities", "4", "4", "16")
STREAMING: dict[str, tuple[str, ...]] = {
    "pyramid": PYRAMID,
    "fifo": ("--memory", "fifo", *PYRAMID),
    "uniform": ("--memory", "uniform", "--num_frames", "6"),
    "recent": ("--memory", "window", "--num_frames", "6"),
    "recent_4": ("--memory", "window", "--num_frames", "4"),
    "blind": ("--blind",),
}
"""Pyramid, FIFO pyramid and six full-size frames hold 96 visual tokens each. Four are an ablation: not trained for."""
ANSWERS = ("--answer_by", "likelihood")
"""Each run chooses among the options: one that was not trained for a kind of question then guesses, as it should."""
LONGER = {
    "quickstart": {"pretrain": [], "stage1": [], "stage2": []},
    "full": {
        "pretrain": ["--steps", "1500"],
        "stage1": ["--num_train_epochs", "3", "--max_num_frame", "24"],
        "stage2": ["--num_train_epochs", "3", "--max_num_frame", "24"],
    },
}
"""What each preset's training does differently from the configs."""
SECONDS_BETWEEN_LINES = 20.0
SECONDS_BETWEEN_MEASUREMENTS = 2.0
"""Of memory: five times a second they took a seventh of a core, since the kernel walks every page for them."""
SECONDS_TO_END = 40.0  # once asked to, for all commands together; torchrun gives its workers 30
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # that the quickstart itself may be part of
NEXT = """
Next, with real weights (downloaded once, about 8 GB; wants a GPU) and with the tiny ones:
  source .venv/bin/activate # unless another environment is active
  videochat-online chat --model MCG-NJU/VideoChatOnline-4B --video outputs/world.mp4 --ask "15:Which way does it turn?"
  bash shell/eval/online_bench_stream.sh --model DIR --annotations FILE... --data-root DIR --output OUT
  bash shell/online_4b/videochat_online_4b_stage1_ft.sh --dry_run # then stage2; data: anno_data/README.md
  videochat-online chat --model outputs/tiny_model --video outputs/world.mp4 --ask "15:What is this?"
"""


@dataclass(frozen=True)
class Phase:
    """Commands that are run `at_once` at a time, each as so many processes."""

    name: str
    commands: dict[str, list[str]]
    at_once: int = 1
    processes: int = 1


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


def phases(output: Path, seed: int, from_scratch: bool, preset: str) -> list[Phase]:
    """Everything there is to do, in order."""
    data, seeds, longer = output / "data", ["--seed", str(seed)], LONGER[preset]

    def stage(number: int, start: str, result: str) -> list[str]:
        paths = {"model_name_or_path": output / start, "output_dir": output / result}
        paths["meta_path"] = data / "registries" / f"stage{number}.json"
        flags = [str(word) for key, path in paths.items() for word in (f"--{key}", path)]
        config = f"configs/train/tiny_stage{number}.yaml"
        return ["bash", "shell/online_4b/launch.sh", config, *flags, *seeds, *longer[f"stage{number}"]]

    def benchmark(setting: str, name: str, *flags: str, model: str = "stage2") -> list[str]:
        run = ["--model", str(output / model), "--output", str(output / "runs" / name), "--fps", "1"]
        where = ["--annotations", str(data / "annotations/ovbench_test.json"), "--data-root", str(data / "videos/test")]
        return ["bash", f"shell/eval/online_bench_{setting}.sh", *run, *where, *ANSWERS, *flags]

    runs = {name: benchmark("stream", name, *flags) for name, flags in STREAMING.items()}
    runs["sliding_window"] = benchmark("sliding_window", "sliding_window")
    pretrain = ["python", "scripts/pretrain_tiny_model.py", str(data), str(output / "base"), *seeds]
    pretrain += longer["pretrain"]
    synthesize = ["videochat-online", "synthesize", "--output", str(data), "--preset", preset, *seeds]
    training = {"stage1": stage(1, "base", "stage1"), "stage2": stage(2, "stage1", "stage2")}
    if from_scratch:
        training["stage2_from_scratch"] = stage(2, "base", "scratch")  # its log is not that of its evaluation
        runs["scratch"] = benchmark("stream", "scratch", *PYRAMID, model="scratch")
    return [
        Phase("streams", {"synthesize": synthesize}),
        Phase("pretraining", {"pretrain": pretrain}),
        *(Phase(name, {name: command}, processes=2) for name, command in training.items()),
        Phase("evaluation", runs, at_once=2),
    ]


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
                    measured, spent.memory_bytes = time.monotonic(), max(spent.memory_bytes, _memory())
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
        _keep(spent, output / "times.json")
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


def _interrupt(number: int, frame: object) -> NoReturn:
    """Once: a second Ctrl-C would leave commands running, which have sessions of their own."""
    _ignore_interruptions()
    raise KeyboardInterrupt


def _keep(spent: Spent, times: Path) -> None:
    earlier = json.loads(times.read_text("utf-8")) if times.exists() else []
    _write_json(times, [*earlier, asdict(spent)])


def _write_json(path: Path, value: Any) -> None:
    part = path.with_name(f".{path.name}")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(path)  # a half-written file is never seen


def _memory() -> int:
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


@contextmanager
def claimed(output: Path, kind: Mapping[str, Any]) -> Iterator[None]:
    """Hold a folder for one quickstart at a time, and of one kind: `quickstart.json` in it says which.

    Raises:
        InputError: it cannot be used, or is in use; nothing was touched.
    """
    if "," in str(output):
        raise InputError(f"--output: expected a path without a comma, which separates registries, got {output}")
    _check_kind(output, kind)
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{output}: another quickstart, or a command that one left, is at work there") from error
        _check_kind(output, kind)  # again: another one may have begun in between
        _write_json(output / "quickstart.json", kind)
        os.set_inheritable(lock.fileno(), True)
        (output / "logs").mkdir(exist_ok=True)
        yield


def _check_kind(output: Path, kind: Mapping[str, Any]) -> None:
    """Whether a folder is new, empty, or of an earlier quickstart of the same kind."""
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"{output}: expected a folder, found a file")
    record = output / "quickstart.json"
    if record.exists():
        try:
            found = json.loads(record.read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"{record}: expected seed and preset in JSON: {error}") from error
        if found != kind:
            raise InputError(f"{output}: expected a quickstart of {kind}, found {found}; name another --output")
    elif names := sorted({path.name for path in output.iterdir()} - {".lock", ".quickstart.json"}):
        raise InputError(
            f"{output}: expected a new folder or that of a quickstart, found {names[0]} but no quickstart.json; "
            "name another --output"
        )


def make_console(file: IO[str] | None = None) -> Console:
    """One that shows text as it is: no markup, no emoji, no line breaks in paths."""
    return Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=True)


def quickstart(output: Path, options: argparse.Namespace, console: Console) -> bool:
    """Run everything in a folder that is claimed; returns whether the claims hold."""
    times: list[Spent] = []
    for phase in phases(output, options.seed, options.from_scratch, options.preset):
        times.append(run_phase(phase, output, console))
        console.print(f"-- {phase.name}: {str(times[-1]).strip()} of memory in the highest sample")
    times.append(Spent("comparison"))
    began = time.monotonic()
    holds = show_comparison(output / "runs", output, preset=options.preset, with_scratch=options.from_scratch)
    times[-1].seconds, times[-1].memory_bytes, times[-1].finished = time.monotonic() - began, _memory(), True
    _keep(times[-1], output / "times.json")
    most = max(spent.memory_bytes for spent in times)
    together = Spent("together", seconds=sum(spent.seconds for spent in times), memory_bytes=most)
    console.print(f"{'':<20} {'time':>7}   memory, highest sample")
    for spent in (*times, together):
        console.print(f"{spent.phase:<20} {spent}{'   resumed' if spent.resumed else ''}")
    if any(spent.resumed for spent in times):
        console.print(f"resumed: its last launch only; {output / 'times.json'} has all of them")
    return holds


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument("--seed", type=int, default=0, help="of streams, weights and training")
    parser.add_argument("--preset", choices=list(LONGER), default="quickstart", help="full: an hour or two, no claims")
    parser.add_argument("--from_scratch", action="store_true", help="train stage 2 without stage 1, too")
    options = parser.parse_args()
    for number in INTERRUPTIONS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    console, output = make_console(), options.output.resolve()
    try:
        if not 0 <= options.seed < 2**32:
            raise InputError(f"--seed: expected a number from 0 to {2**32 - 1}, got {options.seed}")
        with claimed(output, {"seed": options.seed, "preset": options.preset}):
            holds = quickstart(output, options, console)
        console.print(NEXT, end="")
        return 0 if holds else 1
    except (InputError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except FailedCommandError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return failure.status if failure.status > 0 else 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
