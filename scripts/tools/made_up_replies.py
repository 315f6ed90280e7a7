"""Replies of a made-up model: what it picks does not depend on how it words it, so that parsers can be told apart.

It picks the right option of six questions in ten, and words its replies in ten styles. No model, no seed of the
process: the same picks every time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from videochat_online.evaluation import EvalQuestion, EvalSet
from videochat_online.evaluation.benchmark import YES_NO
from videochat_online.evaluation.run.proactive import Polls
from videochat_online.evaluation.scoring.parse import parse_reply

Row = dict[str, Any]
SHARE_RIGHT, SHARE_RIGHT_OF_POLLS = 0.6, 0.97
"""A proactive question has a dozen polls, of which one that is wrong settles it."""
COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

STYLES: dict[str, tuple[str, str, str]] = {
    "letter": ("{letter}", "{word}", "{number}"),
    "(B) text": ("({letter}) {text}", "{word}.", "{number} times"),
    "B. text": ("{letter}. {text}", "{word}, now.", "{number}."),
    "cue": ("Answer: {letter}", "Answer: {word}", "Answer: {number}"),
    "sentence": ("The answer is ({letter}).", "The answer is {word}.", "The answer is {number}."),
    "chatty": ("Option {letter} best describes the video.", "{word}, Alice does it now.", "They did it {count} times."),
    "small": ("{letter_small}", "{word_small}", "{count}"),
    "text": ("{text}", "{word}, it is so.", "It was done {number} times, once at 0:12."),
    "reasoned": (
        "At first it looked like {other}, but the answer is {letter}.",
        "One would not say {other_word} here: {word}.",
        "Not {other_number} but {number}.",
    ),
    "undecided": ("{letter} or {other}", "{word} or {other_word}", "{number} or {other_number}"),
}
"""Wording of a reply with an option, with Yes or No, and with a number."""


def reply(style: str, kind: str, picked: int, options: Sequence[str] = ()) -> str:
    """A pick in words."""
    forms = dict(zip(("choice", "yes_no", "count"), STYLES[style], strict=True))
    if kind == "choice":
        other = ascii_uppercase[(picked + 1) % len(options)]
        letter = ascii_uppercase[picked]
        return forms[kind].format(letter=letter, letter_small=letter.lower(), other=other, text=options[picked])
    if kind == "yes_no":
        word, other = YES_NO[picked], YES_NO[1 - picked]
        return forms[kind].format(word=word, word_small=word.lower(), other_word=other.lower())
    count = COUNTS[picked] if picked < len(COUNTS) else str(picked)
    return forms[kind].format(number=picked, count=count, other_number=picked + 1)


def pick(question: EvalQuestion, seed: int) -> int:
    """What the made-up model means: right six times in ten, whatever the style."""
    rng = random.Random(f"{seed} {question.id}")
    share = SHARE_RIGHT_OF_POLLS if question.answer_type == "Proactive Output" else SHARE_RIGHT
    is_right, shift = rng.random() < share, rng.randrange(1, max(2, len(question.options)))
    if is_right or question.kind == "count":
        return question.answer_index + (0 if is_right else shift)
    return (question.answer_index + shift) % len(question.options)


def output(style: str, wanted: str) -> str:
    """What a proactive question is answered with, in words."""
    forms = {"letter": wanted, "small": wanted.lower(), "text": wanted.upper(), "undecided": f"{wanted} or nothing"}
    return forms.get(style, f"The answer is {wanted}.")


def made_rows(content: EvalSet, style: str | Callable[[EvalQuestion], str], seed: int = 0) -> list[Row]:
    """Rows of a run, worded in one style or in that of each question; polls go through the evaluation's own loop."""
    rows = []
    for video in content.videos:
        for question in video.questions:
            make = _row if question.proactive is None else _polled
            rows.append(make(question, video.name, style if isinstance(style, str) else style(question), seed))
    return rows


def _row(question: EvalQuestion, video: str, style: str, seed: int) -> Row:
    text = reply(style, question.kind, pick(question, seed), question.options)
    read = parse_reply(text, question.options, question.kind)
    return _facts(question, video) | {"text": text, "predicted_index": read, "correct": read == question.answer_index}


def _facts(question: EvalQuestion, video: str) -> Row:
    names = ("id", "dataset", "answer_type", "sub_answer_type", "time_s", "question", "answer_index", "kind")
    more: Row = {"video": video, "options": list(question.options), "extra": dict(question.extra)}
    return {name: getattr(question, name) for name in names} | more | {"num_visual_tokens": 0}


def _ask(style: str, seed: int) -> Callable[[EvalQuestion], Row]:
    def ask(asked: EvalQuestion) -> Row:
        if asked.kind == "yes_no":
            text = reply(style, "yes_no", pick(asked, seed))
        else:
            text = output(style, asked.extra["output"])
        read = parse_reply(text, asked.options, asked.kind)
        nothing: Row = {"frames_used": [], "num_visual_tokens": 0, "first_token_s": None, "answer_s": 0.0}
        return {"time_s": asked.time_s, "text": text, "predicted_index": read, **nothing}

    return ask


def _with_output(question: EvalQuestion) -> EvalQuestion:
    assert question.proactive is not None
    return replace(question, extra={"output": question.proactive.output})


def _polled(question: EvalQuestion, video: str, style: str, seed: int) -> Row:
    asked, polls = _with_output(question), Polls(_ask(style, seed))
    assert question.proactive is not None
    for poll in question.proactive.polls:
        row = polls.take(poll, asked)
        if row is not None:
            return _facts(question, video) | row
    raise AssertionError("the last poll gives a row")


def polled_officially(question: EvalQuestion, style: str, seed: int) -> Row:
    """The last thing said where any reply with "yes" in it ends the polls, as in the official loop."""
    assert question.proactive is not None
    ask, last = _ask(style, seed), Row()
    for poll in question.proactive.polls:
        last = ask(poll)
        if "yes" in last["text"].strip().lower():
            return {"output_s": poll.time_s, "text": ask(_with_output(question))["text"], "polls": [last]}
    return {"output_s": None, "text": "", "polls": [last]}
