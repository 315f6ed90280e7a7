"""The token schedule: which level, and so how many tokens, a frame gets from its absolute index.

Owns the one rule that training, streaming and evaluation share. Knows nothing of features or memories.
Source: VideoChat-Online (arXiv 2501.00584), Pyramid Memory Bank: each frame enters exactly one layer, the
first one whose sampling interval divides its index.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from annotated_types import Ge, MinLen

from videochat_online.errors import InputError
from videochat_online.parts import Option

Count = Annotated[int, Ge(1)]
Grid = tuple[int, int]
"""Rows and columns of tokens."""

DEFAULT_INTERVALS = (8, 4, 1)
DEFAULT_FULL_GRID: Grid = (16, 16)


_GRID = Option("grid", tuple[Count, Count], DEFAULT_FULL_GRID, "rows and columns of tokens")
_GRIDS = Option("grids", tuple[tuple[Count, Count], ...], (DEFAULT_FULL_GRID,), "rows and columns of tokens")
_INTERVALS = Option(
    "intervals", Annotated[tuple[Count, ...], MinLen(1)], DEFAULT_INTERVALS, "frames from one to the next"
)


def check_grid(grid: object, name: str) -> Grid:
    """Return `grid` as a pair of positive ints; `name` is how the error calls it.

    Raises:
        InputError: it is not two whole numbers of at least 1.
    """
    checked: Grid = _GRID.check(grid, name)
    return checked


def check_grids(grids: object, name: str) -> tuple[Grid, ...]:
    """Return the grids of tiers, as `check_grid` does.

    Raises:
        InputError: they are no list of grids, or one is larger than the one before it.
    """
    checked: tuple[Grid, ...] = _GRIDS.check(grids, name)
    for larger, smaller in pairwise(checked):
        if smaller[0] > larger[0] or smaller[1] > larger[1]:
            raise InputError(f"{name}: expected them from the largest to the smallest, got {checked}")
    return checked


def coarser_grid(full_grid: Grid, ratio: int) -> Grid:
    """`full_grid` with both directions divided by `ratio`, at least one token."""
    return (max(1, full_grid[0] // ratio), max(1, full_grid[1] // ratio))


@dataclass(frozen=True, slots=True)
class TokenSchedule:
    """Absolute frame index -> level, where level l pools the frame by 2^l in each direction.

    A frame belongs to the first level l with `index % intervals[l] == 0`. A frame that no level matches is
    skipped: with intervals (8, 4, 2) the odd frames cost nothing and are never remembered.

    Attributes:
        intervals: frames between two frames of each level, from the largest frames to the smallest.

    Raises:
        InputError: no interval, or one that is not a whole number of at least 1.
    """

    intervals: tuple[int, ...] = DEFAULT_INTERVALS

    def __post_init__(self) -> None:
        # Lists come from YAML and JSON; the schedule must stay hashable.
        object.__setattr__(self, "intervals", _INTERVALS.check(self.intervals, "intervals"))

    @property
    def num_levels(self) -> int:
        """Levels, from the largest frames (0) to the smallest."""
        return len(self.intervals)

    def level(self, index: int) -> int | None:
        """Level of the frame with this absolute index, or None where the frame is skipped.

        Raises:
            InputError: the index is negative.
        """
        if index < 0:
            raise InputError(f"a frame index counts from 0 at the start of the stream, got {index}")
        for level, interval in enumerate(self.intervals):
            if index % interval == 0:
                return level
        return None

    def ratio(self, index: int) -> int | None:
        """Pooling ratio 2^level of the frame in each direction, or None where the frame is skipped."""
        level = self.level(index)
        return None if level is None else 2**level

    def grids(self, full_grid: Sequence[int] = DEFAULT_FULL_GRID) -> tuple[Grid, ...]:
        """Token grid of each level: `full_grid // 2**level`.

        Raises:
            InputError: a level would have no row or no column left.
        """
        rows, columns = check_grid(full_grid, "full_grid")
        grids = tuple((rows // 2**level, columns // 2**level) for level in range(self.num_levels))
        if min(grids[-1]) < 1:
            raise InputError(
                f"a full grid of {rows}x{columns} cannot be halved {self.num_levels - 1} times, as the "
                f"{self.num_levels} intervals {self.intervals} ask for"
            )
        return grids

    def num_tokens(self, indices: Iterable[int], full_grid: Sequence[int] = DEFAULT_FULL_GRID) -> list[int]:
        """Tokens that each of these frames costs in a prompt; 0 for a skipped frame."""
        sizes = [rows * columns for rows, columns in self.grids(full_grid)]
        levels = (self.level(index) for index in indices)
        return [0 if level is None else sizes[level] for level in levels]
