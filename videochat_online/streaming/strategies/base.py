"""What a strategy offers: which of the remembered frames a question is put to, and with what weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from videochat_online.model.loading import VideoChatModel
from videochat_online.streaming.question_prompt import FrameSelection
from videochat_online.types import FrameTokens

Projection = Callable[[FrameTokens], Tensor]
"""Gives a frame's tokens [H W, D] in the language model's space."""


class Strategy(Protocol):
    """What is done at question time with the frames that any memory gives. Holds options and nothing of a stream."""

    def read(
        self, frames: Sequence[FrameTokens], question: str, model: VideoChatModel, project: Projection
    ) -> tuple[FrameSelection, ...]:
        """Return one selection, or several whose logits are summed: the first, of weight 1, is the question's own.

        Args:
            frames: remembered frames, in time order.
            question: all of its text, with its options where it has some.
            model: model that is going to answer.
            project: projection of `frames` into the language model's space.

        Raises:
            PromptTooLongError, NonFiniteError: the model was asked about the frames, and could not say.
        """
