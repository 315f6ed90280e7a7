"""Models of any size with random weights, to measure with."""

from __future__ import annotations

import time

import torch

from make_tiny_model import tiny_config
from published_size import published_config
from tiny_tokenizer import build_tiny_tokenizer
from videochat_online.model import VideoChatModel, VideoChatOnlineConfig, VideoChatOnlineForConditionalGeneration
from videochat_online.text import get_template
from videochat_online.video import FrameTransform

SIZES = ("tiny", "vision", "published")
"""`vision` has the real vision tower and a tiny language model, `published` the whole 4B."""
CAPACITIES = {832: (2, 2, 12), 9984: (24, 24, 144)}
"""Of the pyramids that the published benchmarks have, by their visual tokens."""


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
    transform = FrameTransform(size=config.image_size)
    return VideoChatModel(network.eval(), tokenizer, get_template(config.template), transform)


def now(device: torch.device) -> float:
    """Seconds, when everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
