"""Archives below a data root: whether they are intact, and which missing videos wait in them.

Nothing is unpacked: evaluations read files and folders.
"""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

_TAR = re.compile(r"\.(?:tar|tgz|tbz2?|txz|tar\.(?:gz|bz2|xz))$", re.IGNORECASE)
_OTHER = re.compile(r"\.(?:7z|rar|tar\.zst|(?:zip|tar|tgz|7z|tar\.\w+)\.(?:\d{2,3}|part.*|[a-z]{2}))$", re.IGNORECASE)
_CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class ArchiveFacts:
    """An archive.

    Attributes:
        problem: why it is broken or cannot be looked into; None for an intact one.
        is_corrupt: broken for sure.
        held: videos that were looked for and are in it.
    """

    problem: str | None = None
    is_corrupt: bool = False
    held: tuple[str, ...] = ()


def find_archives(root: Path, folders_of_frames: Collection[Path]) -> list[Path]:
    """Archives below a folder, in order; folders of frames are left out, hidden ones too."""
    found, skipped = [], {os.fspath(path) for path in folders_of_frames}
    for folder, folders, names in os.walk(root):
        folders[:] = [n for n in folders if not n.startswith(".") and os.path.join(folder, n) not in skipped]
        found += [Path(folder, n) for n in names if _is_archive(n)]
    return sorted(found)


def check_archive(path: Path, wanted: Collection[str]) -> ArchiveFacts:
    """Read an archive through, so that its checksums are seen to fit.

    Args:
        path: zip or tar, compressed or not; of other formats and parts only the name is known.
        wanted: ids of videos to look for.
    """
    if path.suffix.lower() != ".zip" and not _TAR.search(path.name):
        return ArchiveFacts("a format or a part of an archive that cannot be looked into here")
    held = _held([path.stem, _TAR.sub("", path.name)], wanted)
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                held |= _held(archive.namelist(), wanted)
                bad = archive.testzip()
                problem = None if bad is None else f"{bad} does not fit its checksum"
        else:
            with tarfile.open(path) as tar:
                for member in tar:
                    held |= _held([member.name], wanted)
                problem = _end_of_tar(tar)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        problem = f"{error or type(error).__name__}"
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or compressed in a way that zipfile lacks
        return ArchiveFacts(str(error), held=tuple(sorted(held)))
    return ArchiveFacts(problem, problem is not None, tuple(sorted(held)))


def _end_of_tar(tar: tarfile.TarFile) -> str | None:
    """What comes after the last member; tarfile takes a broken header for the end, and leaves checksums unread."""
    file = cast("IO[bytes]", tar.fileobj)
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return f"breaks off after {tar.offset + len(block):,} bytes (unpacked)"
    if block.strip(b"\0"):
        return f"a broken header after {tar.offset:,} bytes (unpacked)"
    while file.read(_CHUNK):
        pass
    return None


def _held(names: Iterable[str], wanted: Collection[str]) -> set[str]:
    """Wanted videos that are files, with their endings or without, or folders of an archive."""
    by_name = {PurePosixPath(video).name: video for video in wanted}
    held = set()
    for name in names:
        for part in PurePosixPath(name).parts:
            held |= {by_name[known] for known in (part, os.path.splitext(part)[0]) if known in by_name}
    return held


def _is_archive(name: str) -> bool:
    is_known = name.lower().endswith(".zip") or _TAR.search(name) or _OTHER.search(name)
    return bool(is_known) and not name.startswith(".")
