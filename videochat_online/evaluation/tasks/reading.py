"""What the loaders of all benchmarks share: rows of a file, types of their fields, and questions put into videos."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from videochat_online.documents import STRICT, Text
from videochat_online.errors import InputError, expect, shown
from videochat_online.evaluation.benchmark import EvalQuestion, EvalSet, EvalVideo
from videochat_online.runs.files import read_json
from videochat_online.text.questions import ovbench_question


class AnnotatedRow(BaseModel):
    """A row, or a part of one, of somebody's annotations: keys that are not known here are kept."""

    model_config = ConfigDict(**{**STRICT, "extra": "allow"})


def _with_words(text: str) -> str:
    if not text.strip():
        raise InputError(f"expected a text, found {shown(text)}")
    return text


Words = Annotated[Text, AfterValidator(_with_words)]
"""A text with something in it."""
FrameRate = Annotated[float, Field(gt=0)]
"""Frames a second."""
ONE_A_LETTER = Field(min_length=2, max_length=len(ascii_uppercase))
"""Bounds of a list of options."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What makes questions belong to one stream.

    Attributes:
        id: the video, as annotated.
        start_s: start of the part that is streamed, in seconds.
        end_s: end of it; None for that of the video.
        fps: rate of a folder of frames; None where the annotation does not say it.
        dataset: collection that the video comes from; None where unknown.
    """

    id: str
    start_s: float = 0.0
    end_s: float | None = None
    fps: float | None = None
    dataset: str | None = None


class FoundQuestions:
    """Questions of annotation files as they are found.

    Attributes:
        streams: questions about each stream, in the order of the files.
        problems: a line for each row that cannot be used.
    """

    def __init__(self) -> None:
        self.streams: dict[Stream, list[EvalQuestion]] = defaultdict(list)
        self.problems: list[str] = []
        self._counts: Counter[str] = Counter()

    @contextmanager
    def row(self, where: str) -> Iterator[None]:
        """What is wrong with a row is noted as a problem, and ends no more than the work on it."""
        try:
            yield
        except InputError as error:
            self.problems.append(f"{where}: {error}")

    def add(self, stream: Stream, question: EvalQuestion) -> None:
        """Add a question; the second one of an id gets "-2" behind it, and so do its polls."""
        self._counts[question.id] += 1
        if self._counts[question.id] > 1:
            question = _renamed(question, f"{question.id}-{self._counts[question.id]}")
        self.streams[stream].append(question)

    def has(self, name: str) -> bool:
        """Whether a question of that id was added."""
        return self._counts[name] > 0

    def content(
        self,
        paths: Sequence[Path],
        benchmark: str,
        hints: Mapping[Stream, str] = MappingProxyType({}),
        folder_fps: Mapping[str, float] = MappingProxyType({}),
        notes: Sequence[str] = (),
    ) -> EvalSet:
        """The set: questions in order of time, the second stream of a video named with "#2".

        Args:
            paths: files that were read.
            benchmark: what errors call the benchmark.
            hints: paths of frames, as `EvalVideo.hint`.
            folder_fps: rate of a dataset's folders of frames, where the annotation does not say it.
            notes: remarks on the set, which spoil no question, as in `EvalSet`.

        Raises:
            InputError: no question that can be used; names the first problem.
        """
        if not self.streams:
            first = f"; the first row: {self.problems[0]}" if self.problems else ""
            raise InputError(f"{', '.join(map(str, paths))}: expected questions of {benchmark}, found none{first}")
        counts: Counter[str] = Counter()
        taken = {stream.id for stream in self.streams}
        videos = []
        for stream, questions in self.streams.items():
            counts[stream.id] += 1
            name = stream.id
            while counts[stream.id] > 1 and name in taken:
                name = f"{stream.id}#{counts[stream.id]}"
                counts[stream.id] += name in taken
            taken.add(name)
            video = EvalVideo(
                name=name,
                id=stream.id,
                clip_s=(stream.start_s, math.inf if stream.end_s is None else stream.end_s),
                fps=stream.fps or folder_fps.get(stream.dataset or ""),
                dataset=questions[0].dataset,
                questions=tuple(sorted(questions, key=lambda question: question.time_s)),
                hint=hints.get(stream),
            )
            videos.append(video)
        return EvalSet(tuple(videos), tuple(self.problems), tuple(notes))


def _renamed(question: EvalQuestion, name: str) -> EvalQuestion:
    """Under another id, with its polls: nothing that is asked may share one."""
    proactive = question.proactive
    if proactive is not None:
        polls = tuple(replace(poll, id=poll_id(name, poll.time_s)) for poll in proactive.polls)
        proactive = replace(proactive, polls=polls)
    return replace(question, id=name, proactive=proactive)


def poll_id(question: str, time_s: float) -> str:
    """Id of a poll of a question, by the question's id."""
    return f"{question}/{time_s:g}s"


def read_rows(path: Path, *, flatten: bool = False) -> list[dict[str, Any]]:
    """Rows of a JSON file.

    Args:
        path: the file.
        flatten: whether a list of lists of rows is as good as a list of rows.

    Raises:
        InputError: no file, no JSON, or no list of objects.
    """
    rows = read_json(path, "a JSON list of rows")
    if flatten and isinstance(rows, list):
        rows = [row for entry in rows for row in (entry if isinstance(entry, list) else [entry])]
    others = [rows] if not isinstance(rows, list) else [row for row in rows if not isinstance(row, dict)]
    if others:
        where = "in it " if isinstance(rows, list) else ""
        raise InputError(f"{path}: expected a JSON list of rows, found {where}{type(others[0]).__name__}")
    return rows


def plain_prompt(question: EvalQuestion) -> str:
    """A question with its time, and its options where they have letters."""
    shown_options = question.options if question.kind == "choice" else ()
    return ovbench_question(question.question, shown_options, asked_at_s=question.time_s)


def question_id(video: str, time_s: float, text: str, options: Sequence[str]) -> str:
    """The same for the same video, time, question and options."""
    digest = hashlib.sha256("\n".join((text, *options)).encode()).hexdigest()[:8]
    return f"{video}@{f'{time_s:g}s' if math.isfinite(time_s) else 'end'}-{digest}"


def without_letters(texts: Sequence[str], lettered: re.Pattern[str], need_letters: bool) -> tuple[str, ...]:
    """Options without the letters before them, which have to be A, B, C and so on.

    Args:
        texts: options as annotated.
        lettered: letter, as the first group, with the signs behind it.
        need_letters: whether there have to be letters; else one text that merely begins like that has none.
    """
    matches = [match for text in texts if (match := lettered.match(text)) is not None]
    if not need_letters and len(matches) <= 1:
        return tuple(texts)
    letters = ascii_uppercase[: len(texts)]
    rest = "" if need_letters else ", or none that does"
    expected = f"texts that begin with A. to {letters[-1]}.{rest}"
    expect([match[1] for match in matches] == list(letters), "options", expected, list(texts))
    return tuple(match.string[match.end() :] for match in matches)


def letter_index(answer: str, options: Sequence[str]) -> int:
    """Index of an option from its letter, which a field `answer` has to be."""
    letters = ascii_uppercase[: len(options)]
    expect(len(answer) == 1 and answer in letters, "answer", f"one of the letters {letters}", answer)
    return letters.index(answer)
