"""What a run would compute and hold, before any weight is loaded: parameters, tokens, operations, memory.

Estimates. The longest sample is the longest that rows and settings allow; means follow what some rows turned out to be.
Memory counts what must be there at least: weights, gradients, AdamW's state, what is kept for the way back with
activation checkpointing, and the logits; not what libraries hold beside it.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videochat_online.data import TrainingDataset
from videochat_online.data.lengths import EstimatedSample
from videochat_online.model import VideoChatOnlineConfig, VideoChatOnlineForConditionalGeneration, checkpoint
from videochat_online.train.arguments import Arguments, ModelArguments, num_processes
from videochat_online.train.preparation import choose_trainable
from videochat_online.train.throughput import PEAK_FLOPS, FlopModel, Work

PARTS = ("vision_tower", "projector", "language_model")
MAX_SAMPLED = 20_000
"""Items whose size is estimated; of more, so many are drawn at random."""
KEPT_IN_A_LAYER = 16
"""About how many times its input a layer keeps for the way back."""
ASSUMED_MFU = 0.4
DEVICES = ("A100", "H100")


def blank_network(config: VideoChatOnlineConfig, options: ModelArguments) -> VideoChatOnlineForConditionalGeneration:
    """The network without storage for its weights, its parts frozen as the run would."""
    network = checkpoint.blank_network(config)
    choose_trainable(network, options)
    return network


def parameter_table(network: VideoChatOnlineForConditionalGeneration) -> dict[str, dict[str, int]]:
    """Numbers in each part, and how many of them learn."""
    table = {}
    for part in PARTS:
        sizes = [(p.numel(), p.requires_grad) for p in network.get_submodule(part).parameters()]
        table[part] = {"all": sum(n for n, _ in sizes), "learning": sum(n for n, learns in sizes if learns)}
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
    dataset: TrainingDataset, items: Sequence[int], encoded: Mapping[int, EstimatedSample]
) -> list[EstimatedSample]:
    """Estimates of items, corrected by what was found in the encoded ones of their set.

    By so much more or less text, as the system message and the template are the same in all; by so many times the
    pictures.

    Args:
        dataset: gives the estimates.
        items: of the dataset.
        encoded: what some items really hold.
    """
    by_set: defaultdict[int, list[int]] = defaultdict(list)
    for item in encoded:
        by_set[dataset.set_of(item)].append(item)
    found = {
        number: _difference(dataset.estimates(of), [encoded[item] for item in of]) for number, of in by_set.items()
    }
    result = []
    for item, guess in zip(items, dataset.estimates(items), strict=True):
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

    def total(samples: Sequence[EstimatedSample], name: str) -> int:
        return sum(getattr(sample, name) for sample in samples)

    text = [total(samples, "tokens") - total(samples, "visual_tokens") for samples in (guesses, real)]
    visual, pictures = (
        total(real, name) / total(guesses, name) if total(guesses, name) else 1.0
        for name in ("visual_tokens", "pictures")
    )
    return (text[1] - text[0]) / len(real), visual, pictures


def estimate_run(
    arguments: Arguments,
    network: VideoChatOnlineForConditionalGeneration,
    dataset: TrainingDataset,
    encoded: Mapping[int, EstimatedSample],
) -> dict[str, Any]:
    """Parameters, tokens, steps, operations and memory of a run.

    Args:
        arguments: of the run.
        network: of `blank_network`.
        dataset: of the run.
        encoded: what some of its items really hold: estimates follow them.
    """
    training, num_items = arguments.training, len(dataset)
    chosen = sorted({*encoded, *random.Random(0).sample(range(num_items), min(num_items, MAX_SAMPLED))})
    guesses, estimates = dataset.estimates(chosen), corrected(dataset, chosen, encoded)
    statistics, scale = token_statistics(estimates), num_items / len(estimates)
    at_once = training.per_device_train_batch_size * num_processes()
    packing = arguments.data.packing_tokens
    # Packs are put together by the most that samples can have, and only one of a single sample can be longer.
    batches = sum(e.tokens for e in guesses) * scale / packing if packing else num_items
    statistics["longest"] = max(e.tokens for e in guesses)
    steps_an_epoch = max(1, round(batches / (at_once * training.gradient_accumulation_steps)))
    num_steps = training.max_steps if training.max_steps > 0 else round(steps_an_epoch * training.num_train_epochs)
    flops = FlopModel(network)(work_of_samples(estimates)) * scale * num_steps / steps_an_epoch
    longest = int(max(packing, statistics["longest"])) * training.per_device_train_batch_size
    most = max(e.pictures / e.tokens for e in estimates) * longest
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
        "memory_gib_a_process": memory_estimate(network, arguments, longest, round(most)),
    }


def memory_estimate(
    network: VideoChatOnlineForConditionalGeneration, arguments: Arguments, num_tokens: int, num_pictures: int
) -> dict[str, float]:
    """GiB on each device, by what they hold.

    Args:
        network: of `blank_network`.
        arguments: of the run.
        num_tokens: of the longest batch of a process.
        num_pictures: the most that it can have.
    """
    plan = _plan(arguments.training.deepspeed)
    zero = plan.get("zero_optimization", {})
    stage, num = int(zero.get("stage", 0)), num_processes()
    offloads = {key: zero.get(f"offload_{key}", {}).get("device", "none") != "none" for key in ("optimizer", "param")}
    is_half = bool(arguments.training.bf16) and bool(plan)
    table = parameter_table(network)["together"]
    number = 2 if arguments.training.bf16 else 4
    text, vision = network.config.text_config, network.config.vision_config
    # Each layer keeps its input, or about so many times as much; one layer is always there in full.
    kept = 1 if arguments.training.activation_checkpointing else KEPT_IN_A_LAYER
    num_patches = (vision.image_size[0] // vision.patch_size[0]) ** 2 + 1
    is_tower_kept = any(parameter.requires_grad for parameter in network.vision_tower.parameters())
    tower_layers = kept * vision.num_hidden_layers * is_tower_kept + KEPT_IN_A_LAYER
    held = {
        "weights": table["all"] * (2 if is_half else 4) / (num if stage == 3 else 1) * (not offloads["param"]),
        "gradients": table["learning"] * (2 if is_half else 4) / (num if stage >= 2 else 1),
        # Two moments, and a copy in full precision where the weights are not.
        "optimizer": table["learning"]
        * (12 if is_half else 8)
        / (num if stage >= 1 else 1)
        * (not offloads["optimizer"]),
        "activations": num_tokens * text.hidden_size * number * (kept * text.num_hidden_layers + KEPT_IN_A_LAYER)
        + num_pictures * num_patches * vision.hidden_size * number * tower_layers,
        "logits": num_tokens * text.vocab_size * (number + 4 + 4),
    }
    gib = {name: round(float(value) / 2**30, 2) for name, value in held.items()}
    return gib | {"together": round(sum(held.values()) / 2**30, 2)}


def work_of_samples(estimates: Sequence[EstimatedSample]) -> Work:
    """What samples hold, without padding."""
    return Work(
        tokens=sum(e.tokens for e in estimates),
        visual_tokens=sum(e.visual_tokens for e in estimates),
        pictures=sum(e.pictures for e in estimates),
        samples=len(estimates),
        squares=sum(e.tokens**2 for e in estimates),
    )


def _plan(deepspeed: Any) -> Mapping[str, Any]:
    if not deepspeed:
        return {}
    if isinstance(deepspeed, Mapping):
        return deepspeed
    text = deepspeed if deepspeed.lstrip().startswith("{") else Path(deepspeed).read_text(encoding="utf-8")
    return dict(json.loads(text))
