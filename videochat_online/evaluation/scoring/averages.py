"""The averages that results are published as: over cells, over answers, and a benchmark's own totals. In percent.

The published OVBench average is the mean over cells of answer type and source (action, event, object). Where a cell
leaks through the text, the average is also given without it. An average of another set of cells or tasks than the
published one is another figure: it says so in its name, or is not given.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from videochat_online.evaluation.scoring.bootstrap import (
    chances_by,
    difference_of_means,
    differences_by,
    mean_of_chances,
    mean_of_means,
    scores_by,
)
from videochat_online.evaluation.task import Average, Task
from videochat_online.runs.row_file import Row

WITHOUT = "without_object_existence"

Cell = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Answers:
    """Answers of a run, with those of the run it is measured against if there is one."""

    rows: Sequence[Row]
    baseline: Sequence[Row] | None
    seed: int

    def where(self, keep: Callable[[Row], bool]) -> _Answers:
        baseline = None if self.baseline is None else [row for row in self.baseline if keep(row)]
        return _Answers([row for row in self.rows if keep(row)], baseline, self.seed)

    def by(self, key: Callable[[Row], Hashable]) -> dict[str, dict[str, Any]]:
        """Accuracy for each value of `key`."""
        gained = {} if self.baseline is None else differences_by(self.rows, self.baseline, key, self.seed)
        guessing = chances_by(self.rows, key)
        return {
            " / ".join(name) if isinstance(name, tuple) else str(name): {
                **score.as_dict(),
                "chance": round(guessing[name][0], 3),
                **({"difference": gained[name].as_dict()} if name in gained else {}),
            }
            for name, score in scores_by(self.rows, key, self.seed).items()
        }

    def mean(self, key: Callable[[Row], tuple[str, Hashable]]) -> dict[str, Any] | None:
        """Mean over groups of means over types; None without answers."""
        if not self.rows:
            return None
        score: dict[str, Any] = mean_of_means(self.rows, key, self.seed).as_dict()
        score["chance"] = round(mean_of_chances(self.rows, key), 3)
        if self.baseline is not None:
            score["difference"] = difference_of_means(self.rows, self.baseline, key, self.seed).as_dict()
        return score

    def micro_average(self) -> dict[str, Any] | None:
        """Every answer counts alike."""
        return self.mean(lambda row: ("all", "all"))

    def cell_average(self, cell: Callable[[Row], Cell]) -> dict[str, Any] | None:
        """Every cell counts alike."""
        return self.mean(lambda row: ("all", cell(row)))


def cell_of(task: Task, row: Row) -> Cell:
    """Cell of a benchmark that a row's question falls into."""
    return task.cell(str(row["answer_type"]), row["dataset"])


def averages(
    rows: Sequence[Row], task: Task, *, seed: int = 0, baseline: Sequence[Row] | None = None
) -> dict[str, Any]:
    """What results are published as, for JSON.

    Args:
        rows: rows of `predictions.jsonl`; only what they say of their question, and `correct`, counts.
        task: its cells and totals.
        seed: random seed of the bootstrap.
        baseline: another run's answers to the same questions; every average then has its `difference` to theirs.

    Returns:
        `cell_average`, `micro_average`, `cells`, `answer_types`; `without_object_existence` where cells are set apart;
        `averages` with the task's own totals, None for one that lacks some of its tasks; `lacking`: what an average
        lacks of the published one; `average_titles`: what to show, by name, each figure once.

    Raises:
        ValueError: the baseline's questions are others.
    """
    cell = partial(cell_of, task)
    answers = _Answers(rows, baseline, seed)
    cells = {cell(row) for row in rows}
    figures: dict[str, Any] = {
        "cell_average": answers.cell_average(cell),
        "micro_average": answers.micro_average(),
        "cells": answers.by(cell),
        "answer_types": answers.by(lambda row: str(row["answer_type"])),
    }
    apart = sorted(cells & set(map(tuple, task.set_apart)))
    if apart:
        rest = answers.where(lambda row: cell(row) not in apart)
        figures[WITHOUT] = {
            "left_out": [" / ".join(key) for key in apart],
            "cell_average": rest.cell_average(cell),
            "micro_average": rest.micro_average(),
        }
    if task.averages:
        totals: dict[str, dict[str, Any] | None] = {}
        for average in task.averages:
            total = None
            if (is_chosen := chosen_by(average, task, rows)) is not None:
                chosen = answers.where(is_chosen)
                total = chosen.micro_average() if average.per_question else chosen.mean(cell)
            other = totals.get(average.beside or "")
            # Of no more questions than the one beside it, it would be a second name of one figure.
            is_another = not average.beside or (total and other and total["num_questions"] > other["num_questions"])
            totals[average.name] = total if is_another else None
        figures["averages"] = totals
    return figures | {"lacking": _lacking(cells, task), "average_titles": _titles(figures, cells, task)}


