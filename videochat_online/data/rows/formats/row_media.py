"""The keys of a row that say what it shows: `image`, `video`, and what of the video counts."""

from __future__ import annotations

from typing import Any, Literal

from videochat_online.data.rows.field_types import check_fps, clock_s, path
from videochat_online.data.rows.formats.base import Row
from videochat_online.data.rows.storage import Location, location
from videochat_online.documents import validated
from videochat_online.errors import InputError, shown

NOTHING: tuple[Any, ...] = (None, "", [])
"""Values of `image` and `video` that name nothing."""


def media_key(row: Row) -> Literal["image", "video"] | None:
    """Where the row names what it shows; None where it shows nothing.

    Raises:
        InputError: both keys.
    """
    image, video = (row.get(key) not in NOTHING for key in ("image", "video"))
    if image and video:
        raise InputError("expected image or video, found both")
    return "image" if image else "video" if video else None


def video_fields(row: Row, root: Location) -> dict[str, Any]:
    """Fields of a `Sample` about its video.

    Raises:
        InputError: names the key.
    """
    clip, ends = row.get("clip"), [row.get("start"), row.get("end")]
    if ends != [None, None]:
        if clip not in (None, ends):
            raise InputError(f"expected clip or start and end, found both: {shown(clip)} and {shown(ends)}")
        clip = ends
    if clip is not None:
        if not isinstance(clip, list) or len(clip) != 2:
            raise InputError(f"clip: expected start and end in seconds, found {shown(clip)}")
        start_s, end_s = (clock_s(value, "clip") for value in clip)
        if not start_s <= end_s:
            raise InputError(f"clip: expected 0 <= start <= end in seconds, found [{start_s:g}, {end_s:g}]")
        clip = (start_s, end_s)
    fps = row.get("fps")
    if fps is not None:
        check_fps(fps, "fps")
    resets = row.get("need_reset_timestamp")
    if resets is not None:
        validated(bool, resets, "need_reset_timestamp")
    return {
        "media": (location(path(row["video"], "video"), root),),
        "clip_s": clip,
        "reset_times": resets is True,
        "fps": fps,
    }


def image_fields(row: Row, root: Location) -> dict[str, Any]:
    """Fields of a `Sample` about its images.

    Raises:
        InputError: no path, or a list of something else.
    """
    raw = row["image"]
    names = raw if isinstance(raw, list) else [raw]
    if not all(isinstance(name, str) and name for name in names):
        raise InputError(f"image: expected a path or a list of paths, found {shown(raw)}")
    media = tuple(location(path(name, "image"), root) for name in names)
    return {"media": media, "sizes": _sizes(row, len(media))}


def _sizes(row: Row, num_images: int) -> tuple[tuple[int, int], ...]:
    """Width and height of every image, if the row gives them all; InternVL's do, as a number or a list."""
    width, height = (value if isinstance(value, list) else [value] for value in (row.get("width"), row.get("height")))
    values = [*width, *height]
    if not len(width) == len(height) == num_images or not all(type(value) is int and value > 0 for value in values):
        return ()
    return tuple(zip(width, height, strict=True))
