#!/usr/bin/env python
"""The whole of it in small: make streams, train through both stages, evaluate, compare. Minutes on two CPU cores.

    bash scripts/quickstart.sh [--seed 0] [--output outputs/quickstart] [--preset quickstart|full] [--from_scratch]

Each phase runs commands that can be run by hand: they are printed, what they say goes to logs. A command whose result
stands is left out, and one that was interrupted goes on where it was, so that the same command again resumes. At the
end come a table, a plot, and the claims that the table has to bear out; exit status 1 if it does not, 2 if something
cannot be used.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quickstart_claims import show_comparison
from quickstart_phases import PRESET_FLAGS, Command, Phase, phases
from videochat_online.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # that the quickstart itself may be part of
NEXT = """
Next, with real weights (downloaded once, about 8 GB; wants a GPU) and with the tiny ones:
  source .venv/bin/activate # unless another environment is active
  videochat-online chat --model MCG-NJU/VideoChatOnline-4B --video outputs/world.mp4 --ask "15:Which way does it turn?"
  bash shell/eval/online_bench_stream.sh --model DIR --annotations FILE... --data-root DIR --output OUT
  bash shell/online_4b/videochat_online_4b_stage1_ft.sh --dry_run # then stage2; data: anno_data/README.md
  videochat-online chat --model outputs/tiny_model --video outputs/world.mp4 --ask "15:What is this?"
"""


class FailedCommandError(Exception):
    """A command failed; `status` is what it ended with."""

    def __init__(self, name: str, status: int, log: Path, since: int) -> None:
        self.status = status
        said = log.read_bytes()[since:].decode(errors="replace")
        end = "\n".join([line.rstrip() for line in said.splitlines() if line.strip()][-15:])
        super().__init__(f"{name} ended with status {status}; the end of {log}:\n{end}")


def write_json(path: Path, value: Any) -> None:
    """Write a file, whole or not at all."""
    part = path.with_name(f".{path.name}")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def check_kind(output: Path, kind: Mapping[str, Any]) -> None:
    """InputError unless a folder is new, empty, or of an earlier quickstart of the same kind."""
    record = output / "quickstart.json"
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: expected a folder, found a file")
    if record.exists():
        try:
            found = json.loads(record.read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"{record}: expected seed and preset in JSON: {error}") from error
        if found != kind:
            raise InputError(f"{output}: expected a quickstart of {kind}, found {found}; name another --output")
    elif output.exists() and (names := sorted({p.name for p in output.iterdir()} - {".lock", ".quickstart.json"})):
        raise InputError(
            f"{output}: expected a new folder or that of a quickstart, found {names[0]} but no quickstart.json; "
            "name another --output"
        )


@contextmanager
def claimed(output: Path, kind: Mapping[str, Any]) -> Iterator[int]:
    """Hold a folder for one quickstart at a time, and of one kind: `quickstart.json` in it says which.

    Yields:
        The descriptor of the lock; a command that has it too holds the folder until it ends.

    Raises:
        InputError: it cannot be used, or is in use; nothing was touched.
    """
    if "," in str(output):
        raise InputError(f"--output: expected a path without a comma, which separates registries, got {output}")
    check_kind(output, kind)
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{output}: another quickstart, or a command that one left, is at work there") from error
        check_kind(output, kind)  # again: another one may have begun in between
        write_json(output / "quickstart.json", kind)
        (output / "logs").mkdir(exist_ok=True)
        yield lock.fileno()


def environment(num_processes: int) -> dict[str, str]:
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


def run_together(commands: Sequence[Command], num_processes: int, output: Path, lock: int) -> None:
    """Run commands beside each other, each with so many processes; their logs go on below what earlier launches wrote.

    Raises:
        FailedCommandError: one of them failed; the others were told to end, and have.
    """
    running: list[tuple[Command, subprocess.Popen[bytes], Path, int]] = []
    try:
        for command in commands:
            path = output / "logs" / f"{command.name}.log"
            print(f"$ {shlex.join(command.words)} >>{path}", flush=True)
            with path.open("ab") as log:
                began = time.strftime("%Y-%m-%d %H:%M:%S%z")
                log.write(f"# {began} $ {shlex.join(command.words)}\n".encode())
                log.flush()
                since = log.tell()  # before the command moves it
                process = subprocess.Popen(
                    command.words,
                    cwd=ROOT,
                    env=environment(num_processes),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C reaches this process alone: torchrun leaves workers behind at a second signal.
                    start_new_session=True,
                    pass_fds=[lock],  # it holds the folder, should this process be killed
                )
                running.append((command, process, path, since))
        for command, process, path, since in running:
            if status := process.wait():
                raise FailedCommandError(command.name, status, path, since)
    except BaseException:
        for _, process, *_ in running:
            process.terminate()
        for _, process, *_ in running:
            process.wait()
        raise


def run_phase(phase: Phase, output: Path, lock: int) -> None:
    """Run those commands of a phase whose results do not stand; what that took is added to `times.json`."""
    todo = [command for command in phase.commands if not (output / command.result).exists()]
    if not todo:
        print(f"-- {phase.name}: done before", flush=True)
        return
    launch = {"phase": phase.name, "began": time.strftime("%Y-%m-%d %H:%M:%S%z"), "seconds": 0.0, "finished": False}
    began = time.monotonic()
    try:
        for first in range(0, len(todo), phase.at_once):
            run_together(todo[first : first + phase.at_once], phase.processes, output, lock)
        launch["finished"] = True
    finally:
        launch["seconds"] = time.monotonic() - began
        times = output / "times.json"
        write_json(times, [*(json.loads(times.read_text("utf-8")) if times.exists() else []), launch])
    print(f"-- {phase.name}: {launch['seconds']:.0f} s", flush=True)


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument("--seed", type=int, default=0, help="of streams, weights and training")
    parser.add_argument(
        "--preset", choices=list(PRESET_FLAGS), default="quickstart", help="full: an hour or two, no claims"
    )
    parser.add_argument("--from_scratch", action="store_true", help="train stage 2 without stage 1, too")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: commands have sessions of their own
        if signal.getsignal(number) == signal.SIG_DFL:  # not ignored, as under nohup
            signal.signal(number, signal.default_int_handler)
    output = options.output.resolve()
    try:
        if not 0 <= options.seed < 2**32:
            raise InputError(f"--seed: expected a number from 0 to {2**32 - 1}, got {options.seed}")
        with claimed(output, {"seed": options.seed, "preset": options.preset}) as lock:
            for phase in phases(output, options.seed, options.from_scratch, options.preset):
                run_phase(phase, output, lock)
            holds = show_comparison(output, preset=options.preset, with_scratch=options.from_scratch)
        print(NEXT, end="")
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
