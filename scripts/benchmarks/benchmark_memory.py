r"""Cost of writing to a memory and of reading it, early and late in a stream, and growth of the process.

    python scripts/benchmarks/benchmark_memory.py [--memory pyramid ...] [--budget 9984] [--channels 512] \
        [--policy reference]

A write should cost the same after 100,000 frames as after 3,000. Frames 2,000-3,000 and 99,000-100,000 are
timed twice. `sequential`: as one stream passes; a minute lies between the two, so whatever else the machine
does counts. `interleaved`: two banks, one at each place, written in turns, either first by turns; this is the
ratio to trust. Growth is that of the resident set of the process (Linux) from frame 3,000 to 99,000, in all and for
each frame written. `held_mb` is what the memory's saved state takes, features as fp32. One JSON record a memory.

Sample record (2 shared cores of an x86-64 server, 1 thread, many other jobs running, 3 repeats):
{"memory": "star", "max_tokens": 784, "policy": null, "channels": 64,
 "sequential_write_ms": [0.7078, 0.8417], "sequential_ratio": 1.1892,
 "interleaved_write_ms": [0.6467, 0.6848], "interleaved_ratios": [1.0696, 0.9875, 1.0234],
 "interleaved_ratio": 1.0234, "read_ms": 0.0498, "held_mb": 0.55, "resident_growth_mb": 0.0,
 "resident_growth_bytes_per_frame": 0.0, "torch": "2.13.0+cpu"}
There the mean over 1,000 frames wanders with the load: sequential ratios of 0.4 to 2.6, interleaved 0.9 to 1.2.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from measuring import CAPACITIES
from videochat_online.memory import MEMORIES, MemoryBank, make_memory, sizes_within
from videochat_online.types import FrameTokens

EARLY, LATE = range(2_000, 3_000), range(99_000, 100_000)
NUM_DISTINCT_FRAMES = 67
BOUNDED = [name for name in MEMORIES.built_in if name != "keep_all"]


def make_frames(channels: int) -> torch.Tensor:
    """Features [T, C, 16, 16] of a wandering scene: neighbours are alike, as in a video."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(NUM_DISTINCT_FRAMES, channels, 1, 1, generator=generator).cumsum(0)
    return steps + torch.randn(1, channels, 16, 16, generator=generator)


def write_s(bank: MemoryBank, frames: torch.Tensor, index: int) -> float:
    """Write one frame; seconds that took."""
    frame = FrameTokens(frames[index % len(frames)], index, index / 8, index)
    start = time.perf_counter()
    bank.write(frame)
    return time.perf_counter() - start


def mean_ms(bank: MemoryBank, frames: torch.Tensor, indices: Iterable[int]) -> float:
    """Mean milliseconds of a write over these frames."""
    return 1e3 * statistics.fmean(write_s(bank, frames, index) for index in indices)


def interleaved_ms(early: MemoryBank, late: MemoryBank, frames: torch.Tensor) -> tuple[float, float]:
    """Mean milliseconds of a write early and late in a stream, on copies of the two banks."""
    early, late = copy.deepcopy((early, late))
    total_early_s = total_late_s = 0.0
    for turn, (early_index, late_index) in enumerate(zip(EARLY, LATE, strict=True)):
        if turn % 2:
            total_late_s += write_s(late, frames, late_index)
        total_early_s += write_s(early, frames, early_index)
        if not turn % 2:
            total_late_s += write_s(late, frames, late_index)
    return 1e3 * total_early_s / len(EARLY), 1e3 * total_late_s / len(LATE)


def read_ms(bank: MemoryBank, repeats: int = 20) -> float:
    """Median milliseconds of a read."""
    times_ms = []
    for _ in range(repeats):
        start = time.perf_counter()
        bank.read()
        times_ms.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times_ms)


def resident_mb() -> float:
    """Memory of the process in MB (10^6 bytes)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def new_bank(name: str, budget: int, policy: str) -> MemoryBank:
    """An empty memory of at most so many tokens, on the full grid of 16 x 16."""
    options = sizes_within(name, budget / 256, {})
    if "policy" in MEMORIES.options_of(name):
        options = {"capacities": CAPACITIES[budget], "policy": policy}
    return make_memory(name, **options)


def measure(name: str, options: argparse.Namespace, frames: torch.Tensor) -> dict[str, Any]:
    """The record of one memory."""
    bank = new_bank(name, options.budget, options.policy)
    mean_ms(bank, frames, range(EARLY.start))
    early_bank = copy.deepcopy(bank)
    early_ms = mean_ms(bank, frames, EARLY)
    read_ms(bank)
    early_mb = resident_mb()
    mean_ms(bank, frames, range(EARLY.stop, LATE.start))
    late_mb = resident_mb()
    # Copied only now: copies must not count as growth of the bank.
    late_bank = copy.deepcopy(bank)
    late_ms = mean_ms(bank, frames, LATE)
    pairs = [interleaved_ms(early_bank, late_bank, frames) for _ in range(options.repeats)]
    ratios = [late / early for early, late in pairs]
    held_bytes = sum(tensor.nbytes for tensor in bank.state_dict().values())
    return {
        "memory": name,
        "max_tokens": bank.max_tokens,
        "policy": options.policy if "policy" in MEMORIES.options_of(name) else None,
        "channels": options.channels,
        "sequential_write_ms": [round(early_ms, 4), round(late_ms, 4)],
        "sequential_ratio": round(late_ms / early_ms, 4),
        "interleaved_write_ms": [round(statistics.median(side), 4) for side in zip(*pairs, strict=True)],
        "interleaved_ratios": [round(ratio, 4) for ratio in ratios],
        "interleaved_ratio": round(statistics.median(ratios), 4),
        "read_ms": round(read_ms(bank), 4),
        "held_mb": round(held_bytes / 1e6, 2),
        "resident_growth_mb": round(late_mb - early_mb, 2),
        "resident_growth_bytes_per_frame": round((late_mb - early_mb) * 1e6 / (LATE.start - EARLY.stop), 1),
        "torch": torch.__version__,
    }


def main() -> None:
    """Print one JSON record a memory."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--memory", nargs="+", default=["pyramid"], choices=BOUNDED, help="(default pyramid)")
    parser.add_argument("--budget", type=int, default=9984, choices=CAPACITIES, help="tokens (default %(default)s)")
    parser.add_argument("--channels", type=int, default=512, help="feature width (default %(default)s)")
    parser.add_argument("--policy", default="reference", choices=("reference", "paper"))
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    gc.disable()
    frames = make_frames(options.channels)
    for name in options.memory:
        print(json.dumps(measure(name, options, frames)), flush=True)


if __name__ == "__main__":
    main()
