#!/usr/bin/env python
"""The whole of it in small: make streams, train through both stages, evaluate, compare. Minutes on two CPU cores.

    bash scripts/quickstart.sh [--seed 0] [--output outputs/quickstart] [--preset quickstart|full] [--from_scratch]

Each phase runs commands that can be run by hand: they are printed, what they say goes to logs. Each goes on where it
was interrupted and leaves alone what is finished, so that the same command again resumes. At the end come a table, a
plot, and the claims that the table has to bear out; exit status 1 if it does not.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console

from quickstart_claims import show_comparison

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
"""Pyramid, FIFO pyramid and six full-size frames hold 96 visual tokens each."""
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


@dataclass(frozen=True)
class Phase:
    """Commands that are run `at_once` at a time, each as so many processes."""

    name: str
    commands: dict[str, list[str]]
    at_once: int = 1
    processes: int = 1


class FailedCommandError(Exception):
    """A command failed."""

    def __init__(self, name: str, status: int, log: Path) -> None:
        super().__init__(f"{name} ended with status {status}; the end of {log}:\n{_last_lines(log)}")
        self.status = status


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


def run_phase(phase: Phase, logs: Path, console: Console) -> tuple[float, int]:
    """Run the commands of a phase; returns seconds and the most bytes of memory held at once.

    Raises:
        FailedCommandError: one of them failed; those that ran beside it are ended.
    """
    began = told = time.monotonic()
    measured, peak, waiting = -math.inf, 0, dict(phase.commands)
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        with console.status(phase.name) as status:
            while waiting or running:
                while waiting and len(running) < phase.at_once:
                    name = next(iter(waiting))
                    running[name] = _start(waiting.pop(name), logs / f"{name}.log", phase.processes, console)
                time.sleep(0.2)
                if time.monotonic() - measured > SECONDS_BETWEEN_MEASUREMENTS:
                    measured, peak = time.monotonic(), max(peak, _memory())
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    code = running.pop(name).returncode
                    if code:
                        raise FailedCommandError(name, code, logs / f"{name}.log")
                news = "; ".join(f"{name}: {_last_news(logs / f'{name}.log')}" for name in running)
                status.update(f"{phase.name} {time.monotonic() - began:.0f} s  {news}")
                if not console.is_terminal and time.monotonic() - told > SECONDS_BETWEEN_LINES and running:
                    told = time.monotonic()
                    console.print(f"   {told - began:.0f} s  {news}", soft_wrap=True, highlight=False)
    finally:
        for process in running.values():
            if process.poll() is None:  # two may have ended at once
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    return time.monotonic() - began, peak


def _start(command: list[str], log: Path, num_processes: int, console: Console) -> subprocess.Popen[bytes]:
    console.print(f"$ {shlex.join(command)}", style="dim", soft_wrap=True, highlight=False)
    variables = {
        # Two threads on two busy cores wait for each other most of the time.
        "OMP_NUM_THREADS": "1",
        "GPUS": str(num_processes),
        "MASTER_PORT": str(20000 + os.getpid() % 20000),  # so that two quickstarts do not meet
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        # The programs of this environment, whether it is active or not.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
    }
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | variables,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children can be ended with it
        )


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


def _last_news(log: Path) -> str:
    """The latest word on progress in a log: a bar, a loss, or its last line."""
    text = log.read_bytes()[-4000:].decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    told = [line for line in lines if re.search(r"\d+/\d+|'loss'", line)]
    return ([*lines, *told] or ["starts"])[-1][:100]


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument("--seed", type=int, default=0, help="of streams, weights and training")
    parser.add_argument("--preset", choices=list(LONGER), default="quickstart", help="full: an hour or two, no claims")
    parser.add_argument("--from_scratch", action="store_true", help="train stage 2 without stage 1, too")
    options = parser.parse_args()
    # Commands have sessions of their own: they would outlive this process and get in the way of the next.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    console = Console(highlight=False)
    output = options.output.absolute()
    logs = output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    times = []
    try:
        for phase in phases(output, options.seed, options.from_scratch, options.preset):
            seconds, peak = run_phase(phase, logs, console)
            times.append((phase.name, seconds, peak))
            console.print(f"-- {phase.name}: {seconds:.0f} s, {peak / 2**30:.1f} GiB at most")
    except FailedCommandError as failure:
        console.print(f"error: {failure}", markup=False)
        return failure.status if failure.status > 0 else 1
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        return 130
    began = time.monotonic()
    holds = show_comparison(output / "runs", output, preset=options.preset, with_scratch=options.from_scratch)
    times.append(("comparison", time.monotonic() - began, _memory()))
    for name, seconds, peak in times:
        console.print(f"{name:<16} {seconds:5.0f} s   {peak / 2**30:.1f} GiB")
    total, peak = sum(seconds for _, seconds, _ in times), max(peak for *_, peak in times)
    console.print(f"{'together':<16} {total:5.0f} s   {peak / 2**30:.1f} GiB")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
