"""What memories cost: a write, a read, and what they keep, of one model's own features and in one run.

Shape legend: `T` frames, `C` channels, `H` `W` rows and columns of the token grid.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videochat_online.memory import MemoryBank, QuestionAware
from videochat_online.model import VideoChatModel
from videochat_online.types import FrameTokens
from videochat_online.video import read_video

FRAMES_A_ROUND = 20
WARM_UP_SHARE = 0.25
"""Part of the rounds that are not timed: a memory that is not full yet has nothing to decide."""


def features_of(model: VideoChatModel, paths: Iterable[Path], fps: float, most: int) -> Tensor:
    """Features [T, C, H, W] of the first frames of some videos, at most `most` of them."""
    batches: list[Tensor] = []
    count = 0
    for path in paths:
        for frames in read_video(path, fps=fps):
            batches.append(model.encode(frames.pixels_THWC))
            count += len(frames.times_s)
            if count >= most:
                return torch.cat(batches)[:most]
    return torch.cat(batches)


def held_bytes(bank: MemoryBank) -> int:
    """What the memory needs to go on, as it would be saved."""
    return sum(tensor.nbytes for tensor in bank.state_dict().values())


def _read(bank: MemoryBank, query_C: Tensor) -> None:
    if isinstance(bank, QuestionAware):
        bank.read_for(query_C, lambda frame: frame.tokens_CHW.flatten(1).T)
    else:
        bank.read()


def costs(
    make: Mapping[str, Callable[[], MemoryBank]], features_TCHW: Tensor, num_frames: int
) -> dict[str, dict[str, Any]]:
    """Costs of each memory by its label, with ratios to the first one's.

    All of them watch the same stream, `num_frames` of the features over and over. They take turns, a few frames each,
    another one first in each round, so that what else the machine does falls on all; a ratio is the median over the
    rounds. A read is for a question, by a random query: only `moviechat_plus` reads by it.
    """
    banks = {label: one() for label, one in make.items()}
    query_C = torch.randn(features_TCHW.shape[1], generator=torch.Generator().manual_seed(0)).to(features_TCHW)
    writes_s: dict[str, list[float]] = {label: [] for label in banks}
    reads_s: dict[str, list[float]] = {label: [] for label in banks}
    labels = list(banks)
    starts = range(0, num_frames, FRAMES_A_ROUND)
    for turn, start in enumerate(starts):
        frames = [_frame(features_TCHW, index) for index in range(start, min(start + FRAMES_A_ROUND, num_frames))]
        for label in labels[turn % len(labels) :] + labels[: turn % len(labels)]:
            began = time.perf_counter()
            for frame in frames:
                banks[label].write(frame)
            written = time.perf_counter()
            _read(banks[label], query_C)
            writes_s[label].append((written - began) / len(frames))
            reads_s[label].append(time.perf_counter() - written)
    first = int(WARM_UP_SHARE * len(starts))
    return {
        label: {
            **_time("write", writes_s[label][first:], writes_s[labels[0]][first:]),
            **_time("read", reads_s[label][first:], reads_s[labels[0]][first:]),
            **_kept(bank, num_frames),
        }
        for label, bank in banks.items()
    }


def _frame(features_TCHW: Tensor, index: int) -> FrameTokens:
    return FrameTokens(features_TCHW[index % len(features_TCHW)], index, float(index), index)


def _time(name: str, seconds: Sequence[float], of_first: Sequence[float]) -> dict[str, float]:
    ratios = [own / first for own, first in zip(seconds, of_first, strict=True)]
    return {
        f"{name}_ms": round(1e3 * statistics.median(seconds), 4),
        f"{name}_ratio": round(statistics.median(ratios), 3),
    }


def _kept(bank: MemoryBank, num_frames: int) -> dict[str, Any]:
    held, tokens = held_bytes(bank), sum(frame.num_tokens for frame in bank.read())
    return {
        "num_frames": num_frames,
        "held_bytes": held,
        "remembered_tokens": tokens,
        "bytes_per_frame_seen": round(held / num_frames, 2),
        "bytes_per_token": round(held / tokens, 2),
    }
