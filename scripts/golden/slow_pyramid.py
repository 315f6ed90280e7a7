"""The Pyramid Memory Bank said again, slowly: lists, float64, every similarity computed anew.

What `PyramidMemoryBank` must agree with on any stream. Shares no code with it, resampling included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Grid = tuple[int, int]


@dataclass
class SlowFrame:
    """A remembered frame; `tokens` [C, H, W]."""

    index: int
    tokens: Array


@dataclass
class SlowPyramid:
    """Tiers as plain lists.

    `gaps` collects, for each eviction among several pairs, the index of the frame that caused it and the gap
    between the two highest similarities: below about 1e-5 another rounding may evict another frame.
    """

    capacities: tuple[int, ...]
    grids: tuple[Grid, ...]
    intervals: tuple[int, ...]
    policy: str
    gaps: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tiers: list[list[SlowFrame]] = [[] for _ in self.capacities]

    def write(self, index: int, tokens: Array) -> None:
        """Take the next frame."""
        self._now = index
        for level, interval in enumerate(self.intervals):
            if index % interval == 0:
                self._arrive(level, SlowFrame(index, tokens))
                return

    def indices(self) -> list[list[int]]:
        """Indices in each tier, as stored."""
        return [[frame.index for frame in tier] for tier in self.tiers]

    def read(self) -> list[SlowFrame]:
        """All frames in time order."""
        return sorted((frame for tier in self.tiers for frame in tier), key=lambda frame: frame.index)

    def _arrive(self, level: int, frame: SlowFrame) -> None:
        if level == len(self.tiers):
            return
        if self.capacities[level] == 0:
            self._arrive(level + 1, frame)
        else:
            pooled = replace(frame, tokens=average_pool(frame.tokens, self.grids[level]))
            self._settle(level, pooled, displaced_moves_down=True)

    def _settle(self, level: int, frame: SlowFrame, displaced_moves_down: bool) -> None:
        tier = self.tiers[level]
        displaced = tier.pop(self._most_redundant(tier)) if len(tier) == self.capacities[level] else None
        tier.append(frame)
        if self.policy == "paper":
            tier.sort(key=lambda frame: frame.index)
        if displaced is not None and displaced_moves_down:
            self._move_down(level + 1, displaced)

    def _move_down(self, level: int, frame: SlowFrame) -> None:
        if level == len(self.tiers):
            return
        resized = replace(frame, tokens=bilinear(frame.tokens, self.grids[level]))
        if self.capacities[level] == 0:
            self._move_down(level + 1, resized)
        else:
            self._settle(level, resized, displaced_moves_down=self.policy == "paper")

    def _most_redundant(self, tier: list[SlowFrame]) -> int:
        if len(tier) == 1:
            return 0
        means = [frame.tokens.mean(axis=(1, 2)) for frame in tier]
        cosines = [
            float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in zip(means, means[1:], strict=False)
        ]
        if len(cosines) > 1:
            second, first = sorted(cosines)[-2:]
            self.gaps.append((self._now, first - second))
        return cosines.index(max(cosines))


def average_pool(tokens: Array, grid: Grid) -> Array:
    """Cell (i, j) is the mean over rows floor(i H / h) .. ceil((i + 1) H / h), columns likewise."""
    channels, height, width = tokens.shape
    pooled = np.empty((channels, *grid))
    for i in range(grid[0]):
        rows = slice(i * height // grid[0], math.ceil((i + 1) * height / grid[0]))
        for j in range(grid[1]):
            columns = slice(j * width // grid[1], math.ceil((j + 1) * width / grid[1]))
            pooled[:, i, j] = tokens[:, rows, columns].mean(axis=(1, 2))
    return pooled


def bilinear(tokens: Array, grid: Grid) -> Array:
    """Each new pixel centre, in old pixel coordinates, between its four neighbours; edges repeat."""

    def weights(old: int, new: int) -> Array:
        matrix = np.zeros((new, old))
        for i in range(new):
            centre = max((i + 0.5) * old / new - 0.5, 0.0)
            low = min(int(centre), old - 1)
            matrix[i, low] += 1 - (centre - low)
            matrix[i, min(low + 1, old - 1)] += centre - low
        return matrix

    rows, columns = weights(tokens.shape[1], grid[0]), weights(tokens.shape[2], grid[1])
    return np.einsum("ih,chw,jw->cij", rows, tokens, columns)
