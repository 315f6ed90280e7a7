"""What the options of memories share: kinds of values, and sizes that fit a budget of tokens.

Budgets are full-size frames, so that no token grid needs to be known. The grids are taken to be a memory's defaults:
halves and quarters of the full grid in each direction, of a quarter and a sixteenth of the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from videochat_online.memory.schedule import Grid
from videochat_online.parts import option

HALF, QUARTER = 1 / 4, 1 / 16
"""Tokens of a frame on a grid of half and of a quarter of the rows and columns, as a share of a full-size frame's."""


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """Options of a memory."""

    ratio: ClassVar[int] = 1
    """What both directions of the full grid are divided by, where all frames are of one size."""

    @classmethod
    def sizes_within(cls, budget: float, given: Mapping[str, Any]) -> dict[str, int]:
        """The largest sizes within a budget, by name; published proportions are kept where there is room.

        Here that of a memory of `num_frames` frames of one size; none of a memory without that option.
        A size that comes out below 1 is for the memory to refuse.

        Args:
            budget: tokens, as a multiple of a full-size frame's.
            given: options that are set already. Sizes among them are kept, and what they leave is shared out.
        """
        return {"num_frames": int(budget * cls.ratio**2)} if hasattr(cls, "num_frames") else {}


@dataclass(frozen=True, kw_only=True)
class OneGridOptions(MemoryOptions):
    """Options of a memory whose frames are all of one size."""

    grid: Grid | None = option(None, "rows and columns of tokens of each frame", from_model=True)
