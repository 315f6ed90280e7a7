"""What a row of annotations says once it is validated, whatever its format: a frozen `Sample`.

Knows nothing of frames, tokens or templates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from videochat_online.data.rows.storage import Location
from videochat_online.errors import InputError, shown

Kind = Literal["text", "image", "video", "online", "tracking"]

VIDEO_PLACEHOLDER = "<video>"
"""Placeholder for the frames of a video in a text."""


@dataclass(frozen=True, slots=True)
class DialogueTurn:
    """One exchange as annotated: placeholders still in the text.

    Attributes:
        user: what the human says.
        assistant: what the model is to say.
        time_s: time at which it is said, in online rows: seconds of the video (of the clip, where times are reset).
    """

    user: str
    assistant: str
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class BoxAt:
    """Box of a tracked object at a time: the annotator's numbers, as they are to be written."""

    time_s: float
    box: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One row, validated.

    Attributes:
        kind: what its prompt looks like.
        turns: the dialogue; empty for a track, whose dialogue depends on the frame that is asked about.
        media: images in order; one video or frame folder; the image files of a track.
        clip_s: part of the video that counts; None for all of it.
        reset_times: times count from the clip's first frame.
        fps: frame rate of a frame folder, where the row says.
        system_message: None takes the checkpoint's own.
        boxes: boxes of a track, one for each of `media`.
        query: question about a track, with `<bbox>` where the asked box goes.
        sizes: width and height of each image, where the row says; for estimating lengths.

    Raises:
        InputError: the fields do not fit each other, or times go back.
    """

    kind: Kind
    turns: tuple[DialogueTurn, ...] = ()
    media: tuple[Location, ...] = ()
    clip_s: tuple[float, float] | None = None
    reset_times: bool = False
    fps: float | None = None
    system_message: str | None = None
    boxes: tuple[BoxAt, ...] = ()
    query: str = ""
    sizes: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"kind of a sample: expected one of {', '.join(get_args(Kind))}, found {shown(self.kind)}")
        if self.kind == "tracking":
            _check_order([box.time_s for box in self.boxes], "image_bboxes {}: timestamp", first=0)
            return
        fewest, most = {"text": (0, 0), "image": (1, None)}.get(self.kind, (1, 1))
        if len(self.media) < fewest or (most is not None and len(self.media) > most):
            expected = f"at least {fewest}" if most is None else fewest
            raise InputError(f"media of a sample of kind {self.kind}: expected {expected}, found {len(self.media)}")
        if not self.turns:
            raise InputError(f"turns of a sample of kind {self.kind}: expected at least 1, found none")
        if self.kind == "online":
            _check_order([turn.time_s for turn in self.turns], "turn {}: timestamps", first=1)


def _check_order(times_s: list[float | None], where: str, first: int) -> None:
    """Fail where a time is missing or before the one before it; `where` takes the number, from `first` on."""
    previous_s = 0.0
    for number, time_s in enumerate(times_s, start=first):
        if time_s is None:
            raise InputError(f"{where.format(number)}: expected a time, as at the others, found none")
        if time_s < previous_s:
            raise InputError(
                f"{where.format(number)}: expected at least {previous_s:g}, the one before's, found {time_s:g}"
            )
        previous_s = time_s
