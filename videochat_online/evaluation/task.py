"""What a benchmark has to give: how its files are read, how its questions are worded, what it publishes.

`tasks/` has one file for each; everything else asks a `Task`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videochat_online.evaluation.benchmark import EvalQuestion, EvalSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """A figure that a benchmark publishes.

    Attributes:
        name: in `metrics.json`.
        title: in the report.
        groups: of answer types; the figure is not given where one of them has no answers.
        per_question: whether every question counts alike; else it is the mean of the groups' means over types.
        only: for an answer type, which of its questions count. A set that has none of these counts all of its own.
        beside: name of one of the same groups, which this one is given beside where it is of more questions.
    """

    name: str
    title: str
    groups: tuple[str, ...]
    per_question: bool = False
    only: Mapping[str, Callable[[Mapping[str, Any]], bool]] = field(default_factory=dict)
    beside: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A benchmark.

    Attributes:
        name: in `TASKS`.
        load: reads annotation files.
        prompt: question and options as the model reads them, without what a protocol appends.
        groups: from dataset to the group that forms cells with the answer types.
        cells: that it publishes an average over, where groups are of datasets; none: whatever cells there are.
        set_apart: cells (answer type, group) that the averages are also given without.
        folder_fps: rate of folders of frames by dataset, where the annotation need not say it.
        type_groups: from answer type to its group, where groups are of types and not of datasets.
        averages: what it publishes, the most important first; none: the mean of the cells.
        settings: for a setting, the values of its protocol that this benchmark has otherwise; under "reference" those
            of `--protocol reference`, where its scripts are known; under "contexts" the seconds (or infinity) that a
            window reaches back, by the name of each.
        notes: what a reader of its report has to know.
        scorer: of open questions that do not name one; None: they are in no figure, unless the run names one.
    """

    name: str
    load: Callable[[Sequence[Path]], EvalSet]
    prompt: Callable[[EvalQuestion], str]
    groups: Mapping[str, str] = field(default_factory=dict)
    cells: Sequence[tuple[str, str]] = ()
    set_apart: Sequence[tuple[str, str]] = ()
    folder_fps: Mapping[str, float] = field(default_factory=dict)
    type_groups: Mapping[str, str] = field(default_factory=dict)
    averages: Sequence[Average] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    scorer: str | None = None

    @property
    def published_cells(self) -> tuple[tuple[str, str], ...]:
        """All cells that belong to its averages; none where it does not say."""
        return tuple((group, kind) for kind, group in self.type_groups.items()) or tuple(self.cells)

    def cell(self, answer_type: str, dataset: str | None) -> tuple[str, str]:
        """Cell of a question: its type and its dataset's group, or its type's group and its type."""
        if self.type_groups:
            return self.type_groups[answer_type], answer_type
        return answer_type, self.group(dataset)

    def group(self, dataset: str | None) -> str:
        """Group of a dataset; one that the task does not know is a group of its own."""
        return "other" if dataset is None else self.groups.get(dataset, dataset)
