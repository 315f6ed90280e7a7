"""Small things that belong to no layer."""

from __future__ import annotations

import hashlib
import logging
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from upath import UPath

from videochat_online import __version__
from videochat_online.errors import InputError


def file_digest(path: Path | UPath) -> str:
    """SHA-256 of a file in hexadecimal; it may be larger than memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def without_bom(content: bytes) -> bytes:
    """A text file in UTF-8 without the mark of its encoding; some tools put several before it."""
    mark = b"\xef\xbb\xbf"
    while content.startswith(mark):
        content = content.removeprefix(mark)
    return content


def existing(folder: Path) -> Path:
    """The folder, or that above it which is there: where it would be made."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def check_writable(folder: Path) -> None:
    """Before the work whose result goes into a folder: whether it can. Nothing is left behind.

    Raises:
        InputError: nothing can be written in it, or in that above it in which it has to be made.
    """
    try:
        with tempfile.TemporaryFile(dir=existing(folder)):
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


def silence_accelerator_notice() -> None:
    """Keep DeepSpeed from announcing on stdout that it found no GPU.

    transformers imports DeepSpeed when it saves a model; where stdout carries JSON, the notice breaks it.
    """
    notice = "Setting accelerator to CPU"
    logging.getLogger("DeepSpeed").addFilter(lambda record: not record.getMessage().startswith(notice))


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Of Python, this package, and others; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "videochat-online": __version__}
    return found | {name: _version(name) for name in packages}


@cache  # reading what a package says of itself takes a while, and each run asks
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_revision(folder: Path = Path(__file__).parent) -> str | None:
    """Hash of a checkout's commit, with a plus sign where files are changed; None where `folder` is not of one.

    By default of the package's own, which is at the top of its repository. One that is installed inside somebody else's
    lies deeper, or is not under version control there.
    """
    git = ["git", "-C", str(folder)]
    try:
        top = Path(_output([*git, "rev-parse", "--show-toplevel"]))
        if top not in (folder.resolve(), folder.resolve().parent) or not _output([*git, "ls-files"]):
            return None
        return _output([*git, "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]) or None
    except (OSError, subprocess.SubprocessError):
        return None


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
