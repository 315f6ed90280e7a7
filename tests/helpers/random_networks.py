"""Small networks with random weights in double precision, and edits of what they were saved as."""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file

from videochat_online.model import VideoChatOnlineForConditionalGeneration
from videochat_online.testing import tiny_config


def random_network(llm="qwen2", seed=0, **changes):
    torch.manual_seed(seed)
    config = tiny_config(llm, 64, 112)
    for key, value in changes.items():
        setattr(config, key, value)
    network = VideoChatOnlineForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.double()


def edit(directory, change):
    """Rewrite the tensors of a checkpoint."""
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
