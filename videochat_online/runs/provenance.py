"""What a run was made with: versions of packages, the commit of the code, the time."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from videochat_online import __version__


def timestamp() -> str:
    """Now, in local time with its offset."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Versions of Python, of this package, and of others; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "videochat-online": __version__}
    return found | {name: _version(name) for name in packages}


@cache  # reading what a package says of itself takes a while, and each run asks
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_revision(folder: Path = Path(__file__).parents[1]) -> str | None:
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
