"""Generate streams with questions whose answers are known, and training rows.

    videochat-online synthesize --output DIR --seed N [--preset quickstart|full] [--json]

Writes videos, questions in OVBench's layout, training annotations and registries. The same seed gives the same
bytes. An interrupted run goes on where it stopped; a complete folder is left alone; a folder with anything else in
it is refused.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from videochat_online.synthetic import PRESETS, Synthesis, synthesize


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder to write; new, or of this run"
    )
    parser.add_argument("--seed", type=int, required=True, metavar="N", help="everything follows from it")
    parser.add_argument(
        "--preset", default="quickstart", metavar="NAME", help=f"{', '.join(PRESETS)} (default: quickstart)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(options: argparse.Namespace) -> int:
    """Generate, say what there is."""
    made = synthesize(options.output, seed=options.seed, preset=options.preset, show_progress=True)
    print(json.dumps(_row(made)) if options.json else _readable(made))  # noqa: T201
    return 0


def _row(made: Synthesis) -> dict[str, object]:
    return {
        "output": str(made.output),
        "was_complete": made.was_complete,
        "streams": made.num_streams,
        "questions": made.num_questions,
        "rows": made.num_rows,
    }


def _readable(made: Synthesis) -> str:
    state = " (complete already, left alone)" if made.was_complete else ""
    lines = [f"{made.output}{state}"]
    for title, counts in (
        ("streams", made.num_streams),
        ("benchmark questions", made.num_questions),
        ("training rows", made.num_rows),
    ):
        lines.append(f"  {title}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    return "\n".join(lines)
