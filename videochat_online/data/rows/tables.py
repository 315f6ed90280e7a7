"""Tables as rows: CSV files (`csv_file.py`) and parquet files (pyarrow, the extra `parquet`).

A row of a table becomes the JSON object that it would be in a file of JSON lines; an empty cell, or a null, is a key
that is not there, at any depth; a name is that of a known key in any capitals. A cell of CSV is a text, but for the
keys that hold something else: lists and objects are read as JSON where a cell begins with a bracket, in a text column
of parquet, too; numbers, true and false always.
"""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from videochat_online.data.rows.csv_file import read_csv, text_of
from videochat_online.data.rows.storage import Location
from videochat_online.data.rows.unknown_keys import ROW
from videochat_online.errors import InputError, one_line, shown
from videochat_online.extras import require

LISTS = (*ROW, "messages", "images", "videos", "history")
"""Keys whose cells may hold a list or an object; those of texts, such as `prompt`, may begin with a bracket, too."""
NUMBERS = ("fps", "width", "height", "need_reset_timestamp", "label")
"""Keys whose cells hold a number, true or false."""

ROWS_AT_ONCE = 1000


@dataclass(slots=True)
class Table:
    """Rows of a table.

    Attributes:
        columns: keys that its columns hold, by their names.
        lines: each row as JSON.
        broken: what is wrong with a row, by number; its line stands for nothing.
    """

    columns: dict[str, str]
    lines: list[bytes] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row."""
        named = ((self.columns[name], value) for name, value in row.items())
        try:
            items = (f"{json.dumps(key)}: {_written(key, value)}" for key, value in named)
            self.lines.append(f"{{{', '.join(items)}}}".encode())
        except InputError as error:
            self.add_broken(str(error))

    def add_broken(self, reason: str) -> None:
        """Append a row that cannot be used."""
        self.broken[len(self.lines)] = reason
        self.lines.append(b"{}")


def csv_table(path: Location, content: bytes, known: Iterable[str]) -> Table:
    """The rows of a CSV file; `known` are names of keys.

    Raises:
        InputError: those of `text_of` and `read_csv`; two names of one key.
    """
    names, rows = read_csv(path, text_of(path, content))
    table = Table(_keys(path, names, known))
    for row in rows:
        if row.problem is None:
            table.add({name: _number(table.columns[name], cell) for name, cell in row.cells.items()})
        else:
            table.add_broken(f"{path.name}{row.where}: {row.problem}")
    return table


def read_parquet(path: Location, content: bytes, known: Iterable[str]) -> Table:
    """The rows of a parquet file; `known` are names of keys.

    Raises:
        InputError: pyarrow is not installed, no parquet, two names of one key, or cells of bytes, such as media in it.
    """
    require(f"{path}: parquet", "pyarrow")
    from pyarrow import ArrowException, parquet

    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        table = Table(_keys(path, file.schema_arrow.names, known))
        for batch in file.iter_batches(ROWS_AT_ONCE):
            for row in batch.to_pylist():
                table.add(_without_nulls(row))
        return table
    except InputError:
        raise
    # Cells that Python has no value for: bytes that are no UTF-8, dates after 9999, unknown time zones (a KeyError).
    except (ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        raise InputError(f"{path}: expected parquet, found one that cannot be read ({one_line(error, 200)})") from error


def _keys(path: Location, names: Sequence[str], known: Iterable[str]) -> dict[str, str]:
    """The key that each column holds: of its name, or of that in other capitals."""
    plain = {key.lower(): key for key in known}
    keys = {name: plain.get(name.lower(), name) for name in names}
    if len(keys) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: expected each column once, found {twice} twice")
    for name, key in keys.items():
        if [*keys.values()].count(key) > 1 and name != key:
            raise InputError(f"{path}: expected one column {key}, found {name}, too")
    return keys


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _number(key: str, cell: str) -> Any:
    """A cell of CSV, which is a number or a truth where its key says so; what is none stays a text, and is refused."""
    if key in NUMBERS:
        try:
            return json.loads(cell.lower())
        except (ValueError, RecursionError):
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
