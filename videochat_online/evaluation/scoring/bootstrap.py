"""Accuracies and their differences with intervals from a bootstrap over videos. All in percent.

Knows no benchmark: what is averaged over is said by keys. A resample draws whole videos, since the questions of one
video are not independent; two runs are resampled together, so that what they share cancels out. Intervals are
percentiles.

Shapes: `V` videos, `K` columns (values of a key), `R` resamples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from videochat_online.runs.row_file import Row

NUM_RESAMPLES = 1000

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy in percent, its 95% interval, and the number of questions behind it."""

    accuracy: float
    low: float
    high: float
    num_questions: int

    def as_dict(self) -> dict[str, float | int]:
        """For JSON."""
        return _rounded(self)


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of one run minus that of another on the same questions, in percentage points.

    Attributes:
        difference: above 0 where the first is better.
        low: lower end of the 95% interval.
        high: its upper end.
        num_videos: videos that the questions are about.
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
        return _rounded(self) | {"excludes_zero": self.excludes_zero}


def _rounded(figures: Score | Difference) -> dict[str, float | int]:
    return {name: round(value, 3) for name, value in asdict(figures).items()}


def scores_by(rows: Sequence[Row], key: Callable[[Row], Hashable], seed: int = 0) -> dict[Any, Score]:
    """Accuracy for each value of `key`, ages by age, the rest by name."""
    names, correct_VK, asked_VK = _counts(rows, key)
    found = zip(names, _figures(correct_VK, asked_VK, seed), asked_VK.sum(axis=0), strict=True)
    return {name: Score(*figures, int(num_asked)) for name, figures, num_asked in found}


def differences_by(
    rows: Sequence[Row], baseline: Sequence[Row], key: Callable[[Row], Hashable], seed: int = 0
) -> dict[Any, Difference]:
    """Paired difference between two runs for each value of `key`: a resample holds the same videos of both.

    Args:
        rows: answers of a run.
        baseline: another run's answers to the same questions, in any order.
        key: function from a row to the value that groups it, as for `scores_by`.
        seed: random seed of the bootstrap.

    Raises:
        ValueError: the questions are not the same.
    """
    names, gained_VK, asked_VK = _gains(rows, baseline, key)
    found = zip(names, _figures(gained_VK, asked_VK, seed), (asked_VK > 0).sum(axis=0), strict=True)
    return {name: Difference(*figures, int(num_videos)) for name, figures, num_videos in found}


def mean_of_means(rows: Sequence[Row], key: Callable[[Row], tuple[str, Hashable]], seed: int = 0) -> Score:
    """Mean over groups, each the mean over its types, each counting the same.

    Args:
        rows: answers of a run, at least one.
        key: group and type of a question.
        seed: random seed of the bootstrap. A resample may hold no question of a small type: the mean is then over the
            others.
    """
    return Score(*_mean_figures(*_counts(rows, key), seed), len(rows))


def difference_of_means(
    rows: Sequence[Row], baseline: Sequence[Row], key: Callable[[Row], tuple[str, Hashable]], seed: int = 0
) -> Difference:
    """Paired difference between two runs' `mean_of_means`; arguments and errors as for `differences_by`."""
    names, gained_VK, asked_VK = _gains(rows, baseline, key)
    # Both runs asked the same, so the difference of their means is the mean of what was gained.
    return Difference(*_mean_figures(names, gained_VK, asked_VK, seed), len(asked_VK))


