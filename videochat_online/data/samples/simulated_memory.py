"""Which frames of a training clip a memory would still hold, and how small: rows laid out as a session lays them out.

A model that is to answer from a memory has to have seen what one leaves: gaps in the numbering, large old frames
among small new ones. The memory itself decides, by the code that decides in a session. It compares thumbnails, since
no vision tower runs where data is loaded: where content decides which frames survive, others may survive here than
features would keep. Only how many frames of each size are left is the same, whatever they show (with `similarity_drop`
at most so many). A memory that merges frames decides which are shown, and a merged one is shown as its newest member.

Shape legend: `T` frames, `S` pixels a side, `C` values of a thumbnail, `H` `W` token grid of a full-size frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from videochat_online.data.samples.pixel_reader import Pixels
from videochat_online.errors import InputError, shown
from videochat_online.memory import DEFAULT_INTERVALS, Grid, MemoryBank, make_model_memory
from videochat_online.memory.labels import settings_of
from videochat_online.parts import check_names
from videochat_online.types import FrameTokens, FrameUse

THUMBNAIL_SIDE = 8
MAX_FRAMES = 1_000_000
"""Most frames of a memory: more than eleven days at a frame a second. Memories allocate as many slots."""

MAX_TIERS = 16
"""Largest number of tiers; each halves the token grid."""


class SimulatedMemory:
    """A memory that decides which frames of a sample are shown, and how small.

    Args:
        name: name in `MEMORIES`.
        options: options of that memory, without those that the model decides.

    Raises:
        InputError: an unknown memory, or an option that it does not take here or not with this value.
    """

    def __init__(self, name: str, /, options: Mapping[str, Any] | None = None) -> None:
        options, known = dict(options or {}), settings_of(name)
        check_names(known, options, f"memory {name!r}")
        for key, value in options.items():
            # `make_memory` would take None for an option that is not given.
            if value is None:
                raise InputError(f"{key}: expected a value, found None; leave it out for the default")
            known[key].check(value, key)
            numbers = value if isinstance(value, (list, tuple)) else [value]
            if len(numbers) > MAX_TIERS or any(isinstance(n, (int, float)) and n > MAX_FRAMES for n in numbers):
                limits = f"numbers of at most {MAX_FRAMES:,}, and at most {MAX_TIERS} of them"
                raise InputError(f"{key}: expected {limits}, found {shown(value)}")
        self.name = name
        self.options = options
        # Made once at once: wrong names and values are found before the first row, whatever the model is.
        tiers = options.get("capacities")
        num_tiers = len(tiers) if tiers and isinstance(tiers, (list, tuple)) else len(DEFAULT_INTERVALS)
        self.make((2**num_tiers,) * 2, (1,) * num_tiers)

    def kept_frames(
        self, pixels_TSSC: Pixels, times_s: Sequence[float], full_grid: Grid, intervals: Sequence[int]
    ) -> tuple[list[FrameUse], list[int]]:
        """The frames that are kept after the last one, in time order, and by how much the grid of each is pooled.

        Args:
            pixels_TSSC: the clip's frames, uint8 [T, S, S, 3].
            times_s: start of each.
            full_grid: rows and columns of tokens of a full-size frame.
            intervals: intervals of the token schedule.
        """
        memory = self.make(full_grid, intervals)
        for index, (values_C, time_s) in enumerate(zip(thumbnails(pixels_TSSC), times_s, strict=True)):
            tokens_CHW = values_C[:, None, None].expand(-1, *full_grid)
            memory.write(FrameTokens(tokens_CHW, index, time_s, index))
        kept = memory.read()
        frames = [FrameUse(frame.index, times_s[frame.index], frame.num_tokens) for frame in kept]
        return frames, [full_grid[0] // frame.tokens_CHW.shape[1] for frame in kept]

    def kept_counts(self, num_frames: int, full_grid: Grid, intervals: Sequence[int]) -> list[tuple[int, int]]:
        """Frames kept of clips of 1, 2, ... `num_frames`, and their tokens; upper bounds where content decides."""
        memory, found = self.make(full_grid, intervals), []
        blank_CHW = torch.zeros(THUMBNAIL_SIDE**2 * 3, *full_grid)
        for index in range(num_frames):
            memory.write(FrameTokens(blank_CHW, index, float(index), index))
            counts = [frame.num_tokens for frame in memory.read()]
            found.append((len(counts), sum(counts)))
        return found

    def make(self, full_grid: Grid, intervals: Sequence[int]) -> MemoryBank:
        """An empty memory for a model's frames.

        Raises:
            InputError: the options do not fit the model's token grid and schedule.
        """
        return make_model_memory(self.name, full_grid, intervals, self.options)


def thumbnails(pixels_TSSC: Pixels) -> Tensor:
    """Squares of `THUMBNAIL_SIDE` averaged pixels around their common mean: uint8 [T, S, S, 3] -> float32 [T, C]."""
    pixels_TCSS = torch.from_numpy(pixels_TSSC).permute(0, 3, 1, 2).float()
    flat_TC = adaptive_avg_pool2d(pixels_TCSS, THUMBNAIL_SIDE).permute(0, 2, 3, 1).flatten(1)
    # Around the clip's mean: a shared background would make all frames equally alike.
    return flat_TC - flat_TC.mean(dim=0)
