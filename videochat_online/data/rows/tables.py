"""Tables as rows: CSV files with a line of names, and parquet files (pyarrow, the extra `parquet`).

A row of a table becomes the JSON object that it would be in a file of JSON lines; an empty cell, or a null, is a key
that is not there, at any depth. A cell of CSV is a text, but for the keys that hold something else: lists and objects
are read as JSON where a cell begins with a bracket, in a text column of parquet, too; numbers, true and false always.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from videochat_online.data.rows.storage import Location
from videochat_online.documents import MAX_TEXT
from videochat_online.errors import InputError, one_line, shown
from videochat_online.extras import require

LISTS: tuple[str, ...] = (
    "conversations",
    "QA",
    "messages",
    "image",
    "images",
    "video",
    "videos",
    "all_image_files",
    "image_bboxes",
)
LISTS += ("query_template", "history", "clip", "width", "height")
"""Keys whose cells may hold a list or an object."""
NUMBERS = ("fps", "width", "height", "need_reset_timestamp", "label")
"""Keys whose cells hold a number, true or false."""

ROWS_AT_ONCE = 1000
MAX_CELL = 100 * MAX_TEXT
"""Characters of a cell: a dialogue of many long texts."""


@dataclass(slots=True)
class Table:
    """Rows of a table.

    Attributes:
        columns: names of its columns.
        lines: each row as JSON.
        broken: what is wrong with a row, by number; its line stands for nothing.
    """

    columns: tuple[str, ...]
    lines: list[bytes] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row."""
        try:
            items = (f"{json.dumps(key)}: {_written(key, value)}" for key, value in row.items())
            self.lines.append(f"{{{', '.join(items)}}}".encode())
        except InputError as error:
            self.add_broken(str(error))

    def add_broken(self, reason: str) -> None:
        """Append a row that cannot be used."""
        self.broken[len(self.lines)] = reason
        self.lines.append(b"{}")


def read_csv(path: Location, content: bytes, delimiter: str) -> Table:
    """The rows of a CSV file.

    Raises:
        InputError: another encoding than UTF-8, no names, a name twice, or quotes that do not close.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected CSV in UTF-8, found something else ({error})") from error
    before = csv.field_size_limit(MAX_CELL)
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        columns = next(lines, [])
        if not all(columns) or len(set(columns)) < len(columns):
            raise InputError(f"{path}: expected a line of column names, each once, found {shown(columns)}")
        table = Table(tuple(columns))
        for cells in lines:
            if len(cells) == len(columns):
                row = {key: _number(key, cell) for key, cell in zip(columns, cells, strict=True) if cell}
                table.add(row)
            elif cells:
                table.add_broken(f"expected {len(columns)} cells, one for each column, found {len(cells)}")
        return table
    except csv.Error as error:
        raise InputError(f"{path}: expected CSV, found in line {lines.line_num}: {error}") from error
    finally:
        csv.field_size_limit(before)


def read_parquet(path: Location, content: bytes) -> Table:
    """The rows of a parquet file.

    Raises:
        InputError: pyarrow is not installed, no parquet, or cells of bytes, such as media within the file.
    """
    require(f"{path}: parquet", "pyarrow")
    from pyarrow import ArrowException, parquet

    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        table = Table(tuple(file.schema_arrow.names))
        for batch in file.iter_batches(ROWS_AT_ONCE):
            for row in batch.to_pylist():
                table.add(_without_nulls(row))
        return table
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: expected parquet, found a broken file ({one_line(error, 200)})") from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _number(key: str, cell: str) -> Any:
    """A cell of CSV, which is a number or a truth where its key says so; what is none stays a text, and is refused."""
    if key in NUMBERS:
        try:
            return json.loads(cell.lower())
        except ValueError:
            return cell
    return cell


def _decoded(key: str, value: Any) -> Any:
    if key not in LISTS or not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{key}: expected JSON, found {shown(value)}: {error}") from error


def _written(key: str, value: Any) -> str:
    """A cell as JSON; parquet has values that JSON lacks."""

    def other(value: Any) -> Any:
        if isinstance(value, Decimal):
            return float(value)
        if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
            return str(value)
        raise InputError(f"{key}: expected texts, numbers and lists, found {type(value).__name__}; of media, the paths")

    return json.dumps(_decoded(key, value), default=other)
