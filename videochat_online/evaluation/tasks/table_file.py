"""Rows of a table in a file: CSV, JSON lines, or a JSON list of objects. Knows no column by name.

JSON begins with a bracket. In CSV the delimiter is whichever of comma, semicolon, tab and | the first line has most of;
quoted cells may hold it, and line breaks. Text is UTF-8, with or without a mark of that.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videochat_online.errors import InputError, cut
from videochat_online.evaluation.tasks.reading import read_rows
from videochat_online.runs.files import without_bom

DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row.

    Attributes:
        where: its line, ":12", or its number in a JSON list, " row 3": what errors have behind the file's name.
        cells: values by column, without those that are empty; of CSV texts.
        problem: reason why it is no row of this table; None where it is one.
    """

    where: str
    cells: Mapping[str, Any]
    problem: str | None = None


def read_table(path: Path) -> tuple[list[str], list[TableRow]]:
    """Names of the columns and all rows.

    Raises:
        InputError: no file, an empty one, no UTF-8, or text that is neither JSON nor CSV: names the line.
    """
    text = _text(path)
    start = text.lstrip()[:1]
    if start == "[":
        return _of_objects((f" row {number}", row) for number, row in enumerate(read_rows(path), start=1))
    if start == "{":
        return _of_objects(_json_lines(path, text))
    return _csv(path, text)


def _of_objects(objects: Iterable[tuple[str, dict[str, Any]]]) -> tuple[list[str], list[TableRow]]:
    listed = list(objects)
    names = list(dict.fromkeys(name for _, row in listed for name in row))
    return names, [TableRow(where, _filled(row)) for where, row in listed]


def _text(path: Path) -> str:
    try:
        content = without_bom(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: expected a table, found no readable file ({error.strerror})") from error
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{content[error.start]:02x} (spreadsheets call it CSV UTF-8)"
        raise InputError(f"{path}:{line}: expected text in UTF-8, found {found}") from error
    if not text.strip():
        raise InputError(f"{path}: expected a table, found an empty file")
    return text


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


def _csv(path: Path, text: str) -> tuple[list[str], list[TableRow]]:
    first = text.lstrip().split("\n", 1)[0]
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=first.count), strict=True, skipinitialspace=True
    )
    names: list[str] = []
    rows: list[TableRow] = []
    line = 0
    try:
        for cells in reader:
            line, number = reader.line_num, line + 1  # a row may have several lines: its first
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [name.strip() for name in cells]
                continue
            problem = None
            if len(cells) != len(names):
                problem = f"expected {len(names)} cells, as the first row has, found {len(cells)}"
            rows.append(TableRow(f":{number}", _filled(dict(zip(names, cells, strict=False))), problem))
    except csv.Error as error:
        raise InputError(f"{path}:{line + 1}: expected a row of CSV, found one that cannot be read: {error}") from error
    twice = [name for name, count in Counter(filter(None, names)).items() if count > 1]
    if twice:
        raise InputError(f"{path}: expected each column once, found {', '.join(map(cut, twice))} again")
    return [name for name in names if name], rows


def _filled(row: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in a row; a column without a name is the index that some programs write."""
    values = {name: value.strip() if isinstance(value, str) else value for name, value in row.items() if name}
    # pandas writes a missing cell as NaN.
    return {name: value for name, value in values.items() if value not in ("", None) and value == value}
