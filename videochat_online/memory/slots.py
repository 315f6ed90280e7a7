"""Preallocated storage of frames that share one token grid.

Owns slots on one device and the order of the frames in them. Knows neither when a frame should enter or leave
nor what its level means.

Shapes: `N` frames, `C` channels, `H` `W` rows and columns of the token grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from videochat_online.errors import InputError, NonFiniteError
from videochat_online.memory.schedule import Grid
from videochat_online.types import FrameTokens

FEATURE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of features that frames are compared, pooled and averaged in."""

_FIRST_UNBOUNDED_SLOTS = 16
_COLUMNS = {"index": torch.int64, "time_s": torch.float64, "content_id": torch.int64}


@dataclass(frozen=True, slots=True)
class Entry:
    """A frame in its slot: `FrameTokens` without the tokens."""

    slot: int
    index: int
    time_s: float
    content_id: int


class FrameStore:
    """An ordered list of frames in slots of one tensor.

    A frame that leaves frees its slot for the next one, so a full store never allocates again.

    Args:
        capacity: frames at most; None for a store that doubles when it is full.
        grid: rows and columns of tokens of each frame.

    Attributes:
        entries: frames, in the store's order.
        slots: tensor [capacity, C, H, W], free slots included; without slots and channels before `allocate`.
    """

    num_spare = 0
    """Slots beyond the capacity, for a store that holds one frame too many while it decides what goes."""

    def __init__(self, capacity: int | None, grid: Grid) -> None:
        self.capacity = capacity
        self.grid = grid
        self.entries: list[Entry] = []
        self.slots = torch.empty(0, 0, *grid)
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def is_full(self) -> bool:
        """Whether a frame must leave before one can enter."""
        return self.capacity is not None and len(self.entries) >= self.capacity

    @property
    def num_channels(self) -> int | None:
        """Feature width C, or None before `allocate`."""
        return self.slots.shape[1] or None

    def allocate(self, num_channels: int, dtype: torch.dtype, device: torch.device) -> None:
        """Reserve the slots, once the first frame has shown the feature width and type.

        Raises:
            InputError: there is no room for so many.
        """
        num_slots = _FIRST_UNBOUNDED_SLOTS if self.capacity is None else self.capacity + self.num_spare
        shape = (num_slots, num_channels, *self.grid)
        try:
            self.slots = _empty(shape, dtype, device)
        except (RuntimeError, TypeError) as error:  # TypeError: more than 64 bits can count
            room, found = f"{math.prod(shape) * dtype.itemsize / 1e9:,.1f} GB on {device}", str(error).split("\n")[0]
            raise InputError(
                f"a memory of {num_slots} frames of {shape[1:]}: expected room for {room}, found: {found}"
            ) from error
        # Popped from the end: slots fill from 0 up.
        self._free = list(range(num_slots))[::-1]

    def insert(self, position: int, frame: FrameTokens) -> int:
        """Copy a frame into a free slot and list it at `position`; returns the slot."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self.slots[slot].copy_(frame.tokens_CHW)
        self.entries.insert(position, Entry(slot, frame.index, frame.time_s, frame.content_id))
        return slot

    def remove(self, position: int) -> FrameTokens:
        """Take a frame out. Its tokens are a view of the slot: use them before the next `insert`."""
        entry = self.entries.pop(position)
        self._free.append(entry.slot)
        return FrameTokens(self.slots[entry.slot], entry.index, entry.time_s, entry.content_id)

    def frames(self) -> list[FrameTokens]:
        """Copies of the frames, in the store's order."""
        tokens = self._ordered(self.slots)
        return [FrameTokens(t, e.index, e.time_s, e.content_id) for t, e in zip(tokens, self.entries, strict=True)]

    def state(self) -> dict[str, Tensor]:
        """Copies of all that `load` needs; tokens [N, C, H, W] in order, C = 0 before `allocate`."""
        columns = {name: [getattr(entry, name) for entry in self.entries] for name in _COLUMNS}
        numbers = {name: torch.tensor(column, dtype=_COLUMNS[name]) for name, column in columns.items()}
        return {"tokens": self._ordered(self.slots), **numbers}

    def load(self, state: Mapping[str, Tensor], device: torch.device | None, name: str) -> None:
        """Fill an empty store from `state`, on `device` or, if None, on the state's; errors call it `name`.

        Raises:
            InputError: shapes that do not belong together or to this store.
        """
        tokens, num_frames = state["tokens"], state["index"].numel()
        check_entry(tokens, f"{name}.tokens", (num_frames, *tokens.shape[1:2], *self.grid), *FEATURE_DTYPES)
        for key, dtype in _COLUMNS.items():
            check_entry(state[key], f"{name}.{key}", (num_frames,), dtype)
        if self.capacity is not None and num_frames > self.capacity:
            raise InputError(f"{name} of a memory state holds {num_frames} frames, more than its {self.capacity}")
        if tokens.shape[1] == 0:
            if num_frames:
                raise InputError(f"{name} of a memory state holds {num_frames} frames without features")
            return
        self.allocate(tokens.shape[1], tokens.dtype, tokens.device if device is None else device)
        columns = (state[name].tolist() for name in _COLUMNS)
        for tokens_CHW, index, time_s, content_id in zip(tokens, *columns, strict=True):
            # Past the subclass: a saved value is restored, not computed again.
            FrameStore.insert(self, len(self.entries), FrameTokens(tokens_CHW, index, time_s, content_id))

    def _ordered(self, slots: Tensor) -> Tensor:
        """Copy of the used rows of a per-slot tensor, in the store's order."""
        if not self.entries:
            return slots[:0].clone()
        # Stacking views needs no index tensor on the device, hence no transfer that waits for it.
        return torch.stack([slots[entry.slot] for entry in self.entries])

    def _grow(self) -> None:
        assert self.capacity is None, "a bounded store evicts before it inserts"
        old = self.slots
        self.slots = _empty((2 * len(old), *old.shape[1:]), old.dtype, old.device)
        self.slots[: len(old)].copy_(old)
        self._free = list(range(len(old), 2 * len(old)))[::-1]


def check_finite(features_TCHW: Tensor, first_index: int) -> None:
    """Raise a NonFiniteError for the first frame whose features are NaN, infinite or too large to be compared in fp32.

    They would make every comparison with that frame meaningless, and the wrong one would go.
    """
    squares_T = features_TCHW.mean(dim=(2, 3), dtype=torch.float32).square().sum(dim=1)
    is_finite = [False] * len(squares_T) if squares_T.is_meta else squares_T.isfinite().tolist()
    if not all(is_finite):
        index = first_index + is_finite.index(False)
        raise NonFiniteError(f"frame {index}: expected finite features, got NaN, infinite or too large ones")


def check_entry(entry: Tensor, name: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> None:
    """Raise an InputError unless this entry of a saved state has the shape, one of the types, and finite values."""
    found = f"got {entry.dtype} {tuple(entry.shape)}"
    if tuple(entry.shape) != shape or entry.dtype not in dtypes:
        expected = " or ".join(map(str, dtypes))
        raise InputError(f"{name} of a memory state: expected {expected} {shape}, {found}")
    if entry.is_meta or not bool(entry.isfinite().all()):
        raise InputError(f"{name} of a memory state: expected finite values, {found} with others")


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # A tensor made in inference mode could not be written outside it; the first write may be in either.
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=dtype, device=device)
