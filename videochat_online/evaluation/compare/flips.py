"""Questions that one of two runs got right and the other did not, and what both said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from videochat_online.evaluation.benchmark import right_answer
from videochat_online.runs.row_file import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A question on whose answer two runs differ.

    Attributes:
        run: label of the run; its counterpart is the baseline.
        id: id of the question.
        video: name of its video.
        time_s: time at which it was asked, in seconds.
        question: its text.
        answer: the right one: option with its letter, Yes or No, text, number, or second that is due.
        baseline_correct: whether the baseline was right; `correct` is then the opposite.
        correct: whether the run was right.
        baseline_reply: text that the baseline wrote.
        reply: text that the run wrote.
    """

    run: str
    id: str
    video: str
    time_s: float
    question: str
    answer: str
    baseline_correct: bool
    correct: bool
    baseline_reply: str
    reply: str


def find_flips(label: str, answers: Sequence[Row], of_baseline: Sequence[Row]) -> list[Flip]:
    """Where a run's verdicts are not the baseline's; both have answered the same questions, in the same order."""
    return [
        Flip(
            run=label,
            **{name: there[name] for name in ("id", "video", "time_s", "question")},
            answer=right_answer(
                there.get("kind", "choice"), there["options"], there["answer_index"], there.get("answer_text")
            ),
            baseline_correct=there["correct"],
            correct=here["correct"],
            baseline_reply=str(there.get("text", "")),
            reply=str(here.get("text", "")),
        )
        for here, there in zip(answers, of_baseline, strict=True)
        if here["correct"] != there["correct"]
    ]
