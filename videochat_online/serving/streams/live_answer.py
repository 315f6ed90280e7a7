"""An answer that is being generated in one thread and read, or stopped, in others; the dialogue that it belongs to."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from videochat_online.errors import InputError
from videochat_online.serving.streams.fair_lock import ModelGate
from videochat_online.serving.streams.stream_options import StreamOptions
from videochat_online.text import check_text

logger = logging.getLogger(__name__)

Pieces = Generator[str, None, Any]
"""Text, piece by piece; closing it stops."""

SECONDS_TO_END = 10.0
"""A thread that is in the middle of something is waited for, not longer than this."""


class UnknownStreamError(InputError):
    """There is no such stream, or not any more."""


class ConflictError(InputError):
    """What was asked for cannot be now: an answer is still being given, or the stream has failed."""


class LiveAnswer:
    """A question and what has been said to it so far.

    Attributes:
        question: text of the question, as it was asked.
        asked_at_s: stream time in seconds; None for a question about still images.
        first_token_s: seconds from the question to the first piece of text; None before it.
        error: reason why there is no (whole) answer; None where nothing failed.
        is_over: whether nothing more will be said.
        is_stopping: whether nobody wants to hear the rest.
    """

    def __init__(self, question: str, asked_at_s: float | None) -> None:
        self.question = question
        self.asked_at_s = asked_at_s
        self.first_token_s: float | None = None
        self.error: str | None = None
        self._asked = time.perf_counter()
        self._pieces: list[str] = []
        self._changed = threading.Condition()
        self.is_stopping = self.is_over = False

    @property
    def text(self) -> str:
        """What has been said so far."""
        with self._changed:
            return "".join(self._pieces).strip()

    @property
    def state(self) -> str:
        """One of "answering", "answered", "stopped", "failed"."""
        if not self.is_over:
            return "answering"
        if self.error is not None:
            return "failed"
        return "stopped" if self.is_stopping else "answered"

    def stop(self) -> None:
        """Ask for the end: what was said by then is the answer."""
        with self._changed:
            self.is_stopping = self.is_stopping or not self.is_over
            self._changed.notify_all()

    def pieces(self) -> Iterator[str]:
        """Text as it comes, from the beginning, until the answer is over."""
        num_read = 0
        while True:
            with self._changed:
                while len(self._pieces) == num_read and not self.is_over:
                    self._changed.wait()
                new, is_over = self._pieces[num_read:], self.is_over
            yield from new
            num_read += len(new)
            if is_over:
                return

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is over; False if it is not by then."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_over, timeout_s)

    def add(self, piece: str) -> None:
        """Append a piece of text."""
        with self._changed:
            if self.first_token_s is None:
                self.first_token_s = time.perf_counter() - self._asked
            self._pieces.append(piece)
            self._changed.notify_all()

    def end(self, error: str | None = None) -> None:
        """Mark the answer as over, with why it is not whole if it is not."""
        with self._changed:
            self.error, self.is_over = error, True
            self._changed.notify_all()


class LiveDialogue:
    """What one viewer asks about one thing, one question at a time, from any thread.

    Subclasses know the thing. They hold `_changed` whenever they look at what may change.

    Args:
        options: options, among them how answers are generated.
        gate: gate that says whose turn it is at the model.

    Attributes:
        options: the options, as given.
        is_closed: whether nothing more is taken, neither questions nor frames.
    """

    noun = "dialogue"
    """Word by which errors call it."""

    def __init__(self, options: StreamOptions, gate: ModelGate) -> None:
        self.options = options
        self._gate = gate
        self._changed = threading.Condition()
        self._answers: list[LiveAnswer] = []
        self._speaker: threading.Thread | None = None
        self.is_closed = False

    @property
    def answers(self) -> tuple[LiveAnswer, ...]:
        """All that was asked, the oldest first."""
        with self._changed:
            return tuple(self._answers)

    def _check_open(self) -> None:
        """Raise an `UnknownStreamError` where it was closed."""
        if self.is_closed:
            raise UnknownStreamError(f"the {self.noun} is closed")

    def stop_answer(self) -> None:
        """End the answer that is being given, if there is one."""
        for answer in self.answers[-1:]:
            answer.stop()

    def _is_answering(self) -> bool:
        return bool(self._answers) and not self._answers[-1].is_over

    def _add_question(self, question: str, asked_at_s: float | None) -> LiveAnswer:
        """The answer to a new question, still without a word.

        Raises:
            InputError: an empty question or half of a surrogate pair in it, or another one is still being answered.
        """
        check_text(question, "question")
        if not question.strip():
            raise InputError("expected a question, got an empty one")
        self._check_silent()
        self._answers.append(LiveAnswer(question.strip(), asked_at_s))
        return self._answers[-1]

    def _check_silent(self) -> None:
        """Raise a `ConflictError` while an answer is being given."""
        if self._is_answering():
            raise ConflictError("an answer is still being given: wait for it, or stop it")

    def _speak(self, answer: LiveAnswer, begin: Callable[[], Pieces]) -> None:
        """Have a thread of its own generate an answer; `begin` is called there, in a turn at the model."""
        # The thread of the answer before it has nothing left to do: telling its end was the last of it.
        self._speaker = threading.Thread(target=_generate, args=(answer, begin, self._gate), name="answer", daemon=True)
        self._speaker.start()


def _generate(answer: LiveAnswer, begin: Callable[[], Pieces], gate: ModelGate) -> None:
    """Generate an answer until it ends or is stopped, taking turns with everybody else at every token."""
    error, pieces = None, None
    try:
        with gate.turn():
            pieces = begin()
        while not answer.is_stopping:
            with gate.turn():
                piece = next(pieces, None)
            if piece is None:
                break
            answer.add(piece)
    except InputError as problem:
        error = str(problem)
    except Exception as problem:  # the thread's last resort: a page has to be told, whatever it was
        logger.exception("an answer failed")
        error = f"the model failed: {type(problem).__name__}"
    finally:
        if pieces is not None:
            pieces.close()  # before the end is told: the next question is asked in a dialogue that knows this one
        answer.end(error)
