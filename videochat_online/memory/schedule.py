"""The token schedule: which level, and so how many tokens, a frame gets from its absolute index.

Owns the one rule that training, streaming and evaluation share. Knows nothing of features or memories.
Source: VideoChat-Online (arXiv 2501.00584), Pyramid Memory Bank: each frame enters exactly one layer, the
first one whose sampling interval divides its index.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from videochat_online.errors import InputError

Grid = tuple[int, int]
"""Rows and columns of tokens."""

DEFAULT_INTERVALS = (8, 4, 1)
DEFAULT_FULL_GRID: Grid = (16, 16)


def as_tuple(values: object, name: str) -> tuple[Any, ...]:
    """`values` as a tuple; `name` is how the error calls them.

    Raises:
        InputError: they are neither list nor tuple.
    """
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise InputError(f"{name}: expected a list or tuple, got {values!r}")
    return tuple(values)


def check_grid(grid: Sequence[int], name: str) -> Grid:
    """Return `grid` as a pair of positive ints; `name` is how the error calls it.

    Raises:
        InputError: it is not two whole numbers of at least 1.
    """
    values = as_tuple(grid, name)
    if len(values) != 2 or not all(_is_int(value) and value >= 1 for value in values):
        raise InputError(f"{name} must be two whole numbers of at least 1 (rows, columns), got {values}")
    return (values[0], values[1])


def coarser_grid(full_grid: Sequence[int], ratio: int) -> Grid:
    """`full_grid` with both directions divided by `ratio`, at least one token.

    Raises:
        InputError: `full_grid` is not two whole numbers of at least 1.
    """
    rows, columns = check_grid(full_grid, "full_grid")
    return (max(1, rows // ratio), max(1, columns // ratio))


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
        object.__setattr__(self, "intervals", tuple(self.intervals))
        if not self.intervals or not all(_is_int(interval) and interval >= 1 for interval in self.intervals):
            raise InputError(f"intervals must be whole numbers of at least 1, got {self.intervals}")

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


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_count(value: object, name: str, least: int) -> int:
    """Return `value` if it is a whole number of at least `least`; `name` is how the error calls it.

    Raises:
        InputError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    return value
