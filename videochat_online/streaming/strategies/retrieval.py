"""Retrieval: a question is put to the frames that are most like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from videochat_online.errors import InputError
from videochat_online.memory.base import question_relevance
from videochat_online.model.loading import VideoChatModel
from videochat_online.streaming.question_prompt import FrameSelection
from videochat_online.streaming.strategies.base import Projection
from videochat_online.types import FrameTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """The frames that are most like the question, in time order.

    Likeness is the cosine (fp32) of the mean of the question's input embeddings and the mean of a frame's projected
    tokens: the one space that both are in, see `QuestionAware`, which nothing has trained for this. Of equal frames the
    newer are kept.

    Attributes:
        retrieved_frames: Number of frames that are kept; all where fewer are remembered.
    """

    retrieved_frames: int = 8

    def __post_init__(self) -> None:
        if self.retrieved_frames < 1:
            raise InputError(f"retrieved_frames: expected at least 1, got {self.retrieved_frames}")

    def read(
        self, frames: Sequence[FrameTokens], question: str, model: VideoChatModel, project: Projection
    ) -> tuple[FrameSelection, ...]:
        """As `Strategy.read`."""
        query_D = model.embed_text(question)
        relevance = {frame.index: question_relevance(query_D, project(frame)) for frame in frames}
        ranked = sorted(relevance, key=lambda index: (relevance[index], index), reverse=True)
        kept = set(ranked[: self.retrieved_frames])
        return (FrameSelection(tuple(frame for frame in frames if frame.index in kept)),)
