"""The options of memories that people set, on the command line and on the demo's page: their names, kinds and meanings.

`MEMORY_OPTIONS` says which memory takes which. Token grids, intervals and device are the model's, and not here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videochat_online.errors import InputError
from videochat_online.memory import MEMORY_BANKS, MEMORY_OPTIONS, POLICIES, READINGS


@dataclass(frozen=True, slots=True)
class MemorySetting:
    """An option as people set it.

    Attributes:
        kind: type of its value, or of each of its values.
        meaning: help text of a few words.
        num_values: number of values: None for a single one, "+" for a list, a number for a list of that length.
    """

    kind: type[int] | type[float] | type[str]
    meaning: str
    num_values: int | str | None = None

    def parse(self, text: str, name: str) -> Any:
        """The value that somebody has written: `2, 2, 12`, `2/2/12`, `0.9`, `paper`; `name` is how the error calls it.

        Raises:
            InputError: it is not of the kind, or another number of them than expected.
        """
        try:
            # 2, 2, 12 and 2 / 2 / 12 have blanks about one sign; 2//12 lacks a value.
            values = tuple(self.kind(part) for part in re.split(r"\s*[,/]\s*|\s+", text.strip()))
        except ValueError:
            values = ()
        expected_number = 1 if self.num_values is None else self.num_values
        if not values or (expected_number != "+" and len(values) != expected_number):
            what = {int: "whole number", float: "number", str: "name"}[self.kind]
            count = f"{self.num_values} " if isinstance(self.num_values, int) else ""
            example = " such as 2, 2, 12" if self.num_values == "+" else ""
            expected = f"a {what}" if self.num_values is None else f"{count}{what}s{example}"
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


def label_of(memory: str, options: Mapping[str, Any]) -> str:
    """What tables call a memory: its name and its sizes, `pyramid 2/2/12`, `window 6`, `keep_all`."""
    sizes = options.get("capacities") or [options[name] for name in _sizes_of(memory, options) if name in options]
    return " ".join(filter(None, (memory, "/".join(map(str, sizes)))))


def parse_label(text: str) -> tuple[str, dict[str, Any]]:
    """`label_of` read back: a memory's name, known or not, and the options that the label says.

    Raises:
        InputError: sizes that are no numbers, or more than the memory has.
    """
    name, _, sizes = text.strip().partition(" ")
    if not sizes.strip() or name not in MEMORY_OPTIONS:
        return text, {}
    if "capacities" in MEMORY_OPTIONS[name]:
        return name, {"capacities": list(MEMORY_SETTINGS["capacities"].parse(sizes, f"sizes of {name}"))}
    known = _sizes_of(name, {})
    values = MEMORY_SETTINGS["capacities"].parse(sizes, f"sizes of {name}")
    if len(values) > len(known):
        has = f"at most {len(known)} sizes ({', '.join(known)})" if known else "no sizes"
        raise InputError(f"{text!r}: expected {has} of {name}, got {len(values)}")
    return name, dict(zip(known, values, strict=False))


def _sizes_of(memory: str, options: Mapping[str, Any]) -> list[str]:
    """Options that say how many frames there are, in the order of labels; of an unknown memory those it has."""
    return [name for name in MEMORY_OPTIONS.get(memory, tuple(options)) if name.endswith("_frames")]


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
