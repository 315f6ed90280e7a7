"""Several samples in one sequence, so that no step computes on padding.

Owns which items ride together. The plan is made once, from the most tokens that each can have and the seed: epochs
shuffle whole packs, so that every epoch has as many steps and a resumed run meets the very same packs. An item that
turns out longer than its row says, in a pack that then has more tokens than it may, gets fewer frames or tiles. Nothing
else would do: a longer row is what packing is to prevent, a pack of another step would have to know of this one, and
without the item the run would go on without a row that can be used. What a pack becomes in a batch is the collator's.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from torch.utils.data import Dataset

from videochat_online.data.batches.mixture import epoch_key, unpack_key
from videochat_online.data.batches.training_dataset import SkippedSample, TrainingDataset
from videochat_online.data.samples.encoding import Example

Pack: TypeAlias = "tuple[Example | SkippedSample, ...]"

WINDOW = 4096
"""Items that are fitted to each other at a time; what does not fill a pack goes on to the next window."""
FULL_SHARE = 0.95
"""A pack as full as this is closed when its window ends."""


class PackedDataset(Dataset[Pack]):
    """The items of a training set in packs of at most `max_tokens` tokens.

    Args:
        dataset: gives the items.
        lengths: tokens that each of them has at most, of `dataset.estimate_lengths`.
        max_tokens: most tokens of a pack; an item that is longer is a pack of its own.
        shuffle: items ride together at random; without it a pack holds neighbours, in order.
        seed: seed of the shuffling.
        num_blank_tokens: tokens left free for the blank frame of a pack without any.
    """

    def __init__(
        self,
        dataset: TrainingDataset,
        lengths: np.ndarray,
        max_tokens: int,
        shuffle: bool,
        seed: int,
        num_blank_tokens: int = 0,
    ) -> None:
        self.dataset = dataset
        self.room = max(1, max_tokens - num_blank_tokens)
        counts = lengths.tolist()
        packs = list(_fitted(counts, self.room, seed) if shuffle else _in_order(counts, self.room))
        # Arrays, not lists: loader processes would copy the pages of a list as they count references.
        self._lengths = lengths
        self._items = np.concatenate([np.asarray(pack, dtype=np.int64) for pack in packs])
        self._stops = np.cumsum([len(pack) for pack in packs])

    def __len__(self) -> int:
        """Packs in an epoch."""
        return len(self._stops)

    def __getitem__(self, key: int) -> Pack:
        """The pack of a key of `epoch_key`; a bare index is one of epoch 0."""
        epoch, index = unpack_key(key, len(self))
        items = self.items(index).tolist()
        keys = [epoch_key(epoch, item, len(self.dataset)) for item in items]
        pack = [self.dataset[key] for key in keys]
        planned = self._lengths[items].tolist()
        if sum(planned) <= self.room:  # else it is one item that is longer by what its row says
            self._fit(pack, keys, planned)
        return tuple(pack)

    def _fit(self, pack: list[Example | SkippedSample], keys: Sequence[int], planned: Sequence[int]) -> None:
        """Reduce items that are longer than planned, the worst first, until there is room for all."""
        found = [len(item) if isinstance(item, Example) else 0 for item in pack]
        for n in sorted(range(len(pack)), key=lambda n: planned[n] - found[n]):
            if sum(found) <= self.room:
                break
            pack[n] = item = self.dataset.reduced(keys[n], planned[n])
            found[n] = len(item) if isinstance(item, Example) else 0

    def items(self, index: int) -> np.ndarray:
        """Numbers of the items of a pack."""
        start = self._stops[index - 1] if index else 0
        return self._items[start : self._stops[index]]


def _in_order(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Each pack takes the next items for as long as they fit."""
    pack: list[int] = []
    filled = 0
    for item, length in enumerate(lengths):
        if pack and filled + length > max_tokens:
            yield pack
            pack, filled = [], 0
        pack.append(item)
        filled += length
    if pack:
        yield pack


def _fitted(lengths: Sequence[int], max_tokens: int, seed: int) -> Iterator[list[int]]:
    """Best fit: in windows of shuffled items, longest first, each into the fullest pack that has room for it."""
    order = list(range(len(lengths)))
    random.Random(f"packs {seed}").shuffle(order)
    waiting: list[list[int]] = []
    for start in range(0, len(order), WINDOW):
        # Packs that were not full are taken apart again: their items may fit better to new ones.
        items = [item for pack in waiting for item in pack] + order[start : start + WINDOW]
        waiting, num_waiting, is_last = [], 0, start + WINDOW >= len(order)
        for pack in _best_fit(items, lengths, max_tokens):
            is_full = sum(lengths[item] for item in pack) >= FULL_SHARE * max_tokens
            if is_full or is_last or num_waiting >= WINDOW:
                yield pack
            else:
                waiting.append(pack)
                num_waiting += len(pack)


def _best_fit(items: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens that are free, number of the pack), ascending
    for item in sorted(items, key=lambda item: -lengths[item]):
        fullest = bisect.bisect_left(room, (lengths[item], 0))
        if fullest == len(room):
            packs.append([item])
            free, number = max_tokens - lengths[item], len(packs) - 1
        else:
            free, number = room.pop(fullest)
            packs[number].append(item)
            free -= lengths[item]
        bisect.insort(room, (free, number))
    return packs
