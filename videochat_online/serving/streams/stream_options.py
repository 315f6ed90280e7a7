"""How a stream is watched: what the model sees, remembers and says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from videochat_online.documents import Text, check_dataclass
from videochat_online.streaming import GenerationSettings, Strategy, make_strategy

ENCODE_BATCH = 8
"""Frames that go through the vision tower at once, at most."""

MAX_REMEMBERED = 256
"""Frames of one memory that a viewer may ask for: their storage is set aside at once."""


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How a stream is watched.

    Attributes:
        fps: frames a second that the model sees.
        memory: name of the memory.
        memory_options: options of that memory, by name.
        strategy: name of the strategy.
        strategy_options: options of that strategy, by name.
        system_message: instruction to the model; None takes the checkpoint's own.
        generation: settings by which answers are generated, unless a question says otherwise.
        max_waiting: frames that may wait for the model before the oldest of them is dropped.

    Raises:
        InputError: a value out of its range, or half of a surrogate pair in the system message.
    """

    fps: Annotated[float, Field(gt=0, le=30)] = 1.0
    memory: Text = "pyramid"
    memory_options: Mapping[str, Any] = field(default_factory=dict)
    strategy: str = "direct"
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    system_message: Text | None = None
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    max_waiting: Annotated[int, Field(ge=1)] = 2 * ENCODE_BATCH

    def __post_init__(self) -> None:
        check_dataclass(self)
        self.make_strategy()

    def make_strategy(self) -> Strategy:
        """The strategy of a session."""
        return make_strategy(self.strategy, **self.strategy_options)
