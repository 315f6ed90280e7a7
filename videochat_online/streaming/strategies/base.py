"""What a strategy makes of the frames that a memory gives for a question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from videochat_online.model.loading import VideoChatModel
from videochat_online.types import FrameTokens


@dataclass(frozen=True, slots=True)
class FrameSelection:
    """Frames that a question is put to.

    Attributes:
        frames: in time order; one whose content is not what the memory gave has a content id below all of those.
        weight: of the logits that they lead to.
    """

    frames: tuple[FrameTokens, ...]
    weight: float = 1.0


class Strategy(Protocol):
    """What is done at question time with the frames that any memory gives. Holds options and nothing of a stream."""

    def read(
        self,
        frames: Sequence[FrameTokens],
        question: str,
        model: VideoChatModel,
        project: Callable[[FrameTokens], Tensor],
    ) -> tuple[FrameSelection, ...]:
        """Return one reading, or several whose logits are to be summed: the first, of weight 1, is the question's own.

        Args:
            frames: what is remembered, in time order.
            question: all of its text, with its options where it has some.
            model: that is going to answer.
            project: gives a frame's tokens [H W, D] in the language model's space.

        Raises:
            PromptTooLongError, NonFiniteError: the model was asked about the frames, and could not say.
        """
        ...
