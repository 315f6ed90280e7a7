"""Parts of a network as torch.compile makes them: for shapes that never change.

The vision tower for one frame and for a full batch; the language model for the step of one token over a static KV
cache (`streaming.kv.static`). Prompts have a length of their own each, and are computed as they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CompileConfig

from videochat_online.errors import InputError
from videochat_online.model.modeling import VideoChatOnlineForConditionalGeneration

PARTS = ("vision", "language", "both")
"""Parts of a network for `compile` and `int8`; "both" leaves only the projector out."""

COMPILED_BATCH = 8
"""Frames of a full batch: what sessions give the vision tower at most, unless told otherwise."""


class FixedBatches:
    """A vision tower that sees batches of one frame or of `size` frames, whatever comes.

    Args:
        encode: normalised pixels [T, 3, S, S] -> [T, C, H, W], compiled for both.
        size: frames; what is missing to a full batch is filled up with zeros, and cut off.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], size: int = COMPILED_BATCH) -> None:
        self._encode, self._size = encode, size

    def __call__(self, pixels_TCSS: Tensor) -> Tensor:
        """Visual tokens [T, C, H, W] of any number of frames."""
        return torch.cat([self._encode_part(part_TCSS) for part_TCSS in pixels_TCSS.split(self._size)])

    def _encode_part(self, pixels_TCSS: Tensor) -> Tensor:
        num_frames = len(pixels_TCSS)
        if num_frames != 1:
            pixels_TCSS = functional.pad(pixels_TCSS, (0, 0) * 3 + (0, self._size - num_frames))
        # A copy: a recorded graph writes the next ones into the same tensor.
        return self._encode(pixels_TCSS)[:num_frames].clone()


def compile_tower(network: VideoChatOnlineForConditionalGeneration) -> FixedBatches:
    """The network's `encode`, compiled; the first batch of each size takes a minute longer."""
    return FixedBatches(torch.compile(network.encode, **_compile_config(network.device).to_dict()))


def compile_steps(network: VideoChatOnlineForConditionalGeneration) -> None:
    """Let the language model have static caches, and compiled steps of one token over them."""
    settings = network.language_model.generation_config
    settings.compile_config = _compile_config(network.device)
    settings.cache_implementation = "static"


def check_compiler() -> None:
    """Look for what compiling needs, before weights are loaded.

    Raises:
        InputError: there is no compiler.
    """
    compilers = [name for name in (os.environ.get("CXX", "g++"), "clang++") if shutil.which(name)]
    if not compilers:
        raise InputError("compile: needs a C++ compiler, found neither g++ nor clang++ (nor $CXX)")


def _compile_config(device: torch.device) -> CompileConfig:
    """Graphs are recorded on a GPU; elsewhere there are none."""
    return CompileConfig(dynamic=False, mode="reduce-overhead" if device.type == "cuda" else "default")
