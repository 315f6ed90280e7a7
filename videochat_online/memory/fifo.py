"""The pyramid of tiers with first in, first out: the baseline for the choice of which frame moves down.

Source: the ablation of the Pyramid Memory Bank in VideoChat-Online (arXiv 2501.00584). Tiers, budget, schedule
and policies are those of `PyramidMemoryBank`; only the frame that leaves a full tier is another.
"""

from __future__ import annotations

from videochat_online.memory.pyramid import PyramidMemoryBank
from videochat_online.memory.slots import FrameStore
from videochat_online.types import FrameTokens


class FifoMemoryBank(PyramidMemoryBank):
    """A pyramid whose full tier sends its oldest frame, made smaller, to the next tier.

    Oldest is the smallest index among the residents, wherever it stands in the tier; the frame that arrives is
    no candidate, even where a demotion brings one that is older still. Everything else, the options, capacities
    0 and 1 and the two policies included, is as in `PyramidMemoryBank`.
    """

    kind = "fifo"
    goes_by_order = True

    def _empty_stores(self) -> list[FrameStore]:
        return [_Queue(capacity, grid) for capacity, grid in zip(self.options.capacities, self._grids, strict=True)]


class _Queue(FrameStore):
    """A tier that its oldest frame leaves first; compares no contents."""

    def evict(self) -> FrameTokens:
        """Take out the frame with the smallest index; see `remove` for its tokens."""
        indices = [entry.index for entry in self.entries]
        return self.remove(indices.index(min(indices)))
