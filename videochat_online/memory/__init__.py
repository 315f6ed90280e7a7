"""Memories of a stream: what is kept of the frames seen so far, within a budget of visual tokens.

Pure: no model, no files. `MEMORIES` lists the implementations, `make_memory` makes one by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from videochat_online.errors import InputError, shown
from videochat_online.memory.base import MemoryBank, QuestionAware
from videochat_online.memory.event_merging import EventMergingMemoryBank
from videochat_online.memory.fifo import FifoMemoryBank
from videochat_online.memory.keep_all import KeepAllMemoryBank
from videochat_online.memory.moviechat import MovieChatMemoryBank
from videochat_online.memory.moviechat_plus import MovieChatPlusMemoryBank
from videochat_online.memory.pooling import demote_to_grid, pool_by_ratio, pool_to_grid
from videochat_online.memory.pyramid import PyramidMemoryBank
from videochat_online.memory.schedule import DEFAULT_FULL_GRID, DEFAULT_INTERVALS, Grid, TokenSchedule
from videochat_online.memory.similarity_drop import SimilarityDropMemoryBank
from videochat_online.memory.star import StarMemoryBank
from videochat_online.memory.token_merging import TokenMergingMemoryBank
from videochat_online.memory.uniform import UniformMemoryBank
from videochat_online.memory.window import WindowMemoryBank
from videochat_online.parts import PartKind

MEMORIES = PartKind(
    name="memory",
    group="videochat_online.memories",
    built_in={
        name: f"videochat_online.memory.{name}:{bank}"
        for name, bank in {
            "pyramid": "PyramidMemoryBank",
            "fifo": "FifoMemoryBank",
            "window": "WindowMemoryBank",
            "uniform": "UniformMemoryBank",
            "moviechat": "MovieChatMemoryBank",
            "moviechat_plus": "MovieChatPlusMemoryBank",
            "star": "StarMemoryBank",
            "token_merging": "TokenMergingMemoryBank",
            "similarity_drop": "SimilarityDropMemoryBank",
            "event_merging": "EventMergingMemoryBank",
            "keep_all": "KeepAllMemoryBank",
        }.items()
    },
    methods=("write", "read", "reset", "state_dict", "load_state_dict"),
    attributes=("max_tokens",),
    reserved=("name", "full_grid", "device"),
)


def make_memory(
    name: str, *, full_grid: Grid = DEFAULT_FULL_GRID, device: torch.device | str | None = None, **options: Any
) -> MemoryBank:
    """Make an empty memory by its name in `MEMORIES`.

    Args:
        name: built-in name, entry point, or `package.module:Name`.
        full_grid: rows and columns of tokens of a full-size frame.
        device: device that frames are kept on; None for that of the first frame.
        options: fields of its `Options`. One that is None counts as not given, so that a command line can hand over all
            its flags.

    Raises:
        InputError: an unknown name, an option that this memory does not take, or a bad value of one.
    """
    memory = cast(MemoryBank, MEMORIES.make(name, options, full_grid=full_grid, device=device))
    most = memory.max_tokens
    if not (most is None or (isinstance(most, int) and not isinstance(most, bool) and most >= 0)):
        raise InputError(f"memory {name!r}: expected max_tokens to be a number of tokens, or None, found {shown(most)}")
    return memory


def make_model_memory(name: str, full_grid: Grid, intervals: Sequence[int], options: Mapping[str, Any]) -> MemoryBank:
    """Make an empty memory for the frames of a model, which decides token grid and intervals.

    Raises:
        InputError: an unknown name, an option that this memory does not take, or a bad value of one.
    """
    known = MEMORIES.options_of(name).get("intervals")
    of_the_model = {"intervals": tuple(intervals)} if known is not None and known.from_model else {}
    return make_memory(name, full_grid=full_grid, **{**of_the_model, **options})


def sizes_within(name: str, budget: float, given: Mapping[str, Any]) -> dict[str, int]:
    """The largest sizes of a memory within a budget, see `MemoryOptions.sizes_within`; those that are given stay.

    Empty for a memory that does not say.
    """
    fit = getattr(getattr(MEMORIES.find(name), "Options", None), "sizes_within", None)
    sizes = {} if fit is None else fit(budget, given)
    return {**sizes, **{option: value for option, value in given.items() if option in sizes}}


__all__ = [
    "DEFAULT_FULL_GRID",
    "DEFAULT_INTERVALS",
    "MEMORIES",
    "EventMergingMemoryBank",
    "FifoMemoryBank",
    "Grid",
    "KeepAllMemoryBank",
    "MemoryBank",
    "MovieChatMemoryBank",
    "MovieChatPlusMemoryBank",
    "PyramidMemoryBank",
    "QuestionAware",
    "SimilarityDropMemoryBank",
    "StarMemoryBank",
    "TokenMergingMemoryBank",
    "TokenSchedule",
    "UniformMemoryBank",
    "WindowMemoryBank",
    "demote_to_grid",
    "make_memory",
    "make_model_memory",
    "pool_by_ratio",
    "pool_to_grid",
    "sizes_within",
]
