"""Strategies by name: what a question is answered from, of all that is remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from videochat_online.errors import InputError
from videochat_online.streaming.strategies.base import Strategy
from videochat_online.streaming.strategies.chain_of_shot import ChainOfShot
from videochat_online.streaming.strategies.direct import Direct
from videochat_online.streaming.strategies.retrieval import Retrieval

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "direct": Direct,
    "retrieval": Retrieval,
    "chain_of_shot": ChainOfShot,
}

STRATEGY_OPTIONS: dict[str, tuple[str, ...]] = {
    "direct": (),
    "retrieval": ("retrieved_frames",),
    "chain_of_shot": (),
}
"""Options that each strategy takes; their defaults are those of its class."""


def make_strategy(name: str, **options: Any) -> Strategy:
    """Make a strategy by its name in `STRATEGIES`.

    Args:
        name: name in `STRATEGIES`.
        options: options of `STRATEGY_OPTIONS[name]`; one that is None counts as not given.

    Raises:
        InputError: an unknown name, an option that this strategy does not take, or a bad value of one.
    """
    if name not in STRATEGIES:
        raise InputError(f"unknown strategy {name!r}: expected one of {', '.join(STRATEGIES)}")
    given = {option: value for option, value in options.items() if value is not None}
    unknown = sorted(set(given) - set(STRATEGY_OPTIONS[name]))
    if unknown:
        taken = ", ".join(STRATEGY_OPTIONS[name]) or "none"
        raise InputError(f"strategy {name!r} does not take {', '.join(unknown)}: its options are {taken}")
    return STRATEGIES[name](**given)


__all__ = ["STRATEGIES", "STRATEGY_OPTIONS", "Direct", "Retrieval", "Strategy", "make_strategy"]
