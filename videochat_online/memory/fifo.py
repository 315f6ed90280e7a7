"""The pyramid of tiers with first in, first out: the baseline for the choice of which frame moves down.

Source: the ablation of the Pyramid Memory Bank in VideoChat-Online (arXiv 2501.00584). Tiers, budget, schedule
and policies are those of `PyramidMemoryBank`; only the frame that leaves a full tier is another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from videochat_online.memory.pyramid import PyramidMemoryBank
from videochat_online.memory.schedule import DEFAULT_FULL_GRID, DEFAULT_INTERVALS, Grid
from videochat_online.memory.slots import FrameStore
from videochat_online.types import FrameTokens


class FifoMemoryBank(PyramidMemoryBank):
    """A pyramid whose full tier sends its oldest frame, made smaller, to the next tier.

    Oldest is the smallest index among the residents, wherever it stands in the tier; the frame that arrives is
    no candidate, even where a demotion brings one that is older still. Everything else, capacities 0 and 1 and
    the two policies included, is as in `PyramidMemoryBank`.

    Args:
        capacities: frames of each tier, from the largest frames to the smallest.
        full_grid: rows and columns of tokens of a full-size frame; only the default of `grids` needs it.
        grids: token grid of each tier, none larger than the one before; default: `full_grid` halved.
        intervals: see `TokenSchedule`.
        policy: "reference" or "paper".
        device: where frames are kept; None for that of the first frame.

    Raises:
        InputError: as `PyramidMemoryBank`.
    """

    def __init__(
        self,
        *,
        capacities: Sequence[int] = (2, 2, 12),
        full_grid: Grid = DEFAULT_FULL_GRID,
        grids: Sequence[Grid] | None = None,
        intervals: Sequence[int] = DEFAULT_INTERVALS,
        policy: str = "reference",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            capacities=capacities, full_grid=full_grid, grids=grids, intervals=intervals, policy=policy, device=device
        )
        self._config["kind"] = "fifo"

    def _empty_stores(self) -> list[FrameStore]:
        return [_Queue(capacity, grid) for capacity, grid in zip(self._capacities, self._grids, strict=True)]


class _Queue(FrameStore):
    """A tier that its oldest frame leaves first; compares no contents."""

    def evict(self) -> FrameTokens:
        """Take out the frame with the smallest index; see `remove` for its tokens."""
        indices = [entry.index for entry in self.entries]
        return self.remove(indices.index(min(indices)))
