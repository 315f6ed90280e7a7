"""Memories at one budget of tokens, by the rule by which `videochat-online evaluate` gives them their sizes.

A budget is a pyramid: `4/4/16` is what 4 full-size frames, 4 of a quarter and 16 of a sixteenth of their tokens take.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from videochat_online.errors import InputError
from videochat_online.evaluation import resolve_protocol
from videochat_online.memory import MEMORIES

Capacities = tuple[int, ...]

BOUNDED = tuple(name for name in MEMORIES.built_in if name != "keep_all")
BUDGETS: tuple[Capacities, ...] = ((4, 4, 16), (2, 2, 8))


def budget(text: str) -> Capacities:
    """`4/4/16` -> (4, 4, 16), for argparse."""
    parts = text.split("/")
    if not all(part.isdecimal() for part in parts) or not any(map(int, parts)):
        raise argparse.ArgumentTypeError(f"expected the capacities of a pyramid such as 4/4/16, got {text!r}")
    return tuple(map(int, parts))


def shown(capacities: Capacities) -> str:
    """(4, 4, 16) -> `4/4/16`."""
    return "/".join(map(str, capacities))


def options_at(name: str, capacities: Capacities) -> Mapping[str, Any]:
    """Options of the memory `name` that make the most of a budget.

    Raises:
        InputError: no such memory.
    """
    options = {"capacities": capacities, "policy": "reference"}
    of_task = {"streaming": {"memory_options": options}}
    return resolve_protocol("streaming", of_task=of_task, memory=name).memory_options


def flags(options: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Options as flags of a command: {"num_frames": 6}, "memory." -> --memory.num_frames 6."""
    words = []
    for name, value in options.items():
        words += [f"--{prefix}{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return words


def add_memories(parser: argparse.ArgumentParser) -> None:
    """`--memories` and `--budgets`."""
    parser.add_argument(
        "--memories", nargs="+", default=list(BOUNDED), metavar="NAME", help=f"(default: {' '.join(BOUNDED)})"
    )
    default = " ".join(map(shown, BUDGETS))
    parser.add_argument(
        "--budgets", nargs="+", type=budget, default=list(BUDGETS), metavar="N/N/N", help=f"(default: {default})"
    )


def check_memories(options: argparse.Namespace) -> None:
    """InputError unless memories are known and bounded, and they and budgets are there once each."""
    for name in options.memories:
        if MEMORIES.find(name) is MEMORIES.find("keep_all"):
            raise InputError(f"--memories: expected some that do not grow for ever, got {name!r}")
    for flag, values in (("memories", options.memories), ("budgets", list(map(shown, options.budgets)))):
        if len(set(values)) < len(values):
            raise InputError(f"--{flag}: expected each once, got {' '.join(values)}")
