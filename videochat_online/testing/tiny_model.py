"""A tiny model with random weights: every part of the real one, in two megabytes and without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from videochat_online.model import VideoChatOnlineConfig, VideoChatOnlineForConditionalGeneration
from videochat_online.testing.tiny_tokenizer import build_tiny_tokenizer

LLMS = ("phi3", "qwen2", "qwen3", "llama")
# Long enough that a session with the default memory stays below it, short enough that a test crosses it.
ORIGINAL_MAX_POSITIONS = 4096
NUM_HEADS, HEAD_DIM, WIDTH = 4, 16, 64


def tiny_config(llm: str, vocab_size: int, image_size: int) -> VideoChatOnlineConfig:
    """Two layers each of InternViT and of the language model, 64 wide."""
    text: dict[str, Any] = {
        "model_type": llm,
        "vocab_size": vocab_size,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_HEADS if llm == "phi3" else NUM_HEADS // 2,
        "max_position_embeddings": 32 * ORIGINAL_MAX_POSITIONS,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    if llm == "phi3":
        text["original_max_position_embeddings"] = ORIGINAL_MAX_POSITIONS
        text["rope_parameters"] = {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "factor": 32.0,
            "original_max_position_embeddings": ORIGINAL_MAX_POSITIONS,
            "short_factor": [1.0 + 0.05 * i for i in range(HEAD_DIM // 2)],
            "long_factor": [1.1 + 2.3 * i for i in range(HEAD_DIM // 2)],
        }
    if llm == "qwen3":
        text["head_dim"] = HEAD_DIM
    vision = {
        "model_type": "internvl_vision",
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": NUM_HEADS,
        "attention_bias": True,
        "image_size": image_size,
        "patch_size": 14,
    }
    return VideoChatOnlineConfig(text_config=text, vision_config=vision, image_size=image_size, dtype="float32")


def make_tiny_model(directory: str | Path, llm: str = "phi3", image_size: int = 112, seed: int = 0) -> None:
    """Write a checkpoint in our own layout with its tokenizer; the same bytes for the same arguments."""
    tokenizer = build_tiny_tokenizer()
    torch.manual_seed(seed)
    config = tiny_config(llm, len(tokenizer), image_size)
    network = VideoChatOnlineForConditionalGeneration(config)
    with torch.no_grad():
        # Fresh initialisation hides faults: position and class embeddings start at zero, norms at one.
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    transformers_logging.disable_progress_bar()
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
