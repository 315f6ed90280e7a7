"""How much is computed, and how fast: tokens, padding, and the share of a device's peak that is used (MFU).

Counts what a step has to compute, whatever way it is computed: padding and recomputed activations are no use.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from videochat_online.model import VideoChatOnlineForConditionalGeneration
from videochat_online.train.distributed import num_elements

PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 operations a second, as the makers' data sheets have them, by a part of the device's name."""


@dataclass(slots=True)
class Work:
    """What batches hold.

    Attributes:
        tokens: tokens without padding.
        visual_tokens: tokens of pictures among them.
        learned_tokens: tokens that count in the loss.
        slots: positions of tokens, padding included.
        pictures: frames and tiles.
        samples: sequences that do not attend to each other.
        squares: sum of the squared lengths of sequences.
    """

    tokens: int = 0
    visual_tokens: int = 0
    learned_tokens: int = 0
    slots: int = 0
    pictures: int = 0
    samples: int = 0
    squares: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def padding(self) -> float:
        """Part of the positions that hold no token."""
        return 1 - self.tokens / self.slots if self.slots else 0.0


def work_of(batch: Mapping[str, Any], image_token_id: int) -> Work:
    """What a batch of the collator holds, padded or packed; a blank picture is one, since it is computed."""
    ids_BL, labels_BL, mask_BL = batch["input_ids"], batch["labels"], batch.get("attention_mask")
    if mask_BL is None:
        starts = (batch["position_ids"][0] == 0).nonzero()[:, 0]
        lengths = torch.diff(starts, append=starts.new_tensor([ids_BL.shape[1]]))
        is_token_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    else:
        lengths, is_token_BL = mask_BL.sum(dim=1), mask_BL.bool()
    return Work(
        tokens=int(is_token_BL.sum()),
        visual_tokens=int(((ids_BL == image_token_id) & is_token_BL).sum()),
        learned_tokens=int((labels_BL >= 0).sum()),
        slots=ids_BL.numel(),
        pictures=len(batch["pool_ratios"]),
        samples=len(lengths),
        squares=int((lengths**2).sum()),
    )


class FlopModel:
    """Operations of a step, from sizes and from what learns.

    A matrix takes two operations for each of its numbers and each token, twice that again in the backward pass where it
    learns, or once where only what is before it does.

    Args:
        network: network with its parts frozen as they are in the run.
    """

    def __init__(self, network: VideoChatOnlineForConditionalGeneration) -> None:
        config, tower = network.config, network.vision_tower
        text, vision = config.text_config, config.vision_config
        tower_learns, projector_learns = learns(tower), learns(network.projector)
        text_passes = 6 if learns(network.language_model) else 4 if tower_learns or projector_learns else 2
        self._per_token = text_passes * _size(network.language_model)
        # Scores and sums over values, of which a causal model needs half. Both factors want a gradient.
        self._per_square = (6 if text_passes > 2 else 2) * text.num_hidden_layers * text.hidden_size
        num_tokens = tower_tokens(vision)
        tower_passes = 6 if tower_learns else 2
        self._per_picture = tower_passes * _size(tower) * num_tokens
        if tower_learns:  # nothing is before the pixels
            self._per_picture -= 2 * _size(tower.embeddings) * num_tokens
        self._per_picture += tower_passes * 2 * vision.num_hidden_layers * vision.hidden_size * num_tokens**2
        self._per_visual_token = (6 if projector_learns else 4 if tower_learns else 2) * _size(network.projector)

    def __call__(self, work: Work) -> float:
        """Operations for so much work."""
        return float(
            self._per_token * work.tokens
            + self._per_square * work.squares
            + self._per_picture * work.pictures
            + self._per_visual_token * work.visual_tokens
        )


class Throughput:
    """Work since the last time somebody asked, of one process.

    Args:
        network: network as the run has it.
        device: device whose peak counts.
    """

    def __init__(self, network: VideoChatOnlineForConditionalGeneration, device: torch.device) -> None:
        self._flops = FlopModel(network)
        self._image_token_id = network.config.image_token_id or 0
        self._device = device
        self._peak = peak_flops(device)
        self._work = Work()
        self._waited_s = 0.0
        self._since: float | None = None

    def add(self, batch: Mapping[str, Any]) -> None:
        """Count a batch; time begins with the first one."""
        self._since = time.perf_counter() if self._since is None else self._since
        self._work += work_of(batch, self._image_token_id)

    def wait(self, seconds: float) -> None:
        """Count what was waited for a step's batches, but for the very first."""
        self._waited_s += 0.0 if self._since is None else seconds

    def pause(self, seconds: float) -> None:
        """Something else has just taken so long."""
        self._since = None if self._since is None else self._since + seconds

    def take(self, reduce: Any) -> dict[str, float]:
        """Figures of all processes since the last call, for a log.

        Args:
            reduce: sums a tensor over all processes; each of them has to call.
        """
        now = time.perf_counter()
        seconds = max(now - (now if self._since is None else self._since), 1e-9)
        work, self._work, self._since = self._work, Work(), now
        local = [getattr(work, f.name) for f in fields(work)]
        waited_s, self._waited_s = self._waited_s, 0.0
        # Doubles: squared lengths of a long interval have more digits than a float.
        sums: Tensor = reduce(torch.tensor([*local, waited_s, 1.0], dtype=torch.float64, device=self._device))
        *values, waited_s, num_processes = sums.tolist()
        work = Work(*(int(value) for value in values))
        figures = {
            "tokens_per_s": work.tokens / seconds,
            "visual_tokens_per_s": work.visual_tokens / seconds,
            "samples_per_s": work.samples / seconds,
            "padding": work.padding,
            "data_wait": waited_s / seconds / num_processes,
        }
        if self._peak is not None:
            figures["mfu"] = self._flops(work) / seconds / (self._peak * num_processes)
        if self._device.type == "cuda":
            figures["memory_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        return {name: float(f"{value:.4g}") for name, value in figures.items()}


def peak_flops(device: torch.device) -> float | None:
    """Of a device in `PEAK_FLOPS`; None for others."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def tower_tokens(vision: Any) -> int:
    """Tokens of a picture in the vision tower of this configuration: its patches, and the class token."""
    return 1 + math.prod(size // patch for size, patch in zip(vision.image_size, vision.patch_size, strict=True))


def learns(module: torch.nn.Module) -> bool:
    """Whether any parameter of a module does."""
    return any(parameter.requires_grad for parameter in module.parameters())


def _size(module: torch.nn.Module) -> int:
    """Numbers in the matrices of a module; what is looked up or added costs nothing."""
    matrices = (m.weight for m in module.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d))
    return sum(num_elements(matrix) for matrix in matrices)