def chosen_by(average: Average, task: Task, rows: Sequence[Row]) -> Callable[[Row], bool] | None:
    """Which of a run's answers one of the benchmark's own averages is of.

    None where a task of its groups has no answers: it would be another figure.
    """
    cell = partial(cell_of, task)
    # A set that has none of the questions that count has all of its own counted.
    only = {
        kind: counts
        for kind, counts in average.only.items()
        if any(row["answer_type"] == kind and counts(row) for row in rows)
    }

    def is_chosen(row: Row) -> bool:
        counts = only.get(str(row["answer_type"]))
        return cell(row)[0] in average.groups and (counts is None or counts(row))

    return is_chosen if {cell(row) for row in filter(is_chosen, rows)} == _cells_of(average, task) else None


def _cells_of(average: Average, task: Task) -> set[Cell]:
    return {cell for cell in task.published_cells if cell[0] in average.groups}


def _lacking(cells: set[Cell], task: Task) -> dict[str, list[str]]:
    """What averages lack of the published ones; those that have nothing, or other cells, lack nothing."""
    wanted = {average.name: _cells_of(average, task) for average in task.averages if average.beside is None}
    if cells <= set(task.published_cells):
        wanted["cell_average"] = set(task.published_cells)
    lacking = {name: of_average - cells for name, of_average in wanted.items() if of_average & cells}
    return {name: _named(missing, cells, task) for name, missing in lacking.items() if missing}


def _named(missing: set[Cell], cells: set[Cell], task: Task) -> list[str]:
    """`forward` for a group of tasks that is missing as a whole, else each of the cells."""
    groups = {group for group, _ in missing} - {group for group, _ in cells} if task.type_groups else set()
    return sorted(groups | {" / ".join(cell) for cell in missing if cell[0] not in groups})


def _titles(figures: dict[str, Any], cells: set[Cell], task: Task) -> dict[str, str]:
    """Of the averages that there are, or lack something; of two names for one figure, the first."""
    if not cells:
        return {}
    groups = {group for group, _ in cells}
    known = [average for average in task.averages if figures["averages"][average.name] is not None]
    everything = [average for average in known if groups <= set(average.groups)]
    shown = [average for average in task.averages if average.beside is None or average in known]
    titles = {average.name: average.title for average in shown if groups & set(average.groups)}
    # The mean over the cells of one group is that group's own.
    if not any(len(average.groups) == 1 and not average.per_question for average in everything):
        titles["cell_average"] = _mean_of(cells, set(task.published_cells))
    if not any(average.per_question for average in everything):
        titles["micro_average"] = "all questions alike"
    if WITHOUT in figures and figures[WITHOUT]["micro_average"] is not None:
        apart = set(map(tuple, task.set_apart))
        rest = f"without {', '.join(figures[WITHOUT]['left_out'])}"
        titles[f"{WITHOUT}.cell_average"] = f"{_mean_of(cells - apart, set(task.published_cells) - apart)} {rest}"
        titles[f"{WITHOUT}.micro_average"] = f"all questions alike {rest}"
    return titles


def _mean_of(cells: set[Cell], published: set[Cell]) -> str:
    """Sets of one's own have other cells than the published ones."""
    share = f"{len(cells)} of {len(published)}" if cells < published else f"{len(cells)}"
    return f"mean of {share} cell{'' if share == '1' else 's'}"
