"""What a benchmark has to give: how its files are read, how its questions are worded, what it publishes.

`tasks/` has one file for each; everything else asks a `Task`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videochat_online.errors import expect
from videochat_online.evaluation.benchmark import EvalQuestion, EvalSet, check_set


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """A figure that a benchmark publishes.

    Attributes:
        name: its key in `metrics.json`.
        title: its words in the report.
        groups: groups of answer types that it is over; it is not given where one of them has no answers.
        per_question: whether every question counts alike; else it is the mean of the groups' means over types.
        only: rule for an answer type, of which questions count. A set that has none of these counts all of its own.
        beside: name of an average over the same groups, beside which this one is given where it is of more questions.
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
        name: name that it is found by in `tasks.TASKS`; `get_task` puts it in place of any other.
        load: reader of its annotation files; everything else calls `read`.
        prompt: question and options as the model reads them, without what a protocol appends.
        groups: group of each dataset, which forms cells with the answer types.
        cells: cells that it publishes an average over, where groups are of datasets; none: whatever cells there are.
        set_apart: cells (answer type, group) that the averages are also given without.
        type_groups: group of each answer type, where groups are of types and not of datasets.
        averages: figures that it publishes, the most important first; none: the mean of the cells.
        settings: values of a setting's protocol that this benchmark has otherwise, by the setting; under "reference"
            those of `--protocol reference`, where its scripts are known; under "contexts" the seconds (or infinity)
            that a window reaches back, by the name that the report has for each.
        notes: sentences that a reader of its report has to know.
        scorer: scorer of open questions that do not name one; None: they are in no figure, unless the run names one.
        files: annotation files that its options name, none where they name none; None: `--annotations` names them.
        options: values that it was made with, as runs record them; see `tasks.get_task`.
    """

    name: str
    load: Callable[[Sequence[Path]], EvalSet]
    prompt: Callable[[EvalQuestion], str]
    groups: Mapping[str, str] = field(default_factory=dict)
    cells: Sequence[tuple[str, str]] = ()
    set_apart: Sequence[tuple[str, str]] = ()
    type_groups: Mapping[str, str] = field(default_factory=dict)
    averages: Sequence[Average] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    scorer: str | None = None
    files: Sequence[Path] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def annotations(self, given: Sequence[Path] | None) -> tuple[Path, ...]:
        """Its annotation files: those that `--annotations` gives, or those that its own options name.

        Raises:
            InputError: none, or both.
        """
        if self.files is None:
            expect(bool(given), "--annotations", f"the files of task {self.name!r}", None)
            return tuple(given or ())
        others = ", ".join(map(str, given or ()))
        expect(not given, "--annotations", f"none, as the options of task {self.name!r} say it", others)
        expect(len(self.files) > 0, f"task {self.name!r}", "options that name its file, such as --task.file", None)
        return tuple(self.files)

    def read(self, paths: Sequence[Path]) -> EvalSet:
        """What `load` finds in annotation files, if it can be evaluated.

        Raises:
            InputError: what `load` raises; something else than a set, or one that cannot be asked or scored.
        """
        found, what = self.load(paths), f"task {self.name!r}"
        expect(isinstance(found, EvalSet), what, "load to give an EvalSet", found)
        check_set(found, what)
        types = {question.answer_type for question in found.questions} - set(self.type_groups or ())
        expect(not (self.type_groups and types), what, "answer types of type_groups", sorted(types))
        return found

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
