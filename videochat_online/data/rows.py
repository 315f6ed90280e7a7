"""Annotation files as rows.

Owns the two file formats (a JSON array, JSON lines; either may be gzipped) and how rows are held: as one block of
bytes per file, so that a million rows cost what the file costs, and loader processes share them. Rows count from 0.
Knows nothing of what is in a row.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from videochat_online.data.storage import Location, read_bytes
from videochat_online.errors import InputError


class RowFile:
    """The rows of one annotation file. A row is parsed when it is asked for, so callers may change theirs.

    Args:
        path: a JSON array of objects, or one object a line.

    Raises:
        InputError: no such file, no rows, or neither format. A broken line raises when its row is asked for.
    """

    def __init__(self, path: Location) -> None:
        self.path = path
        try:
            content = _unzipped(read_bytes(path, "annotations")).removeprefix(b"\xef\xbb\xbf")
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: expected annotations, found a broken gzip file ({error})") from error
        lines = _array_lines(path, content) if content.lstrip()[:1] == b"[" else _text_lines(content)
        self._content = b"".join(lines)
        self._stops = np.cumsum([len(line) for line in lines], dtype=np.int64)
        if not lines:
            raise InputError(f"{path}: expected annotations, found no rows")

    def __len__(self) -> int:
        return len(self._stops)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """A fresh copy of a row; InputError where it is not a JSON object."""
        start = int(self._stops[number - 1]) if number else 0
        try:
            row = json.loads(self._content[start : int(self._stops[number])])
        except ValueError as error:
            raise InputError(f"expected a JSON object, found a line that is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"expected a JSON object, found {type(row).__name__}")
        return row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))


def _unzipped(content: bytes) -> bytes:
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def _text_lines(content: bytes) -> list[bytes]:
    return [line for line in content.split(b"\n") if line.strip()]


def _array_lines(path: Location, content: bytes) -> list[bytes]:
    try:
        rows = json.loads(content)
    except ValueError as error:
        raise InputError(f"{path}: expected a JSON array of rows, or one row a line: {error}") from error
    return [json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") for row in rows]
