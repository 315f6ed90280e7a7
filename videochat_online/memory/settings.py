"""The options of memories that people set, on the command line and on the demo's page: their names, kinds and meanings.

`MEMORY_OPTIONS` says which memory takes which. Token grids, intervals and device are the model's, and not here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videochat_online.errors import InputError
from videochat_online.memory import MEMORY_BANKS, MEMORY_OPTIONS, POLICIES, READINGS


@dataclass(frozen=True, slots=True)
class MemorySetting:
    """An option as people set it.

    Attributes:
        kind: of its value, or of each of its values.
        meaning: in a few words.
        num_values: None for a single one, "+" for a list, a number for a list of that length.
    """

    kind: type[int] | type[float] | type[str]
    meaning: str
    num_values: int | str | None = None

    def parse(self, text: str, name: str) -> Any:
        """The value that somebody has written: `2, 2, 12`, `0.9`, `paper`; `name` is how the error calls it.

        Raises:
            InputError: it is not of the kind, or several where one is expected.
        """
        try:
            values = tuple(self.kind(part) for part in text.replace(",", " ").split())
        except ValueError:
            values = ()
        if not values or (self.num_values is None and len(values) > 1):
            what = {int: "whole number", float: "number", str: "name"}[self.kind]
            expected = f"a {what}" if self.num_values is None else f"{what}s such as 2, 2, 12"
            raise InputError(f"{name}: expected {expected}, got {text[:40]!r}")
        return values[0] if self.num_values is None else values


MEMORY_SETTINGS: dict[str, MemorySetting] = {
    "capacities": MemorySetting(int, "frames of each tier, largest frames first", "+"),
    "policy": MemorySetting(str, f"{' or '.join(POLICIES)} (default: reference)"),
    "reading": MemorySetting(str, " or ".join(READINGS)),
    "num_frames": MemorySetting(int, "frames kept"),
    "short_frames": MemorySetting(int, "frames of the buffer"),
    "long_frames": MemorySetting(int, "frames of the long memory"),
    "merged_frames": MemorySetting(int, "what a full buffer is merged to"),
    "newest_frames": MemorySetting(int, "newest frames, full size"),
    "key_frames": MemorySetting(int, "key frames, full size"),
    "cluster_frames": MemorySetting(int, "clusters"),
    "recent_frames": MemorySetting(int, "newest frames, full size"),
    "event_frames": MemorySetting(int, "event nodes"),
    "threshold": MemorySetting(float, "frames more similar are dropped"),
    "abstract_decay": MemorySetting(float, "share of the abstract that stays"),
    "penalty_weights": MemorySetting(float, "of dissimilarity, size and recency", 3),
}


def settings_of(memory: str) -> dict[str, MemorySetting]:
    """The settings that a memory takes, by name; none for an unknown memory."""
    return {name: one for name, one in MEMORY_SETTINGS.items() if name in MEMORY_OPTIONS.get(memory, ())}


def takers_of(name: str) -> tuple[str, ...]:
    """The memories that take a setting."""
    return tuple(memory for memory, options in MEMORY_OPTIONS.items() if name in options)


def default_of(memory: str, name: str) -> Any:
    """What a memory takes where a setting is not given."""
    return inspect.signature(MEMORY_BANKS[memory]).parameters[name].default


def written(value: Any) -> str:
    """A value as `MemorySetting.parse` reads it; nothing for None."""
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def largest_size(options: Mapping[str, Any]) -> int:
    """The largest number of frames among options of a memory; of tiers their sum."""
    tiers: Sequence[int] = options.get("capacities", ())
    return max([sum(tiers), *(value for value in options.values() if isinstance(value, int))])
