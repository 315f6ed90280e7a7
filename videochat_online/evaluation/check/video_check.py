"""One video of a benchmark, opened and decoded where its questions need it.

Runs in a process of its own (`isolation`): a broken file may hang or crash a decoder.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from videochat_online.errors import VideoError
from videochat_online.evaluation.benchmark import EvalVideo
from videochat_online.evaluation.check.annotation_check import Finding
from videochat_online.evaluation.media.protocol_frames import average_fps, index_at
from videochat_online.video import TIME_TOLERANCE_S, VideoSource, list_frame_files, open_video

MANY_TIMES = 2
"""A folder with more than so many times the frames of its clip may have another rate."""

_NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>[0-9]+)(?P<after>[^0-9]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaFacts:
    """What is there of a video.

    Attributes:
        num_frames: number of frames in the file or folder; None where they could not be counted.
        end_s: end of the last frame, in seconds of the video's own time; None likewise.
        findings: all that is wrong with it, or odd.
    """

    num_frames: int | None = None
    end_s: float | None = None
    findings: tuple[Finding, ...] = ()


def check_media(path: Path, video: EvalVideo, decode_all: bool, zero_start: bool = False) -> MediaFacts:
    """Count frames, decode the first and the last one that its questions need, see whether the file is whole.

    Args:
        path: file or folder of frames.
        video: entry of the annotation about it.
        decode_all: decode everything, not only at both ends.
        zero_start: times of questions count from the video's first frame.
    """
    if path.is_dir() and video.fps is None:
        reason = f"{path}: expected a frame rate (fps) in the annotation of a folder of frames, found none"
        return MediaFacts(findings=(Finding("no_fps", reason),))
    try:
        with open_video(path, fps=video.fps, zero_start=zero_start) as source:
            starts_s = source.frame_times_s()
            end_s = starts_s[-1] + 1 / average_fps(source, starts_s)
            video = video.ending_at(end_s)
            findings = [*_decode(source, starts_s, video, decode_all)]
            findings += [Finding("mended", note) for note in source.report.notes]
            declared_end_s = source.report.declared_end_s or 0.0
    except VideoError as error:
        return MediaFacts(findings=(Finding("unreadable", str(error)),))
    if path.is_dir():
        findings += [*_gaps(list_frame_files(path)), *_counted(len(starts_s), video, video.fps or 0.0)]
    else:
        # Of a file that breaks off, the damage has been named: questions are held against the length it should have.
        findings += _outside(video, starts_s[0], max(end_s, declared_end_s))
    return MediaFacts(num_frames=len(starts_s), end_s=round(end_s, 3), findings=tuple(findings))


def _decode(source: VideoSource, starts_s: Sequence[float], video: EvalVideo, decode_all: bool) -> Iterator[Finding]:
    """Both ends of what is needed, then the rest: decoded, or only counted."""
    needed_s = (video.clip_s[0], max(video.clip_s[0], min(video.last_question_s, video.clip_s[1])))
    # A frame with a negative start is what is shown at 0.
    asked_s = sorted({max(0.0, starts_s[index_at(starts_s, time_s)]) for time_s in needed_s})
    found_s = [time_s for chunk in source.read(times_s=asked_s, may_begin_late=True) for time_s in chunk.times_s]
    found_s = [-math.inf] * (len(asked_s) - len(found_s)) + found_s  # before the first frame that decodes is none
    if decode_all:
        # A pass that begins with the first frame.
        next(source.read(times_s=[max(0.0, starts_s[0])], may_begin_late=True), None)
    source.finish(math.inf if decode_all else 0.0)
    problem = source.report.problem
    lacking_s = [
        asked for asked, found in zip(asked_s, found_s, strict=True) if found < starts_s[index_at(starts_s, asked)]
    ]
    if problem is None and lacking_s:
        problem = f"expected a frame at {lacking_s[0]:g} s, found none that decodes"
    if problem is not None:
        yield Finding("damaged", problem)


def _counted(num_frames: int, video: EvalVideo, fps: float) -> Iterator[Finding]:
    """Too few frames shift or freeze what questions see; far too many mean another rate, or a longer video."""
    end_s = video.clip_s[1] if math.isfinite(video.clip_s[1]) else video.last_question_s
    expected = math.floor(fps * end_s + TIME_TOLERANCE_S)
    said = f"expected {expected} frames ({fps:g} a second until {end_s:g} s), found {num_frames}"
    if num_frames < expected:
        yield Finding("few_frames", said)
    elif math.isfinite(video.clip_s[1]) and num_frames > MANY_TIMES * max(1, expected):
        yield Finding("many_frames", said)


def _gaps(files: Sequence[Path]) -> Iterator[Finding]:
    """Numbers that are left out where all names differ by one: frame i is shown at i / rate, so the rest is too early.

    Numbers may go up in steps, the commonest of which is the rule.
    """
    names = [_NUMBERED.fullmatch(file.stem) for file in files]
    numbers = [int(name["number"]) for name in names if name is not None]
    if len({name and (name["before"], name["after"]) for name in names}) != 1 or len(numbers) != len(files):
        return
    steps = Counter(later - number for number, later in zip(numbers, numbers[1:], strict=False) if later > number)
    step = min(steps, key=lambda size: (-steps[size], size), default=1)
    missing = [max(0, (later - number) // step - 1) for number, later in zip(numbers, numbers[1:], strict=False)]
    if any(missing):
        first = next(index for index, count in enumerate(missing) if count)
        between = f"{files[first].name} and {files[first + 1].name}"
        yield Finding("frame_gaps", f"{sum(missing)} numbers are left out, the first between {between}")


def _outside(video: EvalVideo, start_s: float, end_s: float) -> Iterator[Finding]:
    found = [("early_question", question, f"begins at {start_s:.2f} s") for question in video.early_questions(start_s)]
    found += [("late_question", question, f"ends at {end_s:.1f} s") for question in video.late_questions(end_s)]
    for kind, question, reason in found:
        yield Finding(kind, f"{question.question[:60]!r} at {question.time_s:g} s: {reason}")
