"""Sizes of a memory that fit a budget of tokens, so that memories are compared at one budget.

Budgets are full-size frames, so that no token grid needs to be known. The grids are taken to be a memory's defaults:
halves and quarters of the full grid in each direction, of a quarter and a sixteenth of the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HALF, _QUARTER = 1 / 4, 1 / 16
"""Tokens of a frame on a grid of half and of a quarter of the rows and columns, as a share of a full-size frame's."""

_MOVIECHAT_SHORT_FRAMES, _STAR_KEY_FRAMES = 18, 3
"""Published numbers of frames; fewer where the budget is small."""


def sizes_within(name: str, budget: float, given: Mapping[str, Any]) -> dict[str, int]:
    """The largest sizes within a budget, in the options of the memory `name`; none for memories without such sizes.

    Published proportions are kept where there is room. A size that comes out below 1 is for the memory to refuse.

    Args:
        name: name in `MEMORY_BANKS`.
        budget: tokens, as a multiple of a full-size frame's.
        given: options that are set already. Sizes among them are kept, and what they leave is shared out.
    """
    if name in ("window", "uniform", "similarity_drop"):
        sizes = {"num_frames": int(budget)}
    elif name == "token_merging":
        sizes = {"num_frames": int(budget / _HALF)}
    elif name == "event_merging":
        recent = given.get("recent_frames", 1)
        sizes = {"recent_frames": recent, "event_frames": int((budget - recent) / _HALF)}
    elif name == "star":
        newest = given.get("newest_frames", 1)
        keys = given.get("key_frames", max(0, min(_STAR_KEY_FRAMES, int((budget - newest) / 2))))
        centroids = int((budget - newest - keys - _QUARTER) / _HALF)
        sizes = {"newest_frames": newest, "key_frames": keys, "cluster_frames": keys + centroids}
    elif name in ("moviechat", "moviechat_plus"):
        num_frames = int(budget / _QUARTER)
        long = given.get("long_frames", num_frames)
        short = given.get("short_frames", max(1, min(_MOVIECHAT_SHORT_FRAMES, num_frames // 2)))
        if given.get("reading") == "breakpoint" and "long_frames" not in given:
            long = num_frames - short
        sizes = {"short_frames": short, "long_frames": long}
    else:
        return {}
    return {**sizes, **{option: value for option, value in given.items() if option in sizes}}
