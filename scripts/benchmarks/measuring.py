"""What the benchmarks of this folder share: sizes of memories, a clock that waits for the device."""

from __future__ import annotations

import time

import torch

CAPACITIES = {832: (2, 2, 12), 9984: (24, 24, 144)}
"""Capacities of the pyramids that the published benchmarks have, by their visual tokens."""


def now(device: torch.device) -> float:
    """Seconds, when everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
