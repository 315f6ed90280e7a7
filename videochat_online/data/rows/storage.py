"""Files here or elsewhere: local paths, and `s3://`, `hf://`, ... through fsspec.

Owns the difference. Annotations are read in one piece; media are opened through a copy in the temporary folder, since
decoders want real files and go through them more than once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from upath import UPath

from videochat_online.errors import InputError, VideoError

Location: TypeAlias = "Path | UPath"
"""A `Path` is here, a `UPath` is elsewhere."""


def location(text: str, base: Location = Path()) -> Location:
    """Where a text points to.

    Args:
        text: a path, or a URL with `://`.
        base: folder that a relative path is in.

    Raises:
        InputError: no such kind of storage.
    """
    if "://" not in text:
        path = Path(text)
        return path if path.is_absolute() else base / text
    try:
        found = UPath(text)
        str(found)  # what is wrong with a URL may only show when it is read
        return found
    except (ValueError, ImportError) as error:
        raise InputError(f"{text}: expected a path or a URL that fsspec knows: {error}") from error


def exists(path: Location, *, folder: bool = False) -> bool:
    """Whether there is a file, or a folder.

    Raises:
        InputError: the storage cannot be reached.
    """
    try:
        return path.is_dir() if folder else path.is_file()
    except Exception as error:
        raise _unreachable(path, error) from error


def read_bytes(path: Location, what: str) -> bytes:
    """A whole file.

    Args:
        path: the file.
        what: words for what it is expected to hold, for the error.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        cause = error.strerror or error
        raise InputError(f"{path}: expected {what}, found no readable file ({cause})") from error
    except Exception as error:
        raise _unreachable(path, error) from error


def _unreachable(path: Location, error: Exception) -> InputError:
    """Every storage has errors of its own."""
    return InputError(f"{path}: expected a storage that can be reached: {error}")


@contextmanager
def local_copy(path: Location) -> Iterator[Path]:
    """A path that decoders can open: its own path, or that of a copy of the file or folder for as long as this lasts.

    Raises:
        VideoError: it cannot be read; also from within, with its own name instead of the copy's.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="videochat_online_") as folder:
        try:
            copy = Path(folder) / (path.name or "media")
            if path.is_dir():
                copy.mkdir()
                for file in path.iterdir():
                    if file.is_file():
                        file.fs.get_file(file.path, str(copy / file.name))
            else:
                path.fs.get_file(path.path, str(copy))
        except Exception as error:
            raise VideoError(f"{path}: expected a file or folder that can be read, found none ({error})") from error
        try:
            yield copy
        except VideoError as error:
            raise VideoError(str(error).replace(str(copy), str(path))) from error
