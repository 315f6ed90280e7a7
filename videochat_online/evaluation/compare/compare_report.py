"""A comparison for people: Markdown tables with a row for each run, and one of averages with a column for each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from videochat_online.evaluation.compare.compare import ComparedRun, Comparison, Figures
from videochat_online.evaluation.compare.finished_runs import listed
from videochat_online.evaluation.compare.flips import Flip
from videochat_online.evaluation.report.run_report import headline
from videochat_online.runs.markdown import cell, markdown_table

MOST_TEMPLATES = 8
"""More templates than this are too many columns: the answer types then stand for them."""

FLIPS_ENDINGS = (".jsonl", ".csv", ".md")

FEW_VIDEOS = 10
"""Resamples of fewer videos than this are nearly all alike."""


def render_comparison(comparison: Comparison, heading: str | None = None) -> str:
    """The comparison as Markdown, under a heading; without one, under the number of runs."""
    parts = [f"# {heading or f'{len(comparison.runs)} runs side by side'}", _introduction(comparison)]
    parts.append(_overview(comparison))
    if len((comparison.runs[0].averages or {}).get("cells", ())) > 1:
        parts += ["## Averages", _averages(comparison), *_differences(comparison)]
    if "evidence_age_s" in comparison.runs[0].groups:
        parts += ["## By age of the evidence", "How long ago was on view what the answer needs.", _by_age(comparison)]
    if comparison.protocol_differences:
        lines = [
            f"- {cell(label)}: `{found.name}` is `{found.now}`, not `{found.was}`"
            for label, found in comparison.protocol_differences
        ]
        parts += [
            "## Not alike",
            f"These runs differ from {cell(comparison.baseline)} in more than memory and strategy:",
            "\n".join(lines),
        ]
    return "\n\n".join(parts) + "\n"


def _introduction(comparison: Comparison) -> str:
    guessing = comparison.runs[0].overall
    lines = [
        f"{_count(comparison.num_questions, 'question')} about {_count(comparison.num_videos, 'video')}. Accuracy in "
        "percent, with 95% intervals of a bootstrap over videos. Guessing at all of them gives "
        f"{guessing.chance:.1f}, with a standard error of {guessing.chance_standard_error:.1f}.",
        f"Differences are to {cell(comparison.baseline)}, in points, the same videos resampled for both runs; "
        "**bold**: the interval excludes 0.",
    ]
    if comparison.num_unscored:
        count = _count(comparison.num_unscored, "open question")
        lines.append(f"Left out: {count} without a scorer or a verdict in one of the runs.")
    lines += _left_out(comparison)
    if comparison.where:
        kept = "; ".join(f"{key} = {', '.join(values)}" for key, values in comparison.where.items())
        lines.append(f"Only questions with {cell(kept)}.")
    if comparison.num_videos < FEW_VIDEOS:
        lines.append(f"Fewer than {FEW_VIDEOS} videos: the intervals say little.")
    return "\n".join(lines)


def _left_out(comparison: Comparison) -> list[str]:
    """Which questions not every run answered, and why."""
    short = [run for run in comparison.runs if run.num_left_out]
    if not short:
        return []
    counts = ", ".join(f"{run.num_left_out:,} of {cell(run.label)}" for run in short)
    lines = [f"Left out are questions that not every run answered: {counts}."]
    bad = [f"{cell(listed(run.bad_videos))} ({cell(run.label)})" for run in comparison.runs if run.bad_videos]
    return lines + ([f"Videos that could not be used: {'; '.join(bad)}."] if bad else [])


def _overview(comparison: Comparison) -> str:
    """Tokens, accuracy and difference of each run, and its accuracy on each kind of question."""
    kinds = _kinds(comparison.runs[0])
    rows = []
    for run in comparison.runs:
        is_baseline = run.label == comparison.baseline
        difference = "baseline" if is_baseline else _difference(run.overall.difference.as_dict())
        accuracies = [f"{run.groups[kinds][name].score.accuracy:.1f}" for name in run.groups[kinds]] if kinds else []
        rows.append([run.label, f"{run.visual_tokens_mean:.1f}", _score(run.overall), difference, *accuracies])
    first = comparison.runs[0]
    columns = first.groups[kinds] if kinds else {}
    rows += _footer(columns, ["", f"{first.overall.chance:.1f}", ""], ["", str(comparison.num_questions), ""])
    return markdown_table(["", "visual tokens", "all questions", "difference", *columns], rows)


def _kinds(run: ComparedRun) -> str | None:
    """What the columns stand for: templates where there are few, else answer types, nothing where there is one kind."""
    if 1 < len(run.groups.get("template", {})) <= MOST_TEMPLATES:
        return "template"
    return "answer_type" if len(run.groups["answer_type"]) > 1 else None


def _averages(comparison: Comparison) -> str:
    """The table of a paper: averages, answer types and cells below each other, runs beside each other."""
    columns = [_column(run) for run in comparison.runs]
    rows = []
    for name, first in columns[0].items():
        scores = (column[name] for column in columns)
        of_all = [f"{first['chance']:.1f}", str(first["num_questions"])] if first else ["-", "-"]
        rows.append([name, *("-" if score is None else _accuracy(score) for score in scores), *of_all])
    return markdown_table(["", *(run.label for run in comparison.runs), "chance", "questions"], rows)


def _differences(comparison: Comparison) -> list[str]:
    """The same rows, of each run what it is beyond the baseline."""
    others = [run for run in comparison.runs if run.label != comparison.baseline]
    columns = [{name: score for name, score in _column(run).items() if score is not None} for run in others]
    rows = [[name, *(_difference(column[name]["difference"]) for column in columns)] for name in columns[0]]
    title = f"### Differences to {cell(comparison.baseline)}"
    return [title, markdown_table(["", *(run.label for run in others)], rows)]


def _column(run: ComparedRun) -> dict[str, Mapping[str, Any] | None]:
    averages = run.averages or {}
    # Of one source, cells are the answer types again.
    cells = averages["cells"] if len(averages["cells"]) > len(averages["answer_types"]) else {}
    return {**headline(averages), **averages["answer_types"], **cells}


def _by_age(comparison: Comparison) -> str:
    rows = [
        [run.label, *(_score(figures) for figures in run.groups["evidence_age_s"].values())] for run in comparison.runs
    ]
    bands = comparison.runs[0].groups["evidence_age_s"]
    return markdown_table(["", *bands], rows + _footer(bands, [], []))


def _footer(columns: Mapping[str, Figures], chance: list[str], counts: list[str]) -> list[list[str]]:
    """What holds for all runs alike: chance, and the number of questions."""
    return [
        ["chance", *chance, *(f"{figures.chance:.1f}" for figures in columns.values())],
        ["questions", *counts, *(str(figures.score.num_questions) for figures in columns.values())],
    ]


def _score(figures: Figures) -> str:
    return _accuracy(figures.score.as_dict())


def _accuracy(score: Mapping[str, Any]) -> str:
    return f"{score['accuracy']:.1f} ({score['low']:.1f} to {score['high']:.1f})"


def _difference(gained: Mapping[str, Any]) -> str:
    text = f"{gained['difference']:+.1f} ({gained['low']:+.1f} to {gained['high']:+.1f})"
    return f"**{text}**" if gained["excludes_zero"] else text


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def render_flips(flips: Sequence[Flip], ending: str) -> str:
    """As JSON lines, CSV or a Markdown table, by an ending in `FLIPS_ENDINGS`."""
    names = [field.name for field in fields(Flip)]
    if ending == ".jsonl":
        return "".join(json.dumps(asdict(flip), ensure_ascii=False) + "\n" for flip in flips)
    if ending == ".csv":
        file = io.StringIO()
        table = csv.DictWriter(file, names, lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(flip) for flip in flips)
        return file.getvalue()
    return markdown_table(names, [list(map(_shown, asdict(flip).values())) for flip in flips], "---") + "\n"


def _shown(value: object) -> str:
    return {True: "right", False: "wrong"}[value] if isinstance(value, bool) else str(value)
