"""Retrieval: a question is put to the frames that are most like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from videochat_online.memory.base import question_relevance
from videochat_online.model.loading import VideoChatModel
from videochat_online.parts import make_options, option
from videochat_online.streaming.question_prompt import FrameSelection
from videochat_online.streaming.strategies.base import Projection
from videochat_online.types import FrameTokens


class Retrieval:
    """The frames that are most like the question, in time order.

    Likeness is the cosine (fp32) of the mean of the question's input embeddings and the mean of a frame's projected
    tokens: the one space that both are in, see `QuestionAware`, which nothing has trained for this. Of equal frames the
    newer are kept.

    Args:
        options: an instance of `Options`; None for the defaults.
        **given: options by name, in place of those.

    Raises:
        InputError: an option that it does not take, or not with this value.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of the strategy."""

        retrieved_frames: Annotated[int, Ge(1)] = option(8, "frames most like the question; all where fewer are held")

    def __init__(self, options: Options | None = None, **given: Any) -> None:
        self.options: Retrieval.Options = make_options(Retrieval, options, given, "strategy 'retrieval'")

    def read(
        self, frames: Sequence[FrameTokens], question: str, model: VideoChatModel, project: Projection
    ) -> tuple[FrameSelection, ...]:
        """As `Strategy.read`."""
        query_D = model.embed_text(question)
        relevance = {frame.index: question_relevance(query_D, project(frame)) for frame in frames}
        ranked = sorted(relevance, key=lambda index: (relevance[index], index), reverse=True)
        kept = set(ranked[: self.options.retrieved_frames])
        return (FrameSelection(tuple(frame for frame in frames if frame.index in kept)),)
