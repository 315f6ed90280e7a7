"""Strategies by name: what a question is answered from, of all that is remembered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from videochat_online.errors import InputError
from videochat_online.memory.base import question_relevance
from videochat_online.model.loading import VideoChatModel
from videochat_online.streaming.strategies.base import FrameSelection, Strategy
from videochat_online.streaming.strategies.chain_of_shot import ChainOfShot
from videochat_online.types import FrameTokens


@dataclass(frozen=True, slots=True)
class Direct:
    """All frames that are remembered."""

    def read(
        self,
        frames: Sequence[FrameTokens],
        question: str,
        model: VideoChatModel,
        project: Callable[[FrameTokens], Tensor],
    ) -> tuple[FrameSelection, ...]:
        """As `Strategy.read`."""
        return (FrameSelection(tuple(frames)),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """The frames that are most like the question, in time order.

    Likeness is the cosine (fp32) of the mean of the question's input embeddings and the mean of a frame's projected
    tokens: the one space that both are in, see `QuestionAware`, which nothing has trained for this. Of equal frames the
    newer are kept.

    Attributes:
        retrieved_frames: how many; all where fewer are remembered.
    """

    retrieved_frames: int = 8

    def __post_init__(self) -> None:
        if self.retrieved_frames < 1:
            raise InputError(f"retrieved_frames: expected at least 1, got {self.retrieved_frames}")

    def read(
        self,
        frames: Sequence[FrameTokens],
        question: str,
        model: VideoChatModel,
        project: Callable[[FrameTokens], Tensor],
    ) -> tuple[FrameSelection, ...]:
        """As `Strategy.read`."""
        query_D = model.embed_text(question)
        relevance = {frame.index: question_relevance(query_D, project(frame)) for frame in frames}
        ranked = sorted(relevance, key=lambda index: (relevance[index], index), reverse=True)
        kept = set(ranked[: self.retrieved_frames])
        return (FrameSelection(tuple(frame for frame in frames if frame.index in kept)),)


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "direct": Direct,
    "retrieval": Retrieval,
    "chain_of_shot": ChainOfShot,
}

STRATEGY_OPTIONS: dict[str, tuple[str, ...]] = {
    "direct": (),
    "retrieval": ("retrieved_frames",),
    "chain_of_shot": (),
}
"""Options that each strategy takes; their defaults are those of its class."""


def make_strategy(name: str, **options: Any) -> Strategy:
    """Make a strategy by its name in `STRATEGIES`.

    Args:
        name: in `STRATEGIES`.
        options: of `STRATEGY_OPTIONS[name]`; one that is None counts as not given.

    Raises:
        InputError: an unknown name, an option that this strategy does not take, or a bad value of one.
    """
    if name not in STRATEGIES:
        raise InputError(f"unknown strategy {name!r}: expected one of {', '.join(STRATEGIES)}")
    given = {option: value for option, value in options.items() if value is not None}
    unknown = sorted(set(given) - set(STRATEGY_OPTIONS[name]))
    if unknown:
        taken = ", ".join(STRATEGY_OPTIONS[name]) or "none"
        raise InputError(f"strategy {name!r} does not take {', '.join(unknown)}: its options are {taken}")
    return STRATEGIES[name](**given)
