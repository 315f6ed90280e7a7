"""How a stream is watched: what the model sees, remembers and says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from videochat_online.errors import InputError
from videochat_online.streaming import GenerationSettings, Strategy, make_strategy
from videochat_online.text import check_text

ENCODE_BATCH = 8
"""Frames that go through the vision tower at once, at most."""

MAX_REMEMBERED = 256
"""Frames of one memory that a viewer may ask for: their storage is set aside at once."""


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How a stream is watched.

    Attributes:
        fps: frames a second that the model sees.
        memory: name in `MEMORIES`.
        memory_options: options of that memory, as `make_memory` takes them.
        strategy: name in `STRATEGIES`.
        strategy_options: options of that strategy, as `make_strategy` takes them.
        system_message: None takes the checkpoint's own.
        generation: settings by which answers are generated, unless a question says otherwise.
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
