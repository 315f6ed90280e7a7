"""Rows of annotations -> samples: by the format that a registry names, or by the one whose keys a row has.

Owns where formats are found. Knows none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from videochat_online.data.rows.formats.base import Row, RowFormat
from videochat_online.data.rows.sample import Sample
from videochat_online.data.rows.storage import Location
from videochat_online.data.rows.unknown_keys import KEYS, check_row_keys
from videochat_online.errors import InputError, cut, one_line
from videochat_online.parts import PartKind

_FORMATS = "videochat_online.data.rows.formats"
ROW_FORMATS = PartKind(
    name="row_format",
    group="videochat_online.row_formats",
    built_in={
        "conversations": f"{_FORMATS}.conversations:Conversations",
        "QA": f"{_FORMATS}.question_pairs:QuestionPairs",
        "image_bboxes": f"{_FORMATS}.object_tracks:ObjectTracks",
        "messages": f"{_FORMATS}.messages:Messages",
        "prompt/response": f"{_FORMATS}.prompts:Prompts",
    },
    methods=("claims", "parse"),
    attributes=("keys",),
)
"""Row formats; a built-in one is called like the keys that tell its rows."""


class RowParser:
    """Reads the rows of a set.

    Args:
        name: name of their format in `ROW_FORMATS`; None recognises that of each row among all that have a name.
        options: options of that format.

    Raises:
        InputError: those of `PartKind.make`.
    """

    def __init__(self, name: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        self.name, self.options = name, dict(options or {})
        names = ROW_FORMATS.usable() if name is None else (name,)
        self._formats: dict[str, RowFormat] = {one: ROW_FORMATS.make(one, self.options) for one in names}

    def parse(self, row: Row, root: Location) -> Sample:
        """Validate a row.

        Args:
            row: the object in the annotations.
            root: folder that its paths are relative to.

        Raises:
            InputError: says what was expected and found; the caller knows the set and the row's number.
            TypeError: a format that returns something else than a sample.
        """
        row_format = self._format_of(row)
        if row_format is None:
            said = [key for key, value in row.items() if value is not None]
            check_row_keys(row)  # a key that is nearly right
            raise InputError(f"expected {self.expected}, found {cut(', '.join(said)) or 'an empty row'}")
        sample = row_format.parse(row, root)
        if not isinstance(sample, Sample):
            raise TypeError(f"{type(row_format).__qualname__}.parse: expected a Sample, found {type(sample).__name__}")
        return sample

    @property
    def expected(self) -> str:
        """Names of the formats, as an error lists them."""
        *others, last = self._formats
        return f"{', '.join(others)} or {last}" if others else last

    @property
    def keys(self) -> set[str]:
        """Keys of a row that are read by any of the formats."""
        return {key for row_format in self._formats.values() for key in row_format.keys}

    def to_json(self) -> dict[str, Any]:
        """Name and options, as a registry has them."""
        return {"name": self.name, **self.options}

    def is_row(self, keys: Iterable[str]) -> bool:
        """Whether an object with these keys may be a row: of a format that is named any may."""
        return self.name is not None or bool(self._claimed(dict.fromkeys(keys, "")))

    def unread_keys(self, row: Row) -> set[str]:
        """Keys of a row that nothing is done with, those of its messages and pairs as `conversations.KEY`."""
        claimed = self._claimed(row)
        keys = self._formats[claimed[0]].keys if len(claimed) == 1 else KEYS
        found = {key for key in row if key not in keys}
        for name, known in keys.items():
            parts = row.get(name) if known else None
            for part in parts if isinstance(parts, list) else ():
                if isinstance(part, dict):
                    found |= {f"{name}.{key}" for key in part if key not in known}
        return found

    def _claimed(self, row: Row) -> list[str]:
        if self.name is not None:
            return [self.name]
        said = {key: value for key, value in row.items() if value is not None} if None in row.values() else row
        return [name for name in self._formats if self._claims(name, said)]

    def _claims(self, name: str, row: Row) -> bool:
        try:
            return self._formats[name].claims(row)
        except Exception as error:  # a stranger's, which nobody may have asked for
            if name in ROW_FORMATS.built_in:
                raise
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(
                f"row_format {name!r}: expected to say whether a row is its own, found {reason}"
            ) from error

    def _format_of(self, row: Row) -> RowFormat | None:
        claimed = self._claimed(row)
        if len(claimed) > 1:
            raise InputError(f"expected {' or '.join(claimed)}, found {'both' if len(claimed) == 2 else 'all'}")
        return self._formats[claimed[0]] if claimed else None


@lru_cache(maxsize=1)
def _any_format() -> RowParser:
    return RowParser()


def parse_row(row: Row, root: Location) -> Sample:
    """Validate a row of any format that has a name; see `RowParser.parse`."""
    return _any_format().parse(row, root)
