"""What is evaluated: videos, and the questions about them with their right answers.

Plain data between annotation files, runner, scoring and report. Knows no file format, model or protocol.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_uppercase
from typing import Any

from videochat_online.errors import expect
from videochat_online.video import TIME_TOLERANCE_S

KINDS = ("choice", "yes_no", "count", "open")
"""Ways in which a question is to be answered: with an option, with Yes or No, with a number, in words."""
YES_NO = ("Yes", "No")
"""Options of a yes-or-no question; they are not shown with letters."""
OVERRUN_S = 1.0
"""A question may come this long after a video file's end: annotated times are rounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proactive:
    """What makes a question one that is to be answered when its time has come.

    The model is polled at several moments. Once it says Yes, it is asked the question itself, at that moment.

    Attributes:
        polls: yes-or-no questions in time order, each at its own time.
        due_s: time at which Yes is right, in seconds.
        tolerance_s: distance from it at which a Yes still counts, in seconds.
        output: text that the question is then to be answered with.
    """

    polls: tuple[EvalQuestion, ...]
    due_s: float
    tolerance_s: float
    output: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where a question stands in the annotation files.

    Attributes:
        file: name of the file.
        row: index of its row, from 0; the rows of a list of lists are counted through.
        part: its index among the questions or tests of the row, from 0; None where the row is the question.
    """

    file: str
    row: int
    part: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalQuestion:
    """A question at a moment of a video.

    Attributes:
        id: stable id: the same for the same video, time, question and options, whatever the layout of the file.
        time_s: time at which it is asked, in seconds of the video's own time; infinity: at its end, wherever that is.
        question: its text alone.
        options: texts without letters, as annotated (blanks at the end included); none where a number is asked for.
        answer_index: index of the right option; the right number itself; the whole second that is due; 0 where the
            right answer is a text.
        answer_type: type of the question, such as "PastMemory".
        sub_answer_type: its kind within the type, such as "PastMemory-4".
        dataset: collection that the video comes from, in lower case; None where unknown.
        extra: other fields of the row, such as `evidence_age_s`.
        kind: a name in `KINDS`.
        context: lines about earlier questions and their right answers, which the prompt begins with.
        proactive: polls of a question whose time the model is to tell; None for all others.
        starts_s: the earliest moment that is to be shown for it, where it has a start of its own.
        source: row that it was read from; None where it was not read from a file.
        answer_text: the right answer to an open question; None where there is none to hold a reply against.
        scorer: name in `open_answers.SCORER_NAMES` that reads the reply to an open question; None: the run's.
    """

    id: str
    time_s: float
    question: str
    options: tuple[str, ...]
    answer_index: int
    answer_type: str
    sub_answer_type: str
    dataset: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "choice"
    context: tuple[str, ...] = ()
    proactive: Proactive | None = None
    starts_s: float | None = None
    source: Source | None = None
    answer_text: str | None = None
    scorer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalVideo:
    """A stream and the questions about it, in time order.

    Attributes:
        name: name that is unique within the set: the id, with "#2" where a video comes again with another clip or rate.
        id: id as annotated: a file name with or without its ending, or the name of a folder of frames.
        clip_s: start and end of the part that is streamed, in seconds of the video's own time; the end may be infinity.
        fps: frames a second of a folder of frames: the annotation's, or the benchmark's for the dataset; None where
            unknown. Video files have times of their own.
        dataset: collection that it comes from, in lower case; None where unknown.
        questions: questions about it, in time order.
        hint: path of one of its frames below the data root, where the annotation names one.
    """

    name: str
    id: str
    clip_s: tuple[float, float]
    fps: float | None
    dataset: str | None
    questions: tuple[EvalQuestion, ...]
    hint: str | None = None

    @property
    def moments(self) -> tuple[tuple[EvalQuestion, EvalQuestion], ...]:
        """What is asked, in time order, each with the question it belongs to: itself, or the one it is a poll of."""
        asked = [
            (part, question)
            for question in self.questions
            for part in ((question,) if question.proactive is None else question.proactive.polls)
        ]
        return tuple(sorted(asked, key=lambda moment: moment[0].time_s))

    @property
    def last_question_s(self) -> float:
        """Nothing later than this has to be looked at."""
        return max((asked.time_s for asked, _ in self.moments), default=-math.inf)

    def ending_at(self, end_s: float) -> EvalVideo:
        """The same with a time for questions at its end: that of the clip or of the last frame, in hundredths."""
        if not any(math.isinf(question.time_s) for question in self.questions):
            return self
        last_s = round(min(end_s, self.clip_s[1]), 2)
        known = (replace(one, time_s=last_s) if math.isinf(one.time_s) else one for one in self.questions)
        return replace(self, questions=tuple(sorted(known, key=lambda question: question.time_s)))

    def early_questions(self, start_s: float) -> list[EvalQuestion]:
        """Questions within the clip that come before the video's first frame, which starts at `start_s`."""
        limit_s = start_s - TIME_TOLERANCE_S
        return [question for question in self.questions if self.clip_s[0] <= question.time_s < limit_s]

    def late_questions(self, end_s: float) -> list[EvalQuestion]:
        """Questions within the clip that come well after the end of the video's last frame."""
        limit_s = end_s + OVERRUN_S
        return [question for question in self.questions if limit_s < question.time_s <= self.clip_s[1]]


