"""What every memory of the stream offers, whatever it keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from videochat_online.errors import InputError, NonFiniteError
from videochat_online.types import FrameTokens


class MemoryBank(Protocol):
    """Frames in, a bounded selection of them out.

    A bank holds features before the projector and changes a frame only by making it smaller; it never looks
    ahead. It belongs to one stream at a time and is not safe to use from several threads at once.
    """

    def write(self, frame: FrameTokens) -> None:
        """Take the next frame of the stream; its index must exceed, its time not precede, the last one's.

        Raises:
            InputError: the frame is out of order, or does not fit what the bank already holds.
        """

    def read(self) -> Sequence[FrameTokens]:
        """Return a snapshot in time order: later writes do not change it."""

    def reset(self) -> None:
        """Forget all frames of the stream; the next one may start another."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything a bank made with the same options needs to go on identically: tensors only."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state; the present one is forgotten.

        Raises:
            InputError: the state is of another kind of memory or of other options, or is incomplete. The
                bank is then unchanged.
        """

    @property
    def max_tokens(self) -> int | None:
        """Hard budget of visual tokens that `read` never exceeds; None where the memory grows for ever."""


@runtime_checkable
class QuestionAware(Protocol):
    """A memory that reads differently for each question; a session then reads through `read_for`.

    Features before the projector and text share no space. The language model's does: the question as the mean of
    its input embeddings, a frame as its projected tokens. So the reader brings the projection with it, and the
    memory needs no model.
    """

    def read_for(self, query_D: Tensor, project: Callable[[FrameTokens], Tensor]) -> Sequence[FrameTokens]:
        """Return a snapshot for one question, in time order and within `max_tokens`.

        Args:
            query_D: embedding of the question.
            project: gives a frame's tokens [H W, D] in the space of the question.

        Raises:
            InputError: the question's embedding is not of the frames' width D.
        """


def question_relevance(query_D: Tensor, tokens_LD: Tensor) -> float:
    """Cosine similarity (fp32) of a question and the mean token of a frame in the space that `QuestionAware` names.

    Raises:
        InputError: they are not of the same width.
        NonFiniteError: it is NaN.
    """
    if tokens_LD.shape[1] != query_D.shape[0]:
        raise InputError(f"query: expected the width of the frames' tokens, {tokens_LD.shape[1]}, got {len(query_D)}")
    mean_D = tokens_LD.mean(dim=0, dtype=torch.float32)
    relevance = float(functional.cosine_similarity(query_D.to(mean_D), mean_D, dim=0))
    if not math.isfinite(relevance):
        raise NonFiniteError("query: expected a finite embedding, and finite tokens to compare it with")
    return relevance
