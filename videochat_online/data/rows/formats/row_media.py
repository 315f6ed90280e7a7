"""The keys of a row that say what it shows: `image`, `video`, and what of the video counts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from videochat_online.data.rows.field_types import ClockS, Fields, Fps, PathText, path
from videochat_online.data.rows.formats.base import Row
from videochat_online.data.rows.storage import Location, location
from videochat_online.documents import validated
from videochat_online.errors import InputError, shown


class _Video(Fields):
    video: PathText
    clip: Annotated[list[ClockS], Field(min_length=2, max_length=2)] | None = None
    fps: Fps | None = None
    need_reset_timestamp: bool | None = None


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
        row = {**row, "clip": ends}
    shows: _Video = validated(_Video, row)
    if shows.clip is not None and not shows.clip[0] <= shows.clip[1]:
        raise InputError(f"clip: expected 0 <= start <= end in seconds, found {shown(shows.clip)}")
    return {
        "media": (location(shows.video, root),),
        "clip_s": None if shows.clip is None else (shows.clip[0], shows.clip[1]),
        "reset_times": shows.need_reset_timestamp is True,
        "fps": shows.fps,
    }


def image_fields(row: Row, root: Location) -> dict[str, Any]:
    """Fields of a `Sample` about its images.

    Raises:
        InputError: no path, or a list of something else.
    """
    names = row["image"] if isinstance(row["image"], list) else [row["image"]]
    media = tuple(location(path(name, "image"), root) for name in names)
    return {"media": media, "sizes": _sizes(row, len(media))}


def _sizes(row: Row, num_images: int) -> tuple[tuple[int, int], ...]:
    """Width and height of every image, if the row gives them all; InternVL's do, as a number or a list."""
    width, height = (value if isinstance(value, list) else [value] for value in (row.get("width"), row.get("height")))
    values = [*width, *height]
    if not len(width) == len(height) == num_images or not all(type(value) is int and value > 0 for value in values):
        return ()
    return tuple(zip(width, height, strict=True))
