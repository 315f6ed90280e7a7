"""How a stream and its answers are doing. Imported by clients too, which have no torch: it needs nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatus:
    """How a stream is doing.

    Attributes:
        time_s: stream time in seconds.
        num_frames_in: frames meant for the model that have arrived.
        num_frames_seen: frames of these that it has encoded.
        num_frames_dropped: frames of these that came too fast for it.
        num_frames_waiting: frames of these that wait for the model.
        real_time_factor: seconds that a second of video took lately, turns of others included; below 1 it keeps up
            with a stream that plays at its own speed.
        first_token_s: seconds from question to first piece of the latest answer that has begun; None before any.
        num_tokens: visual tokens that are remembered.
        max_tokens: the memory's budget; None for one that grows for ever.
        is_answering: whether an answer is being given.
        problem: reason why nothing more is taken in; None where all is well.
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
class AnswerDocument:
    """A question and what was answered, by now.

    Attributes:
        question: words of the question.
        text: answer so far.
        state: one of "answering", "answered", "stopped", "failed".
        asked_at_s: stream time of the question in seconds; None for one about images.
        first_token_s: seconds until the first piece of text came; None before that.
        error: reason why there is no answer; None where there is one.
    """

    question: str
    text: str
    state: str
    asked_at_s: float | None
    first_token_s: float | None
    error: str | None
