r"""Write a finished evaluation as the files that its benchmark's own scoring scripts read.

    videochat-online export --format ovobench|streamingbench|ovbench RUN --output DIR [--annotations FILE ...] \
        [--model_name NAME] [--partial]

RUN is the output folder of `videochat-online evaluate`, and DIR a new or empty one. The annotation files are read
again from where they were, or from --annotations. Prints the files; what is not in them is said on stderr.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from videochat_online.evaluation.official import OFFICIAL, export_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="output folder of an evaluation")
    parser.add_argument("--format", required=True, choices=sorted(OFFICIAL), help="the benchmark, which is the run's")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new or empty folder")
    parser.add_argument(
        "--annotations",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="the files that the run answered, if they were moved",
    )
    parser.add_argument("--model_name", metavar="NAME", help="the model in the files (default: last part of --model)")
    parser.add_argument(
        "--partial", action="store_true", help="export a run that could not use some videos, without those"
    )


def run(options: argparse.Namespace) -> int:
    """Write the files, name them, say what is not in them."""
    done = export_run(
        options.run_folder,
        options.output,
        options.format,
        annotations=options.annotations,
        model_name=options.model_name,
        partial=options.partial,
    )
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)  # noqa: T201
    for path in done.paths:
        print(path)  # noqa: T201
    return 0
