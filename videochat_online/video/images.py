"""Still images and folders of frames.

Owns the order of a folder (natural: img2 before img10; numbers in names mean nothing else) and the reading of
one image. Frame i of a folder starts at i / fps, readable or not.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from videochat_online.errors import VideoError
from videochat_online.video.reader import (
    DecodeReport,
    LazyFrame,
    LoadedFrame,
    Pixels,
    VideoInfo,
    find_previous,
)
from videochat_online.video.transforms import to_rgb

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which runs of digits compare as numbers, before letters: frame2 < frame10 < frame10b."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)


def list_frame_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The images directly in a folder, in natural order; hidden and other files are left out.

    Raises:
        VideoError: no such folder, or no image in it.
    """
    path = Path(folder)
    try:
        names = os.listdir(path)
    except OSError as error:
        raise VideoError(f"{path}: expected a folder of frames, found none ({error.strerror})") from error
    images = [n for n in names if not n.startswith(".") and Path(n).suffix.lower() in IMAGE_EXTENSIONS]
    if not images:
        raise VideoError(
            f"{path}: expected a folder with images ({', '.join(sorted(IMAGE_EXTENSIONS))}), "
            f"found {len(names)} other entries"
        )
    return [path / name for name in sorted(images, key=lambda name: (natural_key(name), name))]


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """A still image as RGB, turned upright as its EXIF orientation says, alpha dropped.

    Raises:
        VideoError: no such file, not an image, or a broken one.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for somebody to write into it
        raise VideoError(f"{os.fspath(path)}: expected an image, found no regular file")
    try:
        return decode_image(path, os.fspath(path))
    except FileNotFoundError as error:
        raise VideoError(f"{os.fspath(path)}: expected an image, found no such file") from error


def decode_image(
    source: str | os.PathLike[str] | IO[bytes],
    name: str,
    *,
    formats: tuple[str, ...] | None = None,
    max_pixels: int | None = None,
) -> Image.Image:
    """A still image as `read_image` gives it, from a file or from memory.

    Args:
        source: path, or an open file.
        name: what errors call it.
        formats: names that PIL has for the formats that may be tried; None for all.
        max_pixels: an image that says that it has more is not decoded; None leaves that to PIL.

    Raises:
        VideoError: not an image, a broken one, or too large.
        FileNotFoundError: no such file.
    """
    try:
        with Image.open(source, formats=formats) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                found = f"{image.width}x{image.height}"
                raise VideoError(f"{name}: expected an image of at most {max_pixels:,} pixels, found {found}")
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except (FileNotFoundError, VideoError):
        raise
    # PIL raises its own errors, OSError, SyntaxError, ValueError and others for broken files of each format.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise VideoError(f"{name}: expected a readable image, found {_describe(error)}") from error


class ImageSequenceReader:
    """Reader of image files in a given order.

    An image that cannot be read is counted and leaves its time slot empty: whoever asks for that time gets
    the readable image before it.
    """

    def __init__(self, files: Sequence[Path], fps: float, source: str) -> None:
        """Read the first good image; VideoError if there is none."""
        self._files = list(files)
        self._fps = fps
        self._errors: dict[int, str] = {}
        self._good: set[int] = set()
        self._counted: set[int] = set()
        first = next((p for p in (self._load(i) for i in range(len(self._files))) if p is not None), None)
        if first is None:
            raise VideoError(
                f"{source}: expected readable images, found none among {len(self._files)} ({self._errors.get(0)})"
            )
        self._info = VideoInfo(
            source=source,
            kind="frame_folder",
            num_frames_declared=len(self._files),
            duration_s=len(self._files) / fps,
            average_fps=fps,
            width=first.shape[1],
            height=first.shape[0],
        )

    @property
    def info(self) -> VideoInfo:
        """Facts about the source."""
        return self._info

    def frames(self, start_s: float | None = None) -> Iterator[LazyFrame]:
        """All images, from the one shown at `start_s` on; none is opened before it is sampled."""
        first = 0 if start_s is None else min(max(0, int(start_s * self._fps) - 1), len(self._files) - 1)
        for i in range(first, len(self._files)):
            yield LazyFrame(i / self._fps, (i + 1) / self._fps, lambda i=i: self._load_at(i))  # type: ignore[misc]

    def skip(self, time_s: float) -> None:
        """Frames that are not sampled cost nothing here."""

    def times_s(self) -> tuple[float, ...]:
        """Start of each slot."""
        return tuple(i / self._fps for i in range(len(self._files)))

    def finish(self, max_decode_s: float) -> None:
        """Read the images that were not sampled if they last at most `max_decode_s`, else check they exist."""
        unread = [i for i in range(len(self._files)) if i not in self._good and i not in self._errors]
        if len(unread) / self._fps <= max_decode_s:
            for i in unread:
                self._load(i)
            return
        for i in unread:
            if self._is_filled(self._files[i]):
                self._counted.add(i)
            else:
                self._errors[i] = "an empty or missing file"

    def report(self) -> DecodeReport:
        """Images read and images that could not be read."""
        first = min(self._errors, default=None)
        num_undecoded = len(self._counted - self._good - self._errors.keys())
        return DecodeReport(
            num_decoded=len(self._good),
            num_declared=len(self._files),
            num_undecoded=num_undecoded,
            num_errors=len(self._errors),
            is_complete=len(self._good) + len(self._errors) + num_undecoded == len(self._files),
            first_error=None if first is None else f"{self._files[first].name} ({self._errors[first]})",
        )

    def close(self) -> None:
        """Nothing is held open."""

    def _load_at(self, i: int) -> LoadedFrame | None:
        return find_previous(self._load, lambda position: position / self._fps, i)

    def _load(self, i: int) -> Pixels | None:
        if i in self._errors:
            return None
        try:
            pixels_HWC = np.asarray(read_image(self._files[i]), dtype=np.uint8)
        except VideoError as error:
            self._errors[i] = _describe(error.__cause__ or error)
            return None
        self._good.add(i)
        return pixels_HWC

    @staticmethod
    def _is_filled(path: Path) -> bool:
        return path.is_file() and path.stat().st_size > 0


def _describe(error: BaseException) -> str:
    """One line about a cause, without the path that PIL repeats in it."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "no known image format"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