def chances_by(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> dict[Any, tuple[float, float]]:
    """Accuracy that guessing gives on average and its standard error, both in percent, for each value of `key`.

    A guess at question i is right with probability p_i, 1 / its options, or 0 where there are none to guess from; the
    standard error is sqrt(mean(p_i (1 - p_i)) / n).
    """
    chances: dict[Any, list[float]] = defaultdict(list)
    for row in rows:
        chances[key(row)].append(1 / len(row["options"]) if row["options"] else 0.0)
    right = {name: np.array(some) for name, some in chances.items()}
    return {
        name: (100 * float(p.mean()), 100 * float(np.sqrt((p * (1 - p)).mean() / len(p)))) for name, p in right.items()
    }


def mean_of_chances(rows: Sequence[Row], key: Callable[[Row], tuple[str, Hashable]]) -> float:
    """`mean_of_means` that guessing gives on average, in percent."""
    chances = chances_by(rows, key)
    return float(_means(list(chances), np.array([[chance for chance, _ in chances.values()]]))[0])


def is_right(row: Row) -> bool:
    """Whether the run itself says that its answer is."""
    return bool(row["correct"])


def _figures(correct_VK: Array, asked_VK: Array, seed: int) -> list[tuple[float, float, float]]:
    """Accuracy of each column, and its interval."""
    resampled_RK = 100 * _ratios(correct_VK, asked_VK, seed)
    values_K = _accuracies(correct_VK, asked_VK)
    return [(float(value), *_interval(resampled_RK[:, k])) for k, value in enumerate(values_K)]


def _mean_figures(names: Sequence[Any], correct_VK: Array, asked_VK: Array, seed: int) -> tuple[float, float, float]:
    """Mean over groups of means over types, and its interval."""
    (value,) = _means(names, _accuracies(correct_VK, asked_VK)[None])
    return float(value), *_interval(_means(names, 100 * _ratios(correct_VK, asked_VK, seed)))


def _accuracies(correct_VK: Array, asked_VK: Array) -> Array:
    """Of all videos, [K]."""
    return 100 * correct_VK.sum(axis=0) / asked_VK.sum(axis=0)


def _means(names: Sequence[tuple[str, Hashable]], accuracies_RK: Array) -> Array:
    """Means [R] over groups of means over types, of what each row has; NaN stands for what it has not."""
    groups = sorted({group for group, _ in names})
    columns_of_groups = ([k for k, (group, _) in enumerate(names) if group == one] for one in groups)
    return _held_mean(np.stack([_held_mean(accuracies_RK[:, columns]) for columns in columns_of_groups], axis=1))


def _held_mean(accuracies_RK: Array) -> Array:
    """Mean [R] over the columns that hold questions; NaN where none does."""
    means_R: Array = np.ma.masked_invalid(accuracies_RK).mean(axis=1).filled(np.nan)
    return means_R


def _gains(
    rows: Sequence[Row], baseline: Sequence[Row], key: Callable[[Row], Hashable]
) -> tuple[list[Any], Array, Array]:
    """As `_counts`, with right answers of a run beyond the baseline's in place of right answers."""
    if sorted((row["id"], row["video"]) for row in rows) != sorted((row["id"], row["video"]) for row in baseline):
        raise ValueError("expected answers to the same questions about the same videos, got others")
    names, correct_VK, asked_VK = _counts(rows, key)
    return names, correct_VK - _counts(baseline, key)[1], asked_VK


def _counts(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> tuple[list[Any], Array, Array]:
    """Values of `key`, and for each video and value how many answers were right and how many were asked."""
    keyed = [(str(row["video"]), key(row), is_right(row)) for row in rows]
    names = sorted({name for _, name, _ in keyed}, key=_order)
    videos = {video: v for v, video in enumerate(sorted({video for video, _, _ in keyed}))}
    columns = {name: k for k, name in enumerate(names)}
    correct_VK, asked_VK = np.zeros((len(videos), len(names))), np.zeros((len(videos), len(names)))
    for video, name, right in keyed:
        asked_VK[videos[video], columns[name]] += 1
        correct_VK[videos[video], columns[name]] += right
    return names, correct_VK, asked_VK


def _ratios(correct_VK: Array, asked_VK: Array, seed: int) -> Array:
    """Accuracies [R, K] of resamples of as many videos as there are; NaN where nothing was asked."""
    num_videos = len(correct_VK)
    if num_videos == 0:
        return np.zeros((NUM_RESAMPLES, 0))
    weights_RV = _weights(num_videos, seed)
    asked_RK = weights_RV @ asked_VK
    return np.divide(weights_RV @ correct_VK, asked_RK, out=np.full(asked_RK.shape, np.nan), where=asked_RK > 0)


@lru_cache(maxsize=2)
def _weights(num_videos: int, seed: int) -> Array:
    """How often each resample draws each video, [R, V]. Kept: tables of one set draw alike, and drawing is slow."""
    weights_RV = np.random.default_rng(seed).multinomial(
        num_videos, np.full(num_videos, 1 / num_videos), size=NUM_RESAMPLES
    )
    drawn: Array = weights_RV.astype(np.float64)
    drawn.flags.writeable = False
    return drawn


def _interval(resampled_R: Array) -> tuple[float, float]:
    """Where 95% of the resamples lie; those that hold no question say nothing."""
    low, high = np.nanpercentile(resampled_R, (2.5, 97.5))
    return float(low), float(high)


def _order(name: Any) -> tuple[float, str]:
    """Buckets of age by their lower end, all else by name."""
    first = str(name).removeprefix("over ").split("-")[0].split(" ")[0]
    return (float(first) if first.isdigit() and str(name).find(" s") > 0 else -1.0, str(name))