@dataclass(frozen=True, slots=True)
class EvalSet:
    """The content of annotation files.

    Attributes:
        videos: videos in the order of the files.
        problems: a line for each row that could not be used.
        notes: lines about the files that a reader of the figures has to know.
    """

    videos: tuple[EvalVideo, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def questions(self) -> tuple[EvalQuestion, ...]:
        """Questions about all videos, in order."""
        return tuple(question for video in self.videos for question in video.questions)


def right_answer(kind: str, options: Sequence[str], answer_index: int, answer_text: str | None) -> str:
    """The right answer as people say it: an option with its letter, Yes or No, a number or second, or a text."""
    if not options:
        return str(answer_index) if answer_text is None else answer_text
    text = options[answer_index]
    return text if kind == "yes_no" else f"{ascii_uppercase[answer_index]}. {text}"


def check_set(content: EvalSet, what: str) -> None:
    """Look at a set that a benchmark from outside may have made; `what` is how errors call the benchmark.

    Raises:
        InputError: something else than questions about videos, none at all, a name or id that comes twice, or a clip or
            a question whose kind, time, options or right answer is none.
    """
    seen: set[str] = set()
    names: set[str] = set()
    for video in content.videos:
        expect(isinstance(video, EvalVideo), what, "videos of EvalVideo", video)
        expect(video.name not in names, what, "a name of its own for each video", video.name)
        names.add(video.name)
        where, clip_s = f"{what}: video {video.name}", video.clip_s
        is_pair = isinstance(clip_s, tuple | list) and len(clip_s) == 2
        is_clip = is_pair and all(isinstance(one_s, int | float) for one_s in clip_s) and 0 <= clip_s[0] <= clip_s[1]
        expect(is_clip, where, "clip_s of a start and an end", clip_s)
        for question in video.questions:
            expect(isinstance(question, EvalQuestion), where, "questions of EvalQuestion", question)
            expect(question.id not in seen, what, "an id of its own for each question", question.id)
            seen.add(question.id)
            _check_question(question, f"{what}: question {question.id}")
    expect(bool(seen), what, "questions", None)


def _check_question(question: EvalQuestion, where: str) -> None:
    kind, options, index = question.kind, question.options, question.answer_index
    expect(kind in KINDS, where, f"kind of {', '.join(KINDS)}", kind)
    is_time = isinstance(question.time_s, int | float) and question.time_s >= 0
    expect(is_time, where, "time_s of at least 0 seconds", question.time_s)
    expect(all(isinstance(one, str) for one in options), where, "options that are texts", options)
    if kind == "choice":
        expect(2 <= len(options) <= len(ascii_uppercase), where, "2 to 26 options", options)
    if kind == "yes_no":
        expect(tuple(options) == YES_NO, where, f"options {', '.join(YES_NO)}", options)
    is_index = isinstance(index, int) and 0 <= index < (len(options) if options else math.inf)
    expect(is_index, where, "answer_index of the right option, or a number of at least 0", index)
