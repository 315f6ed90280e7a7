"""Frozen matrices in bfloat16 where only what learns needs float32 beside it: without DeepSpeed, under autocast.

Autocast rounds the weights of linear and convolution layers to bfloat16 in each pass, so those that never change can
be kept as it would round them: half the memory and no work, and not a bit of what is computed differs. Everything else
(norms, embeddings, what is shared with an embedding, adapters, layers that learn) stays as it is.

What is saved has lost nothing: where bfloat16 does not hold a weight exactly, its float32 stays in the machine's
memory.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from videochat_online.train.keys.arguments import Arguments

logger = logging.getLogger(__name__)

_ORIGINALS = "_unrounded_frozen"
"""Attribute of a network: its halved parameters by name, with the float32 that rounding would lose."""


def keeps_frozen_in_half(arguments: Arguments) -> bool:
    """Whether a run does so: with `bf16`, and nobody else who holds the weights."""
    training = arguments.training
    return bool(training.bf16 and not training.deepspeed and not training.fsdp)


def frozen_matrices(network: nn.Module) -> dict[str, nn.Parameter]:
    """Float32 numbers, by name, that do not learn and that nothing but linear and convolution layers holds."""
    rounded: set[int] = set()
    elsewhere: set[int] = set()
    for module in network.modules():
        kind = rounded if isinstance(module, nn.Linear | nn.Conv2d) else elsewhere
        kind.update(id(parameter) for parameter in module.parameters(recurse=False))
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if not parameter.requires_grad and parameter.dtype == torch.float32 and id(parameter) in rounded - elsewhere
    }


def is_halved(network: nn.Module, name: str) -> bool:
    """Whether a parameter is kept in bfloat16 in place of its float32."""
    return name in getattr(network, _ORIGINALS, {})


def unrounded(network: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A parameter as it is saved: on the CPU in float32 where it is halved, else as it is."""
    if not is_halved(network, name):
        return tensor
    original: Tensor | None = getattr(network, _ORIGINALS)[name]
    return tensor.to("cpu", torch.float32) if original is None else original


def halve_frozen(network: nn.Module, *, saves: bool) -> None:
    """Round frozen matrices to bfloat16, in place; the state of the network still gives them in float32, on the CPU.

    Args:
        network: network with its parts frozen, adapters included.
        saves: whether this process writes checkpoints, and so has to know what rounding would lose.
    """
    originals: dict[str, Tensor | None] = {}
    for name, parameter in frozen_matrices(network).items():
        half = parameter.data.bfloat16()
        is_exact = not saves or torch.equal(half.float(), parameter.data)
        originals[name] = None if is_exact else parameter.data.cpu()
        parameter.data = half
    if not originals:
        return

    def widen(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Mapping[str, Any]) -> None:
        for name in originals:
            if prefix + name in state:
                state[prefix + name] = unrounded(network, name, state[prefix + name])

    network.register_state_dict_post_hook(widen)
    setattr(network, _ORIGINALS, originals)
    kept = sum(original.numel() for original in originals.values() if original is not None)
    logger.info(
        "%d frozen matrices in bfloat16; %.2f GiB of float32 kept in the machine's memory for saving",
        len(originals),
        4 * kept / 2**30,
    )
