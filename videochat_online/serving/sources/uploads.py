"""What a viewer may upload: videos and images that are really such, within limits.

A file is opened for the first time in a process of its own, which can be killed and has little to use. An image
leaves that process as a picture written anew, so that nothing of the original is read by the server itself; a video
is kept as it is, and played by the server.
"""

from __future__ import annotations

import errno
import math
import os
import secrets
import shutil
import stat
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from videochat_online.errors import InputError
from videochat_online.isolation import Lost, run_isolated
from videochat_online.serving.sources.sandbox import (
    MAX_MEMORY_BYTES,
    MAX_PIXELS,
    SUFFIX_OF_FORMAT,
    check_frame_size,
    confine,
    open_listed,
    safe_name,
)
from videochat_online.video import IMAGE_EXTENSIONS, open_video
from videochat_online.video.files.container import ContainerPass, Tally
from videochat_online.video.still_images import decode_image

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".gif"}
    | {".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".flv", ".wmv", ".asf", ".ogv", ".ogg"}
)

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
"""PIL's names; others run programs (EPS) or are drawn at a size of their own (WMF)."""


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """What is too much of an upload.

    Attributes:
        max_bytes: size of a file.
        max_duration_s: seconds of a video.
        max_pixels: size of a video's frame.
        max_memory_bytes: memory of the process that opens it.
        max_image_pixels: size of an image: a phone's.
        max_examination_s: seconds that opening may take.

    Raises:
        InputError: a limit that lets nothing in.
    """

    max_bytes: int = 512 * 2**20
    max_duration_s: float = 3600.0
    max_pixels: int = MAX_PIXELS
    max_memory_bytes: int = MAX_MEMORY_BYTES
    max_image_pixels: int = 50_000_000
    max_examination_s: float = 30.0

    def __post_init__(self) -> None:
        for limit in fields(self):
            if not getattr(self, limit.name) > 0:
                raise InputError(f"{limit.name}: expected a number above 0, got {getattr(self, limit.name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedUpload:
    """A file that may be watched.

    Attributes:
        kind: "video" or "image".
        path: place of the file now, in the viewer's folder.
        name: the viewer's name for it, fit to be shown.
        width: columns as shown.
        height: rows as shown.
        duration_s: length of a video, as measured; None where it carries no times.
        fps: average frame rate of a video; None where unknown.
        problem: damage of the file, in one line; None where nothing is known to be.
    """

    kind: str
    path: Path
    name: str
    width: int
    height: int
    duration_s: float | None = None
    fps: float | None = None
    problem: str | None = None


def accept_upload(path: Path, name: str, folder: Path, limits: UploadLimits | None = None) -> AcceptedUpload:
    """Take an uploaded file over: move it into `folder` and look at it there.

    The file at `path` is used up: kept in `folder` under a name of our own, or deleted if it is refused once it was
    taken. A video that is damaged but shows something is accepted, with a `problem`.

    Args:
        path: uploaded file, where the server has put it.
        name: the viewer's name for it; only its suffix is used.
        folder: folder for files of this viewer.
        limits: the defaults where None.

    Raises:
        InputError: a file of no allowed kind, too large, too long, broken, or one that cannot be opened in time.
    """
    limits = limits or UploadLimits()
    shown, suffix = safe_name(name), Path(name.replace("\0", "_")).suffix.lower()
    kind = "video" if suffix in VIDEO_SUFFIXES else "image" if suffix in IMAGE_EXTENSIONS else None
    if kind is None:
        allowed = ", ".join(sorted(VIDEO_SUFFIXES | IMAGE_EXTENSIONS))
        raise InputError(f"{shown}: expected a video or an image ({allowed}), found another kind of file")
    _check_file(path, shown, limits)
    taken = folder / f"{kind}_{secrets.token_hex(8)}"
    kept: Path | None = None
    try:
        _move(path, taken)
        _check_file(taken, shown, limits)  # again: nobody else can exchange it now
        examine = _examine_video if kind == "video" else _examine_image
        # One call, its own process: what hangs or crashes there ends there.
        ((_, found),) = run_isolated(
            _confined, [(examine, taken, limits)], num_processes=1, limits_s=[limits.max_examination_s]
        )
        if isinstance(found, Lost):
            raise InputError(f"{shown}: expected a readable {kind}, but it could not be opened ({found.reason})")
        if isinstance(found, str):
            raise InputError(f"{shown}: {found}")
        kept = taken.with_suffix(found.pop("suffix"))
        if kind == "video":
            taken.replace(kept)
        return AcceptedUpload(kind=kind, path=kept, name=shown, **found)
    except OSError as error:
        raise InputError(f"{shown}: the server could not keep it ({error.strerror})") from error
    finally:
        for file in (taken, taken.with_suffix(".png")):  # the latter may be half written
            if file != kept:
                file.unlink(missing_ok=True)


def _check_file(path: Path, shown: str, limits: UploadLimits) -> None:
    """A regular file of a size that is taken."""
    try:
        status = path.lstat()
    except (OSError, ValueError) as error:
        raise InputError(f"{shown}: expected an uploaded file, found none") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{shown}: expected a regular file, found a link, a folder or a device")
    if status.st_size == 0:
        raise InputError(f"{shown}: expected a file with something in it, found an empty one (0 bytes)")
    if status.st_size > limits.max_bytes:
        raise InputError(f"{shown}: expected at most {limits.max_bytes} bytes, found {status.st_size}")


def _move(path: Path, to: Path) -> None:
    """Rename, or copy across devices; never follows a link."""
    try:
        path.rename(to)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        source = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(source, "rb") as file, to.open("xb") as copy:
            shutil.copyfileobj(file, copy)
        path.unlink()


def _confined(examine: Any, path: Path, limits: UploadLimits) -> dict[str, Any] | str:
    """In the process that looks: what it has found, or why the file is refused."""
    confine(limits.max_memory_bytes, cpu_s=math.ceil(limits.max_examination_s))
    try:
        return examine(path, limits)
    except InputError as error:
        return str(error).replace(f"{path}: ", "")
    except MemoryError:
        return "expected a file that can be opened, found one that takes too much memory"


def _examine_video(path: Path, limits: UploadLimits) -> dict[str, Any]:
    with path.open("rb") as file, open_listed(file, SUFFIX_OF_FORMAT) as container:
        suffix = SUFFIX_OF_FORMAT[container.format.name]
    duration_s = _measure(path, limits)
    with open_video(path) as source:
        source.finish(max_decode_s=0.0)  # counts the packets: is everything there that was declared
        info, problem = source.info, source.report.warning
    return {
        "suffix": suffix,
        "width": info.width,
        "height": info.height,
        "duration_s": duration_s,
        "fps": info.average_fps,
        "problem": problem,
    }


def _measure(path: Path, limits: UploadLimits) -> float | None:
    """Seconds from the first picture to the last packet's end: what a container declares may be a lie."""
    tally = Tally()
    reading = ContainerPass(path, tally, is_threaded=False)
    with reading.container:
        codec = reading.stream.codec_context
        check_frame_size(codec.width, codec.height, limits.max_pixels)
        first_s: float | None = None
        for packet in reading.packets():
            time_s = None if packet is None else reading.time_of(packet.pts)
            first_s = time_s if first_s is None else first_s
            if first_s is not None and tally.ends_at_s - first_s > limits.max_duration_s:
                raise InputError(f"expected a video of at most {limits.max_duration_s:g} s, found a longer one")
    return None if first_s is None else max(0.0, tally.ends_at_s - first_s)


def _examine_image(path: Path, limits: UploadLimits) -> dict[str, Any]:
    picture = decode_image(path, str(path), formats=IMAGE_FORMATS, max_pixels=limits.max_image_pixels)
    picture.save(path.with_suffix(".png"), compress_level=1)
    return {"suffix": ".png", "width": picture.width, "height": picture.height}
