"""What keeps strangers' media from harming the server: which containers are opened, what a process may use, names.

FFmpeg picks a container's reader by its bytes, and some readers open other files and addresses (playlists, lists of
clips, session descriptions). They are kept out by a list of those that do not, before a reader runs.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

import av
import av.error
from av.container import InputContainer

from videochat_online.errors import InputError
from videochat_online.video.files.container import reason

if sys.platform != "win32":
    import resource

SUFFIX_OF_FORMAT = {
    "mov,mp4,m4a,3gp,3g2,mj2": ".mp4",
    "matroska,webm": ".mkv",
    "avi": ".avi",
    "gif": ".gif",
    "mpegts": ".ts",
    "mpeg": ".mpg",
    "flv": ".flv",
    "asf": ".wmv",
    "ogg": ".ogv",
}
"""Containers, by FFmpeg's names, that hold their pictures themselves, and the suffix under which they are kept."""

MAX_NAME = 80
"""Characters of a name that are shown."""

PLAIN_MARKS = frozenset(" .-_+,=@#()")

MAX_PIXELS = 4096 * 2304
"""Largest frame of a video: 4K. Several wait for the model at a time."""

MAX_MEMORY_BYTES = 4 * 2**30
"""Memory of a process that opens or decodes."""


def check_frame_size(width: int, height: int, max_pixels: int) -> None:
    """Raise an `InputError` for a video whose frames are too large."""
    if width * height > max_pixels:
        raise InputError(f"expected frames of at most {max_pixels} pixels, found {width} x {height}")


def safe_name(text: str) -> str:
    """A stranger's name of a file, fit to be shown on a page, in a log or in an error.

    The last part of a path; whatever could be markup, a control or a change of direction becomes "_"; short.
    """
    last = text.replace("\\", "/").rstrip("/").rpartition("/")[2]
    short = last if len(last) <= MAX_NAME else f"{last[: MAX_NAME - 13]}...{last[-10:]}"
    kept = [c if c in PLAIN_MARKS or unicodedata.category(c)[0] in "LMN" else "_" for c in short]
    return "".join(kept).strip() or "_"


def open_listed(source: BinaryIO, formats: Collection[str]) -> InputContainer:
    """Open a file whose container is on a list, and nothing else.

    Args:
        source: file.
        formats: FFmpeg's names of containers.

    Raises:
        InputError: words for what it is instead, without a name in front.
    """
    try:
        options = {"protocol_whitelist": "none", "format_whitelist": ",".join(formats)}
        return cast(InputContainer, av.open(source, options=options))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        # FFmpeg says "invalid argument" of a container that is not on the list.
        is_unlisted = isinstance(error, av.error.ArgumentError)
        found = "a kind of file that is not played" if is_unlisted else f"something unreadable ({reason(error)})"
        raise InputError(f"expected a video, found {found}") from error


def confine(memory_bytes: int, cpu_s: int | None = None) -> None:
    """Bound what this process may use from now on, where the system can; for a process of its own.

    Args:
        memory_bytes: bytes of address space, on top of what it has (a server with a GPU has hundreds of GB).
        cpu_s: seconds of computing, after which the system ends the process.
    """
    if sys.platform == "win32":
        return
    limits = {resource.RLIMIT_CORE: 0}
    if cpu_s is not None:
        limits[resource.RLIMIT_CPU] = cpu_s
    with suppress(OSError):  # no Linux: nobody knows what it has, and a limit below that would end it
        present_bytes = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = present_bytes + memory_bytes
    for kind, value in limits.items():
        _, hard = resource.getrlimit(kind)
        # A limit is only ever made stricter.
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
