"""Strategies by name: what a question is answered from, of all that is remembered."""

from __future__ import annotations

from typing import Any, cast

from videochat_online.parts import PartKind
from videochat_online.streaming.strategies.base import Strategy
from videochat_online.streaming.strategies.direct import Direct
from videochat_online.streaming.strategies.retrieval import Retrieval

_ROOM = "videochat_online.streaming.strategies"

STRATEGIES = PartKind(
    name="strategy",
    group="videochat_online.strategies",
    built_in={
        "direct": f"{_ROOM}.direct:Direct",
        "retrieval": f"{_ROOM}.retrieval:Retrieval",
        "chain_of_shot": f"{_ROOM}.chain_of_shot:ChainOfShot",
    },
    methods=("read",),
)


def make_strategy(name: str, **options: Any) -> Strategy:
    """Make a strategy by its name in `STRATEGIES`.

    Args:
        name: built-in name, entry point, or `package.module:Name`.
        options: fields of its `Options`; one that is None counts as not given.

    Raises:
        InputError: an unknown name, an option that this strategy does not take, or a bad value of one.
    """
    return cast(Strategy, STRATEGIES.make(name, options))


__all__ = ["STRATEGIES", "Direct", "Retrieval", "Strategy", "make_strategy"]
