"""Files of JSON lines: they grow a row at a time, and survive that the process is killed.

(`data/rows/annotation_file.py` reads such files with a reader of its own: a million rows stay the bytes that they are,
and a broken one is found when it is asked for.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from videochat_online.errors import InputError
from videochat_online.runs.files import try_lock

Row = dict[str, Any]


class RowFile:
    """A file of rows.

    Args:
        path: the file, which need not exist.
        key: key that every row has.
    """

    def __init__(self, path: Path, *, key: str) -> None:
        self.path, self._key = path, key

    def rows(self) -> list[Row]:
        """Rows that were written whole.

        Raises:
            InputError: a broken line that is not the last one.
        """
        return self._read()[0]

    def readable_rows(self) -> list[Row]:
        """Rows, without lines that are broken: programs that go on after half a line leave it in the middle."""
        return [row for _, row in self._lines() if row is not None]

    @contextmanager
    def appending(self, *, wait: bool = False) -> Iterator[tuple[IO[bytes], list[Row]]]:
        """Open for `append`, with the rows that are there; a last line that was only half written is dropped first.

        Args:
            wait: whether to wait until no other process is writing it.

        Raises:
            InputError: another process is writing it.
        """
        with open(self.path, "ab") as file:
            if not try_lock(file, wait=wait):
                raise InputError(f"{self.path}: another process is writing this run (or this shard)")
            rows, size = self._read()
            file.truncate(size)
            yield file, rows

    @staticmethod
    def append(file: IO[bytes], row: Row) -> None:
        """Write a row and hand it to the system, which keeps it if this process dies."""
        file.write(row_line(row).encode(errors="backslashreplace"))
        file.flush()

    def is_open(self) -> bool:
        """Whether a process is `appending`."""
        with open(self.path, "rb") as file:
            return not try_lock(file)

    def _read(self) -> tuple[list[Row], int]:
        """Whole rows, and the bytes they take."""
        rows, size = [], 0
        lines = self._lines()
        for number, (line, row) in enumerate(lines, start=1):
            if row is not None:
                rows.append(row)
                size += len(line)
            elif number < len(lines):
                raise InputError(f"{self.path} line {number}: expected a JSON object with {self._key!r}")
        return rows, size

    def _lines(self) -> list[tuple[bytes, Row | None]]:
        """Lines with their rows; None where a line is not a whole one."""
        found: list[tuple[bytes, Row | None]] = []
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else ():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            is_whole = line.endswith(b"\n") and isinstance(row, dict) and self._key in row
            found.append((line, row if is_whole else None))
        return found


def row_line(row: Row) -> str:
    """A row as its file holds it."""
    return json.dumps(row, ensure_ascii=False) + "\n"
