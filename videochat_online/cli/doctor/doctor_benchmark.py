"""What `videochat-online doctor --annotations` finds in a benchmark, as text and as a report."""

from __future__ import annotations

import argparse
from pathlib import Path

from videochat_online.cli.options import check_report_path, processes_of
from videochat_online.cli.parser import Parser
from videochat_online.errors import InputError
from videochat_online.evaluation import TASKS, get_task
from videochat_online.evaluation.check.annotation_check import FINDING_KINDS, NOTES
from videochat_online.evaluation.check.benchmark_check import TIME_LIMIT_S, Inspection, inspect_benchmark
from videochat_online.runs.progress import progress

SHOWN = 5
"""Reasons of each kind on the screen; the report has all."""


def add_benchmark_arguments(parser: Parser) -> None:
    """Arguments that go with `--annotations`; `--processes` and `--report` come with the registries'."""
    group = parser.add_part(TASKS, "ovbench", "benchmark", default="ovbench")
    group.add_argument("--annotations", nargs="+", type=Path, metavar="FILE", help="check its videos and questions")
    group.add_argument("--data_root", type=Path, metavar="DIR", help="the videos are somewhere below it")
    group.add_argument(
        "--time_limit_s",
        type=float,
        metavar="X",
        help=f"for a video, then it is given up (default: {TIME_LIMIT_S:g}; none with --processes 0)",
    )
    group.add_argument(
        "--decode_all", action="store_true", help="decode whole videos, not only both ends of what questions need"
    )
    group.add_argument("--zero_start", action="store_true", help="times count from a video's first frame")


def inspect_annotations(options: argparse.Namespace) -> Inspection:
    """Inspect the benchmark, with progress on stderr.

    Raises:
        InputError: annotations or data root that cannot be read, a number out of range, or no place for the report:
            before the first file is looked at.
    """
    if options.data_root is None:
        raise InputError("--data_root: expected the folder with the videos, got none")
    num_processes, limit_s = processes_of(options), options.time_limit_s
    if limit_s is not None and not limit_s > 0:
        raise InputError(f"--time_limit_s: expected a time above 0, got {limit_s:g}")
    if limit_s is not None and not num_processes:
        raise InputError("--time_limit_s: expected --processes of 1 or more, which can be ended in time, got 0")
    check_report_path(options.report)
    task = get_task(options.task, options.task_options)
    annotations = task.annotations(options.annotations)
    with progress("files") as tell:
        return inspect_benchmark(
            task,
            annotations,
            options.data_root,
            num_processes=num_processes,
            time_limit_s=TIME_LIMIT_S if limit_s is None else limit_s,
            decode_all=options.decode_all,
            zero_start=options.zero_start,
            on_done=tell,
        )


def inspection_text(found: Inspection) -> str:
    """Counts, then the first reasons."""
    counts = found.as_dict()
    lines = [
        f"{counts['num_videos']:,} videos, {counts['num_questions']:,} questions: {counts['num_bad_videos']:,} videos "
        f"with problems, {counts['num_bad_rows']:,} unusable rows, {counts['num_corrupt_archives']:,} corrupt archives"
    ]
    reasons: dict[str, list[str]] = {kind: [] for kind in FINDING_KINDS}
    for one in found.videos:
        for finding in one.findings:
            reasons[finding.kind].append(f"{one.name}: {finding.reason}")
    rows = {
        f"{kind}{' (only a note)' if kind in NOTES else ''}: {meaning}": reasons[kind]
        for kind, meaning in FINDING_KINDS.items()
    }
    rows["rows that cannot be used"] = list(found.bad_rows)
    rows["archives"] = [f"{path}: {facts.problem}" for path, facts in found.archives.items() if facts.problem]
    for title, of_kind in rows.items():
        if of_kind:
            lines += [f"{len(of_kind):,} x {title}", *(f"    {line}" for line in of_kind[:SHOWN])]
        if len(of_kind) > SHOWN:
            lines.append(f"    and {len(of_kind) - SHOWN:,} more; --report FILE.json lists all")
    return "\n".join(lines)


def benchmark_problem(found: Inspection) -> str | None:
    """All that is wrong in one line; None if nothing is."""
    if found.is_sound:
        return None
    return (
        f"{found.num_bad_videos} of {len(found.videos)} videos have problems, {len(found.bad_rows)} rows cannot be "
        f"used, {len(found.corrupt_archives)} archives are corrupt"
    )
