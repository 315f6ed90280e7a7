"""What tables call a memory, its name and its sizes: `pyramid 2/2/12`, `window 6`, `keep_all`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from videochat_online.errors import InputError
from videochat_online.memory import MEMORIES
from videochat_online.parts import Option


def settings_of(memory: str) -> dict[str, Option]:
    """What people can set of a memory, by name: its options without those that the model decides.

    Raises:
        InputError: an unknown memory.
    """
    return {name: one for name, one in MEMORIES.options_of(memory).items() if not one.from_model}


def label_of(memory: str, options: Mapping[str, Any]) -> str:
    """What tables call a memory, which may be one that is not installed here.

    An import path is not followed: the run that names it may be a stranger's.
    """
    sizes = options.get("capacities")
    if not sizes or not isinstance(sizes, list | tuple):
        sizes = [options[name] for name in _sizes_of(memory, options) if name in options]
    return " ".join(filter(None, (memory, "/".join(map(str, sizes)))))


def parse_label(text: str) -> tuple[str, dict[str, Any]]:
    """`label_of` read back: a memory's name, known or not, and the options that the label says.

    Raises:
        InputError: sizes that are no numbers, or more than the memory has.
    """
    name, _, sizes = text.strip().partition(" ")
    if not sizes.strip():
        return name, {}
    known = MEMORIES.options_of(name)
    if "capacities" in known:
        return name, {"capacities": known["capacities"].parse(sizes, f"sizes of {name}")}
    names = [option for option in known if _is_size(option)]
    values = _SIZES.parse(sizes, f"sizes of {name}")
    if len(values) > len(names):
        has = f"at most {len(names)} sizes ({', '.join(names)})" if names else "no sizes"
        raise InputError(f"{text!r}: expected {has} of {name}, got {len(values)}")
    return name, dict(zip(names, values, strict=False))


def largest_size(options: Mapping[str, Any]) -> int:
    """The largest number of frames among options of a memory, of tiers their sum: of those that its label says."""
    sizes = [value for name, value in options.items() if _is_size(name) and isinstance(value, int)]
    capacities = options.get("capacities")
    return max([sum(capacities) if isinstance(capacities, list | tuple) else 0, *sizes])


def _sizes_of(memory: str, options: Mapping[str, Any]) -> list[str]:
    """Options that say how many frames there are, in the order of labels; of an unknown memory those it has."""
    names = tuple(options)
    if ":" not in memory:
        with suppress(InputError):
            names = tuple(MEMORIES.options_of(memory))
    return [name for name in names if _is_size(name)]


def _is_size(name: str) -> bool:
    return name.endswith("_frames")


_SIZES = Option("sizes", tuple[int, ...], (), "numbers of frames")
