"""Animations in the formats of still images: animated WebP, PNG, GIF and AVIF, and the pages of a TIFF.

Owns which files these are, and when each of their pictures is shown. Pillow decodes them one after another, so a pass
always begins with the first one.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from videochat_online.errors import VideoError
from videochat_online.video.reader import DecodeReport, FrameReader, LazyFrame, LoadedFrame, Pixels, VideoInfo
from videochat_online.video.still_images import IMAGE_ERRORS, count_pictures, describe_error, oddities, upright_rgb

PAGED_FORMATS = frozenset({"TIFF"})
"""Several pictures that say nothing of time."""

SHORTEST_S = 0.01
REPLACED_S = 0.1
"""A picture that is to be shown for 10 ms or less is shown for 100, as in browsers: files say 0 where nobody cared."""


def is_animation(path: str | os.PathLike[str]) -> bool:
    """Whether an image file holds several pictures that follow each other; False also where it cannot be read."""
    try:
        with Image.open(path) as image:
            return count_pictures(image) > 1
    except IMAGE_ERRORS:
        return False


class AnimationReader(FrameReader):
    """Reader of one such file. Pages of a TIFF are shown at `fps`; those of another size than the first are left out.

    No picture can be skipped: each may build on the one before. Nothing is held open between passes.

    Args:
        path: the image file.
        fps: pages a second.

    Raises:
        VideoError: the first picture cannot be read.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._num_decoded, self._num_declared = 0, 1
        self._notes: tuple[str, ...] = ()
        self._error: str | None = None
        self._is_complete = False
        self._times_s: tuple[float, ...] | None = None
        first = next(self.frames(), None)
        loaded = None if first is None else first.load()
        if loaded is None:
            raise VideoError(f"{path}: expected a readable image, found {self._error}")
        height, width, _ = loaded.pixels_HWC.shape
        self.info = VideoInfo(
            source=str(path), kind="video", num_frames_declared=self._num_declared, width=width, height=height
        )

    def frames(self, start_s: float | None = None) -> Iterator[LazyFrame]:
        """All pictures from the first one on, each decoded as it comes: only then is its duration known."""
        self._num_decoded, self._error, self._is_complete = 0, None, False
        starts_s, start = [], 0.0
        try:
            with Image.open(self._path) as image:
                self._notes = oddities(image)
                skipped = int(bool(image.info.get("default_image")))
                self._num_declared = count_pictures(image)
                for position in range(skipped, skipped + self._num_declared):
                    pixels_HWC, duration_s = self._decode(image, position)
                    if pixels_HWC is None:
                        continue
                    self._num_decoded += 1
                    frame, end = LoadedFrame(start, pixels_HWC), start + duration_s
                    starts_s.append(start)
                    yield LazyFrame(start, end, lambda frame=frame: frame)  # type: ignore[misc]
                    start = end
        except IMAGE_ERRORS as error:
            self._error = describe_error(error)
        self._is_complete = True
        self._times_s = tuple(starts_s)

    def _decode(self, image: Image.Image, position: int) -> tuple[Pixels | None, float]:
        """A picture and how long it is shown; None for a page of another size."""
        size = image.size
        image.seek(position)
        image.load()
        if image.format in PAGED_FORMATS:
            if image.size != size and position:
                image.seek(0)
                self._num_declared -= 1
                return None, 0.0
            duration_s = 1 / self._fps
        else:
            duration_s = float(image.info.get("duration") or 0) / 1000
            duration_s = duration_s if duration_s > SHORTEST_S else REPLACED_S
        return np.asarray(upright_rgb(image), dtype=np.uint8), duration_s

    def times_s(self) -> tuple[float, ...]:
        """Start of each picture."""
        if self._times_s is None:
            deque(self.frames(), maxlen=0)
        return self._times_s or ()

    def finish(self, max_decode_s: float) -> None:
        """Decode all of it: such files are short."""
        if not self._is_complete:
            deque(self.frames(), maxlen=0)

    def report(self) -> DecodeReport:
        """The account of the latest pass."""
        where = f"after picture {self._num_decoded} ({self._error})"
        return DecodeReport(
            num_decoded=self._num_decoded,
            num_declared=self._num_declared,
            num_errors=int(self._error is not None),
            is_complete=self._is_complete,
            first_error=None if self._error is None else where,
            notes=self._notes,
        )
