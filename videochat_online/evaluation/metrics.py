"""From predictions to figures: averages over cells, per type, with confidence intervals. All in percent.

The published OVBench average is the mean over cells of answer type and source (action, event, object). Where a
cell leaks through the text, the average is also given without it. Intervals are percentiles of a bootstrap that
draws whole videos, since the questions of one video are not independent.

Shapes: `V` videos, `K` columns (cells or groups), `R` resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from videochat_online.evaluation.records import Task

NUM_RESAMPLES = 1000
AGE_EDGES_S = (2.0, 8.0, 32.0, 128.0, 512.0)
"""Upper ends of the buckets of evidence age; the last bucket is open."""

Array = npt.NDArray[np.float64]
Row = Mapping[str, Any]

EXTRA_KEYS: dict[str, Callable[[Row], str]] = {
    "evidence_age_s": lambda row: age_bucket(float(row["extra"]["evidence_age_s"])),
    "detail": lambda row: str(row["extra"]["detail"]),
    "template": lambda row: str(row["extra"]["template"]),
}
"""What generated sets say about a question, and the group it falls into by that."""


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy in percent, its 95% interval, and the number of questions behind it."""

    accuracy: float
    low: float
    high: float
    num_questions: int

    def as_dict(self) -> dict[str, float | int]:
        """For JSON."""
        return {
            "accuracy": round(self.accuracy, 3),
            "low": round(self.low, 3),
            "high": round(self.high, 3),
            "num_questions": self.num_questions,
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of one run minus that of another on the same questions, in percentage points.

    Attributes:
        difference: above 0 where the first is better.
        low: lower end of the 95% interval.
        high: its upper end.
        num_videos: behind it.
    """

    difference: float
    low: float
    high: float
    num_videos: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does; never for a single video, whose resamples are all alike."""
        return self.num_videos > 1 and (self.low > 0 or self.high < 0)

    def as_dict(self) -> dict[str, float | int | bool]:
        """For JSON."""
        return {
            "difference": round(self.difference, 3),
            "low": round(self.low, 3),
            "high": round(self.high, 3),
            "num_videos": self.num_videos,
            "excludes_zero": self.excludes_zero,
        }


def compute_metrics(rows: Sequence[Row], task: Task, *, seed: int = 0) -> dict[str, Any]:
    """Everything that can be said about the answers.

    Args:
        rows: of `predictions.jsonl`; one that names no option counts as wrong.
        task: how datasets form groups, and which cells are set apart.
        seed: of the bootstrap.
    """
    figures = averages(rows, task, seed=seed)
    by_cells = figures["cell_average"]
    figures |= {
        "accuracy": None if by_cells is None else by_cells["accuracy"],
        "sub_answer_types": _named(
            scores_by(rows, lambda row: f"{row['sub_answer_type']} / {task.group(row['dataset'])}", seed)
        ),
        "datasets": _named(scores_by(rows, lambda row: str(row["dataset"] or "other"), seed)),
        "chance": round(chance(rows)[0], 3) if rows else None,
        "num_correct": sum(bool(row["correct"]) for row in rows),
        "num_unparsed": sum(row["predicted_index"] is None and not row.get("polls") for row in rows),
    }
    return figures | _synthetic_tables(rows, seed)


def averages(rows: Sequence[Row], task: Task, *, seed: int = 0) -> dict[str, Any]:
    """The averages that results are published as: over cells, over answers, per cell and per type; as JSON.

    Args:
        rows: as for `compute_metrics`; only what they say of their question, and `correct`, counts.
        task: likewise.
        seed: likewise.
    """

    def cell(row: Row) -> tuple[str, str]:
        return task.cell(str(row["answer_type"]), row["dataset"])

    apart = set(map(tuple, task.set_apart))
    rest = [row for row in rows if cell(row) not in apart]
    cells = scores_by(rows, cell, seed)
    figures: dict[str, Any] = {
        "cell_average": _dict(_mean_over_groups(rows, cell, seed)),
        "micro_average": _dict(micro_average(rows, seed)),
        "cells": {" / ".join(key): score.as_dict() for key, score in cells.items()},
        "answer_types": _named(scores_by(rows, lambda row: str(row["answer_type"]), seed)),
    }
    if apart & cells.keys():
        figures["without_object_existence"] = {
            "left_out": [" / ".join(key) for key in sorted(apart & cells.keys())],
            "cell_average": _dict(_mean_over_groups(rest, cell, seed)),
            "micro_average": _dict(micro_average(rest, seed)),
        }
    return figures


def _synthetic_tables(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Tables by what generated sets say about a question, where they say it."""
    tables: dict[str, Any] = {}
    for name, key in EXTRA_KEYS.items():
        known = with_extra(rows, name)
        if known:
            tables[f"by_{name}"] = _named(scores_by(known, key, seed))
    both = with_extra(with_extra(rows, "evidence_age_s"), "detail")
    if both:
        names = ("evidence_age_s", "detail")
        scores = scores_by(both, lambda row: " / ".join(EXTRA_KEYS[name](row) for name in names), seed)
        tables["by_evidence_age_s_and_detail"] = _named(scores)
    return tables


def with_extra(rows: Sequence[Row], name: str) -> list[Row]:
    """Rows whose question says this about itself."""
    return [row for row in rows if row.get("extra", {}).get(name) is not None]


def age_bucket(age_s: float) -> str:
    """Name of the bucket of an evidence age: "0-2 s" has both its ends, "2-8 s" its upper one."""
    low = 0.0
    for high in AGE_EDGES_S:
        if age_s <= high:
            return f"{low:g}-{high:g} s"
        low = high
    return f"over {low:g} s"


def chance(rows: Sequence[Row]) -> tuple[float, float]:
    """Accuracy that guessing gives on average, and its standard error, both in percent; `rows` must not be empty.

    A guess at question i is right with p_i = 1 / its options (0 where there are none to guess from); the standard
    error is sqrt(mean(p_i (1 - p_i)) / n).
    """
    right = np.array([1 / len(row["options"]) if row["options"] else 0.0 for row in rows])
    return 100 * float(right.mean()), 100 * float(np.sqrt((right * (1 - right)).mean() / len(rows)))


def micro_average(rows: Sequence[Row], seed: int = 0) -> Score | None:
    """Accuracy over all answers alike; None where there are none."""
    return scores_by(rows, lambda row: "all", seed).get("all")


def scores_by(rows: Sequence[Row], key: Callable[[Row], Hashable], seed: int = 0) -> dict[Any, Score]:
    """Accuracy for each value of `key`, ages by age, the rest by name."""
    names, correct_VK, asked_VK = _counts(rows, key)
    resampled_RK = 100 * _ratios(correct_VK, asked_VK, seed)
    scores = {}
    for column, name in enumerate(names):
        asked = asked_VK[:, column].sum()
        scores[name] = _score(100 * correct_VK[:, column].sum() / asked, resampled_RK[:, column], int(asked))
    return scores


def differences_by(
    rows: Sequence[Row], baseline: Sequence[Row], key: Callable[[Row], Hashable], seed: int = 0
) -> dict[Any, Difference]:
    """Paired difference between two runs for each value of `key`: a resample holds the same videos of both.

    Args:
        rows: answers of a run.
        baseline: another run's answers to the same questions, in any order.
        key: as for `scores_by`.
        seed: of the bootstrap.

    Raises:
        ValueError: the questions are not the same.
    """
    if sorted((row["id"], row["video"]) for row in rows) != sorted((row["id"], row["video"]) for row in baseline):
        raise ValueError("expected answers to the same questions about the same videos, got others")
    names, correct_VK, asked_VK = _counts(rows, key)
    gained_VK = correct_VK - _counts(baseline, key)[1]
    resampled_RK = 100 * _ratios(gained_VK, asked_VK, seed)
    differences = {}
    for column, name in enumerate(names):
        asked_V = asked_VK[:, column]
        low, high = np.nanpercentile(resampled_RK[:, column], (2.5, 97.5))
        gained = 100 * float(gained_VK[:, column].sum() / asked_V.sum())
        differences[name] = Difference(gained, float(low), float(high), int((asked_V > 0).sum()))
    return differences


def _mean_over_groups(rows: Sequence[Row], key: Callable[[Row], Hashable], seed: int) -> Score | None:
    """Mean over the values of `key`, each counting the same."""
    if not rows:
        return None
    _, correct_VK, asked_VK = _counts(rows, key)
    resampled_RK = 100 * _ratios(correct_VK, asked_VK, seed)
    # A resample may hold no question of a small cell: its mean is then over the others.
    held_RK = ~np.isnan(resampled_RK)
    means_R = np.where(held_RK, resampled_RK, 0.0).sum(axis=1) / held_RK.sum(axis=1)
    return _score(float(np.mean(100 * correct_VK.sum(axis=0) / asked_VK.sum(axis=0))), means_R, len(rows))


def mean_of_means(rows: Sequence[Row], key: Callable[[Row], tuple[str, str]], seed: int = 0) -> Score | None:
    """Mean over groups, each the mean over its types, each counting the same; `key` gives group and type."""
    if not rows:
        return None
    names, correct_VK, asked_VK = _counts(rows, key)
    groups = [
        [place for place, (group, _) in enumerate(names) if group == one] for one in sorted({name[0] for name in names})
    ]
    observed_1K = 100 * (correct_VK.sum(axis=0) / asked_VK.sum(axis=0))[None]
    value_1, means_R = (
        np.nanmean([_held_mean(accuracies[:, places]) for places in groups], axis=0)
        for accuracies in (observed_1K, 100 * _ratios(correct_VK, asked_VK, seed))
    )
    return _score(float(value_1[0]), means_R, len(rows))


def _held_mean(accuracies_RK: Array) -> Array:
    """Mean [R] over the columns that hold questions; NaN where none does."""
    held_RK = ~np.isnan(accuracies_RK)
    num_held_R = held_RK.sum(axis=1)
    sums_R = np.where(held_RK, accuracies_RK, 0.0).sum(axis=1)
    return np.divide(sums_R, num_held_R, out=np.full(len(sums_R), np.nan), where=num_held_R > 0)


def _counts(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> tuple[list[Any], Array, Array]:
    """Values of `key`, and for each video and value how many answers were right and how many were asked."""
    keyed = [(str(row["video"]), key(row), bool(row["correct"])) for row in rows]
    names = sorted({name for _, name, _ in keyed}, key=_order)
    videos = {video: place for place, video in enumerate(sorted({video for video, _, _ in keyed}))}
    columns = {name: place for place, name in enumerate(names)}
    correct_VK, asked_VK = np.zeros((len(videos), len(names))), np.zeros((len(videos), len(names)))
    for video, name, is_correct in keyed:
        asked_VK[videos[video], columns[name]] += 1
        correct_VK[videos[video], columns[name]] += is_correct
    return names, correct_VK, asked_VK


def _ratios(correct_VK: Array, asked_VK: Array, seed: int) -> Array:
    """Accuracies [R, K] of resamples of as many videos as there are; NaN where nothing was asked."""
    num_videos = len(correct_VK)
    if num_videos == 0:
        return np.zeros((NUM_RESAMPLES, 0))
    weights_RV = np.random.default_rng(seed).multinomial(
        num_videos, np.full(num_videos, 1 / num_videos), size=NUM_RESAMPLES
    )
    asked_RK = weights_RV @ asked_VK
    return np.divide(weights_RV @ correct_VK, asked_RK, out=np.full(asked_RK.shape, np.nan), where=asked_RK > 0)


def _score(accuracy: float, resampled_R: Array, num_questions: int) -> Score:
    low, high = np.nanpercentile(resampled_R, (2.5, 97.5))
    return Score(float(accuracy), float(low), float(high), num_questions)


def _order(name: Any) -> tuple[float, str]:
    """Buckets of age by their lower end, all else by name."""
    first = str(name).removeprefix("over ").split("-")[0].split(" ")[0]
    return (float(first) if first.isdigit() and str(name).find(" s") > 0 else -1.0, str(name))


def _named(scores: Mapping[Any, Score]) -> dict[str, dict[str, float | int]]:
    return {str(name): score.as_dict() for name, score in scores.items()}


def _dict(score: Score | None) -> dict[str, float | int] | None:
    return None if score is None else score.as_dict()
