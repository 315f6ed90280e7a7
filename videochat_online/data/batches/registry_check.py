"""Every row of some registries as training would read it, in parallel, and what cannot be used.

What is found is what a run would skip, but for prompts that are too long: tokenizers are not needed here.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from videochat_online.data.batches.mixture import repeated_rows
from videochat_online.data.batches.registry import RegistryEntry, check_places
from videochat_online.data.rows.annotation_file import AnnotationFile
from videochat_online.data.rows.sample import Sample
from videochat_online.data.samples.sample_reader import SampleReader
from videochat_online.errors import InputError, cut
from videochat_online.video import image_notes


@dataclass(frozen=True, slots=True)
class InspectedRow:
    """One row: its kind, what it shows, why it cannot be used, keys nobody reads, odd media. Rows count from 0."""

    set_number: int
    row: int
    kind: str | None
    num_pictures: int = 0
    problem: str | None = None
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class SetInspection:
    """What was found in one set.

    Attributes:
        rows: number of rows in its file.
        inspected: number of rows that were looked at.
        kinds: number of rows of each kind.
        num_pictures: number of frames and tiles of all rows.
        problems: row number and reason of each that cannot be used.
        notes: row number of each whose media are odd, and how they are read nevertheless.
        unread_keys: number of rows with each key that nothing is done with.
        problem: why none of its rows can be read.
    """

    rows: int
    inspected: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    num_pictures: int = 0
    problems: list[tuple[int, str]] = field(default_factory=list)
    notes: list[tuple[int, str]] = field(default_factory=list)
    unread_keys: Counter[str] = field(default_factory=Counter)
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The entry of a set in a report."""
        return {
            "rows": self.rows,
            "inspected": self.inspected,
            "kinds": dict(self.kinds),
            "pictures": self.num_pictures,
            "bad": len(self.problems),
            "problems": [{"row": row, "reason": reason} for row, reason in self.problems],
            "notes": [{"row": row, "note": note} for row, note in self.notes],
            "unread_keys": dict(self.unread_keys.most_common()),
            "problem": self.problem,
        }


def inspect_sets(
    entries: Sequence[RegistryEntry],
    reader: SampleReader,
    *,
    max_rows: int | None = None,
    num_processes: int = 0,
    seed: int = 0,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, SetInspection]:
    """Read rows with all their media.

    Args:
        entries: the sets.
        reader: reads samples as the run would.
        max_rows: most rows of each set, drawn at random; None reads all.
        num_processes: processes that read at once; 0 reads in this one.
        seed: seed of the draws.
        on_row: told how many rows are done, of how many.

    A set whose annotations or media are not there at all is said to be so; the others are read.
    """
    rows = _Rows(entries, reader, max_rows, seed)
    found = {
        entry.name: SetInspection(rows=0, problem=file) if isinstance(file, str) else SetInspection(rows=len(file))
        for entry, file in zip(entries, rows.files, strict=True)
    }
    loader: Iterable[InspectedRow] = DataLoader(rows, batch_size=None, num_workers=num_processes)
    for done, row in enumerate(loader, start=1):
        inspection = found[entries[row.set_number].name]
        inspection.inspected += 1
        inspection.num_pictures += row.num_pictures
        inspection.unread_keys.update(row.unread)
        inspection.notes += [(row.row, note) for note in row.notes]
        if row.problem is not None:
            inspection.problems.append((row.row, row.problem))
        elif row.kind is not None:
            inspection.kinds[row.kind] += 1
        on_row(done, len(rows))
    return found


class _Rows(Dataset[InspectedRow]):
    def __init__(self, entries: Sequence[RegistryEntry], reader: SampleReader, max_rows: int | None, seed: int) -> None:
        self.entries, self.reader, self.seed = entries, reader, seed
        self.files = [_file(entry) for entry in entries]
        self._places: list[tuple[int, int]] = []
        for number, file in enumerate(self.files):
            if isinstance(file, str):
                continue
            share = 1.0 if max_rows is None else min(1.0, max_rows / len(file))
            chosen = repeated_rows(len(file), share, random.Random(f"{seed} {entries[number].name}"))
            self._places += [(number, row) for row in chosen]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> InspectedRow:
        number, row = self._places[index]
        entry, file, kind = self.entries[number], self.files[number], None
        unread: tuple[str, ...] = ()
        assert isinstance(file, AnnotationFile)  # none of the rows is of another
        try:
            content = file[row]
            unread = tuple(sorted(entry.row_format.unread_keys(content)))
            sample = entry.row_format.parse(content, entry.data_root)
            kind = sample.kind
            shown = self.reader.read(sample, random.Random(f"{self.seed} {index}"), entry)
        except Exception as error:
            # At a fault of the program training ends; an inspection names the row, and goes on to the others.
            fault = f"a fault of the program: {type(error).__name__}: {cut(str(error))}"
            problem = str(error) if isinstance(error, InputError) else fault
            return InspectedRow(number, row, kind, problem=problem, unread=unread)
        return InspectedRow(number, row, kind, len(shown.ratios), unread=unread, notes=self._notes(sample))

    def _notes(self, sample: Sample) -> tuple[str, ...]:
        """What is odd about the media that were read just now; images are looked at again, where they lie here."""
        if sample.kind in ("video", "online"):
            return self.reader.reader.notes
        found = (image_notes(path) for path in sample.media if isinstance(path, Path))
        return tuple(dict.fromkeys(itertools.chain.from_iterable(found)))


def _file(entry: RegistryEntry) -> AnnotationFile | str:
    """The rows of a set, or why there are none."""
    try:
        check_places(entry)
        return AnnotationFile(entry.annotation, entry.row_format)
    except InputError as error:
        return str(error)
