"""What the loaders of all benchmarks share: rows of a file, and saying what is wrong with a value."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from types import MappingProxyType
from typing import Any

from videochat_online.errors import InputError
from videochat_online.evaluation.benchmark import EvalQuestion, EvalVideo
from videochat_online.runs.files import read_json
from videochat_online.text import check_text


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


def question_id(video: str, time_s: float, text: str, options: Sequence[str]) -> str:
    """The same for the same video, time, question and options."""
    digest = hashlib.sha256("\n".join((text, *options)).encode()).hexdigest()[:8]
    return f"{video}@{f'{time_s:g}s' if math.isfinite(time_s) else 'end'}-{digest}"


def is_plain_number(value: Any, above: float | None = None) -> bool:
    """Whether a value is a finite number of at least 0, or above another."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    return value >= 0 if above is None else value > above


def expect(holds: bool, name: str, expected: str, found: Any) -> None:
    """Raise an `InputError` that names a field, what it should be and what it is, unless `holds`."""
    if not holds:
        shown = repr(found)
        raise InputError(f"{name}: expected {expected}, got {shown if len(shown) <= 120 else shown[:117] + '...'}")


def expect_text(fields: dict[str, Any], key: str) -> str:
    """A field that has to be a text with something in it."""
    text = fields.get(key)
    expect(isinstance(text, str) and bool(text.strip()), key, "a text", text)
    return check_text(text, key)


def expect_readable(text: str, *options: str) -> None:
    """Raise an `InputError` unless a prompt can hold the texts: half of a surrogate pair is no character."""
    check_text(text, "question")
    for number, option in enumerate(options, start=1):
        check_text(option, f"option {number}")


def expect_options(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """A field `options` that has to be a list of texts with something in them, one for each letter at most."""
    options = fields.get("options")
    good = isinstance(options, list) and all(isinstance(option, str) and option.strip() for option in options)
    expect(good and 2 <= len(options or ()) <= len(ascii_uppercase), "options", "2 to 26 texts", options)
    return tuple(options or ())


def expect_letter(answer: Any, num_options: int) -> int:
    """Index of an option from its letter, which a field `answer` has to be."""
    letters = ascii_uppercase[:num_options]
    expect(
        isinstance(answer, str) and len(answer) == 1 and answer in letters,
        "answer",
        f"one of the letters {letters}",
        answer,
    )
    return letters.index(answer)


def expect_questions(found: Sized, paths: Sequence[Path], benchmark: str, problems: Sequence[str]) -> None:
    """Raise an `InputError` with the first problem if files hold no question that can be used."""
    if not found:
        first = f"; the first row: {problems[0]}" if problems else ""
        raise InputError(f"{', '.join(map(str, paths))}: expected questions of {benchmark}, found none{first}")


def whole_videos(of_videos: Mapping[str, Sequence[EvalQuestion]]) -> tuple[EvalVideo, ...]:
    """Videos that are streamed from their start, by name, with their questions in order of time."""
    return tuple(
        EvalVideo(
            name=video,
            id=video,
            clip_s=(0.0, math.inf),
            fps=None,
            dataset=questions[0].dataset,
            questions=tuple(sorted(questions, key=lambda question: question.time_s)),
        )
        for video, questions in of_videos.items()
    )


def videos_of_streams(
    streams: Mapping[Stream, Sequence[EvalQuestion]],
    hints: Mapping[Stream, str] = MappingProxyType({}),
    folder_fps: Mapping[str, float] = MappingProxyType({}),
) -> tuple[EvalVideo, ...]:
    """Videos with their questions in order of time; the second stream of a video is named with "#2".

    Args:
        streams: questions about each stream.
        hints: paths of frames, as `EvalVideo.hint`.
        folder_fps: rate of a dataset's folders of frames, where the annotation does not say it.
    """
    counts: Counter[str] = Counter()
    taken = {stream.id for stream in streams}
    videos = []
    for stream, questions in streams.items():
        counts[stream.id] += 1
        name = stream.id
        while counts[stream.id] > 1 and name in taken:
            name = f"{stream.id}#{counts[stream.id]}"
            counts[stream.id] += name in taken
        taken.add(name)
        videos.append(
            EvalVideo(
                name=name,
                id=stream.id,
                clip_s=(stream.start_s, math.inf if stream.end_s is None else stream.end_s),
                fps=stream.fps or folder_fps.get(stream.dataset or ""),
                dataset=stream.dataset,
                questions=tuple(sorted(questions, key=lambda question: question.time_s)),
                hint=hints.get(stream),
            )
        )
    return tuple(videos)
