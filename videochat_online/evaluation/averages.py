"""The figures that a benchmark publishes, where they are not the mean of its cells. All in percent.

Shapes: `K` cells, `R` resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from videochat_online.evaluation.metrics import Row, Score, mean_of_means, micro_average, scores_by
from videochat_online.evaluation.records import Average, Task

PROACTIVE_WITHIN_S = (1, 2, 3, 4)
"""How far an output may be from its time, for the table of polled questions."""


def published_averages(rows: Sequence[Row], task: Task, seed: int = 0) -> dict[str, Any]:
    """What a benchmark publishes, for `metrics.json`; nothing for one that does not say.

    Args:
        rows: of `predictions.jsonl`.
        task: its averages and groups.
        seed: of the bootstrap.

    Returns:
        `averages`: a score or None for each name; `accuracy_of`: the first that has a score, and `accuracy`, its
        value; and where questions were polled `proactive`.
    """
    if not task.averages:
        return {}
    scores = {average.name: average_of(rows, task, average, seed) for average in task.averages}
    known = next((name for name, score in scores.items() if score is not None), None)
    score = None if known is None else scores[known]
    figures: dict[str, Any] = {
        "accuracy": None if score is None else round(score.accuracy, 3),
        "accuracy_of": known,
        "averages": {name: None if score is None else score.as_dict() for name, score in scores.items()},
        "average_titles": {average.name: average.title for average in task.averages},
    }
    polled = [row for row in rows if row.get("polls")]
    return figures | ({"proactive": _proactive(polled, seed)} if polled else {})


def average_of(rows: Sequence[Row], task: Task, average: Average, seed: int = 0) -> Score | None:
    """One of them; None where a group that belongs to it has no answers, so that it would be another figure."""

    def cell(row: Row) -> tuple[str, str]:
        return task.cell(str(row["answer_type"]), row["dataset"])

    kept = [row for row in rows if cell(row)[0] in average.groups]
    if {cell(row)[0] for row in kept} != set(average.groups):
        return None
    return micro_average(kept, seed) if average.per_question else mean_of_means(kept, cell, seed)


def _proactive(polled: Sequence[Row], seed: int) -> dict[str, Any]:
    """Polled questions: how near to its time an output came, and whether it was the right one."""

    def share(rights: Sequence[bool]) -> dict[str, float | int]:
        judged = [{**row, "correct": right} for row, right in zip(polled, rights, strict=True)]
        return scores_by(judged, lambda row: "all", seed)["all"].as_dict()

    gaps_s = [None if row["output_s"] is None else abs(row["output_s"] - row["due_s"]) for row in polled]
    return {
        "num_without_output": gaps_s.count(None),
        "num_polls": sum(len(row["polls"]) for row in polled),
        "within": {
            f"{limit_s} s": share([gap is not None and gap <= limit_s for gap in gaps_s])
            for limit_s in PROACTIVE_WITHIN_S
        },
        "in_time_and_right": share([bool(row["correct"] and row["output_correct"]) for row in polled]),
    }
