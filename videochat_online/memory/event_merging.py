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

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch

from videochat_online.errors import InputError
from videochat_online.memory.merging import MergingStore
from videochat_online.memory.pooling import demote_to_grid
from videochat_online.memory.schedule import (
    DEFAULT_FULL_GRID,
    Grid,
    as_tuple,
    check_count,
    check_grid,
    coarser_grid,
)
from videochat_online.memory.slots import FrameStore
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.types import FrameTokens


class EventMergingMemoryBank(TieredMemoryBank):
    """The newest frames at full size, and smaller event nodes of all that was before.

    A frame that leaves the newest ones becomes, resized bilinearly, a node of one frame. Beyond `event_frames` nodes
    the neighbours a, b of least penalty become their average, weighted by their sizes (numbers of frames):

        penalty = w1 (1 - cosine of mean tokens) / 2  +  w2 (size a + size b) / (size of all nodes)
                + w3 (1 - (now - time b) / (now - time of the oldest node))

    where now is the time of the newest node, and the last term is w3 where all nodes have one time. The earliest pair
    goes first on a tie. A node has the index and time of its newest member; a resized or merged frame gets a new,
    negative content id.

    Args:
        recent_frames: newest frames, at full size.
        event_frames: event nodes.
        penalty_weights: w1, w2, w3.
        full_grid: rows and columns of tokens of a full-size frame.
        grid: token grid of a node; default: `full_grid` halved. Budget: `recent_frames` times the tokens of
            `full_grid` and `event_frames` times those of `grid`.
        device: device that frames are kept on; None for that of the first frame.

    Raises:
        InputError: a count is no whole number of at least 1, the weights are not three finite numbers of at least 0,
            or a grid is none or larger than the full one.
    """

    kind = "event_merging"

    def __init__(
        self,
        *,
        recent_frames: int = 1,
        event_frames: int = 9,
        penalty_weights: Sequence[float] = (1.0, 1.0, 1.0),
        full_grid: Grid = DEFAULT_FULL_GRID,
        grid: Grid | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._num_recent = check_count(recent_frames, "recent_frames of an event_merging memory", 1)
        self._num_events = check_count(event_frames, "event_frames of an event_merging memory", 1)
        self._weights = _checked_weights(penalty_weights)
        self._full_grid = check_grid(full_grid, "full_grid")
        self._grid = coarser_grid(full_grid, 2) if grid is None else check_grid(grid, "grid")
        if self._grid[0] > self._full_grid[0] or self._grid[1] > self._full_grid[1]:
            raise InputError(f"grid of an event_merging memory: expected at most {self._full_grid}, got {self._grid}")
        super().__init__(
            options={
                "recent_frames": self._num_recent,
                "event_frames": self._num_events,
                "penalty_weights": self._weights,
                "full_grid": self._full_grid,
                "grid": self._grid,
            },
            device=device,
        )

    def _empty_stores(self) -> list[FrameStore]:
        return [FrameStore(self._num_recent, self._full_grid), MergingStore(self._num_events, self._grid)]

    def _admit(self, level: int, frame: FrameTokens) -> None:
        recent, events = self.stores[0], cast(MergingStore, self.stores[1])
        fitted = self._fit(frame, recent)
        if recent.is_full:
            past = recent.remove(0)
            if self._grid != self._full_grid:
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
            penalties.append(sum(weight * term for weight, term in zip(self._weights, terms, strict=True)))
        return penalties


def _checked_weights(weights: Sequence[float]) -> tuple[float, float, float]:
    values = as_tuple(weights, "penalty_weights of an event_merging memory")
    if len(values) != 3 or not all(isinstance(v, (int, float)) and math.isfinite(v) and v >= 0 for v in values):
        raise InputError(
            f"penalty_weights of an event_merging memory: expected three numbers of at least 0, got {weights!r}"
        )
    return (float(values[0]), float(values[1]), float(values[2]))
