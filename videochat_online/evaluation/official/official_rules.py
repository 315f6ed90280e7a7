"""Averages of a benchmark's own scripts by a rule, and what each benchmark says of its scripts.

A rule says of a row of `predictions.jsonl` whether its reply is right. The scripts' arithmetic is theirs: no intervals,
nothing left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videochat_online.evaluation.benchmark import EvalQuestion, Source
from videochat_online.evaluation.compare.finished_runs import Run
from videochat_online.runs.row_file import Row

Rule = Callable[[Row], bool]


@dataclass(frozen=True, slots=True)
class OfficialAverage:
    """A figure by one rule, in percent.

    Attributes:
        name: key in JSON.
        title: name for people, which says what it is the mean of.
        percent: its value.
        num_questions: number of questions that it is over.
    """

    name: str
    title: str
    percent: float
    num_questions: int

    @classmethod
    def of_rows(cls, name: str, title: str, rows: Sequence[Row], rule: Rule) -> OfficialAverage:
        """All rows alike; there must be one."""
        return cls(name, title, 100 * sum(map(rule, rows)) / len(rows), len(rows))

    @classmethod
    def of_parts(cls, name: str, title: str, parts: Sequence[OfficialAverage]) -> OfficialAverage:
        """All parts alike, however many questions they have."""
        percent = sum(part.percent for part in parts) / len(parts)
        return cls(name, title, percent, sum(part.num_questions for part in parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A run and the annotation files that it answered, for the files that official scripts read.

    Attributes:
        run: finished run.
        model: name of the model in the files.
        annotations: content of each file by its name, as it was read.
        questions: questions that were asked, by where they stand in the annotation files.
        rows: rows of the run, by the same.
    """

    run: Run
    model: str
    annotations: Mapping[str, Any]
    questions: Mapping[Source, EvalQuestion]
    rows: Mapping[Source, Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialRules:
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


def rows_by(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by a key, in order of their first."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups
