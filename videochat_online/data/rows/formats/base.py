"""What a row format is: which rows are its own, and what one of them says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from videochat_online.data.rows.sample import Sample
from videochat_online.data.rows.storage import Location

Row = Mapping[str, Any]
"""An object of the annotations, as JSON has it; a line of a CSV file holds texts. To be read, never changed."""


class RowFormat(Protocol):
    """A form in which rows are annotated. A class of one's own needs no base class, only these three.

    It is made as `Format()`, or as `Format(options)` where the class has `Options`, once for each set, and goes with it
    into the processes that load data: it must be picklable, and may not change from row to row.

    Attributes:
        keys: keys of a row that are read, each with those that are read of the objects in its list:
            `{"video": (), "conversations": ("from", "value")}`. Reports tell which others there are.
    """

    keys: Mapping[str, tuple[str, ...]]

    def claims(self, row: Row) -> bool:
        """Whether a row is of this format: told by the names of its keys alone. Not asked where a registry names it.

        Args:
            row: the object in the annotations, without keys that hold null.
        """
        ...

    def parse(self, row: Row, root: Location) -> Sample:
        """Validate a row.

        Args:
            row: the object in the annotations.
            root: folder that its paths are relative to, here or elsewhere: `rows.storage.location(path, root)`.

        Returns:
            sample of one of the five kinds: a text, images, a video whose frames all come first, an online dialogue
            whose turns have times, or a track.

        Raises:
            InputError: the row cannot be used, in a line that names the key, what was expected and what was found. The
                caller adds the set and the row's number, skips the row and counts it; any other error ends the run.
        """
        ...
