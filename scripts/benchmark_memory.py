"""Cost of a write to the Pyramid Memory Bank, early and late in a stream, and growth of the process.

    python scripts/benchmark_memory.py [--channels 512] [--policy reference]

A write should cost the same after 100,000 frames as after 3,000. Frames 2,000-3,000 and 99,000-100,000 are
timed twice. `sequential`: as one stream passes; a minute lies between the two, so whatever else the machine
does counts. `interleaved`: two banks, one at each place, written in turns, either first by turns; this is the
ratio to trust. Memory is the resident set of the process (Linux) at frames 3,000 and 99,000 of the stream.

Sample record (2 shared cores of an x86-64 server, 1 thread, other jobs running):
{"capacities": [24, 24, 144], "policy": "reference", "channels": 512, "sequential_write_ms": [0.4375, 0.4506],
 "sequential_ratio": 1.0298, "interleaved_write_ms": [0.4013, 0.4102],
 "interleaved_ratios": [0.9898, 0.981, 1.0453, 1.0081, 0.9658], "interleaved_ratio": 0.9898,
 "resident_growth_mb": -0.66, "torch": "2.13.0+cpu"}
There the mean over 1,000 frames wanders by 30%: other runs had sequential ratios up to 1.42, interleaved 0.98.
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

import torch

from videochat_online.memory import PyramidMemoryBank
from videochat_online.types import FrameTokens

EARLY, LATE = range(2_000, 3_000), range(99_000, 100_000)
NUM_DISTINCT_FRAMES = 67


def make_frames(channels: int) -> torch.Tensor:
    """Features [T, C, 16, 16] of a wandering scene: neighbours are alike, as in a video."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(NUM_DISTINCT_FRAMES, channels, 1, 1, generator=generator).cumsum(0)
    return steps + torch.randn(1, channels, 16, 16, generator=generator)


def write_s(bank: PyramidMemoryBank, frames: torch.Tensor, index: int) -> float:
    """Write one frame; seconds that took."""
    frame = FrameTokens(frames[index % len(frames)], index, index / 8, index)
    start = time.perf_counter()
    bank.write(frame)
    return time.perf_counter() - start


def mean_ms(bank: PyramidMemoryBank, frames: torch.Tensor, indices: Iterable[int]) -> float:
    """Mean milliseconds of a write over these frames."""
    return 1e3 * statistics.fmean(write_s(bank, frames, index) for index in indices)


def interleaved_ms(early: PyramidMemoryBank, late: PyramidMemoryBank, frames: torch.Tensor) -> tuple[float, float]:
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


def resident_mb() -> float:
    """Memory of the process in MB (10^6 bytes)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Print one JSON record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--channels", type=int, default=512, help="feature width (default %(default)s)")
    parser.add_argument("--policy", default="reference", choices=("reference", "paper"))
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    gc.disable()
    frames = make_frames(options.channels)

    bank = PyramidMemoryBank(capacities=(24, 24, 144), policy=options.policy)
    mean_ms(bank, frames, range(EARLY.start))
    early_ms = mean_ms(bank, frames, EARLY)
    early_mb = resident_mb()
    mean_ms(bank, frames, range(EARLY.stop, LATE.start))
    late_mb = resident_mb()
    # Copied only now: copies must not count as growth of the bank.
    late_bank = copy.deepcopy(bank)
    late_ms = mean_ms(bank, frames, LATE)
    early_bank = PyramidMemoryBank(capacities=(24, 24, 144), policy=options.policy)
    mean_ms(early_bank, frames, range(EARLY.start))

    pairs = [interleaved_ms(early_bank, late_bank, frames) for _ in range(options.repeats)]
    ratios = [late / early for early, late in pairs]
    record = {
        "capacities": [24, 24, 144],
        "policy": options.policy,
        "channels": options.channels,
        "sequential_write_ms": [round(early_ms, 4), round(late_ms, 4)],
        "sequential_ratio": round(late_ms / early_ms, 4),
        "interleaved_write_ms": [round(statistics.median(side), 4) for side in zip(*pairs, strict=True)],
        "interleaved_ratios": [round(ratio, 4) for ratio in ratios],
        "interleaved_ratio": round(statistics.median(ratios), 4),
        "resident_growth_mb": round(late_mb - early_mb, 2),
        "torch": torch.__version__,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
