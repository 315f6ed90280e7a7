"""Still images and folders of frames.

Owns the order of a folder (natural: img2 before img10; numbers in names mean nothing else) and the reading of
one image. Frame i of a folder starts at i / fps, readable or not.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from videochat_online.errors import VideoError
from videochat_online.video.reader import DecodeReport, LoadedFrame, Pixels, RegularReader
from videochat_online.video.transforms import DEEP_MODES, to_rgb

logger = logging.getLogger(__name__)

IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""Errors that Pillow raises for broken files of one format or another."""

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
        VideoError: no such file, or one that is no image or is broken.
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
        name: name of the image in errors.
        formats: names that PIL has for the formats that may be tried; None for all.
        max_pixels: an image that says that it has more is not decoded; None leaves that to PIL.

    Raises:
        VideoError: a file that is no image, is broken, or has too many pixels.
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
        if max_pixels is not None and isinstance(error, Image.DecompressionBombError):
            raise VideoError(f"{name}: expected an image of at most {max_pixels:,} pixels, found many more") from error
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
        VideoError: an image whose numbers have no known range (`to_rgb`); the file is not named.
    """
    return to_rgb(ImageOps.exif_transpose(image), is_16_bit=image.format == "PPM")


def image_notes(path: Path) -> tuple[str, ...]:
    """What is odd about a file that is seen as one image, and how it is read nevertheless, a line each."""
    try:
        with Image.open(path) as image:
            return oddities(image) + ((FIRST_PICTURE,) if count_pictures(image) > 1 else ())
    except IMAGE_ERRORS:
        return ()


def oddities(image: Image.Image) -> tuple[str, ...]:
    """What is odd about the pixels of an opened file, and how they are read nevertheless, a line each."""
    deep = DEEP_MODES.get(image.mode.partition(";")[0])
    return (deep,) if deep else ()


class ImageSequenceReader(RegularReader):
    """Reader of image files in a given order.

    An image that cannot be read is counted and leaves its time slot empty: whoever asks for that time gets
    the readable image before it.
    """

    def __init__(self, files: Sequence[Path], fps: float, source: str) -> None:
        """Read the first good image; VideoError if there is none."""
        self._files = list(files)
        self._errors: dict[int, str] = {}
        self._good: set[int] = set()
        self._counted: set[int] = set()
        first = next((p for p in map(self._read, range(len(self._files))) if p is not None), None)
        self._notes = image_notes(self._files[min(self._good, default=0)])
        if first is None:
            raise VideoError(
                f"{source}: expected readable images, found none among {len(self._files)} ({self._errors.get(0)})"
            )
        super().__init__(source, "frame_folder", len(self._files), fps, first.shape[:2])

    def finish(self, max_decode_s: float) -> None:
        """Read the images that were not sampled if they last at most `max_decode_s`, else check they exist."""
        unread = [i for i in range(len(self._files)) if i not in self._good and i not in self._errors]
        if len(unread) / self._fps <= max_decode_s:
            for i in unread:
                self._read(i)
            return
        for i in unread:
            if self._files[i].is_file() and self._files[i].stat().st_size > 0:
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

    def _load(self, i: int) -> LoadedFrame | None:
        """Image i, or the nearest one before it that can be read."""
        for earlier in range(i, -1, -1):
            pixels_HWC = self._read(earlier)
            if pixels_HWC is not None:
                return LoadedFrame(earlier / self._fps, pixels_HWC)
        return None

    def _read(self, i: int) -> Pixels | None:
        if i in self._errors:
            return None
        try:
            pixels_HWC = np.asarray(read_image(self._files[i]), dtype=np.uint8)
        except VideoError as error:
            self._errors[i] = describe_error(error.__cause__ or error)
            return None
        self._good.add(i)
        return pixels_HWC


def describe_error(error: BaseException) -> str:
    """One line about a cause, without the path that PIL repeats in it."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "no known image format"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
