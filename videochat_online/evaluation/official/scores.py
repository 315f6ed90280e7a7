"""A finished run by its benchmark's own rules, beside what we read in the same replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videochat_online.errors import InputError
from videochat_online.evaluation.compare.load import Run, default_label, listed, read_run
from videochat_online.evaluation.official.figures import OfficialAverage, Scoring, our_rule
from videochat_online.evaluation.official.official_ovbench import OVBENCH
from videochat_online.evaluation.official.official_ovobench import OVOBENCH
from videochat_online.evaluation.official.official_streamingbench import STREAMINGBENCH
from videochat_online.evaluation.run.results import Row

OFFICIAL: dict[str, Scoring] = {"ovbench": OVBENCH, "ovobench": OVOBENCH, "streamingbench": STREAMINGBENCH}
"""By the name of the task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialFigure:
    """A benchmark's own figure by both readings, in percent.

    Attributes:
        script: whose rule it is by.
        name: key in JSON.
        title: name for people, which says what it is the mean of.
        official: value by the script's rule; None without answers.
        ours: value of the same average by our parser.
        num_questions: number of questions that it is over.
    """

    script: str
    name: str
    title: str
    official: float | None
    ours: float | None
    num_questions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialScores:
    """A run by official rules.

    Attributes:
        label: its name.
        folder: folder of the run, as given.
        task: the benchmark.
        num_questions: number of questions with a reply.
        num_unanswered: number of questions about videos that could not be used.
        bad_videos: names of these videos.
        skips: words for what the scripts do with such questions.
        figures: the most important first.
        only_official: of each script, how many replies are right by its rule and wrong by ours.
        only_ours: the other way round.
    """

    label: str
    folder: Path
    task: str
    num_questions: int
    num_unanswered: int
    bad_videos: tuple[str, ...]
    skips: str
    figures: tuple[OfficialFigure, ...]
    only_official: dict[str, int]
    only_ours: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        scripts: dict[str, Any] = {}
        for one in self.figures:
            figure = {"title": one.title, "official": one.official, "ours": one.ours}
            figures = scripts.setdefault(one.script, {"figures": {}})["figures"]
            figures[one.name] = figure | {"num_questions": one.num_questions}
        for name, script in scripts.items():
            script |= {"only_official": self.only_official[name], "only_ours": self.only_ours[name]}
        return {
            "label": self.label,
            "folder": str(self.folder),
            "task": self.task,
            "num_questions": self.num_questions,
            "num_unanswered": self.num_unanswered,
            "bad_videos": list(self.bad_videos),
            "scripts": scripts,
        }


def official_scores(folder: Path, label: str | None = None) -> OfficialScores:
    """Score a finished run by its benchmark's own rules.

    Args:
        folder: folder of the run.
        label: its name; None for what it remembered.

    Raises:
        InputError: no finished run, or one that has no official score: of another task, of questions of one's own,
            or without replies in words.
    """
    run = read_run(folder)
    scoring = scoring_of(run)
    figures: list[OfficialFigure] = []
    only_official, only_ours = {}, {}
    for script, rule in scoring.rules.items():
        theirs, ours = (scoring.averages(script, run.rows, one) for one in (rule, our_rule))
        figures += [_figure(script, *pair) for pair in zip(theirs, ours, strict=True)]
        judged = [(rule(row), our_rule(row)) for row in run.rows]
        only_official[script] = judged.count((True, False))
        only_ours[script] = judged.count((False, True))
    return OfficialScores(
        label=default_label(run.settings) if label is None else label,
        folder=folder,
        task=run.settings["task"],
        num_questions=len(run.rows),
        num_unanswered=run.num_questions - len(run.rows),
        bad_videos=run.bad_videos,
        skips=scoring.skips,
        figures=tuple(figures),
        only_official=only_official,
        only_ours=only_ours,
    )


def scoring_of(run: Run) -> Scoring:
    """The rules of a run's benchmark.

    Raises:
        InputError: it has none, or the run's replies cannot be scored by them; names the run and what is in the way.
    """
    task, answer_by = run.settings["task"], run.settings["answer_by"]
    if task not in OFFICIAL:
        raise InputError(
            f"{run.folder}: expected a run of {', '.join(OFFICIAL)}, which have official scores, got {task!r}"
        )
    if answer_by != "generation":
        raise InputError(
            f"{run.folder}: official scores need what the model wrote (--answer_by generation), got {answer_by!r}"
        )
    scoring = OFFICIAL[task]
    others = [row for row in run.rows if not scoring.reads(row)]
    if others:
        raise InputError(
            f"{run.folder}: expected questions of {task}, which have official scores, found {len(others)} others, "
            f"such as {others[0]['id']} ({others[0]['answer_type']}, dataset {others[0]['dataset']})"
        )
    for row in run.rows:
        _check_polls(run, row)
    return scoring


def _check_polls(run: Run, row: Row) -> None:
    if row.get("polls") and not all(name in row for name in ("output", "output_s", "due_s")):
        raise InputError(
            f"{run.folder}: {row['id']}: expected its row to say `output`, found an older run's: answer it again"
        )


def _figure(script: str, theirs: OfficialAverage, ours: OfficialAverage) -> OfficialFigure:
    values = [None if one.percent is None else round(one.percent, 4) for one in (theirs, ours)]
    return OfficialFigure(
        script=script,
        name=theirs.name,
        title=theirs.title,
        official=values[0],
        ours=values[1],
        num_questions=theirs.num_questions,
    )


def render_official(runs: Sequence[OfficialScores]) -> str:
    """Markdown: a section for each run, a table for each script."""
    parts = ["# Official scores", "Percent. Both columns are the benchmark's own averages: they differ by the parser."]
    for run in runs:
        parts += [f"## {run.label}", _about(run)]
        for script in run.only_official:
            lines = [f"| `{script}` | official | ours | difference | questions |", "|---|---:|---:|---:|---:|"]
            lines += [_line(one) for one in run.figures if one.script == script]
            parts.append("\n".join(lines))
            parts.append(
                f"Right by `{script}` alone: {run.only_official[script]:,} replies; "
                f"by our parser alone: {run.only_ours[script]:,}."
            )
    return "\n\n".join(parts) + "\n"


def _about(run: OfficialScores) -> str:
    text = f"`{run.task}`, {run.num_questions:,} replies."
    if run.num_unanswered:
        text += (
            f" Not in these figures: {run.num_unanswered:,} questions about videos that could not be used"
            f" ({listed(run.bad_videos)}); the official code {run.skips}."
        )
    return text


def _line(figure: OfficialFigure) -> str:
    if figure.official is None or figure.ours is None:
        return f"| {figure.title} | - | - | - | {figure.num_questions:,} |"
    difference = figure.official - figure.ours
    return (
        f"| {figure.title} | {figure.official:.2f} | {figure.ours:.2f} | {difference:+.2f} | {figure.num_questions:,} |"
    )
