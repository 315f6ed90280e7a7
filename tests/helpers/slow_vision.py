"""InternViT and the road to the language model said again, slowly, from the published tensor names.

What `VideoChatOnlineForConditionalGeneration.encode` and `.project` must agree with. Shares no code with them:
fused projections, explicit heads, pixel shuffle as loops over tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def encode(state: dict[str, Tensor], pixels_T3SS: Tensor, config: dict) -> Tensor:
    """Visual tokens [T, rows, columns, 4 V] in the published order of channels."""
    vision = config["vision_config"]
    hidden = _embed(state, pixels_T3SS)
    states = [hidden]
    for layer in range(vision["num_hidden_layers"]):
        hidden = _layer(state, f"vision_model.encoder.layers.{layer}.", hidden, vision)
        states.append(hidden)
    chosen = states[config["select_layer"]]
    side = pixels_T3SS.shape[-1] // vision["patch_size"]
    patches = chosen[:, 1:].reshape(len(chosen), side, side, -1)
    return _shuffle(patches, config["ps_version"])


def _embed(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    prefix = "vision_model.embeddings."
    kernel = state[prefix + "patch_embedding.weight"]
    patches = functional.conv2d(pixels, kernel, state[prefix + "patch_embedding.bias"], stride=kernel.shape[-1])
    tokens = patches.flatten(2).transpose(1, 2)
    cls = state[prefix + "class_embedding"].expand(len(tokens), -1, -1)
    return torch.cat((cls, tokens), 1) + state[prefix + "position_embedding"]


def _layer(state: dict[str, Tensor], prefix: str, hidden: Tensor, vision: dict) -> Tensor:
    hidden = hidden + state[prefix + "ls1"] * _attention(
        state, prefix, _norm(state, prefix + "norm1", hidden, vision), vision
    )
    inner = functional.linear(
        _norm(state, prefix + "norm2", hidden, vision), state[prefix + "mlp.fc1.weight"], state[prefix + "mlp.fc1.bias"]
    )
    outer = functional.linear(functional.gelu(inner), state[prefix + "mlp.fc2.weight"], state[prefix + "mlp.fc2.bias"])
    return hidden + state[prefix + "ls2"] * outer


def _norm(state: dict[str, Tensor], name: str, x: Tensor, vision: dict) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + vision["layer_norm_eps"]).sqrt()
    return scaled * state[name + ".weight"] + state[name + ".bias"]


def _attention(state: dict[str, Tensor], prefix: str, x: Tensor, vision: dict) -> Tensor:
    qkv = functional.linear(x, state[prefix + "attn.qkv.weight"], state[prefix + "attn.qkv.bias"])
    width = x.shape[-1]
    size = width // vision["num_attention_heads"]
    heads = []
    for head in range(vision["num_attention_heads"]):
        q, k, v = (qkv[..., part * width + head * size :][..., :size] for part in range(3))
        weights = (q @ k.transpose(1, 2) / size**0.5).softmax(-1)
        heads.append(weights @ v)
    return functional.linear(torch.cat(heads, -1), state[prefix + "attn.proj.weight"], state[prefix + "attn.proj.bias"])


def _shuffle(patches: Tensor, version: str) -> Tensor:
    frames, rows, columns, width = patches.shape
    out = patches.new_zeros(frames, rows // 2, columns // 2, 4 * width)
    for r in range(rows // 2):
        for c in range(columns // 2):
            four = [patches[:, 2 * r + i, 2 * c + j] for i in range(2) for j in range(2)]
            out[:, r, c] = torch.cat(four, -1)
    return out.transpose(1, 2) if version == "v1" else out


def project(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """LayerNorm, linear, GELU, linear."""
    tokens = functional.layer_norm(tokens, tokens.shape[-1:], state["mlp1.0.weight"], state["mlp1.0.bias"])
    inner = functional.gelu(functional.linear(tokens, state["mlp1.1.weight"], state["mlp1.1.bias"]))
    return functional.linear(inner, state["mlp1.3.weight"], state["mlp1.3.bias"])
