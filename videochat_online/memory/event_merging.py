"""Events of the past, the present in full: neighbours merge by what a merge would cost.

Source: the Persistent Event Memory Forest of StreamForest (arXiv 2509.24871): past frames are event nodes, and when
they exceed the budget the two neighbours of least penalty merge; the penalty weighs dissimilarity, how often the nodes
have merged, and temporal distance. From the paper: these three, neighbours only, and a window of fine frames for the
present. Our decisions, where the exact formulas are not known to us: the terms below, each within 0 and 1; temporal
distance is the distance from now, so that what is long ago merges first (the distance between neighbours would say the
same as their sizes, in a stream of constant rate); all nodes stand in one row, with no record of the tree; a merge is
the average token by token, weighted by sizes, where the paper merges tokens.

Shapes: `N` event nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

from annotated_types import Ge

from videochat_online.errors import InputError
from videochat_online.memory.merging import MergingStore
from videochat_online.memory.options import HALF, OneGridOptions
from videochat_online.memory.pooling import demote_to_grid
from videochat_online.memory.schedule import Count
from videochat_online.memory.slots import FrameStore
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.parts import option
from videochat_online.types import FrameTokens

_Weight = Annotated[float, Ge(0)]


class EventMergingMemoryBank(TieredMemoryBank):
    """The newest frames at full size, and smaller event nodes of all that was before.

    A frame that leaves the newest ones becomes, resized bilinearly, a node of one frame. Beyond `event_frames` nodes
    the neighbours a, b of least penalty become their average, weighted by their sizes (numbers of frames):

        penalty = w1 (1 - cosine of mean tokens) / 2  +  w2 (size a + size b) / (size of all nodes)
                + w3 (1 - (now - time b) / (now - time of the oldest node))

    where now is the time of the newest node, and the last term is w3 where all nodes have one time. The earliest pair
    goes first on a tie. A node has the index and time of its newest member; a resized or merged frame gets a new,
    negative content id.

    Raises:
        InputError: a count below 1, weights that are not three numbers of at least 0, or a grid that is none or larger
            than the full one.
    """

    kind = "event_merging"

    @dataclass(frozen=True, kw_only=True)
    class Options(OneGridOptions):
        """Options of the memory; its nodes' grid is half the full one unless another is given."""

        ratio = 2
        recent_frames: Count = option(1, "newest frames, full size")
        event_frames: Count = option(9, "event nodes")
        penalty_weights: tuple[_Weight, _Weight, _Weight] = option(
            (1.0, 1.0, 1.0), "w1, w2, w3: of dissimilarity, size and recency"
        )

        @classmethod
        def sizes_within(cls, budget: float, given: Mapping[str, Any]) -> dict[str, int]:
            """Recent frames at full size, nodes of a quarter of the tokens."""
            recent = given.get("recent_frames", cls.recent_frames)
            return {"recent_frames": recent, "event_frames": int((budget - recent) / HALF)}

    options: Options

    def _prepare(self) -> dict[str, Any]:
        super()._prepare()
        if self._grid[0] > self.full_grid[0] or self._grid[1] > self.full_grid[1]:
            raise InputError(f"grid of an event_merging memory: expected at most {self.full_grid}, got {self._grid}")
        return {"full_grid": self.full_grid, "grid": self._grid}

    def _empty_stores(self) -> list[FrameStore]:
        options = self.options
        return [FrameStore(options.recent_frames, self.full_grid), MergingStore(options.event_frames, self._grid)]

    def _admit(self, level: int, frame: FrameTokens) -> None:
        recent, events = self.stores[0], cast(MergingStore, self.stores[1])
        fitted = self._fit(frame, recent)
        if recent.is_full:
            past = recent.remove(0)
            if self._grid != self.full_grid:
                small_CHW = demote_to_grid(past.tokens_CHW, self._grid)
                past = replace(past, tokens_CHW=small_CHW, content_id=self._new_content_id())
            events.insert(len(events), past)
            if events.is_overfull:
                penalties = self._penalties(events)
                position = penalties.index(min(penalties))
                events.merge(position, position + 1, self._new_content_id())
        recent.insert(len(recent), fitted)

    def _penalties(self, events: MergingStore) -> list[float]:
        """Cost of merging each node with the next one, [N - 1]."""
        sizes = events.numbers
        times = [entry.time_s for entry in events.entries]
        span_s = times[-1] - times[0]
        penalties = []
        for left, cosine in enumerate(events.cosines()):
            age = (times[-1] - times[left + 1]) / span_s if span_s > 0 else 0.0
            terms = ((1 - cosine) / 2, (sizes[left] + sizes[left + 1]) / sum(sizes), 1 - age)
            weights = self.options.penalty_weights
            penalties.append(sum(weight * term for weight, term in zip(weights, terms, strict=True)))
        return penalties
