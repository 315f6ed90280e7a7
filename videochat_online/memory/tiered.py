"""What the memories share that keep frames in tiers: checking, storage, snapshots, saved states.

Owns everything but the choice of which frames stay: a subclass decides that in `_admit`.

Shapes: `N` frames, `C` channels, `H` `W` rows and columns of the token grid.
"""

from __future__ import annotations

import copy
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, replace
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from videochat_online.errors import InputError
from videochat_online.memory.pooling import pool_to_grid
from videochat_online.memory.schedule import DEFAULT_FULL_GRID, Grid, TokenSchedule, check_grid, coarser_grid
from videochat_online.memory.slots import FEATURE_DTYPES, FrameStore, check_entry, check_finite
from videochat_online.parts import make_options
from videochat_online.types import FrameTokens

_NO_INDEX = -1

_ONE_TIER = TokenSchedule((1,))
"""The schedule of memories that every frame enters at one tier."""


class TieredMemoryBank(ABC):
    """A memory of frames in one `FrameStore` per tier; see `MemoryBank` for the contract.

    A frame that arrives larger than its tier's grid is pooled to it and keeps its content id, since nobody
    has read it before. Gradients are not kept.

    Args:
        options: an instance of the class's `Options`; None for the defaults.
        full_grid: rows and columns of tokens of a full-size frame.
        device: device that frames are kept on; None for the device of the first frame written or state loaded.
        **given: options by name, in place of those.

    Raises:
        InputError: an option that the memory does not take, or not with this value; a grid that is none; `device` names
            none.
    """

    Options: ClassVar[type]
    """What can be set, as a frozen dataclass; a saved state of other options is refused."""
    kind: ClassVar[str]
    """Name of the memory in errors and saved states; a saved state of another kind is refused."""
    goes_by_order: ClassVar[bool] = False
    """Whether which frames are held depends on how many there were alone, and not on what they show."""

    def __init__(
        self,
        options: Any = None,
        *,
        full_grid: Grid = DEFAULT_FULL_GRID,
        device: torch.device | str | None = None,
        **given: Any,
    ) -> None:
        self.options = make_options(type(self), options, given, f"memory {self.kind!r}")
        self.full_grid = check_grid(full_grid, "full_grid")
        self._schedule = _ONE_TIER
        derived = self._prepare()
        # Through JSON, so that it compares equal with what a saved state holds (tuples become lists).
        self._config: dict[str, Any] = json.loads(json.dumps({"kind": self.kind, **asdict(self.options), **derived}))
        self.stores = self._empty_stores()
        """Stores of the tiers, finest first, as they are now."""
        try:
            self._device = None if device is None else torch.device(device)
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"device of a {self.kind} memory: expected one such as cuda:0, got {device!r}") from error
        self._reset_counters()
        self._next_content_id = -1

    @abstractmethod
    def _admit(self, level: int, frame: FrameTokens) -> None:
        """Store a checked frame of the tier `level`, evicting what has to go.

        Must raise, if at all, before it changes anything: `_fit` first.
        """

    def _prepare(self) -> dict[str, Any]:
        """Check the options together, and set what `_empty_stores` depends on: by default one grid.

        Returns what a saved state has to agree in besides the options, or in place of them.
        """
        given = getattr(self.options, "grid", None)
        self._grid = coarser_grid(self.full_grid, self.options.ratio) if given is None else check_grid(given, "grid")
        return {"grid" if hasattr(self.options, "grid") else "full_grid": self._grid}

    def _empty_stores(self) -> list[FrameStore]:
        """Empty stores, one for each tier: by default one of `num_frames` frames."""
        return [FrameStore(self.options.num_frames, self._grid)]

    @property
    def max_tokens(self) -> int | None:
        """Hard budget of visual tokens; None where the memory grows for ever."""
        total = 0
        for store in self.stores:
            if store.capacity is None:
                return None
            total += store.capacity * store.grid[0] * store.grid[1]
        return total

    def write(self, frame: FrameTokens) -> None:
        """Take the next frame of the stream; one that the schedule skips is only noted as seen.

        Raises:
            InputError: index not above the last one, time before the last one, a negative content id, tokens
                smaller than the tier's grid, or of other channels, type or device than those before; or there is no
                room for as many frames as the memory is to hold.
            NonFiniteError: features that are NaN or infinite, or too large to be compared in fp32. Those on a GPU are
                for the caller to check (`check_finite`).
        """
        self._check(frame)
        level = self._schedule.level(frame.index)
        with torch.no_grad():
            if level is not None:
                self._admit(level, frame)
        self._last_index, self._last_time_s = frame.index, frame.time_s

    def read(self) -> tuple[FrameTokens, ...]:
        """Return copies of all frames in time order."""
        with torch.no_grad():
            frames = [frame for store in self.stores for frame in store.frames()]
        return tuple(sorted(frames, key=lambda frame: frame.index))

    def reset(self) -> None:
        """Forget all frames and release the storage: the next stream may have other features.

        Content ids given by the bank go on counting, so that an id never names two contents.
        """
        self.stores = self._empty_stores()
        self._reset_counters()

    def tier_indices(self) -> tuple[tuple[int, ...], ...]:
        """Absolute indices of the frames in each tier, from the largest frames to the smallest, as stored."""
        return tuple(tuple(entry.index for entry in store.entries) for store in self.stores)

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the frames and counters; kind and options are JSON text in a uint8 tensor."""
        state = {
            "config": torch.tensor(list(json.dumps(self._config).encode()), dtype=torch.uint8),
            "counters": torch.tensor(self._counters()),
            "last_time_s": torch.tensor(self._last_time_s, dtype=torch.float64),
        }
        with torch.no_grad():
            for tier, store in enumerate(self.stores):
                state.update({f"tier{tier}.{key}": value for key, value in store.state().items()})
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state, on the bank's own device or, if it has none, on the state's.

        Raises:
            InputError: another kind or other options (both values are named), missing or unexpected
                entries, shapes or types that do not belong together, values that are not finite, or frames that no
                stream can have left in this memory. The bank is then unchanged.
        """
        for key, entry in state.items():
            if not isinstance(entry, Tensor):
                raise InputError(f"memory state: expected a tensor as its entry {key!r}, got {type(entry).__name__}")
        self._check_config(state)
        stores = self._empty_stores()
        expected = {"config", "counters", "last_time_s"}
        expected |= {f"tier{tier}.{key}" for tier, store in enumerate(stores) for key in store.state()}
        if expected != set(state):
            raise InputError(
                f"memory state: missing entries {sorted(expected - set(state))}, "
                f"unexpected entries {sorted(set(state) - expected)}"
            )
        check_entry(state["counters"], "counters", (len(self._counters()),), torch.int64)
        if tuple(state["last_time_s"].shape) != () or state["last_time_s"].dtype != torch.float64:
            raise InputError(f"last_time_s of a memory state: expected one float64, got {state['last_time_s']}")
        with torch.no_grad():
            for tier, store in enumerate(stores):
                keys = store.state()
                store.load({key: state[f"tier{tier}.{key}"] for key in keys}, self._device, f"tier{tier}")
        layouts = [(store.slots.shape[1], store.slots.dtype) for store in stores]
        if len(set(layouts)) > 1:
            raise InputError(f"memory state: expected equal channels and dtypes in all tiers, got {layouts}")
        restored = copy.copy(self)  # this bank stays as it is until all is checked
        restored.stores, restored._last_time_s = stores, float(state["last_time_s"])
        restored._set_counters(state["counters"].tolist())
        restored._check_restored()
        vars(self).update(vars(restored))

    def _check_restored(self) -> None:
        """Refuse, with an InputError, what no stream can have led to; a subclass adds its own."""
        last = (self._last_index, self._last_time_s)
        is_seen = self._last_index >= 0 and math.isfinite(self._last_time_s)
        if not (is_seen or last == (_NO_INDEX, -math.inf)) or self._next_content_id >= 0:
            raise InputError(f"memory state: expected counters of a stream, got {self._counters()} at {last[1]} s")
        stored = sorted((entry.index, entry.time_s) for store in self.stores for entry in store.entries)
        times = [time_s for _, time_s in (*stored, last)]
        if times != sorted(times) or any(not 0 <= index <= self._last_index for index, _ in stored):
            raise InputError(f"memory state: expected frames of index 0 to {last[0]}, at {last[1]} s, in order of time")
        read = self.read()
        orders = [[frame.index for frame in read]]
        orders += [[entry.index for entry in store.entries] for store in self._stores_in_order()]
        if any(order != sorted(set(order)) for order in orders) or len({f.content_id for f in read}) < len(read):
            raise InputError("memory state: expected each frame once, with an id of its own, in order of time")

    def _stores_in_order(self) -> list[FrameStore]:
        """Those that hold their frames in time order: all, unless a subclass knows better."""
        return self.stores

    def _counters(self) -> list[int]:
        """Whole numbers of a saved state; a subclass appends its own."""
        return [self._last_index, self._next_content_id]

    def _set_counters(self, counters: list[int]) -> None:
        """Take back what `_counters` gave."""
        self._last_index, self._next_content_id = counters

    def _fit(self, frame: FrameTokens, store: FrameStore) -> FrameTokens:
        """The frame with its tokens pooled to the store's grid, and storage for it ready."""
        # Pooled first: less to move when storage is on another device.
        tokens_CHW = pool_to_grid(frame.tokens_CHW, store.grid)
        if store.num_channels is None:
            device = tokens_CHW.device if self._device is None else self._device
            try:
                for each in self.stores:
                    each.allocate(tokens_CHW.shape[0], tokens_CHW.dtype, device)
            except InputError:
                self.stores = self._empty_stores()  # what was reserved before there was no more room
                raise
        return replace(frame, tokens_CHW=tokens_CHW)

    def _new_content_id(self) -> int:
        """A negative id that this bank has never given before."""
        content_id = self._next_content_id
        self._next_content_id -= 1
        return content_id

    def _reset_counters(self) -> None:
        self._last_index = _NO_INDEX
        self._last_time_s = -math.inf

    def _check(self, frame: FrameTokens) -> None:
        name, tokens = f"frame {frame.index}", frame.tokens_CHW
        if not _is_a(frame.index, Integral) or frame.index <= self._last_index:
            raise InputError(f"{name}: expected an index above the last one, {self._last_index}")
        # "not >=" also refuses NaN.
        if not _is_a(frame.time_s, Real) or not frame.time_s >= self._last_time_s or math.isinf(frame.time_s):
            raise InputError(f"{name}: expected a time of at least {self._last_time_s} s, got {frame.time_s} s")
        if not _is_a(frame.content_id, Integral) or frame.content_id < 0:
            raise InputError(f"{name}: ids below 0 are the bank's own, got content_id {frame.content_id}")
        if tokens.ndim != 3 or 0 in tokens.shape or tokens.dtype not in FEATURE_DTYPES or tokens.is_sparse:
            raise InputError(
                f"{name}: expected floating-point tokens [C, H, W], got {tokens.dtype} {tuple(tokens.shape)}"
            )
        self._check_same_features(name, tokens)
        if tokens.device.type in ("cpu", "meta"):  # a GPU would have to be waited for; a session looks at whole batches
            check_finite(tokens[None], frame.index)

    def _check_same_features(self, name: str, tokens: Tensor) -> None:
        stored = self.stores[0]
        if stored.num_channels is None:
            return
        pairs: dict[str, tuple[Any, Any]] = {
            "channels": (stored.num_channels, tokens.shape[0]),
            "dtype": (stored.slots.dtype, tokens.dtype),
        }
        if self._device is None:
            pairs["device"] = (stored.slots.device, tokens.device)
        for what, (expected, found) in pairs.items():
            if expected != found:
                raise InputError(f"{name}: expected the {what} of the frames before it, {expected}, got {found}")

    def _check_config(self, state: Mapping[str, Tensor]) -> None:
        if "config" not in state:
            raise InputError(f"this is no memory state: it has no entry 'config' but {sorted(state)}")
        try:
            saved = json.loads(bytes(state["config"].reshape(-1).tolist()))  # bytes(7) would be seven bytes
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"memory state: its entry 'config' is not JSON text: {error}") from error
        if not isinstance(saved, dict):
            raise InputError(f"memory state: its entry 'config' holds {saved!r}, expected options by name")
        ours = self._config
        keys = ["kind"] if saved.get("kind") != ours["kind"] else sorted({*saved, *ours})
        different = [key for key in keys if saved.get(key) != ours.get(key)]
        if different:
            found = ", ".join(f"{key} {saved.get(key)} (this memory: {ours.get(key)})" for key in different)
            raise InputError(f"the memory state was saved by another kind of memory or other options: {found}")


def _is_a(value: object, kind: type) -> bool:
    """`isinstance`, unseen by mypy, for arguments that callers may give in another type; numpy's numbers count."""
    return isinstance(value, kind)
