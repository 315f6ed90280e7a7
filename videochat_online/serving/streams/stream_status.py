"""What crosses the boundaries of the demo: how a stream is watched, how it is doing, what it remembers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from videochat_online.errors import InputError
from videochat_online.serving.streams.memory_trace import TracedFrame
from videochat_online.streaming import GenerationSettings, Strategy, make_strategy
from videochat_online.text import check_text

ENCODE_BATCH = 8
"""Frames that go through the vision tower at once, at most."""

MAX_REMEMBERED = 256
"""Frames of one memory that a viewer may ask for: their storage is set aside at once."""

SECONDS_TO_END = 10.0
"""A thread that is in the middle of something is waited for, not longer than this."""


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How a stream is watched.

    Attributes:
        fps: frames a second that the model sees.
        memory: name in `MEMORY_BANKS`.
        memory_options: of that memory, as `make_memory` takes them.
        strategy: name in `STRATEGIES`.
        strategy_options: of that strategy, as `make_strategy` takes them.
        system_message: None takes the checkpoint's own.
        generation: how answers are generated, unless a question says otherwise.
        max_waiting: frames that may wait for the model before the oldest of them is dropped.

    Raises:
        InputError: a value out of its range, or half of a surrogate pair in the system message.
    """

    fps: float = 1.0
    memory: str = "pyramid"
    memory_options: Mapping[str, Any] = field(default_factory=dict)
    strategy: str = "direct"
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    system_message: str | None = None
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    max_waiting: int = 2 * ENCODE_BATCH

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and 0 < self.fps <= 30):
            raise InputError(f"fps: expected a rate above 0 and at most 30 frames a second, got {self.fps}")
        if self.max_waiting < 1:
            raise InputError(f"max_waiting: expected at least 1 frame, got {self.max_waiting}")
        if self.system_message is not None:
            check_text(self.system_message, "system message")
        self.make_strategy()

    def make_strategy(self) -> Strategy:
        """The strategy of a session."""
        return make_strategy(self.strategy, **self.strategy_options)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatus:
    """How a stream is doing.

    Attributes:
        time_s: stream time.
        num_frames_in: frames meant for the model that have arrived.
        num_frames_seen: of these, frames that it has encoded.
        num_frames_dropped: of these, frames that came too fast for it.
        num_frames_waiting: the rest.
        real_time_factor: seconds that a second of video took lately, turns of others included; below 1 it keeps up
            with a stream that plays at its own speed.
        first_token_s: of the latest answer that has begun, from the question to its first piece.
        num_tokens: visual tokens that are remembered.
        max_tokens: the memory's budget; None for one that grows for ever.
        is_answering: whether an answer is being given.
        problem: why nothing more is taken in; None where all is well.
    """

    time_s: float
    num_frames_in: int
    num_frames_seen: int
    num_frames_dropped: int
    num_frames_waiting: int
    real_time_factor: float | None
    first_token_s: float | None
    num_tokens: int
    max_tokens: int | None
    is_answering: bool
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryView:
    """What is remembered, and what was forgotten lately; see `MemoryTrace`."""

    remembered: tuple[TracedFrame, ...]
    forgotten: tuple[TracedFrame, ...]
    num_forgotten: int
    num_demotions: int
    version: int
