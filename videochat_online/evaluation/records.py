"""What is evaluated: videos, the questions about them, and the answers that were given.

Plain data between annotation files, runner, scoring and report. Knows no file format, model or protocol.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalQuestion:
    """A multiple-choice question at a moment of a video.

    Attributes:
        id: stable: the same for the same video, time, question and options, whatever the layout of the file.
        time_s: when it is asked, in the video's own time.
        question: its text alone.
        options: texts without letters, as annotated (blanks at the end included).
        answer_index: place of the right option.
        answer_type: what is asked for, such as "PastMemory".
        sub_answer_type: its kind within the type, such as "PastMemory-4".
        dataset: where the video comes from, in lower case; None where unknown.
        extra: what else the row said, such as `evidence_age_s`.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalVideo:
    """A stream and the questions about it, in time order.

    Attributes:
        name: unique within the set: the id, with "#2" where a video comes again with another clip or rate.
        id: as annotated; a file name with or without its ending, or the name of a folder of frames.
        clip_s: the part that is streamed, in the video's own time; its end may be infinity.
        fps: rate of a folder of frames; None where unknown. Video files have times of their own.
        dataset: as in `EvalQuestion`.
        hint: path of one of its frames below the data root, where the annotation names one.
        questions: about it.
    """

    name: str
    id: str
    clip_s: tuple[float, float]
    fps: float | None
    dataset: str | None
    questions: tuple[EvalQuestion, ...]
    hint: str | None = None

    @property
    def last_question_s(self) -> float:
        """Nothing later than this has to be looked at."""
        return max((question.time_s for question in self.questions), default=-math.inf)


@dataclass(frozen=True, slots=True)
class EvalSet:
    """The content of annotation files.

    Attributes:
        videos: in the order of the files.
        problems: a line for each row that could not be used.
    """

    videos: tuple[EvalVideo, ...]
    problems: tuple[str, ...] = ()

    @property
    def questions(self) -> tuple[EvalQuestion, ...]:
        """Questions about all videos, in order."""
        return tuple(question for video in self.videos for question in video.questions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A benchmark.

    Attributes:
        name: in `TASKS`.
        load: reads annotation files.
        prompt: question and options as the model reads them, without what a protocol appends.
        groups: from dataset to the group that forms cells with the answer types.
        set_apart: cells (answer type, group) that the averages are also given without.
        folder_fps: rate of folders of frames by dataset, where the annotation need not say it.
    """

    name: str
    load: Callable[[Sequence[Path]], EvalSet]
    prompt: Callable[[EvalQuestion], str]
    groups: Mapping[str, str] = field(default_factory=dict)
    set_apart: Sequence[tuple[str, str]] = ()
    folder_fps: Mapping[str, float] = field(default_factory=dict)

    def group(self, dataset: str | None) -> str:
        """Group of a dataset; one that the task does not know is a group of its own."""
        return "other" if dataset is None else self.groups.get(dataset, dataset)


def total_questions(videos: Sequence[EvalVideo]) -> int:
    """Questions about all these videos."""
    return sum(len(video.questions) for video in videos)
