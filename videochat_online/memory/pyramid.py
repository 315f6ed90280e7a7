"""The Pyramid Memory Bank: tiers of frames from large to small, the most redundant frame moves down.

Source: VideoChat-Online (arXiv 2501.00584), Pyramid Memory Bank. Two policies are kept:
`"reference"` does what the released code does, on which published numbers depend, including two oddities:
a frame displaced by a demotion is dropped instead of moving further down (no cascade), and a demoted frame is
appended at the end of its tier, so that "adjacent" means adjacent in order of insertion there.
`"paper"` cascades, and its tiers stay in time order.

Shapes: `N` frames, `C` channels, `H` `W` rows and columns of the token grid.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, cast

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional

from videochat_online.errors import InputError
from videochat_online.memory.options import MemoryOptions
from videochat_online.memory.pooling import demote_to_grid
from videochat_online.memory.schedule import DEFAULT_INTERVALS, Grid, TokenSchedule, check_grids
from videochat_online.memory.slots import FrameStore, check_entry
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.parts import option
from videochat_online.types import FrameTokens


class PyramidMemoryBank(TieredMemoryBank):
    """Tiers of bounded size; a full tier sends its most redundant frame, made smaller, to the next tier.

    A new frame enters the tier of its level. If that is full, the earlier of the two adjacent residents with
    the most similar content (cosine of mean-pooled tokens, fp32; the first such pair on a tie) leaves before
    the new frame enters, is resized bilinearly, and enters the next tier by the same rule; the last tier
    drops it. The new frame is never a candidate itself.

    Capacity 0: a frame passes the tier at once. An arriving frame is pooled from what was written straight to
    the next tier that holds frames, and dropped where there is none; a demoted one is resized through each grid
    that it passes. Capacity 1:
    the resident leaves when another frame comes. (The released code never evicts at 0 and fails at 1.)

    A resized frame gets a new, negative content id.

    Raises:
        InputError: capacities, grids and intervals of different counts; a negative capacity, or none above 0; growing
            grids; an unknown policy.
    """

    kind = "pyramid"

    @dataclass(frozen=True, kw_only=True)
    class Options(MemoryOptions):
        """Options of the memory; the default capacities are the paper's for streams, 832 tokens."""

        capacities: tuple[Annotated[int, Ge(0)], ...] = option((2, 2, 12), "frames of each tier, largest frames first")
        grids: Sequence[Grid] | None = option(
            None, "token grid of each tier, none larger than the one before; None: full grid, halved", from_model=True
        )
        intervals: tuple[int, ...] = option(DEFAULT_INTERVALS, "see `TokenSchedule`", from_model=True)
        policy: Literal["reference", "paper"] = option("reference", "what becomes of a frame that leaves its tier")

    options: Options

    def _prepare(self) -> dict[str, Any]:
        options = self.options
        self._schedule = TokenSchedule(options.intervals)
        given = self._schedule.grids(self.full_grid) if options.grids is None else options.grids
        self._grids = check_grids(given, "grids")
        if not len(options.capacities) == len(self._grids) == self._schedule.num_levels:
            raise InputError(
                f"a pyramid memory needs one capacity, one grid and one interval for each tier, got capacities "
                f"{options.capacities}, grids {self._grids}, intervals {self._schedule.intervals}"
            )
        if not any(options.capacities):
            raise InputError(f"capacities: expected at least one above 0, got {options.capacities}")
        self._cascades = self._keeps_time_order = options.policy == "paper"
        return {"grids": self._grids}

    def _empty_stores(self) -> list[FrameStore]:
        return [_Tier(capacity, grid) for capacity, grid in zip(self.options.capacities, self._grids, strict=True)]

    def _stores_in_order(self) -> list[FrameStore]:
        return self.stores if self._keeps_time_order else []

    def _admit(self, level: int, frame: FrameTokens) -> None:
        open_tier = self._first_open_tier(level)
        if open_tier is not None:
            self._enter(open_tier, self._fit(frame, self.stores[open_tier]))

    def _enter(self, tier: int, frame: FrameTokens) -> None:
        """Put a fitted frame into its tier, and what it displaces into the tiers below."""
        incoming: FrameTokens | None = frame
        is_demotion = False
        while incoming is not None:
            store = cast(_Tier, self.stores[tier])
            outgoing, lower = None, None
            if store.is_full:
                displaced = store.evict()
                lower = self._first_open_tier(tier + 1)
                if lower is not None and (self._cascades or not is_demotion):
                    # Resized now: the next insert reuses the slot that `displaced` is a view of.
                    outgoing = self._demote(displaced, tier, lower)
            store.insert(self._position(store, incoming), incoming)
            if lower is not None:
                tier = lower
            incoming, is_demotion = outgoing, True

    def _position(self, store: FrameStore, frame: FrameTokens) -> int:
        if not self._keeps_time_order:
            return len(store)
        return bisect([entry.index for entry in store.entries], frame.index)

    def _demote(self, frame: FrameTokens, tier: int, lower: int) -> FrameTokens:
        """A copy of the frame on the grid of tier `lower`, resized through the grids in between."""
        tokens_CHW = frame.tokens_CHW
        for grid in self._grids[tier + 1 : lower + 1]:
            tokens_CHW = demote_to_grid(tokens_CHW, grid)
        if self._grids[lower] == self._grids[tier]:
            return replace(frame, tokens_CHW=tokens_CHW.clone())
        return replace(frame, tokens_CHW=tokens_CHW, content_id=self._new_content_id())

    def _first_open_tier(self, level: int) -> int | None:
        """The first tier from `level` down that holds frames, or None."""
        capacities = self.options.capacities
        return next((tier for tier in range(level, len(capacities)) if capacities[tier]), None)


