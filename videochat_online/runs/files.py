"""Files of runs: written as a whole or not at all, read strictly, locked; and the folders that they go into.

A damaged file is an `InputError` of one line that names the file, what was expected in it and what was found. What the
disk does not take is the system's `OSError`: its callers know best what that costs.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from upath import UPath

from videochat_online.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows; two processes are then not kept apart
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"
"""Ending of the name of a file that is still written, or whose writing was interrupted."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to: what is there at the end replaces `path`, and nothing does after an error.

    Any number of processes, on several machines too, may write the same file at the same time. A link stays one: what
    it leads to is replaced. A device or a pipe, such as /dev/stdout, is written to as it is. An `OSError` names `path`.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    target = path.resolve() if path.is_symlink() else path
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield partial
        partial.replace(target)
    except OSError as error:
        if error.filename != str(partial):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole, down to the disk; half a character, of a row's path or text, as JSON spells it."""
    with (
        written_whole(path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
    ):
        file.write(text)
        file.flush()
        if partial != path:  # a device or a pipe has no disk below it
            os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """As `write_text`."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """A document as files of a run hold it."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path, expected: str) -> Any:
    """The document in a JSON file.

    Args:
        path: the file.
        expected: words for what it should hold, for errors.

    Raises:
        InputError: no file, or no JSON in it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected {expected}, found no readable file ({error.strerror})") from error
    try:
        return json.loads(without_bom(content).decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected {expected}, found no JSON: {error}") from error


def read_object(path: Path, expected: str = "a JSON object") -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: no file, no JSON in it, or something else than an object.
    """
    content = read_json(path, expected)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected {expected}, found {type(content).__name__}")
    return content


def without_bom(content: bytes) -> bytes:
    """A text file in UTF-8 without the mark of its encoding; some tools put several before it."""
    mark = b"\xef\xbb\xbf"
    while content.startswith(mark):
        content = content.removeprefix(mark)
    return content


def try_lock(file: int | IO[Any], *, wait: bool = False) -> bool:
    """Lock an open file, or the descriptor of a folder, until it is closed.

    Args:
        file: open file, or descriptor of a folder.
        wait: whether to wait until no other process holds the lock.

    Returns:
        Whether it can be used: no other process holds the lock, or the file system has no locks.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError:
            pass  # some network file systems have no locks
    return True


def file_digest(path: Path | UPath) -> str:
    """SHA-256 of a file in hexadecimal; it may be larger than memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def existing_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists: where it would be made."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def check_writable(folder: Path) -> None:
    """Whether a folder can be written to, before the work whose result goes into it. Nothing is left behind.

    Raises:
        InputError: nothing can be written in it, or in that above it in which it has to be made.
    """
    try:
        with tempfile.TemporaryFile(dir=existing_folder(folder)):
            pass
    except OSError as error:
        raise InputError(f"{folder}: expected a folder that can be written to: {error.strerror}") from error


def share_files(folder: Path) -> None:
    """Let those read the files of a folder who may enter it: libraries write some of them for their owner alone."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            with suppress(PermissionError):  # somebody else's
                file.chmod(mode)
