"""Golden checks of the token schedule and of the Pyramid Memory Bank."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from torch import Tensor

from videochat_online.memory import DEFAULT_INTERVALS, Grid, PyramidMemoryBank, TokenSchedule
from videochat_online.types import FrameTokens

from .harness import Case
from .slow_pyramid import SlowPyramid

FRAGILE_GAP = 2e-5
"""Gap of similarities below which the recording itself calls an eviction fragile."""


Capacities = tuple[int, ...]
Grids = tuple[Grid, ...]


def check_token_schedule(case: Case) -> None:
    """Pooling ratio of every frame; a frame that the schedule skips has none."""
    for row in case.recorded:
        schedule = TokenSchedule(tuple(row["intervals"]))
        case.exact(f"ratios of {row['intervals']}", [2**level for level in range(schedule.num_levels)], row["ratios"])
        ratios = (schedule.ratio(index) for index in range(row["T"]))
        case.exact(f"{row['intervals']}, {row['T']} frames", [r for r in ratios if r is not None], row["out"])


def check_memory_bank(case: Case) -> None:
    """Members of each tier after each frame, and the final content.

    The reference's treatment of capacities 0 and 1 is a bug that is not copied. At 0 its tier never evicts,
    so the recording is compared with a bank whose capacity there exceeds the stream; at 1 it fails, so the
    recording is compared up to there. What we do instead is compared with the slow re-statement.
    """
    capacities, grids = _tiers(case)
    frames = _input_frames(case)
    comparable = tuple(capacity or len(frames) + 1 for capacity in capacities)
    if capacities != comparable:
        case.exclude(
            f"capacities {capacities}: the reference never evicts from a tier of capacity 0; its numbers are "
            f"compared with {comparable}, ours with the slow re-statement"
        )
    elif case.recorded["error"]:
        case.exclude(
            f"capacities {capacities}: the reference fails ({case.recorded['error']}); compared up to there, "
            f"the rest with the slow re-statement"
        )
    _compare_with_recording(case, comparable, grids, frames)
    _compare_with_slow(case, capacities, grids, frames)


def _compare_with_recording(case: Case, capacities: Capacities, grids: Grids, frames: list[Tensor]) -> None:
    groups = dict(zip(_recorded_steps(case, len(frames)), case.recorded["groups_after_each_frame"], strict=True))
    bank, slow = _banks(case, capacities, grids)
    for index, tokens_CHW in enumerate(frames):
        _write(bank, slow, index, tokens_CHW)
        fragile = bool(case.entry.get("fragile"))
        if index in groups and not _same_tiers(case, f"tiers after frame {index}", bank, slow, groups[index], fragile):
            return
    if "output_indices" not in case.recorded:
        return
    memory = bank.read()
    counts = [frame.num_tokens for frame in memory]
    case.exact("output indices", [frame.index for frame in memory], case.recorded["output_indices"])
    if case.exact("output tokens per frame", counts, case.recorded["output_tokens_per_frame"]):
        recorded = case.tensors["output_tokens_flat"].split([n * _channels(case) for n in counts])
        for frame, tokens in zip(memory, recorded, strict=True):
            # Recorded [1, n, C]; ours [C, h, w].
            case.close(f"tokens of frame {frame.index}", frame.tokens_CHW.flatten(1).T.flatten(), tokens)


def _compare_with_slow(case: Case, capacities: Capacities, grids: Grids, frames: list[Tensor]) -> None:
    bank, slow = _banks(case, capacities, grids)
    for index, tokens_CHW in enumerate(frames):
        _write(bank, slow, index, tokens_CHW)
        within = all(len(tier) <= most for tier, most in zip(bank.tier_indices(), capacities, strict=True))
        case.exact(f"every tier within its capacity after frame {index}", within, True)
        label = f"tiers after frame {index}, slow re-statement"
        if not _same_tiers(case, label, bank, slow, slow.indices(), fragile=True):
            return
    for ours, theirs in zip(bank.read(), slow.read(), strict=True):
        case.close(f"tokens of frame {ours.index}, slow re-statement", ours.tokens_CHW, theirs.tokens)


def _same_tiers(
    case: Case,
    label: str,
    bank: PyramidMemoryBank,
    slow: SlowPyramid,
    expected: list[list[int]],
    fragile: bool,
) -> bool:
    """Compare the members of the tiers; `fragile`: two roundings may part where a similarity gap is tiny."""
    ours = [list(tier) for tier in bank.tier_indices()]
    if ours != expected and fragile and any(gap < FRAGILE_GAP for _, gap in slow.gaps):
        case.exclude(f"{label}: differs after a similarity gap below {FRAGILE_GAP:g}; not compared from here on")
        return False
    return case.exact(label, ours, expected)


def _banks(case: Case, capacities: Capacities, grids: Grids) -> tuple[PyramidMemoryBank, SlowPyramid]:
    intervals = tuple(case.params.get("intervals", DEFAULT_INTERVALS))
    policy = case.params.get("policy", "reference")
    bank = PyramidMemoryBank(capacities=capacities, grids=grids, intervals=intervals, policy=policy)
    return bank, SlowPyramid(capacities, grids, intervals, policy)


def _write(bank: PyramidMemoryBank, slow: SlowPyramid, index: int, tokens_CHW: Tensor) -> None:
    bank.write(FrameTokens(tokens_CHW, index, float(index), index))
    slow.write(index, tokens_CHW.double().numpy())


def _tiers(case: Case) -> tuple[Capacities, Grids]:
    """Capacities and square grids from `{"size256": 2, ...}`, largest frames first."""
    by_size = {int(name.removeprefix("size")): count for name, count in case.params["capacities"].items()}
    sizes = sorted(by_size, reverse=True)
    return tuple(by_size[size] for size in sizes), tuple((math.isqrt(size), math.isqrt(size)) for size in sizes)


def _channels(case: Case) -> int:
    return int(case.params["channels"])


def _input_frames(case: Case) -> list[Tensor]:
    """The recorded frames [C, k, k], k = full side / pooling ratio."""
    full = max(_tiers(case)[1])[0]
    sides = [full // ratio for ratio in case.params["schedule"]]
    pieces = case.tensors["input_tokens_flat"].split([_channels(case) * side**2 for side in sides])
    return [piece.view(_channels(case), side, side) for piece, side in zip(pieces, sides, strict=True)]


def _recorded_steps(case: Case, num_frames: int) -> list[int]:
    """Frames after which the tiers were recorded: "all", or "every Nth frame, then the last"."""
    failed = re.search(r"at frame (\d+)", case.recorded["error"] or "")
    last = (int(failed[1]) if failed else num_frames) - 1
    every = re.match(r"every (\d+)", case.recorded["groups_steps"])
    steps = range(0, last + 1, int(every[1]) if every else 1)
    return sorted({*steps, last})


CHECKS: dict[str, Callable[[Case], None]] = {
    "memory_bank": check_memory_bank,
    "token_schedule": check_token_schedule,
}