class _Tier(FrameStore):
    """A store that knows how similar each of its frames is to the next one.

    A similarity is computed when two frames become neighbours and never again. It stays on the device until
    an eviction needs it: all that are still there come over in one transfer, the only wait for the device.
    """

    def __init__(self, capacity: int, grid: Grid) -> None:
        super().__init__(capacity, grid)
        self._similarities: list[float | Tensor] = []
        self._means_NC = torch.empty(0, 0)

    def allocate(self, num_channels: int, dtype: torch.dtype, device: torch.device) -> None:
        """Reserve slots for the frames and for the unit vectors of their mean tokens."""
        super().allocate(num_channels, dtype, device)
        with torch.inference_mode(False):
            self._means_NC = torch.empty(len(self.slots), num_channels, device=device)

    def insert(self, position: int, frame: FrameTokens) -> int:
        """Copy a frame into a free slot, listed at `position`, and compare it with its new neighbours."""
        slot = super().insert(position, frame)
        # fp32 whatever the features are: their noise in bf16 exceeds the gaps between similarities.
        mean_C = self.slots[slot].mean(dim=(1, 2), dtype=torch.float32)
        self._means_NC[slot].copy_(functional.normalize(mean_C, dim=0))
        if position > 0:
            # The pair that the frame comes between, if any, is no pair any more.
            self._similarities[position - 1 : position] = [self._similarity(position - 1, position)]
        if position + 1 < len(self):
            self._similarities.insert(position, self._similarity(position, position + 1))
        return slot

    def evict(self) -> FrameTokens:
        """Take out the earlier frame of the most similar pair; see `remove` for its tokens."""
        if len(self) == 1:
            return self.remove(0)
        self._fetch()
        similarities = cast(list[float], self._similarities)
        position = similarities.index(max(similarities))
        displaced = self.remove(position)
        del self._similarities[position]
        if position > 0:
            self._similarities[position - 1] = self._similarity(position - 1, position)
        return displaced

    def state(self) -> dict[str, Tensor]:
        """As `FrameStore.state`, with the means and similarities as they were computed."""
        self._fetch()
        means_NC = self._ordered(self._means_NC)
        return {**super().state(), "mean": means_NC, "similarity": torch.tensor(self._similarities)}

    def load(self, state: Mapping[str, Tensor], device: torch.device | None, name: str) -> None:
        """As `FrameStore.load`; means and similarities are taken over, not computed again."""
        super().load(state, device, name)
        num_frames, num_channels = state["tokens"].shape[:2]
        check_entry(state["mean"], f"{name}.mean", (num_frames, num_channels), torch.float32)
        check_entry(state["similarity"], f"{name}.similarity", (max(0, num_frames - 1),), torch.float32)
        for entry, mean_C in zip(self.entries, state["mean"], strict=True):
            self._means_NC[entry.slot].copy_(mean_C)
        self._similarities = list(state["similarity"].tolist())

    def _similarity(self, left: int, right: int) -> Tensor:
        """Cosine similarity of the mean tokens of the frames at two positions; a scalar on the device."""
        # Not a matrix product: autocast and TF32 would round it.
        return (self._means_NC[self.entries[left].slot] * self._means_NC[self.entries[right].slot]).sum()

    def _fetch(self) -> None:
        """Turn similarities that are still on the device into floats, in one transfer."""
        waiting = {pair: value for pair, value in enumerate(self._similarities) if isinstance(value, Tensor)}
        if waiting:
            for pair, value in zip(waiting, torch.stack(list(waiting.values())).tolist(), strict=True):
                self._similarities[pair] = value
