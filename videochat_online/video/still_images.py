"""Still images and folders of frames.

Owns the order of a folder (natural: img2 before img10; numbers in names mean nothing else) and the reading of
one image. Frame i of a folder starts at i / fps, readable or not.
"""

from __future__ import annotations

import logging
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
from videochat_online.video.transforms import DEEP_MODES, to_rgb

logger = logging.getLogger(__name__)

IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for broken files of one format or another."""

MOVING_FORMATS = frozenset({"WEBP", "PNG", "GIF", "AVIF", "TIFF"})
"""Formats whose further pictures follow the first one. (In MPO, the second one is a preview or a map.)"""

FIRST_PICTURE = "an animation, of which only the first picture is seen as an image"

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

    Of an animation it is the first picture, with a warning.

    Raises:
        VideoError: no such file, not an image, or a broken one.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for somebody to write into it
        raise VideoError(f"{os.fspath(path)}: expected an image, found no regular file")
    try:
        return decode_image(path, os.fspath(path))
    except FileNotFoundError as error:
        found = "a URL, which is not read here: download it first" if is_url(path) else "no such file"
        raise VideoError(f"{os.fspath(path)}: expected an image, found {found}") from error


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a text that is no file is one of the web's addresses; a `Path` has lost one of its slashes."""
    return re.match(r"[a-z][a-z0-9+.-]+:/", os.fspath(path), re.IGNORECASE) is not None


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
                raise VideoError(f"expected an image of at most {max_pixels:,} pixels, found {found}")
            image.load()
            if count_pictures(image) > 1:
                logger.warning("%s: %s", name, FIRST_PICTURE)
            return upright_rgb(image)
    except FileNotFoundError:
        raise
    except VideoError as error:
        raise VideoError(f"{name}: {error}") from error
    except IMAGE_ERRORS as error:
        raise VideoError(f"{name}: expected a readable image, found {describe_error(error)}") from error


def count_pictures(image: Image.Image) -> int:
    """Pictures of an opened file that follow each other; 1 for a still image."""
    if image.format not in MOVING_FORMATS:
        return 1
    # The first picture of an animated PNG may be one for programs that know no animations.
    return getattr(image, "n_frames", 1) - bool(image.info.get("default_image"))


def upright_rgb(image: Image.Image) -> Image.Image:
    """A decoded picture as RGB, turned upright.

    Raises:
        VideoError: without the file's name, its numbers have no known range (`to_rgb`).
    """
    return to_rgb(ImageOps.exif_transpose(image), is_16_bit=image.format == "PPM")


def image_notes(path: Path, *, as_image: bool = True) -> tuple[str, ...]:
    """What is odd about an image and how it is read nevertheless, a line each.

    Args:
        path: of the file.
        as_image: an animation is seen as its first picture.
    """
    try:
        with Image.open(path) as image:
            deep = DEEP_MODES.get(image.mode.partition(";")[0])
            moving = FIRST_PICTURE if as_image and count_pictures(image) > 1 else None
    except IMAGE_ERRORS:
        return ()
    return tuple(note for note in (deep, moving) if note)


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
        self._notes = image_notes(self._files[min(self._good, default=0)])
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
            notes=self._notes,
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
            self._errors[i] = describe_error(error.__cause__ or error)
            return None
        self._good.add(i)
        return pixels_HWC

    @staticmethod
    def _is_filled(path: Path) -> bool:
        return path.is_file() and path.stat().st_size > 0


def describe_error(error: BaseException) -> str:
    """One line about a cause, without the path that PIL repeats in it."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "no known image format"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
