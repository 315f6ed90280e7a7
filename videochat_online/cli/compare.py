r"""Put finished evaluations side by side: accuracy, paired differences to a baseline, age of the evidence.

    videochat-online compare RUN RUN ... [--labels NAME NAME ...] [--baseline NAME] \
        [--where KEY=VALUE[,VALUE] ...] [--across_protocols] [--common_questions] [--plot FILE.png] \
        [--radar FILE.png] [--output FILE.md] [--flips FILE.jsonl|.csv|.md] [--json]
    videochat-online compare RUN ... --score official [--labels NAME ...] [--output FILE.md] [--json]

A RUN is the output folder of `videochat-online evaluate`. All runs must have answered the same questions, with the
same model, under the same protocol but for memory and strategy; what differs is named. Prints Markdown.
`--score official` shows each run by the benchmark's own rules, beside ours; one run is enough.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videochat_online.errors import InputError
from videochat_online.evaluation import compare_runs
from videochat_online.evaluation.compare.compare_report import FLIPS_ENDINGS, render_comparison, render_flips
from videochat_online.evaluation.official import official_scores
from videochat_online.evaluation.official.scores import render_official
from videochat_online.evaluation.report.plots import accuracy_by_age, accuracy_by_type, save_figure
from videochat_online.extras import require
from videochat_online.runs.files import write_text

_FILES = {
    "plot": ((".png",), "the name of a PNG file such as ages.png"),
    "radar": ((".png",), "the name of a PNG file such as types.png"),
    "output": ((".md",), "the name of a Markdown file such as ages.md"),
    "flips": (FLIPS_ENDINGS, f"a file that ends in {', '.join(FLIPS_ENDINGS)}"),
}
"""Endings of the file that a flag names, and what is expected of it, by flag."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of an evaluation")
    parser.add_argument(
        "--labels", nargs="+", metavar="NAME", help="a name for each run (default: its memory and strategy)"
    )
    parser.add_argument("--baseline", metavar="NAME", help="label to measure the others against (default: the first)")
    parser.add_argument(
        "--where",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE[,VALUE]",
        help="only questions with one of these values, such as template=first_shape,first_place; all KEYs must fit",
    )
    parser.add_argument(
        "--across_protocols",
        action="store_true",
        help="compare runs that differ in more than memory and strategy; say in what",
    )
    parser.add_argument(
        "--common_questions", action="store_true", help="only questions that all runs answered; say how many are not"
    )
    parser.add_argument(
        "--score", choices=("ours", "official"), default="ours", help="official: each run by the benchmark's own rules"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw accuracy by age of the evidence")
    parser.add_argument("--radar", type=Path, metavar="FILE.png", help="draw accuracy by answer type")
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="write the tables to a file, too")
    parser.add_argument(
        "--flips",
        type=Path,
        metavar="FILE",
        help=f"write the questions that a run got right and the baseline not, or the other way round "
        f"({', '.join(FLIPS_ENDINGS)})",
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of tables")


def run(options: argparse.Namespace) -> int:
    """Compare, draw, write, print."""
    for name, (endings, expected) in _FILES.items():
        _check_target(f"--{name}", getattr(options, name), endings, expected, options.runs)
    if options.score == "official":
        return _official(options)
    comparison = compare_runs(
        options.runs,
        labels=options.labels,
        baseline=options.baseline,
        where=parse_where(options.where),
        across_protocols=options.across_protocols,
        only_common=options.common_questions,
    )
    text = render_comparison(comparison)
    drawings = ((accuracy_by_age, options.plot), (accuracy_by_type, options.radar))
    if any(path is not None for _, path in drawings):
        require("a plot", "matplotlib")
    figures = [(draw(comparison.runs), path) for draw, path in drawings if path is not None]
    for figure, path in figures:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path)
    if options.flips is not None:
        _write(options.flips, render_flips(comparison.flips, options.flips.suffix.lower()))
    return _show(text, comparison.as_dict(), options)


def _official(options: argparse.Namespace) -> int:
    """Each run by itself: nothing is paired, so what asks for pairs has no meaning."""
    given = ("baseline", "where", "across_protocols", "common_questions", "plot", "radar", "flips")
    unused = [f"--{name}" for name in given if getattr(options, name)]
    if unused:
        raise InputError(f"--score official: expected none of {', '.join(unused)}: each run is scored by itself")
    scored = official_scores(options.runs, options.labels)
    return _show(render_official(scored), {"score": "official", "runs": [one.as_dict() for one in scored]}, options)


def _show(text: str, values: dict[str, Any], options: argparse.Namespace) -> int:
    if options.output is not None:
        _write(options.output, text)
    print(json.dumps(values, ensure_ascii=False) if options.json else text.rstrip("\n"))  # noqa: T201
    return 0


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _check_target(flag: str, path: Path | None, endings: Sequence[str], expected: str, runs: Sequence[Path]) -> None:
    """A file of another kind is not written over by mistake, and a run is left as its evaluation left it."""
    if path is None:
        return
    if path.suffix.lower() not in endings:
        raise InputError(f"{flag}: expected {expected}, got {path}")
    for folder in runs:
        if path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{flag}: expected a file outside the runs that are compared, got {path} in {folder}")


def parse_where(texts: Sequence[str]) -> dict[str, list[str]]:
    """`["detail=fine", "template=a,b"]` -> `{"detail": ["fine"], "template": ["a", "b"]}`."""
    where: dict[str, list[str]] = {}
    for text in texts:
        key, _, values = text.partition("=")
        if not (key and all(values.split(","))):
            raise InputError(f"--where: expected KEY=VALUE[,VALUE] such as template=first_shape, got {text!r}")
        if key in where:
            raise InputError(f"--where: expected each key once with all its values, got {key!r} again")
        where[key] = values.split(",")
    return where
