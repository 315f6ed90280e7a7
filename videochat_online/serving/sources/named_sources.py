"""What the operator lets viewers watch: `NAME=ADDRESS`, on the command line or in a file that nobody else may read.

An address may hold a password. It is in one object, whose text is the name; errors, logs and the page have the name.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from videochat_online.errors import InputError

PROTOCOLS = {"rtsp": "tcp", "http": "http,https,tls,tcp", "https": "https,tls,tcp"}
"""Schemes of addresses, and the protocols of FFmpeg that reading one may use."""


@dataclass(frozen=True, repr=False)
class NamedSource:
    """A camera, a video or a folder of frames that viewers may watch.

    Attributes:
        name: word that viewers choose it by: small letters, digits, _ and -.
        address: address of a video of the network, or path of a file or a folder of frames; a secret.

    Raises:
        InputError: another name, a scheme that is not read, or nothing there. It never quotes what was given.
    """

    name: str
    address: str

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z0-9_-]+", self.name):
            raise InputError("expected NAME=ADDRESS, with a name of a-z, 0-9, _ and -, found another")
        if not self.is_remote:
            if not os.access(self.address, os.R_OK):
                raise InputError(f"{self.name}: expected a video or a folder of frames, found none that can be read")
            return
        try:
            url = urlsplit(self.address)
            scheme, has_host = url.scheme, bool(url.hostname) and url.port != 0
        except ValueError:  # its words have a part of the address
            scheme, has_host = "", False
        if scheme not in PROTOCOLS or not has_host:
            schemes = ", ".join(f"{scheme}://" for scheme in PROTOCOLS)
            raise InputError(f"{self.name}: expected a path, or one of {schemes} with a host, found another address")

    def __repr__(self) -> str:
        return self.name

    @property
    def is_remote(self) -> bool:
        """Whether it is reached over the network."""
        return "://" in self.address


def read_sources(given: Sequence[str], file: Path | None) -> tuple[NamedSource, ...]:
    """Sources of a command line and of a file, in their order.

    Args:
        given: texts of the form `NAME=ADDRESS`.
        file: more of them, one a line; empty lines and those that begin with # are left out.

    Raises:
        InputError: what is no source, a name that is there twice, or a file that others may read.
    """
    lines = [("--source", text) for text in given]
    if file is not None:
        lines += [(f"--sources {file}, line {number}", text) for number, text in _lines(file)]
    sources: dict[str, NamedSource] = {}
    for where, text in lines:
        name, _, address = text.partition("=")
        try:
            source = NamedSource(name.strip(), address.strip())
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if source.name in sources:
            raise InputError(f"{where}: expected each name once, found {source.name} twice")
        sources[source.name] = source
    return tuple(sources.values())


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077 and sys.platform != "win32":  # which has no such modes
                raise InputError(f"--sources {path}: expected a file that others cannot read, mode 600, found {mode:o}")
            lines = enumerate((line.strip() for line in file), start=1)
            return [(number, line) for number, line in lines if line and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or "other bytes than UTF-8"
        raise InputError(f"--sources {path}: expected a file of NAME=ADDRESS lines, found {cause}") from None
