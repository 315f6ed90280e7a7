"""Held-out sets: every row once, read the same way each time; and which of their rows are trained on as well.

Knows nothing of what is computed on them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from torch.utils.data import ConcatDataset, Dataset

from videochat_online.data.batches.registry import RegistryEntry
from videochat_online.data.batches.training_dataset import SetCount, SkippedSample, TrainingDataset
from videochat_online.data.rows.sample import Sample
from videochat_online.data.samples.encoding import Example, SampleEncoder
from videochat_online.data.samples.pixel_reader import PixelReader
from videochat_online.errors import InputError

_SEED = 0
"""Seed of what is drawn for a row, such as the question about a track: no run's, so that runs can be compared."""


class HeldOutRows(Dataset["tuple[int, Example | SkippedSample]"]):
    """The rows of all held-out sets, one after another: each once, whatever a registry says of repeats or weights.

    Nothing is drawn anew: no augmentation, the middle of each segment where training takes a random frame of it, and
    what a row of itself leaves open is decided once, by its number in its set.

    Args:
        entries: sets of the registries.
        encoder: the run's encoder.

    Raises:
        InputError: annotations that cannot be read at all, or settings under which no row of a set could be used.
    """

    def __init__(self, entries: Sequence[RegistryEntry], encoder: SampleEncoder) -> None:
        # Its own reader: training's may be reading at the same time.
        encoder = replace(encoder, reader=PixelReader(encoder.reader.transform, backend=encoder.reader.backend))
        if encoder.sampling.method == "rand":
            encoder = replace(encoder, sampling=replace(encoder.sampling, method="middle"))
        plain = [replace(entry, repeat_time=1.0, weight=None, data_augment=False) for entry in entries]
        self.sets = {entry.name: TrainingDataset([entry], encoder, _SEED) for entry in plain}
        self._rows: ConcatDataset[Example | SkippedSample] = ConcatDataset(list(self.sets.values()))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> tuple[int, Example | SkippedSample]:
        """A row, with its number among all."""
        return number, self._rows[number]

    def slices(self) -> dict[str, slice]:
        """Numbers of the rows of each set."""
        return {
            name: slice(stop - len(dataset), stop)
            for (name, dataset), stop in zip(self.sets.items(), self._rows.cumulative_sizes, strict=True)
        }

    def counts(self) -> dict[str, SetCount]:
        """Rows of each set."""
        return {name: count for dataset in self.sets.values() for name, count in dataset.counts().items()}

    def estimate_lengths(self) -> list[int]:
        """Estimated tokens of each row."""
        return [length for dataset in self.sets.values() for length in dataset.estimate_lengths()]

    def check_usable(self) -> None:
        """Look for a row of each set that can be used.

        Raises:
            InputError: a set has none.
        """
        for name, dataset in self.sets.items():
            first: SkippedSample | None = None
            for row in range(len(dataset)):
                item = dataset[row]
                if isinstance(item, Example):
                    break
                first = first or item
            else:
                reason = "" if first is None else f": row {first.row}: {first.reason}"
                raise InputError(f"eval_meta_path: {name}: none of its {len(dataset)} rows can be used{reason}")


def leaked_rows(held_out: HeldOutRows, training: TrainingDataset) -> list[tuple[str, int]]:
    """Set and number of held-out rows that are trained on: of the same media and dialogue, however they are written.

    A training row is looked at closely only where its first medium is called like one that is held out.
    """
    held_by_content: dict[int, list[tuple[str, int]]] = {}
    names: set[str] = set()
    for dataset in held_out.sets.values():
        for name, row, sample in _samples(dataset):
            held_by_content.setdefault(_content(sample), []).append((name, row))
            names.update(medium.name for medium in sample.media[:1])
    found = {key for _, _, sample in _samples(training, names) if (key := _content(sample)) in held_by_content}
    return sorted(row for key in found for row in held_by_content[key])


def _samples(dataset: TrainingDataset, names: set[str] | None = None) -> Iterator[tuple[str, int, Sample]]:
    """The rows of all sets that can be parsed; with `names`, without those that show something else first."""
    for entry, file in zip(dataset.entries, dataset.files, strict=True):
        for number in range(len(file)):
            with suppress(InputError):
                row = file[number]
                is_known = names is not None and entry.row_format.name is None
                first = _first_medium(row) if is_known else None
                if names is None or first is None or first in names:
                    yield entry.name, number, entry.row_format.parse(row, entry.data_root)


def _first_medium(row: Mapping[str, Any]) -> str | None:
    """What the first file of a row is called; None where that is not plain before the row is parsed."""
    media = row.get("all_image_files") or row.get("video") or row.get("image")
    first = media[0] if isinstance(media, list) else media
    return PurePosixPath(first).name if isinstance(first, str) else None


def _content(sample: Sample) -> int:
    media = (str(medium) for medium in sample.media)
    absolute = tuple(name if "://" in name else os.path.abspath(name) for name in media)
    return hash((absolute, sample.clip_s, sample.query, sample.turns, sample.boxes))
