"""What a run would compute and hold, before any weight is loaded: parameters, tokens, operations, memory.

Estimates. The longest sample is the longest that rows and settings allow; means follow what some rows turned out to be.
Memory is counted in `device_memory.py`.
"""

from __future__ import annotations

import logging
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments

from videochat_online.data import TrainingDataset
from videochat_online.data.samples.sample_lengths import EstimatedSample
from videochat_online.model import VideoChatOnlineConfig, VideoChatOnlineForConditionalGeneration
from videochat_online.train.estimate.device_memory import memory_estimate, remarks
from videochat_online.train.folder.disk import count_parameters
from videochat_online.train.keys.arguments import Arguments, ModelArguments, num_processes
from videochat_online.train.loop.throughput import PEAK_FLOPS, FlopModel, Work
from videochat_online.train.setup.model_setup import choose_trainable

PARTS = ("vision_tower", "projector", "language_model")
MAX_SAMPLED = 20_000
"""Items whose size is estimated; of more, so many are drawn at random."""
ASSUMED_MFU = 0.4
DEVICES = ("A100", "H100")


def planned_network(config: VideoChatOnlineConfig, options: ModelArguments) -> VideoChatOnlineForConditionalGeneration:
    """The network without storage for its weights, its parts frozen as the run would."""
    network = VideoChatOnlineForConditionalGeneration.blank(config)
    choose_trainable(network, options)
    return network


def parameter_table(network: VideoChatOnlineForConditionalGeneration) -> dict[str, dict[str, int]]:
    """Numbers in each part, and how many of them learn."""
    table = {part: count_parameters(network.get_submodule(part)) for part in PARTS}
    table["together"] = {key: sum(row[key] for row in table.values()) for key in ("all", "learning")}
    return table


def token_statistics(estimates: Sequence[EstimatedSample]) -> dict[str, float]:
    """Of samples: how long they are, and how much of that is pictures."""
    tokens = np.array([estimate.tokens for estimate in estimates])
    visual = sum(estimate.visual_tokens for estimate in estimates)
    return {
        "mean": round(float(tokens.mean()), 1),
        "median": float(np.median(tokens)),
        "percentile_95": float(np.percentile(tokens, 95)),
        "longest": int(tokens.max()),
        "visual_share": round(visual / int(tokens.sum()), 3),
        "pictures_a_sample": round(sum(estimate.pictures for estimate in estimates) / len(estimates), 1),
    }


def corrected(
    dataset: TrainingDataset, guesses: Mapping[int, EstimatedSample], encoded: Mapping[int, EstimatedSample]
) -> list[EstimatedSample]:
    """Estimates of items, in their order, corrected by what was found in the encoded ones of their set.

    By so much more or less text, as the system message and the template are the same in all; by so many times the
    pictures.

    Args:
        dataset: dataset, which knows the set of each item.
        guesses: largest possible sizes of items, of `dataset.estimates`, by index.
        encoded: real sizes of some of these items, by index.
    """
    by_set: defaultdict[int, list[int]] = defaultdict(list)
    for item in encoded:
        by_set[dataset.set_of(item)].append(item)
    found = {
        number: _difference([guesses[item] for item in of], [encoded[item] for item in of])
        for number, of in by_set.items()
    }
    result = []
    for item, guess in guesses.items():
        text, visual, pictures = found.get(dataset.set_of(item), (0.0, 1.0, 1.0))
        num_visual = round(guess.visual_tokens * visual)
        num_tokens = max(1, round(guess.tokens - guess.visual_tokens + text) + num_visual)
        other = EstimatedSample(
            min(num_tokens, dataset.encoder.max_length), num_visual, round(guess.pictures * pictures)
        )
        result.append(encoded.get(item, other))
    return result


def _difference(guesses: Sequence[EstimatedSample], real: Sequence[EstimatedSample]) -> tuple[float, float, float]:
    """Text that a sample has more than estimated; by how much its visual tokens and its pictures are multiplied."""
    guessed, found = work_of_samples(guesses), work_of_samples(real)
    more_text = found.tokens - found.visual_tokens - guessed.tokens + guessed.visual_tokens
    visual = found.visual_tokens / guessed.visual_tokens if guessed.visual_tokens else 1.0
    pictures = found.pictures / guessed.pictures if guessed.pictures else 1.0
    return more_text / len(real), visual, pictures


