"""Annotation files as rows.

Owns the file formats (a JSON array, JSON lines, CSV, parquet; each may be gzipped) and how rows are held: as one block
of bytes per file, so that a million rows cost what their JSON costs, and loader processes share them. Rows count from
0. Knows nothing of what is in a row, but asks whether an object is one or holds them. (What runs write is read by
`runs/row_file.py`, which holds parsed rows.)
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from videochat_online.data.rows.row_formats import RowParser
from videochat_online.data.rows.storage import Location, read_bytes
from videochat_online.data.rows.tables import Table, csv_table, read_parquet
from videochat_online.errors import InputError, cut, shown
from videochat_online.runs.files import without_bom

NUM_FIRST_ROWS = 20
"""Number of rows that are looked at first: a file in which none of them is an object holds something else than rows."""

_CLOSING = re.compile(rb"[\s\]}]+")
"""The last line of an object that is written over several lines."""

_NOT_BLANK = re.compile(r"[^ \t\r\n]")


class AnnotationFile:
    """The rows of one annotation file. A row is parsed when it is asked for, so callers may change theirs.

    Args:
        path: a JSON array of objects, one object a line, a parquet file, or a table called `.csv` or `.tsv`.
        row_format: what its rows are read with; None stands for all formats that have a name.

    Raises:
        InputError: no such file, no rows, none of these, columns of no known format, or another encoding than UTF-8.
            A broken line raises when its row is asked for.
    """

    def __init__(self, path: Location, row_format: RowParser | None = None) -> None:
        self.path, self._row_format = path, row_format or RowParser()
        try:
            content = _unzipped(read_bytes(path, "annotations"))
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: expected annotations, found a broken gzip file ({error})") from error
        table = self._table(content)
        self._broken = {} if table is None else table.broken
        lines = self._json_lines(content) if table is None else table.lines
        self._content = b"".join(lines)
        self._stops = np.cumsum([len(line) for line in lines], dtype=np.int64)
        if not lines:
            raise InputError(f"{path}: expected annotations, found no rows")
        self._check_first_rows()

    def _table(self, content: bytes) -> Table | None:
        """The rows of a table; None where the file is none."""
        suffix = PurePosixPath(self.path.name.lower().removesuffix(".gz")).suffix
        if content.startswith(b"PAR1"):
            table = read_parquet(self.path, content, self._row_format.keys)
        elif suffix in (".csv", ".tsv"):
            table = csv_table(self.path, content, self._row_format.keys)
        else:
            return None
        if not self._row_format.is_row(table.columns.values()):
            found = cut(", ".join(table.columns))
            raise InputError(f"{self.path}: expected columns {self._row_format.expected}, found columns {found}")
        return table

    def _json_lines(self, content: bytes) -> list[bytes]:
        path = self.path
        if b"\0" in content[:4]:  # in UTF-8, JSON has none
            raise InputError(f"{path}: expected annotations in UTF-8, found UTF-16 or UTF-32")
        content = without_bom(content)
        lines = _array_lines(path, content) if content.lstrip()[:1] == b"[" else _text_lines(content)
        if len(lines) > 1 and _CLOSING.fullmatch(lines[-1]):
            found = shown(" ".join(content[:100].decode("utf-8", "replace").split()))
            raise InputError(
                f"{path}: expected a JSON array of rows, or one row a line, found JSON over lines: {found}"
            )
        return lines

    def __len__(self) -> int:
        return len(self._stops)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """A fresh copy of a row; InputError where it is not a JSON object."""
        if number in self._broken:
            raise InputError(self._broken[number])
        start = int(self._stops[number - 1]) if number else 0
        try:
            row = json.loads(self._content[start : int(self._stops[number])])
        except (ValueError, RecursionError) as error:
            raise InputError(f"expected a JSON object, found a row that is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"expected a JSON object, found {type(row).__name__}")
        return row

    def _check_first_rows(self) -> None:
        """InputError where one object holds all rows, or none of the first rows is an object."""
        reasons = []
        for number in range(min(NUM_FIRST_ROWS, len(self))):
            try:
                first = self[number]
            except InputError as error:
                reasons.append(str(error))
                continue
            if len(self) == 1 and not self._row_format.is_row(first):
                for key, value in first.items():
                    items = value if isinstance(value, list) else []
                    if any(isinstance(item, dict) and self._row_format.is_row(item) for item in items):
                        raise InputError(
                            f"{self.path}: expected rows, found an object with key {shown(key)} that holds them"
                        )
            return
        raise InputError(f"{self.path}: expected rows, found none in the first {len(reasons)}: row 0: {reasons[0]}")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))


def _unzipped(content: bytes) -> bytes:
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def _text_lines(content: bytes) -> list[bytes]:
    return [line for line in content.split(b"\n") if line.strip()]


def _array_lines(path: Location, content: bytes) -> list[bytes]:
    """Each row of an array as it stands there; one at a time, since objects take ten times the room of their text.

    Bytes that are not UTF-8 come back as they were: they spoil their own row only.
    """
    text = content.decode("utf-8", "surrogateescape")
    lines: list[bytes] = []
    expected = f"{path}: expected a JSON array of rows, or one row a line"
    decoder, position = json.JSONDecoder(), _after_blanks(text, text.index("[") + 1)
    while text[position : position + 1] != "]":
        if lines:
            if text[position : position + 1] != ",":
                raise InputError(f"{expected}: found no comma or end after row {len(lines) - 1}")
            position = _after_blanks(text, position + 1)
        try:
            _, stop = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{expected}: row {len(lines)}: {error}") from error
        lines.append(text[position:stop].encode("utf-8", "surrogateescape"))
        position = _after_blanks(text, stop)
    if _after_blanks(text, position + 1) < len(text):
        raise InputError(f"{expected}: found more after the array's end")
    return lines


def _after_blanks(text: str, position: int) -> int:
    found = _NOT_BLANK.search(text, position)
    return len(text) if found is None else found.start()
