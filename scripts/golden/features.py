"""Golden checks of a stream's visual tokens: encode, remember, read, project."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from videochat_online.memory import PyramidMemoryBank
from videochat_online.types import FrameTokens

from .harness import Case
from .model import network_of
from .slow_pyramid import SlowPyramid

ENCODE_BATCH = 16


def bank_capacities(capacities: dict[str, int]) -> tuple[int, ...]:
    """`{"long_256": 2, "mid_64": 2, "short_16": 12}` -> (2, 2, 12), largest frames first."""
    return tuple(count for _, count in sorted(capacities.items(), key=lambda item: -int(item[0].split("_")[1])))


@lru_cache(maxsize=4)
def _encoded(root: Path, model: str, frames: ModuleType, arguments: tuple[tuple[str, Any], ...]) -> list[Tensor]:
    """Features of a recorded stream, grown on demand: cases are prefixes of one list of frames."""
    return []


@torch.no_grad()
def encoded_frames(case: Case) -> list[Tensor]:
    """Features [C, H, W] of the case's frames."""
    arguments = dict(case.params["frames"])
    num_frames = arguments.pop("T")
    known = _encoded(case.root, case.params["model"], case.frames, tuple(sorted(arguments.items())))
    network = network_of(case.root, case.params["model"])
    while len(known) < num_frames:
        count = min(ENCODE_BATCH, num_frames - len(known))
        pixels = case.frames.make_frames(T=count, start=len(known), **arguments)
        known.extend(network.encode(case.frames.normalise(pixels)))
    return known[:num_frames]


def remember(case: Case, features: list[Tensor], capacities: tuple[int, ...]) -> list[FrameTokens]:
    """What the bank holds after the stream."""
    config = network_of(case.root, case.params["model"]).config
    intervals = tuple(case.params.get("reverse_memory_sample_ratio", config.memory_intervals))
    bank = PyramidMemoryBank(capacities=capacities, full_grid=config.grid, intervals=intervals)
    for index, tokens_CHW in enumerate(features):
        bank.write(FrameTokens(tokens_CHW, index, float(index), index))
    return list(bank.read())


@torch.no_grad()
def check_stream_features(case: Case) -> None:
    """Surviving frames, their token counts, and their tokens in the language model's space."""
    capacities = bank_capacities(case.params["capacities"])
    features = encoded_frames(case)
    comparable = tuple(capacity or len(features) + 1 for capacity in capacities)
    if "error" in case.recorded:
        case.exclude(
            f"capacities {capacities}: the reference fails ({case.recorded['error']}); ours against the slow one"
        )
    elif capacities != comparable:
        case.exclude(
            f"capacities {capacities}: the reference never evicts at capacity 0; its numbers against {comparable}, "
            "ours against the slow re-statement"
        )
        _compare(case, remember(case, features, comparable))
    else:
        _compare(case, remember(case, features, capacities))
        return
    _compare_with_slow(case, features, capacities)


def _compare(case: Case, memory: list[FrameTokens]) -> None:
    counts, indices = [frame.num_tokens for frame in memory], [frame.index for frame in memory]
    if indices != case.recorded["frame_indices"] and case.entry.get("fragile"):
        case.exclude("fragile: two pairs of frames are about as similar, and rounding decides which one is thinned out")
        case.exact("number of frames", len(indices), len(case.recorded["frame_indices"]))
        return
    if not case.exact("frame indices", indices, case.recorded["frame_indices"]):
        return
    case.exact("tokens per frame", counts, case.recorded["tokens_per_frame"])
    network = network_of(case.root, case.params["model"])
    tokens = torch.cat([frame.tokens_CHW.flatten(1).T for frame in memory])
    embeddings = network.project(tokens)
    if "total_tokens" in case.recorded:
        case.exact("total tokens", len(embeddings), case.recorded["total_tokens"])
    if "embeddings_strided" in case.tensors:
        stride = case.recorded["embeddings_stride"]
        case.close("embeddings", embeddings[::stride], case.tensors["embeddings_strided"])
    means = torch.stack([part.mean(0) for part in embeddings.split(counts)])
    case.close("frame means", means, case.tensors["frame_mean_embeddings"])


def _compare_with_slow(case: Case, features: list[Tensor], capacities: tuple[int, ...]) -> None:
    config = network_of(case.root, case.params["model"]).config
    intervals = tuple(case.params.get("reverse_memory_sample_ratio", config.memory_intervals))
    grids = tuple((config.grid[0] // 2**level, config.grid[1] // 2**level) for level in range(len(capacities)))
    slow = SlowPyramid(capacities, grids, intervals, "reference")
    for index, tokens_CHW in enumerate(features):
        slow.write(index, tokens_CHW.double().numpy())
    memory = remember(case, features, capacities)
    expected = slow.read()
    if case.exact("frame indices, slow re-statement", [f.index for f in memory], [f.index for f in expected]):
        for ours, theirs in zip(memory, expected, strict=True):
            # The case's tolerance is of a recording that does not exist here: fp32 pooling against fp64.
            case.close(f"frame {ours.index}, slow re-statement", ours.tokens_CHW, theirs.tokens, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def check_stream_features_chunked(case: Case) -> None:
    """The stream arriving in chunks.

    The reference restarts its schedule at every chunk, so the chunk size changes what is remembered unless it
    is a multiple of the longest interval. Ours counts from the start of the stream: its value is then the one
    without chunks.
    """
    capacities, stride = bank_capacities(case.params["capacities"]), case.params["stride"]
    features = encoded_frames(case)
    network = network_of(case.root, case.params["model"])
    memory = remember(case, features, capacities)
    if stride % max(network.config.memory_intervals) == 0:
        _compare(case, memory)
        return
    case.exclude(
        f"chunks of {stride} frames: the reference restarts the schedule at each; ours against the slow re-statement"
    )
    _compare_with_slow(case, features, capacities)


CHECKS: dict[str, Callable[[Case], None]] = {
    "stream_features": check_stream_features,
    "stream_features_chunked": check_stream_features_chunked,
}
