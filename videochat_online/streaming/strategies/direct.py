"""The default strategy: a question is put to all frames that are remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from videochat_online.model.loading import VideoChatModel
from videochat_online.streaming.question_prompt import FrameSelection
from videochat_online.streaming.strategies.base import Projection
from videochat_online.types import FrameTokens


@dataclass(frozen=True, slots=True)
class Direct:
    """All frames that are remembered."""

    def read(
        self, frames: Sequence[FrameTokens], question: str, model: VideoChatModel, project: Projection
    ) -> tuple[FrameSelection, ...]:
        """As `Strategy.read`."""
        return (FrameSelection(tuple(frames)),)
