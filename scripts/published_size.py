#!/usr/bin/env python
"""Configuration of the published 4B model, without its weights: to plan runs with, or to time with random ones.

    python scripts/published_size.py outputs/published_size
    videochat-online train --config configs/train/stage1.yaml --dry_run \
        --model_name_or_path outputs/published_size --meta_path REGISTRY.json

Sizes are those of InternVL2-4B (InternViT-300M, Phi-3-mini-128k); the tokenizer is the tiny one, which splits text into
more tokens than the real one does.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_tokenizer import build_tiny_tokenizer
from videochat_online.model import VideoChatOnlineConfig

LLM = {
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
VISION = {
    "model_type": "internvl_vision",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "attention_bias": True,
    "image_size": 448,
    "patch_size": 14,
}


def published_config() -> VideoChatOnlineConfig:
    """4.15 billion parameters. Phi-3's rope factors are left out: they cost nothing and are the weights' own."""
    return VideoChatOnlineConfig(text_config=LLM, vision_config=VISION, image_size=448)


def main() -> int:
    """Write config.json and the tokenizer."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 2
    directory = Path(sys.argv[1])
    published_config().save_pretrained(directory)
    build_tiny_tokenizer().save_pretrained(directory)
    print(f"{directory}: configuration of 4.15 billion parameters, no weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
