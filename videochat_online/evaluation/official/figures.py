"""What official rules make of a run: figures with names, beside those of our own reading of the same answers.

A rule says of a row of `predictions.jsonl` whether its reply is right. Both columns of a figure are the benchmark's
own average: what differs between them is how replies are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videochat_online.evaluation.compare.load import Run
from videochat_online.evaluation.run.results import Row

Rule = Callable[[Row], bool]


def our_rule(row: Row) -> bool:
    """What the run itself says."""
    return bool(row["correct"])


@dataclass(frozen=True, slots=True)
class OfficialAverage:
    """A figure by one rule, in percent.

    Attributes:
        name: key in JSON.
        title: name for people, which says what it is the mean of.
        percent: its value; None where it has no answers.
        num_questions: number of questions that it is over.
    """

    name: str
    title: str
    percent: float | None
    num_questions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A run and the annotation files that it answered, for the files that official scripts read.

    Attributes:
        run: finished.
        model: name of the model in the files.
        annotations: content of each file by its name, as it was read.
        questions: texts that were asked, by where they stand: file, row, part.
        rows: the run's, by the same.
    """

    run: Run
    model: str
    annotations: Mapping[str, Any]
    questions: Mapping[tuple[str, int, int | None], Any]
    rows: Mapping[tuple[str, int, int | None], Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How a benchmark's own code scores replies.

    Attributes:
        averages: the figures it publishes, by a rule for each of its scripts.
        rules: rule of each of its scripts, by name; the first is the one that decides.
        files: content of the files that its scripts read, by their path; texts, or what becomes JSON.
        reads: whether a row is of a kind that its scripts know.
        skips: words for what its scripts do with questions that have no reply, for people.
    """

    rules: Mapping[str, Rule]
    averages: Callable[[str, Sequence[Row], Rule], list[OfficialAverage]]
    files: Callable[[Exported], dict[str, Any]]
    reads: Callable[[Row], bool]
    skips: str


def average(name: str, title: str, rows: Sequence[Row], rule: Rule) -> OfficialAverage:
    """All rows alike."""
    percent = 100 * sum(rule(row) for row in rows) / len(rows) if rows else None
    return OfficialAverage(name, title, percent, len(rows))


def mean_of(name: str, title: str, parts: Sequence[OfficialAverage]) -> OfficialAverage:
    """All parts alike, however many questions they have."""
    values = [part.percent for part in parts if part.percent is not None]
    return OfficialAverage(
        name, title, sum(values) / len(values) if values else None, sum(part.num_questions for part in parts)
    )


def by(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by a key, in order of their first."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups
