"""Learning rates of parts and layers, as multiples of the run's."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from videochat_online.train.keys.arguments import ModelArguments

_LAYER = re.compile(r"^(?:vision_tower\.encoder\.layer|language_model\.model\.layers)\.(\d+)\.")
_BELOW = ("vision_tower.embeddings.", "language_model.model.embed_tokens.")


def learning_rate_scales(network: nn.Module, options: ModelArguments, learning_rate: float) -> dict[str, float]:
    """By how much the run's learning rate is multiplied for each parameter that learns.

    Layer decay multiplies once for each layer above: the last layer, and what follows it, has the part's own rate,
    the embeddings below the first layer the smallest.

    Args:
        network: network with its parts frozen as they are in the run.
        options: rates and decays.
        learning_rate: learning rate of the run.
    """
    parts = {
        "vision_tower": (options.vit_learning_rate, options.vit_layer_decay),
        "projector": (options.mlp_learning_rate, 1.0),
        "language_model": (None, options.llm_layer_decay),
    }
    depths: defaultdict[str, int] = defaultdict(int)
    for name, _ in network.named_parameters():
        if layer := _LAYER.match(name):
            part = name.partition(".")[0]
            depths[part] = max(depths[part], int(layer[1]) + 1)
    scales = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            part = name.partition(".")[0]
            rate, decay = parts[part]
            layer = _LAYER.match(name)
            depth = int(layer[1]) if layer else -1 if name.startswith(_BELOW) else depths[part] - 1
            scales[name] = (1.0 if rate is None else rate / learning_rate) * decay ** (depths[part] - 1 - depth)
    return scales


def scale_groups(optimizer: torch.optim.Optimizer, network: nn.Module, scales: Mapping[str, float]) -> None:
    """Split the groups of an optimizer that has not yet made a step, so that each parameter gets its rate."""
    scale_of = {id(parameter): scales.get(name, 1.0) for name, parameter in network.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        by_scale: defaultdict[float, list[torch.Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            by_scale[scale_of[id(parameter)]].append(parameter)
        groups += [group | {"params": params, "lr": group["lr"] * scale} for scale, params in by_scale.items()]
    optimizer.param_groups[:] = groups


def follow(schedule: LambdaLR) -> None:
    """Give each group the rate that a schedule has for its present step; a resumed optimizer has that of its own."""
    rates = [
        base * rate(schedule.last_epoch) for base, rate in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule.load_state_dict(schedule.state_dict() | {"_last_lr": rates})  # what is logged
