"""Tiny models of each native family, with random weights and a tokenizer of bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlavaOnevisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    SiglipVisionConfig,
)
from transformers.utils import logging as transformers_logging

from videochat_online.model.backbones.llava_qwen import CLIP, KEPT
from videochat_online.model.backbones.native import PREPROCESSOR
from videochat_online.model.device_and_dtype import silence_accelerator_notice

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<image>",
    "<video>",
)
"""Special tokens of the families, behind the 256 bytes."""
_IDS = {token: 256 + number for number, token in enumerate(SPECIAL)}
_VOCABULARY = 320
_TILES = ((1, 2), (2, 1), (2, 2))
_TEXT: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "bos_token_id": None,
    "eos_token_id": _IDS["<|im_end|>"],
    "pad_token_id": _IDS["<|endoftext|>"],
}
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 14,
}
_QWEN3_TEXT = {
    **_TEXT,
    "head_dim": 8,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 1, 1],  # sums to half of head_dim
        "mrope_interleaved": True,
    },
}
_QWEN3_TOWER = {
    "depth": 4,
    "num_heads": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1, 2],
}
_QWEN_IDS = {
    "image_token_id": _IDS["<|image_pad|>"],
    "video_token_id": _IDS["<|video_pad|>"],
    "vision_start_token_id": _IDS["<|vision_start|>"],
    "vision_end_token_id": _IDS["<|vision_end|>"],
}


def tiny_siglip(image_size: int = 98) -> SiglipVisionConfig:
    """A tower of 7 x 7 patches by default, an odd number a side as the published one's 27."""
    return SiglipVisionConfig(**_TOWER, image_size=image_size, vision_use_head=False)


def tiny_clip() -> CLIPVisionConfig:
    """A tower of 8 x 8 patches and a class token."""
    return CLIPVisionConfig(**_TOWER, image_size=112, projection_dim=16)


FAMILIES = ("llava_onevision", "longva", "llava_video", "qwen3_vl", "qwen3_vl_moe")
"""Kinds of native models; two of them are of the family `llava_qwen`."""
_LLAVA_QWEN: dict[str, dict[str, Any]] = {
    "longva": {"mm_patch_merge_type": "unires", "mm_spatial_pool_mode": "average"},
    "llava_video": {"mm_patch_merge_type": "spatial_unpad", "mm_newline_position": "grid"},
}


def tiny_native_config(family: str) -> PreTrainedConfig:
    """Configuration of the native class of one of `FAMILIES`."""
    if family in ("llava_onevision", *_LLAVA_QWEN):
        is_clip = family == "longva"
        tower = tiny_clip() if is_clip else tiny_siglip()
        return LlavaOnevisionConfig(
            text_config=Qwen2Config(**_TEXT),
            vision_config=tower,
            vision_feature_layer=-2 if is_clip else -1,
            vision_feature_select_strategy="default" if is_clip else "full",
            image_token_index=_IDS["<image>"],
            video_token_index=_IDS["<video>"],
            image_grid_pinpoints=[[rows * tower.image_size, columns * tower.image_size] for rows, columns in _TILES],
            **({**KEPT, **_LLAVA_QWEN[family]} if family in _LLAVA_QWEN else {}),
        )
    if family == "qwen3_vl":
        return Qwen3VLConfig(text_config=dict(_QWEN3_TEXT), vision_config=dict(_QWEN3_TOWER), **_QWEN_IDS)
    # Never 2 * moe_intermediate_size = hidden_size: which side is which could not be told when weights are loaded.
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "tie_word_embeddings": False}
    return Qwen3VLMoeConfig(text_config={**_QWEN3_TEXT, **experts}, vision_config=dict(_QWEN3_TOWER), **_QWEN_IDS)


def tiny_native(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A native model with random weights, large enough that logits differ."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = cast(PreTrainedModel, AutoModelForImageTextToText.from_config(config)).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
    return network


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, and the special tokens of all families; any text comes back as it was."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={character: number for number, character in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def make_tiny_backbone(directory: str | Path, family: str, seed: int = 0) -> None:
    """Write a checkpoint of one of `FAMILIES` with its tokenizer; the same bytes for the same arguments."""
    directory = Path(directory)
    transformers_logging.disable_progress_bar()
    network = tiny_native(tiny_native_config(family), seed)
    silence_accelerator_notice()
    network.save_pretrained(directory, save_original_format=False)
    byte_tokenizer().save_pretrained(directory)
    mean = std = [0.5, 0.5, 0.5]
    if family == "longva":
        mean, std = map(list, CLIP)
    written: dict[str, Any] = {"image_mean": mean, "image_std": std}
    config = network.config
    if family.startswith("qwen3"):
        written |= {"size": {"shortest_edge": 32 * 32, "longest_edge": 128 * 128}, "patch_size": 16, "merge_size": 2}
    else:
        side = config.vision_config.image_size
        written |= {"size": {"height": side, "width": side}, "image_grid_pinpoints": config.image_grid_pinpoints}
    (directory / PREPROCESSOR).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def striped_frames(num_frames: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Stripes and edges that move, uint8 [T, H, W, 3]; whole numbers only, so the same everywhere."""
    t, y, x, c = np.ogrid[:num_frames, :height, :width, :3]
    return ((3 * x + 5 * y + 37 * t + 80 * c + 60 * ((x // 7 + y // 9 + t) % 2)) % 256).astype(np.uint8)
