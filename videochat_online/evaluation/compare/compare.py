"""Runs side by side: the same questions put in the same way to different memories, and what that changes.

Owns which questions are compared, and the figures. A question is described by the baseline's rows, so that all runs
form the same groups and resample the same videos. How a comparison looks is up to `compare_report` and `plots`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from videochat_online.errors import InputError, expect
from videochat_online.evaluation.compare.finished_runs import (
    FACTS,
    Run,
    common_questions,
    labels_of,
    listed,
    protocol_differences_between,
    read_run,
    without_unscored,
)
from videochat_online.evaluation.compare.flips import Flip, find_flips
from videochat_online.evaluation.scoring.averages import averages
from videochat_online.evaluation.scoring.bootstrap import Difference, Score, chances_by, differences_by, scores_by
from videochat_online.evaluation.scoring.metrics import EXTRA_KEYS, with_extra
from videochat_online.evaluation.task import Task
from videochat_online.evaluation.tasks import get_task
from videochat_online.runs.row_file import Row
from videochat_online.runs.run_folder import SettingDifference

GROUPS: dict[str, Callable[[Row], str]] = {"answer_type": lambda row: str(row["answer_type"]), **EXTRA_KEYS}
"""Functions that give a row's group, by the name of the grouping; all but the first only where the set says it."""

_GIVEN = ("correct", "num_visual_tokens", "text")
"""Keys of a run's row that are about its answer; all else that is compared is about the question."""


