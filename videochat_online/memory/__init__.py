"""Memories of a stream: what is kept of the frames seen so far, within a budget of visual tokens.

Pure: no model, no files. `MEMORY_BANKS` lists the implementations, `make_memory` makes one by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from videochat_online.errors import InputError
from videochat_online.memory.base import MemoryBank, QuestionAware
from videochat_online.memory.event_merging import EventMergingMemoryBank
from videochat_online.memory.fifo import FifoMemoryBank
from videochat_online.memory.keep_all import KeepAllMemoryBank
from videochat_online.memory.moviechat import READINGS, MovieChatMemoryBank
from videochat_online.memory.moviechat_plus import MovieChatPlusMemoryBank
from videochat_online.memory.pooling import demote_to_grid, pool_by_ratio, pool_to_grid
from videochat_online.memory.pyramid import POLICIES, PyramidMemoryBank
from videochat_online.memory.schedule import DEFAULT_FULL_GRID, DEFAULT_INTERVALS, Grid, TokenSchedule
from videochat_online.memory.similarity_drop import SimilarityDropMemoryBank
from videochat_online.memory.star import StarMemoryBank
from videochat_online.memory.token_merging import TokenMergingMemoryBank
from videochat_online.memory.uniform import UniformMemoryBank
from videochat_online.memory.window import WindowMemoryBank

MEMORY_BANKS: dict[str, Callable[..., MemoryBank]] = {
    "pyramid": PyramidMemoryBank,
    "fifo": FifoMemoryBank,
    "window": WindowMemoryBank,
    "uniform": UniformMemoryBank,
    "moviechat": MovieChatMemoryBank,
    "moviechat_plus": MovieChatPlusMemoryBank,
    "star": StarMemoryBank,
    "token_merging": TokenMergingMemoryBank,
    "similarity_drop": SimilarityDropMemoryBank,
    "event_merging": EventMergingMemoryBank,
    "keep_all": KeepAllMemoryBank,
}

MEMORY_OPTIONS: dict[str, tuple[str, ...]] = {
    "pyramid": ("capacities", "full_grid", "grids", "intervals", "policy", "device"),
    "fifo": ("capacities", "full_grid", "grids", "intervals", "policy", "device"),
    "window": ("num_frames", "full_grid", "device"),
    "uniform": ("num_frames", "full_grid", "device"),
    "moviechat": ("short_frames", "long_frames", "merged_frames", "reading", "full_grid", "grid", "device"),
    "moviechat_plus": ("short_frames", "long_frames", "merged_frames", "reading", "full_grid", "grid", "device"),
    "star": ("newest_frames", "key_frames", "cluster_frames", "abstract_decay", "full_grid", "grids", "device"),
    "token_merging": ("num_frames", "full_grid", "grid", "device"),
    "similarity_drop": ("num_frames", "threshold", "full_grid", "grid", "device"),
    "event_merging": ("recent_frames", "event_frames", "penalty_weights", "full_grid", "grid", "device"),
    "keep_all": ("full_grid", "intervals", "device"),
}
"""Options that each memory takes; their defaults are those of its class."""


def make_memory(name: str, **options: Any) -> MemoryBank:
    """Make an empty memory by its name in `MEMORY_BANKS`.

    Args:
        name: name in `MEMORY_BANKS`.
        options: options of `MEMORY_OPTIONS[name]`. One that is None counts as not given, so that a command line can
            hand over all its flags.

    Raises:
        InputError: an unknown name, an option that this memory does not take, or a bad value of one.
    """
    if name not in MEMORY_BANKS:
        raise InputError(f"unknown memory {name!r}: expected one of {sorted(MEMORY_BANKS)}")
    given = {option: value for option, value in options.items() if value is not None}
    unknown = sorted(set(given) - set(MEMORY_OPTIONS[name]))
    if unknown:
        raise InputError(
            f"memory {name!r} does not take {', '.join(unknown)}: it takes {', '.join(MEMORY_OPTIONS[name])}"
        )
    return MEMORY_BANKS[name](**given)


def make_model_memory(name: str, full_grid: Grid, intervals: Sequence[int], options: Mapping[str, Any]) -> MemoryBank:
    """Make an empty memory for the frames of a model, which decides token grid and intervals.

    Raises:
        InputError: an unknown name, an option that this memory does not take, or a bad value of one.
    """
    of_the_model = {"full_grid": full_grid, "intervals": tuple(intervals)}
    taken = {key: value for key, value in of_the_model.items() if key in MEMORY_OPTIONS.get(name, ())}
    return make_memory(name, **taken, **options)


__all__ = [
    "DEFAULT_FULL_GRID",
    "DEFAULT_INTERVALS",
    "MEMORY_BANKS",
    "MEMORY_OPTIONS",
    "POLICIES",
    "READINGS",
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
]
