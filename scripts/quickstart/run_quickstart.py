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
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from quickstart_claims import show_comparison
from quickstart_phases import PRESET_FLAGS, phases
from quickstart_processes import (
    INTERRUPTIONS,
    FailedCommandError,
    Spent,
    interrupt,
    keep,
    run_phase,
    used_memory,
    write_json,
)
from videochat_online.errors import InputError

NEXT = """
Next, with real weights (downloaded once, about 8 GB; wants a GPU) and with the tiny ones:
  source .venv/bin/activate # unless another environment is active
  videochat-online chat --model MCG-NJU/VideoChatOnline-4B --video outputs/world.mp4 --ask "15:Which way does it turn?"
  bash shell/eval/online_bench_stream.sh --model DIR --annotations FILE... --data-root DIR --output OUT
  bash shell/online_4b/videochat_online_4b_stage1_ft.sh --dry_run # then stage2; data: anno_data/README.md
  videochat-online chat --model outputs/tiny_model --video outputs/world.mp4 --ask "15:What is this?"
"""


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
        write_json(output / "quickstart.json", kind)
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
    times[-1].seconds, times[-1].memory_bytes, times[-1].finished = time.monotonic() - began, used_memory(), True
    keep(times[-1], output / "times.json")
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
    parser.add_argument(
        "--preset", choices=list(PRESET_FLAGS), default="quickstart", help="full: an hour or two, no claims"
    )
    parser.add_argument("--from_scratch", action="store_true", help="train stage 2 without stage 1, too")
    options = parser.parse_args()
    for number in INTERRUPTIONS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, interrupt)
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
