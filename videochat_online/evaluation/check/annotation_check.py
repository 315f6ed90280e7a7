"""What can be wrong with a benchmark, and what its annotations alone give away."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from videochat_online.evaluation.benchmark import EvalQuestion, EvalSet, EvalVideo
from videochat_online.video import TIME_TOLERANCE_S

FINDING_KINDS = {
    "missing": "no video of that name, or several",
    "unreadable": "nothing decodes, or the decoder hangs or crashes",
    "damaged": "a part does not decode, or the file breaks off",
    "no_fps": "a folder of frames without a rate",
    "few_frames": "fewer frames than the rate gives for the clip",
    "frame_gaps": "numbers left out among the names of a folder of frames",
    "early_question": "asked before the video's first frame: its clock begins late, see --zero_start",
    "late_question": "asked after the video's end",
    "outside_clip": "asked before the clip begins or after it ends",
    "duplicate": "the same question about the same moment again",
    "equal_options": "two options that say the same",
    "many_frames": "more than twice the frames that the rate gives for the clip",
    "inverted_box": "a box that ends before it begins",
    "mended": "odd, and read as the reason says",
}
"""Words for each kind of finding."""

NOTES = frozenset({"many_frames", "inverted_box", "mended"})
"""Kinds that are no fault for sure: a folder may hold more than its clip, and published sets have such boxes."""

_BOX = re.compile(r"\[\s*" + r"\s*,\s*".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\s*\]")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a video or its questions.

    Attributes:
        kind: name in `FINDING_KINDS`.
        reason: line that says it to people.
    """

    kind: str
    reason: str

    @property
    def is_note(self) -> bool:
        """Whether an evaluation is sound nevertheless."""
        return self.kind in NOTES


def annotation_findings(content: EvalSet) -> Mapping[str, list[Finding]]:
    """What is odd about the questions of each video, by its name; nothing for most."""
    found: dict[str, list[Finding]] = defaultdict(list)
    seen: set[tuple[str, float, str, tuple[str, ...]]] = set()
    for video in content.videos:
        for question in video.questions:
            key = (video.id, question.time_s, question.question, question.options)
            found[video.name] += _of_question(video, question, is_known=key in seen)
            seen.add(key)
    return found


def _of_question(video: EvalVideo, question: EvalQuestion, *, is_known: bool) -> Iterator[Finding]:
    asked = f"{question.question[:60]!r} at {question.time_s:g} s"
    start_s, end_s = video.clip_s
    if not start_s - TIME_TOLERANCE_S <= question.time_s <= end_s + TIME_TOLERANCE_S:
        yield Finding("outside_clip", f"{asked}: expected a time within the clip, {start_s:g} to {end_s:g} s")
    if is_known:
        yield Finding("duplicate", f"{asked}: the same question with the same options is there already")
    options = [" ".join(option.casefold().split()) for option in question.options]
    if len(set(options)) < len(options):
        yield Finding("equal_options", f"{asked}: expected options that differ, found {list(question.options)}")
    for box in (box for text in (question.question, *question.options) for box in _BOX.finditer(text)):
        left, top, right, bottom = map(float, box.groups())
        if left > right or top > bottom:
            yield Finding("inverted_box", f"{asked}: {box[0]}")
            return
