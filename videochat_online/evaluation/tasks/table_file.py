"""Rows of a table in a file: CSV, JSON lines, or a JSON list of objects. Knows no column by name.

JSON begins with a bracket; CSV is read as that of training rows is (`data/rows/csv_file.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from videochat_online.data.rows.csv_file import TableRow, read_csv, text_of
from videochat_online.data.rows.storage import read_bytes
from videochat_online.errors import InputError
from videochat_online.evaluation.tasks.reading import read_rows


def read_table(path: Path) -> tuple[list[str], list[TableRow]]:
    """Names of the columns and all rows.

    Raises:
        InputError: no file, an empty one, no UTF-8, or text that is neither JSON nor CSV: names the line.
    """
    text = text_of(path, read_bytes(path, "a table"))
    if not text.strip():
        raise InputError(f"{path}: expected a table, found an empty file")
    start = text.lstrip()[:1]
    if start == "[":
        return _of_objects((f" row {number}", row) for number, row in enumerate(read_rows(path), start=1))
    if start == "{":
        return _of_objects(_json_lines(path, text))
    names, rows = read_csv(path, text, strip=True)
    return names, list(rows)


def _of_objects(objects: Iterable[tuple[str, dict[str, Any]]]) -> tuple[list[str], list[TableRow]]:
    listed = list(objects)
    names = list(dict.fromkeys(name for _, row in listed for name in row))
    return names, [TableRow(where, _filled(row)) for where, row in listed]


def _filled(row: dict[str, Any]) -> dict[str, Any]:
    values = {name: value.strip() if isinstance(value, str) else value for name, value in row.items()}
    # pandas writes a missing cell as NaN.
    return {name: value for name, value in values.items() if value not in ("", None) and value == value}


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: expected a JSON object in each line, found no JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: expected a JSON object in each line, found {type(row).__name__}")
        yield f":{number}", row
