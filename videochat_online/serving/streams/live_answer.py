"""An answer that is being generated in one thread and read, or stopped, in others."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from videochat_online.errors import InputError
from videochat_online.serving.streams.fair_lock import ModelGate
from videochat_online.text import check_text

logger = logging.getLogger(__name__)

Pieces = Generator[str, None, Any]
"""Text, piece by piece; closing it stops."""


class LiveAnswer:
    """A question and what has been said to it so far.

    Attributes:
        question: as it was asked.
        asked_at_s: stream time; None for a question about still images.
        first_token_s: seconds from the question to the first piece of text; None before it.
        error: why there is no (whole) answer; None where nothing failed.
    """

    def __init__(self, question: str, asked_at_s: float | None) -> None:
        self.question = question
        self.asked_at_s = asked_at_s
        self.first_token_s: float | None = None
        self.error: str | None = None
        self._asked = time.perf_counter()
        self._pieces: list[str] = []
        self._changed = threading.Condition()
        self._is_stopping = self._is_over = False

    @property
    def text(self) -> str:
        """What has been said so far."""
        with self._changed:
            return "".join(self._pieces).strip()

    @property
    def state(self) -> str:
        """One of "answering", "answered", "stopped", "failed"."""
        if not self._is_over:
            return "answering"
        if self.error is not None:
            return "failed"
        return "stopped" if self._is_stopping else "answered"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be said."""
        return self._is_over

    @property
    def is_stopping(self) -> bool:
        """Whether nobody wants to hear the rest."""
        return self._is_stopping

    def stop(self) -> None:
        """Ask for the end: what was said by then is the answer."""
        with self._changed:
            self._is_stopping = self._is_stopping or not self._is_over
            self._changed.notify_all()

    def pieces(self) -> Iterator[str]:
        """Text as it comes, from the beginning, until the answer is over."""
        place = 0
        while True:
            with self._changed:
                while len(self._pieces) == place and not self._is_over:
                    self._changed.wait()
                new, is_over = self._pieces[place:], self._is_over
            yield from new
            place += len(new)
            if is_over:
                return

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is over; False if it is not by then."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_over, timeout_s)

    def add(self, piece: str) -> None:
        """Say more."""
        with self._changed:
            if self.first_token_s is None:
                self.first_token_s = time.perf_counter() - self._asked
            self._pieces.append(piece)
            self._changed.notify_all()

    def end(self, error: str | None = None) -> None:
        """Nothing more will be said."""
        with self._changed:
            self.error, self._is_over = error, True
            self._changed.notify_all()


class Dialogue:
    """What one viewer has asked, one question at a time. Not locked: whoever holds it has a lock of its own."""

    def __init__(self) -> None:
        self._answers: list[LiveAnswer] = []

    @property
    def answers(self) -> tuple[LiveAnswer, ...]:
        """All of it, the oldest first."""
        return tuple(self._answers)

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being given."""
        return bool(self._answers) and not self._answers[-1].is_over

    def begin(self, question: str, asked_at_s: float | None) -> LiveAnswer:
        """The answer to a new question.

        Raises:
            InputError: an empty question or half of a surrogate pair in it, or another one is still being answered.
        """
        check_text(question, "question")
        if not question.strip():
            raise InputError("expected a question, got an empty one")
        self.check_silent()
        self._answers.append(LiveAnswer(question.strip(), asked_at_s))
        return self._answers[-1]

    def check_silent(self) -> None:
        """Raise an `InputError` while an answer is being given."""
        if self.is_answering:
            raise InputError("an answer is still being given: wait for it, or stop it")

    def forget(self) -> None:
        """Begin anew."""
        self._answers.clear()


def speak(answer: LiveAnswer, begin: Callable[[], Pieces], gate: ModelGate) -> None:
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
