"""Lengths of all samples, counted by all processes of a launch together."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import TrainingArguments

from videochat_online.data import TrainingDataset

logger = logging.getLogger(__name__)


def estimate_together(dataset: TrainingDataset, training: TrainingArguments) -> np.ndarray:
    """Tokens that each item has at most; each process counts a part of the rows, and all get the same numbers.

    Args:
        dataset: dataset of the items.
        training: arguments of a process that has joined the others.
    """
    rank, num = training.process_index, training.world_size

    def together(num_rows: int, count: Callable[[int, int], np.ndarray]) -> np.ndarray:
        first, stop = (part * num_rows // num for part in (rank, rank + 1))
        counts = torch.zeros(num_rows, dtype=torch.int64, device=training.device)
        counts[first:stop] = torch.from_numpy(count(first, stop)).to(training.device)
        if num > 1:
            torch.distributed.all_reduce(counts)
        return counts.cpu().numpy()

    began = time.monotonic()
    lengths = dataset.estimate_lengths(together)
    logger.info("tokens of %d samples counted in %.1f s", len(lengths), time.monotonic() - began)
    return lengths
