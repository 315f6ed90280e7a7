"""Wording of benchmark questions: what the published results were measured with.

Owns the texts; which of them a benchmark uses is decided where it is evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

from videochat_online.errors import InputError

_WATCH = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement"
    " of objects, and the action and pose of persons. Based on your observations, "
)
OVBENCH_SYSTEM_MESSAGE = _WATCH + "select the best option that accurately addresses the question.\n"
"""Text before questions with options to choose from: OVBench, MVBench, VideoMME."""
KIND_SYSTEM_MESSAGES = {
    "yes_no": _WATCH + "answer the question with Yes or No.\n",
    "count": _WATCH + "answer the question with a number.\n",
    "open": _WATCH + "answer the question.\n",
}
"""Texts before questions that have no options to choose from, by their kind: there is no best option to select."""
STREAMING_SUFFIX = "\nAnswer:"
"""Text after an OVBench question in the streaming setting."""
SLIDING_WINDOW_SUFFIX = "\nOnly give the best option."
"""Text after an OVBench question in the sliding-window setting."""
KIND_SUFFIXES = {
    "yes_no": "\nAnswer only with Yes or No.",
    "count": "\nAnswer only with a number.",
    "open": STREAMING_SUFFIX,
}
"""Texts after questions that have no options to choose from, by their kind."""
OFFLINE_SUFFIX = "\nAnswer:  \n"
"""Text after an MVBench or VideoMME question."""
BEST_OPTION_PREFIX = "Best option:("
"""Words that the reply is made to begin with where a letter is wanted at once."""
LETTER_INSTRUCTION = "Answer with the option's letter from the given choices directly."


def option_text(option: str) -> str:
    """Text of an option that carries its letter: "B. walking" -> "walking".

    Raises:
        InputError: no blank after the letter; the reference takes such an option for an empty one.
    """
    letter, blank, text = option.partition(" ")
    if not blank:
        raise InputError(f"option {option!r}: expected a letter, a blank and a text, as in 'A. text'")
    return text


def option_line(index: int, text: str) -> str:
    """An option as it is shown and as the answer is expected: `(B) walking`."""
    return f"({_letter(index)}) {text}"


def ovbench_question(question: str, options: Sequence[str], *, asked_at_s: float) -> str:
    """OVBench: the question with its time, then the options (texts without letters) a line each, if any."""
    heading = "\nOptions:" if options else ""
    return _with_options(f"Question at {asked_at_s}s: {question}{heading}", options)


def multiple_choice_question(question: str, options: Sequence[str]) -> str:
    """VideoMME and MVBench: the question, then the options (texts without letters) a line each."""
    return _with_options(f"Question: {question}", options)


def letter_question(question: str, options: Sequence[str]) -> str:
    """lmms-eval: bare question, `A. text` lines, and the request for a letter."""
    lines = [f"{_letter(index)}. {text}" for index, text in enumerate(options)]
    return "\n".join([question, *lines, LETTER_INSTRUCTION])


def option_index(options: Sequence[str], answer: str) -> int:
    """Index among the options of an answer that is given as text.

    Raises:
        InputError: it is not among them, so that no prediction could be right.
    """
    if answer not in options:
        raise InputError(f"answer {answer!r}: expected one of the options {list(options)}")
    return list(options).index(answer)


def _with_options(head: str, options: Sequence[str]) -> str:
    # An empty last option leaves no blank at the end of the question.
    return "\n".join([head, *(option_line(index, text) for index, text in enumerate(options))]).rstrip()


def _letter(index: int) -> str:
    if not 0 <= index < len(ascii_uppercase):
        raise InputError(f"option number {index + 1}: expected 1 to {len(ascii_uppercase)}, one for each letter")
    return ascii_uppercase[index]
