"""Models of any size with random weights, to measure with, and the configuration of the published 4B model."""

from __future__ import annotations

import torch

from videochat_online.model import VideoChatModel, VideoChatOnlineConfig, VideoChatOnlineForConditionalGeneration
from videochat_online.model.backbones.internvl import InternVL
from videochat_online.model.loading import model_of
from videochat_online.testing.tiny_model import tiny_config
from videochat_online.testing.tiny_tokenizer import build_tiny_tokenizer
from videochat_online.text import stored_template

SIZES = ("tiny", "vision", "published")
"""`vision` has the real vision tower and a tiny language model, `published` the whole 4B."""
PUBLISHED_LLM = {
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
PUBLISHED_VISION = {
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
    """Sizes of InternVL2-4B (InternViT-300M, Phi-3-mini-128k): 4.15 billion parameters.

    Phi-3's rope factors are left out: they cost nothing and are the weights' own.
    """
    return VideoChatOnlineConfig(text_config=PUBLISHED_LLM, vision_config=PUBLISHED_VISION, image_size=448)


def random_model(size: str, image_size: int = 112) -> VideoChatModel:
    """On the GPU in bfloat16 where there is one, else on the CPU in float32; `image_size` is the tiny one's."""
    tokenizer = build_tiny_tokenizer()
    config = published_config() if size == "published" else tiny_config("phi3", len(tokenizer), image_size)
    if size == "vision":
        vision = published_config().vision_config
        config = VideoChatOnlineConfig(text_config=config.text_config, vision_config=vision, image_size=448)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        network = VideoChatOnlineForConditionalGeneration(config).to(dtype)
    network.config.image_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    return model_of(InternVL(network.eval()), tokenizer, stored_template(config.template))