def estimate_run(
    arguments: Arguments,
    network: VideoChatOnlineForConditionalGeneration,
    dataset: TrainingDataset,
    encoded: Mapping[int, EstimatedSample],
    learned_share: float = 1.0,
) -> dict[str, Any]:
    """Parameters, tokens, steps, operations and memory of a run.

    Args:
        arguments: arguments of the run.
        network: network without storage for its weights.
        dataset: dataset of the run.
        encoded: real sizes of some of its items, by index: estimates follow them.
        learned_share: the largest part of a sample's tokens that is learned.
    """
    training, num_items = arguments.training, len(dataset)
    chosen = sorted({*encoded, *random.Random(0).sample(range(num_items), min(num_items, MAX_SAMPLED))})
    guesses = dict(zip(chosen, dataset.estimates(chosen), strict=True))
    estimates = corrected(dataset, guesses, encoded)
    statistics, scale = token_statistics(estimates), num_items / len(estimates)
    at_once = training.per_device_train_batch_size * num_processes()
    packing = arguments.data.packing_tokens
    # Packs are put together by the most that samples can have; a sample that is longer is one by itself.
    batches = sum(min(1.0, e.tokens / packing) for e in guesses.values()) * scale if packing else num_items
    statistics["longest"] = max(e.tokens for e in guesses.values())
    steps_an_epoch = max(1, round(batches / (at_once * training.gradient_accumulation_steps)))
    num_steps = training.max_steps if training.max_steps > 0 else round(steps_an_epoch * training.num_train_epochs)
    flops = FlopModel(network)(work_of_samples(estimates)) * scale * num_steps / steps_an_epoch
    rows = training.per_device_train_batch_size
    longest_row = int(max(packing, statistics["longest"]))
    batch = Work(
        tokens=rows * longest_row,
        learned_tokens=round(rows * longest_row * learned_share),
        pictures=round(max(e.pictures / e.tokens for e in estimates) * rows * longest_row),
        samples=rows,
        squares=rows * longest_row**2,
    )
    return {
        "parameters": parameter_table(network),
        "tokens_of_a_sample": statistics | {"items": num_items, "estimated": len(estimates), "encoded": len(encoded)},
        "steps": num_steps,
        "steps_an_epoch": steps_an_epoch,
        "samples_a_step": at_once * training.gradient_accumulation_steps,
        "operations": float(f"{flops:.3g}"),
        f"hours_at_{ASSUMED_MFU:.0%}_of_peak": {
            f"{num_processes()} x {name}": round(flops / (PEAK_FLOPS[name] * ASSUMED_MFU * num_processes()) / 3600, 2)
            for name in DEVICES
        },
        "memory_gib_a_process": memory_estimate(network, arguments, batch),
        "remarks": remarks(network, arguments, longest_row, rows),
    }


def work_of_samples(estimates: Sequence[EstimatedSample]) -> Work:
    """What samples hold, without padding."""
    return Work(
        tokens=sum(e.tokens for e in estimates),
        visual_tokens=sum(e.visual_tokens for e in estimates),
        pictures=sum(e.pictures for e in estimates),
        samples=len(estimates),
        squares=sum(e.tokens**2 for e in estimates),
    )


logger = logging.getLogger(__name__)


def estimate_together(dataset: TrainingDataset, training: TrainingArguments) -> np.ndarray:
    """Tokens that each item has at most; each process counts a part of the rows, and all get the same numbers.

    Args:
        dataset: dataset of the items.
        training: arguments of a process that has joined the others.
    """
    began = time.monotonic()
    lengths = dataset.estimate_lengths(training.process_index, training.world_size)
    if training.world_size > 1:
        counts = torch.from_numpy(lengths).to(training.device)
        torch.distributed.all_reduce(counts)
        lengths = counts.cpu().numpy()
    logger.info("tokens of %d samples counted in %.1f s", len(lengths), time.monotonic() - began)
    return lengths
