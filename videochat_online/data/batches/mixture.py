"""Which rows make up an epoch, and in which order.

Owns repeats, shuffling and grouping by length; all of it follows from the seed and the number of the epoch, so
that a resumed run goes on with the very same rows. Knows nothing of what a row holds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from videochat_online.errors import InputError

MAX_EPOCH_ITEMS = 2**31
"""More than any machine holds the numbers of, or trains on."""


def check_epoch(num_rows: Sequence[int], repeats: Sequence[float]) -> None:
    """Fail before the items of an epoch are listed where they are too many.

    Args:
        num_rows: number of rows of each set.
        repeats: number of times that the rows of each set count.

    Raises:
        InputError: says how many there would be.
    """
    num_items = sum(rows * repeat for rows, repeat in zip(num_rows, repeats, strict=True))
    if num_items > MAX_EPOCH_ITEMS:
        raise InputError(
            f"repeat_time: expected at most {MAX_EPOCH_ITEMS:,} items in an epoch of all sets, found {num_items:,.0f}"
        )


def repeated_rows(num_rows: int, repeat_time: float, rng: random.Random) -> list[int]:
    """Row numbers of one set in an epoch: every row `int(repeat_time)` times, and a random part once more.

    At least one row, however small the part.
    """
    whole = int(repeat_time)
    num_extra = max(round((repeat_time - whole) * num_rows), 0 if whole else 1)
    return [*range(num_rows)] * whole + sorted(rng.sample(range(num_rows), num_extra))


def repeats_of(num_rows: Sequence[int], weights: Sequence[float]) -> list[float]:
    """How often the rows of each set count in an epoch of weighted sets, as many items as all have rows.

    Args:
        num_rows: number of rows of each set.
        weights: part of each set in an epoch, against those of the others.
    """
    part = sum(num_rows) / sum(weights)
    return [weight * part / rows for rows, weight in zip(num_rows, weights, strict=True)]


def epoch_key(epoch: int, index: int, num_items: int) -> int:
    """One number for an item and the epoch it is drawn in: loader processes need no other notice of the epoch."""
    return epoch * num_items + index


def unpack_key(key: int, num_items: int) -> tuple[int, int]:
    """Epoch and index of a key."""
    return divmod(key, num_items)


@dataclass(eq=False)
class EpochSampler(Sampler[int]):
    """Order of the items of each epoch, as keys of `epoch_key`.

    Attributes:
        num_items: number of items in an epoch.
        seed: seed of all shuffling.
        lengths: estimated tokens of each item; given, items of about one length come together.
        group_size: items of one optimizer step, over all processes, which get about one length.
        shuffle: whether to shuffle; else the order is the items' own.
        epoch: number of the epoch that the next iteration is over, from 0.
    """

    num_items: int
    _: KW_ONLY
    seed: int
    lengths: Sequence[int] | None = None
    group_size: int = 1
    shuffle: bool = True
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is over this epoch, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_items

    def __iter__(self) -> Iterator[int]:
        return iter([epoch_key(self.epoch, index, self.num_items) for index in self._order()])

    def _order(self) -> Sequence[int]:
        if not self.shuffle:
            return range(self.num_items)
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {self.epoch}").getrandbits(63))
        if self.lengths is None:
            return torch.randperm(self.num_items, generator=generator).tolist()
        return get_length_grouped_indices(list(self.lengths), self.group_size, generator=generator)
