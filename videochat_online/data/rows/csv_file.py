"""Tables in CSV, as spreadsheets, pandas and people write them: a line of names, then one row a line. Knows no name.

The delimiter is whichever of comma, semicolon, tab and | the first line has most of, or what Excel's `sep=;` before it
says. Quoted cells may hold it, and line breaks. Text is UTF-8, with or without a mark of that. Empty rows, empty cells
behind the last name, and the index that pandas writes before the first name are no part of the table.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from videochat_online.data.rows.storage import Location
from videochat_online.documents import MAX_TEXT
from videochat_online.errors import InputError, cut
from videochat_online.runs.files import without_bom

DELIMITERS = ",;\t|"
MAX_CELL = 100 * MAX_TEXT
"""Characters of a cell: a dialogue of many long texts."""

_SEPARATOR = re.compile(r'"?sep=([,;\t|])"?[,;\t|]*\r?\n', re.IGNORECASE)
_LINE = re.compile(r"[\r\n]*([^\r\n]*)")


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row.

    Attributes:
        where: its first line, ":12", or its number in a JSON list, " row 3": what errors have behind the file's name.
        cells: values by column, without those that are empty; of CSV texts.
        problem: reason why it is no row of this table; None where it is one.
    """

    where: str
    cells: Mapping[str, Any]
    problem: str | None = None


def read_csv(path: Location, text: str, *, strip: bool = False) -> tuple[list[str], Iterator[TableRow]]:
    """Names of the columns, and the rows one after the other.

    Args:
        path: what errors call the file.
        text: what it holds.
        strip: whether spaces around a cell say nothing; they do not either where the first line has them.

    Raises:
        InputError: a name twice, a column without one, or quotes that do not close.
    """
    said = _SEPARATOR.match(text)
    first = _LINE.match(text, said.end() if said else 0)
    assert first is not None  # an empty one is one, too
    delimiter = said[1] if said else max(DELIMITERS, key=re.sub(r'"[^"]*"', "", first[1]).count)
    lines = iter(_lines(path, text, delimiter, strip or f"{delimiter} " in first[1]))
    if said:
        next(lines)
    names = [name.strip() for name in next(lines, (1, []))[1]]
    while names and not names[-1]:
        names.pop()
    index = next((number for number, name in enumerate(names) if name), 0)
    for number, name in enumerate(names[index:], start=index):
        if not name:
            raise InputError(f"{path}: expected a name for each column, found none for column {number + 1}")
        if name in names[:number]:
            raise InputError(f"{path}: expected each column once, found {cut(name)} again")
    return names[index:], (_row(names, index, line, cells) for line, cells in lines)


def _lines(path: Location, text: str, delimiter: str, strip: bool) -> list[tuple[int, list[str]]]:
    """Cells of each row that has any, with the line in which it begins: all at once, as the limit is the process's."""
    found = []
    before = csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=strip)
    line = 0
    try:
        for cells in reader:
            first, line = line + 1, reader.line_num
            if any(cell.strip() for cell in cells):
                found.append((first, [cell.strip() if strip or cell.isspace() else cell for cell in cells]))
        return found
    except csv.Error as error:
        raise InputError(f"{path}:{line + 1}: expected a row of CSV, found one that cannot be read: {error}") from error
    finally:
        csv.field_size_limit(before)


def _row(names: list[str], index: int, line: int, cells: list[str]) -> TableRow:
    problem = None
    if len(cells) < len(names) or any(cells[len(names) :]):
        problem = f"expected {len(names)} cells, as the first row has, found {len(cells)}"
    filled = {name: cell for name, cell in zip(names[index:], cells[index:], strict=False) if cell}
    return TableRow(f":{line}", filled, problem)


def text_of(path: Location, content: bytes) -> str:
    """The text of a file, without the mark of its encoding.

    Raises:
        InputError: another encoding than UTF-8: names the line and the byte.
    """
    content = without_bom(content)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{content[error.start]:02x} (spreadsheets call it CSV UTF-8)"
        raise InputError(f"{path}:{line}: expected text in UTF-8, found {found}") from error
