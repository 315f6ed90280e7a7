"""Small things that belong to no layer."""

from __future__ import annotations

import hashlib
import logging
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from upath import UPath

from videochat_online import __version__


def file_digest(path: Path | UPath) -> str:
    """SHA-256 of a file in hexadecimal; it may be larger than memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def silence_accelerator_notice() -> None:
    """Keep DeepSpeed from announcing on stdout that it found no GPU.

    transformers imports DeepSpeed when it saves a model; where stdout carries JSON, the notice breaks it.
    """
    notice = "Setting accelerator to CPU"
    logging.getLogger("DeepSpeed").addFilter(lambda record: not record.getMessage().startswith(notice))


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Of Python, this package, and others; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "videochat-online": __version__}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def git_revision(folder: Path = Path(__file__).parent) -> str | None:
    """Hash of a checkout's commit, with a plus sign where files are changed; None where `folder` is in none.

    By default of the package's own.
    """
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