@dataclass(frozen=True, slots=True)
class Figures:
    """How one run did on some questions, in percent.

    Attributes:
        score: accuracy.
        difference: difference to the baseline; 0 for the baseline itself.
        chance: accuracy that guessing gives on average.
        chance_standard_error: standard error of guessing at that many questions.
    """

    score: Score
    difference: Difference
    chance: float
    chance_standard_error: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.score.as_dict(),
            "chance": round(self.chance, 3),
            "chance_standard_error": round(self.chance_standard_error, 3),
            "difference": self.difference.as_dict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """A run's line of the comparison.

    Attributes:
        label: its name, unique within the comparison.
        folder: the run's folder, as given.
        visual_tokens_mean: tokens of frames in a question's prompt, mean over the questions.
        overall: figures on all questions.
        groups: figures on the questions of each group: by a name in `GROUPS`, then by the group.
        averages: averages as results are published, each with its difference to the baseline, see `averages.averages`;
            None for a run on its own.
        num_left_out: questions of its set that not every run answered, so that they are not compared.
        bad_videos: names of the videos that it could not use.
    """

    label: str
    folder: Path
    visual_tokens_mean: float
    overall: Figures
    groups: Mapping[str, Mapping[str, Figures]]
    averages: Mapping[str, Any] | None = None
    num_left_out: int = 0
    bad_videos: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        groups = {
            f"by_{name}": {group: figures.as_dict() for group, figures in table.items()}
            for name, table in self.groups.items()
        }
        return {
            "label": self.label,
            "folder": str(self.folder),
            "num_left_out": self.num_left_out,
            "bad_videos": list(self.bad_videos),
            "visual_tokens_mean": round(self.visual_tokens_mean, 2),
            **self.overall.as_dict(),
            "averages": self.averages,
            **groups,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs side by side.

    Attributes:
        baseline: label of the run that the others are measured against.
        num_questions: questions that were compared.
        num_videos: videos that they are about.
        where: the values to which the questions were narrowed down.
        protocol_differences: settings in which a run, by its label, is not like the baseline; empty unless comparing
            across protocols was asked for.
        num_unscored: open questions that not every run has a score for, and that are not compared.
        flips: questions that a run got right and the baseline did not, or the other way round.
        runs: runs in the order given.
    """

    baseline: str
    num_questions: int
    num_videos: int
    where: Mapping[str, tuple[str, ...]]
    protocol_differences: tuple[tuple[str, SettingDifference], ...]
    runs: tuple[ComparedRun, ...]
    num_unscored: int = 0
    flips: tuple[Flip, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "baseline": self.baseline,
            "num_questions": self.num_questions,
            "num_videos": self.num_videos,
            "num_unscored": self.num_unscored,
            "where": {name: list(values) for name, values in self.where.items()},
            "protocol_differences": [
                {"label": label, "setting": found.name, "baseline": found.was, "run": found.now}
                for label, found in self.protocol_differences
            ],
            "runs": [run.as_dict() for run in self.runs],
        }


def compare_runs(
    folders: Sequence[Path],
    *,
    labels: Sequence[str] | None = None,
    baseline: str | None = None,
    where: Mapping[str, Sequence[str]] | None = None,
    across_protocols: bool = False,
    only_common: bool = False,
    seed: int = 0,
) -> Comparison:
    """Read runs, refuse what cannot be compared, and compute the figures.

    Args:
        folders: output folders of evaluations, at least two.
        labels: a name for each; None derives them from memories and strategies.
        baseline: label of the run to measure against; None for the first.
        where: values to keep, as text, for each key of a question that is named; all keys have to fit.
        across_protocols: list settings that differ instead of refusing them.
        only_common: leave questions out that not every run answered instead of refusing them.
        seed: random seed of the bootstrap; the default gives the intervals of `metrics.json`.

    Raises:
        InputError: a run is not there or not finished, the runs answered different questions or were made under
            different settings, or a label, key or value that there is not.
    """
    runs, num_unscored = without_unscored([read_run(folder) for folder in folders])
    if len(runs) < 2:
        raise InputError(f"expected at least two runs to compare, got {len(runs)}")
    names = labels_of(runs, labels)
    baseline = names[0] if baseline is None else baseline
    expect(baseline in names, "--baseline", f"one of {', '.join(map(repr, names))}", baseline)
    baseline_index = names.index(baseline)
    common = common_questions(runs, runs[baseline_index], only_common=only_common)
    found = protocol_differences_between(runs, names, runs[baseline_index])
    if found and not across_protocols:
        raise _not_alike(found, baseline)
    narrowed = {key: tuple(values) for key, values in (where or {}).items()}
    questions = _narrow(common, narrowed)
    answers = [_answers(questions, run) for run in runs]
    of_baseline = answers[baseline_index]
    task = _task_of(runs[baseline_index])
    flips = [one for name, rows in zip(names, answers, strict=True) for one in find_flips(name, rows, of_baseline)]
    compared = [
        replace(
            compared_run(name, run.folder, rows, of_baseline, seed=seed, task=task),
            num_left_out=run.num_questions - num_unscored - len(common),
            bad_videos=run.bad_videos,
        )
        for name, run, rows in zip(names, runs, answers, strict=True)
    ]
    return Comparison(
        baseline=baseline,
        num_questions=len(questions),
        num_videos=len({row["video"] for row in questions}),
        where=narrowed,
        protocol_differences=tuple(found),
        runs=tuple(compared),
        num_unscored=num_unscored,
        flips=tuple(flips),
    )


def _task_of(run: Run) -> Task:
    return get_task(run.settings["task"], run.settings.get("task_options"))


def _not_alike(found: Sequence[tuple[str, SettingDifference]], baseline: str) -> InputError:
    label = found[0][0]
    lines = [f"{one.name} is {one.now}, not {one.was}" for run, one in found if run == label]
    return InputError(
        f"{label} differs from {baseline} in more than memory and strategy: {'; '.join(lines)} "
        "(--across_protocols compares them nevertheless)"
    )


def _narrow(questions: Sequence[Row], where: Mapping[str, tuple[str, ...]]) -> list[Row]:
    """Questions that have one of the values for each key."""
    facts = [_facts(row) for row in questions]
    for key, values in where.items():
        present = [row[key] for row in facts if key in row]
        if not present:
            names = {name for of_row in facts for name in of_row}
            raise InputError(f"--where: no question has {key!r}; there are {listed(sorted(names))}")
        for value in values:
            if not any(_means(value, fact) for fact in present):
                there = {_as_text(fact) for fact in present}
                raise InputError(f"--where: no question has {key} = {value!r}; there are {listed(sorted(there))}")
    kept = [
        row
        for row, of_row in zip(questions, facts, strict=True)
        if all(key in of_row and any(_means(value, of_row[key]) for value in where[key]) for key in where)
    ]
    if not kept:
        raise InputError(f"--where: no question has all of {', '.join(where)} as asked for")
    return kept


def _facts(row: Row) -> dict[str, Any]:
    """What a question says about itself; lists and objects are no facts."""
    values = {**row["extra"], **{name: row[name] for name in FACTS}}
    return {name: value for name, value in values.items() if not isinstance(value, (list, dict))}


def _means(text: str, fact: Any) -> bool:
    """Whether a value of the command line is a fact: "9" and "9.0" are the number 9; a name is taken literally."""
    if isinstance(fact, (int, float)) and not isinstance(fact, bool):
        try:
            return float(text) == fact
        except ValueError:
            return False
    return text == _as_text(fact)


def _as_text(fact: Any) -> str:
    return fact if isinstance(fact, str) else json.dumps(fact)


def _answers(questions: Sequence[Row], run: Run) -> list[Row]:
    """The questions with this run's answers."""
    given = {row["id"]: row for row in run.rows}
    return [
        {**row, "text": "", **{name: value for name, value in given[row["id"]].items() if name in _GIVEN}}
        for row in questions
    ]


def compared_run(
    label: str,
    folder: Path,
    rows: Sequence[Row],
    baseline: Sequence[Row] | None = None,
    *,
    seed: int = 0,
    task: Task | None = None,
) -> ComparedRun:
    """A run's figures beside those of another, or of itself; `rows` must not be empty."""
    baseline, groups = rows if baseline is None else baseline, {}
    for name, key in GROUPS.items():
        known, of_baseline = (some if name == "answer_type" else with_extra(some, name) for some in (rows, baseline))
        if known:
            groups[name] = _figures(known, of_baseline, key, seed)
    return ComparedRun(
        label=label,
        folder=folder,
        visual_tokens_mean=fmean(row["num_visual_tokens"] for row in rows),
        overall=_figures(rows, baseline, lambda row: "all", seed)["all"],
        groups=groups,
        averages=None if task is None else averages(rows, task, seed=seed, baseline=baseline),
    )


def _figures(rows: Sequence[Row], baseline: Sequence[Row], key: Callable[[Row], str], seed: int) -> dict[str, Figures]:
    gained, chances = differences_by(rows, baseline, key, seed), chances_by(rows, key)
    return {name: Figures(score, gained[name], *chances[name]) for name, score in scores_by(rows, key, seed).items()}
