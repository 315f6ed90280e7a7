"""Whether what a row says fits its media: times within the video, boxes within the images."""

from __future__ import annotations

from collections.abc import Sequence

from videochat_online.data.rows.sample import Sample
from videochat_online.data.rows.storage import Location, local_copy
from videochat_online.errors import InputError
from videochat_online.video import read_image

MIN_PIXELS = 2
"""A coordinate from here on is in pixels."""


def check_within_video(sample: Sample, duration_s: float, max_overrun_s: float) -> None:
    """Fail where a clip or a turn ends more than so many seconds after the video.

    Raises:
        InputError: names the clip or the turn. Frames of another time would be shown for it.
    """
    limit_s = duration_s + max_overrun_s
    if sample.clip_s is not None and sample.clip_s[1] > limit_s:
        raise InputError(
            f"clip: expected an end within the video, which has {duration_s:.1f} s, found {sample.clip_s[1]:g}"
        )
    start_s = sample.clip_s[0] if sample.clip_s is not None and sample.reset_times else 0.0
    for number, turn in enumerate(sample.turns, start=1):
        if turn.time_s is not None and start_s + turn.time_s > limit_s:
            raise InputError(
                f"conversations: turn {number}: timestamps: expected a time within the video, which ends"
                f" {duration_s - start_s:.1f} s after the clip's start, found {turn.time_s:g}"
            )


def check_boxes(sample: Sample, indices: Sequence[int]) -> None:
    """Fail where a box of a track is none, or lies outside its image.

    Boxes are four numbers, of two corners or of a corner and a size: they are written as they stand, and which it is
    cannot be told. They are parts of the image from 0 to 1 or pixels, all of a track in one unit. A coordinate
    of at least 2 says pixels: one between 1 and 2 is rather a part beyond the image's edge. A box of zeros and ones,
    which stands for an object out of view, fits both.

    Args:
        sample: a track.
        indices: indices of the images that are used.

    Raises:
        InputError: names the box.
    """
    boxes = [box.box for box in sample.boxes]
    in_pixels = any(value >= MIN_PIXELS for box in boxes for value in box)
    if in_pixels:
        for index, box in enumerate(boxes):
            if max(box) < MIN_PIXELS and not all(value in (0, 1) for value in box):
                raise InputError(f"image_bboxes {index}: expected pixels, as in other boxes, found {list(box)}")
    for index in indices:
        box = boxes[index]
        width, height = _size(sample.media[index]) if in_pixels else (1, 1)
        if not all(0 <= value <= limit for value, limit in zip(box, (width, height) * 2, strict=True)):
            unit = f"{width} x {height} pixels" if in_pixels else "0 to 1"
            raise InputError(f"image_bboxes {index}: expected a box within {unit}, found {list(box)}")


def _size(path: Location) -> tuple[int, int]:
    with local_copy(path) as copy:
        return read_image(copy).size
