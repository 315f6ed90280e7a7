"""The training set: rows of all registries, encoded when they are asked for.

A row that cannot be used becomes a `SkippedSample` with its set, its number and the reason. It is never replaced by
another one: the trainer counts it, reports it, and stops when there are too many.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset

from videochat_online.data.batches.mixture import check_epoch, repeated_rows, repeats_of, unpack_key
from videochat_online.data.batches.registry import RegistryEntry
from videochat_online.data.rows.annotation_file import AnnotationFile
from videochat_online.data.samples.encoding import Example, SampleEncoder
from videochat_online.data.samples.sample_lengths import EstimatedSample, LengthCounter, OutlinedSample
from videochat_online.data.samples.sample_reader import check_reader
from videochat_online.errors import InputError

NUM_ROWS_FOR_KEYS = 1000
"""Number of rows of each set that are looked at for keys that are not read; `doctor --registry` looks at all."""

ROWS_AT_ONCE = 1000
"""Number of rows whose tokens are counted together."""


@dataclass(frozen=True, slots=True)
class SkippedSample:
    """A row that cannot be used, and why. Rows count from 0."""

    set_name: str
    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class SetCount:
    """Size of one set: rows in its file, and items it gives to an epoch."""

    rows: int
    items: int


class TrainingDataset(Dataset[Example | SkippedSample]):
    """All sets of a run, mixed by `repeat_time` or `weight`.

    Args:
        entries: sets of the registries.
        encoder: turns rows into examples.
        seed: seed of fractional repeats, and of the draws for each row in each epoch.

    Attributes:
        files: rows of each set.

    Raises:
        InputError: annotations that cannot be read at all, or settings under which no row could be used.
    """

    def __init__(self, entries: Sequence[RegistryEntry], encoder: SampleEncoder, seed: int = 42) -> None:
        check_reader(encoder)
        for entry in entries:
            if entry.memory is not None:
                try:
                    entry.memory.make(encoder.full_grid, encoder.schedule.intervals)
                except InputError as error:
                    raise InputError(f"{entry.name}: memory: {error}") from error
        self.entries = tuple(entries)
        self.encoder = encoder
        self.seed = seed
        self._lengths = LengthCounter(encoder)
        self.files = [AnnotationFile(entry.annotation, entry.row_format) for entry in self.entries]
        all_repeats = self._repeats()
        check_epoch([len(file) for file in self.files], all_repeats)
        items = [
            repeated_rows(len(file), repeats, random.Random(f"{seed} {entry.name}"))
            for entry, file, repeats in zip(self.entries, self.files, all_repeats, strict=True)
        ]
        # Arrays, not lists: loader processes would copy the pages of a list as they count references.
        self._rows = np.concatenate([np.asarray(rows, dtype=np.int64) for rows in items])
        self._sets = np.repeat(np.arange(len(items)), [len(rows) for rows in items])

    def _repeats(self) -> list[float]:
        weights = [entry.weight for entry in self.entries if entry.weight is not None]
        if not weights:
            return [entry.repeat_time for entry in self.entries]
        return repeats_of([len(file) for file in self.files], weights)

    def __len__(self) -> int:
        """Items in an epoch."""
        return len(self._rows)

    def __getitem__(self, key: int) -> Example | SkippedSample:
        """The item of a key of `epoch_key`; a bare index is an item of epoch 0."""
        return self._encoded(key)

    def reduced(self, key: int, max_tokens: int) -> Example | SkippedSample:
        """The item of a key with fewer frames or tiles: with so many that it has at most `max_tokens`.

        Its dialogue stays as it is. An item that is too long with a single one cannot be used.
        """
        item, limit = self[key], None
        while isinstance(item, Example) and len(item) > max_tokens:
            most = len(item.pool_ratios) if limit is None else min(limit, len(item.pool_ratios))
            if most <= 1:
                index = unpack_key(key, len(self))[1]
                problem = f"expected at most {max_tokens} tokens, as its row says, found {len(item)} in its media"
                return SkippedSample(self.entries[self._sets[index]].name, int(self._rows[index]), problem)
            limit = max(1, min(most - 1, most * max_tokens // len(item)))
            item = self._encoded(key, limit)
        return replace(item, is_reduced=limit is not None) if isinstance(item, Example) else item

    def _encoded(self, key: int, max_pictures: int | None = None) -> Example | SkippedSample:
        epoch, index = unpack_key(key, len(self))
        entry, number = self.entries[self._sets[index]], int(self._rows[index])
        encoder = self.encoder
        if max_pictures is not None:
            sampling, tiling = encoder.sampling, entry.tiling(encoder.tiling)
            frames, tiles = (min(max_pictures, n) for n in (sampling.max_num_frames, tiling.max_tiles))
            sampling, tiling = replace(sampling, max_num_frames=frames), replace(tiling, min_tiles=1)
            encoder = replace(encoder, sampling=sampling, tiling=tiling)
            entry = replace(entry, max_dynamic_patch=tiles)
        rng = random.Random(f"{self.seed} {epoch} {index}")
        try:
            row = self.files[self._sets[index]][number]
            return encoder.encode(entry.row_format.parse(row, entry.data_root), rng, entry)
        except InputError as error:
            return SkippedSample(entry.name, number, str(error))
        except Exception as error:
            raise RuntimeError(f"{entry.name}: row {number}: {type(error).__name__}: {error}") from error

    def set_of(self, item: int) -> int:
        """Number of the set that an item is of."""
        return int(self._sets[item])

    def counts(self) -> dict[str, SetCount]:
        """Rows and items of each set, by name."""
        items = np.bincount(self._sets, minlength=len(self.entries))
        return {
            entry.name: SetCount(len(file), int(count))
            for entry, file, count in zip(self.entries, self.files, items, strict=True)
        }

    def unread_keys(self) -> dict[str, dict[str, int]]:
        """Keys that nothing is done with, and in how many of the first `NUM_ROWS_FOR_KEYS` rows of a set they are."""
        found = {}
        for entry, file in zip(self.entries, self.files, strict=True):
            counts: Counter[str] = Counter()
            for number in range(min(len(file), NUM_ROWS_FOR_KEYS)):
                with suppress(InputError):
                    counts.update(entry.row_format.unread_keys(file[number]))
            if counts:
                found[entry.name] = dict(sorted(counts.items()))
        return found

    def estimate_lengths(self, part: int = 0, num_parts: int = 1) -> np.ndarray:
        """Tokens that each item has at most, for grouping and packing; 1 for a row that cannot be used.

        Args:
            part: where several processes want the same, each may count a part of the rows; items of others have 0.
            num_parts: number of these processes.
        """
        starts = np.cumsum([0, *(len(file) for file in self.files)])
        rows, row_of_item = np.unique(starts[self._sets] + self._rows, return_inverse=True)
        first, stop = (number * len(rows) // num_parts for number in (part, part + 1))
        sets = np.searchsorted(starts, rows[first:stop], side="right") - 1
        counted = self._count(list(zip(sets.tolist(), (rows[first:stop] - starts[sets]).tolist(), strict=True)))
        tokens = np.zeros(len(rows), dtype=np.int64)
        tokens[first:stop] = [sample.tokens for sample in counted]
        return tokens[row_of_item]

    def estimates(self, items: Sequence[int] | None = None) -> list[EstimatedSample]:
        """What items hold at most, all of them by default; a single token for a row that cannot be used."""
        chosen = slice(None) if items is None else np.asarray(items)
        row_of_item = list(zip(self._sets[chosen].tolist(), self._rows[chosen].tolist(), strict=True))
        rows = list(dict.fromkeys(row_of_item))
        by_row = dict(zip(rows, self._count(rows), strict=True))
        return [by_row[row] for row in row_of_item]

    def _count(self, rows: Sequence[tuple[int, int]]) -> Iterator[EstimatedSample]:
        """Sizes of rows, each given by the number of its set and its own number in it."""
        for first in range(0, len(rows), ROWS_AT_ONCE):
            counted = list[EstimatedSample | OutlinedSample]()
            for set_number, row in rows[first : first + ROWS_AT_ONCE]:
                counted.append(self._outline(set_number, row))
            outlined = [sample for sample in counted if isinstance(sample, OutlinedSample)]
            try:
                sizes = iter(self._lengths.count(outlined))
            except InputError:  # of one of them
                sizes = (self._alone(sample) for sample in outlined)
            yield from (next(sizes) if isinstance(sample, OutlinedSample) else sample for sample in counted)

    def _alone(self, outlined: OutlinedSample) -> EstimatedSample:
        try:
            return self._lengths.count([outlined])[0]
        except InputError:
            return EstimatedSample(1)

    def _outline(self, set_number: int, row: int) -> OutlinedSample | EstimatedSample:
        entry = self.entries[set_number]
        try:
            sample = entry.row_format.parse(self.files[set_number][row], entry.data_root)
            return self._lengths.outline(sample, entry)
        except InputError:
            return EstimatedSample(1)
        except Exception as error:
            raise RuntimeError(f"{entry.name}: row {row}: {type(error).__name__}: {error}") from error
