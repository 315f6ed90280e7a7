"""What the processors of transformers make of small videos and images: files that tests compare with.

    python scripts/tools/processor_inputs.py tests/samples/processors

Needs torchvision, which the package does not: processors of videos are made of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.video_utils import VideoMetadata

from videochat_online.testing.tiny_backbones import byte_tokenizer, striped_frames

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{{ wording[part['type']] if part['type'] in wording else part['text'] }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
"""As public code of the families has it, with the words of a picture put in."""


def levels(pixels: torch.Tensor, mean: list[float], std: list[float]) -> np.ndarray:
    """Normalised pixels [..., 3, H, W] or patches as the uint8 levels that they came from."""
    channels = len(mean)
    shape = pixels.shape
    values = pixels.reshape(shape[0], channels, -1) if pixels.ndim == 2 else pixels.flatten(-2)
    mean_C1, std_C1 = torch.tensor(mean)[:, None] * 255, torch.tensor(std)[:, None] * 255
    found = (values.double() * std_C1 + mean_C1).round()
    assert torch.equal((found.float() - mean_C1) / std_C1, values), "expected levels of 8 bits, normalised at once"
    return found.reshape(shape).numpy().astype(np.uint8)


def qwen3_vl() -> dict[str, Any]:
    """A video of an odd number of frames, one turned on its side, two in two turns, and an image."""
    sizes = {"shortest_edge": 32 * 32, "longest_edge": 3 * 64 * 64}
    wording = {
        "video": "<|vision_start|><|video_pad|><|vision_end|>",
        "image": "<|vision_start|><|image_pad|><|vision_end|>",
    }
    videos = Qwen3VLVideoProcessor(size=sizes, cap_pixels_per_frame=False, do_sample_frames=False)
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3, size=sizes),
        tokenizer=byte_tokenizer(),
        video_processor=videos,
    )
    found: dict[str, Any] = {}
    turns = {"one": ["video"], "two": ["video", "video"], "image": ["image"]}
    for name, kinds in turns.items():
        clips = [striped_frames(3, 40, 70), striped_frames(4, 70, 40)][: kinds.count("video")]
        messages = []
        for number, kind in enumerate(kinds):
            if number:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": "A cup."}]})
            messages.append({"role": "user", "content": [{"type": kind}, {"type": "text", "text": "What?"}]})
        text = processor.apply_chat_template(messages, chat_template=CHATML, tokenize=False, wording=wording)
        given: dict[str, Any] = {"text": [text], "return_tensors": "pt"}
        if clips:
            given["videos"] = [torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in clips]
            given["video_metadata"] = [
                VideoMetadata(total_num_frames=len(clip), fps=2.0, frames_indices=list(range(len(clip))))
                for clip in clips
            ]
        else:
            given["images"] = [torch.from_numpy(striped_frames(1, 40, 70)[0]).permute(2, 0, 1)]
        out = processor(**given)
        kind = "video" if clips else "image"
        pixels = out["pixel_values_videos" if clips else "pixel_values"]
        found |= {
            f"{name}.ids": out["input_ids"][0].numpy(),
            f"{name}.grids": out[f"{kind}_grid_thw"].numpy(),
            f"{name}.levels": levels(pixels, [0.5] * 3, [0.5] * 3),
        }
    return found


def llava_onevision() -> dict[str, Any]:
    """A video, two in two turns, and an image that is cut into tiles."""
    mean = std = [0.5] * 3
    options = {"size": {"height": 98, "width": 98}, "image_mean": mean, "image_std": std}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            **options, image_grid_pinpoints=[[98, 196], [196, 98], [196, 196]]
        ),
        tokenizer=byte_tokenizer(),
        video_processor=LlavaOnevisionVideoProcessor(**options),
        num_image_tokens=49,
        vision_feature_select_strategy="full",
    )
    found: dict[str, Any] = {}
    for name, kinds in {"one": ["video"], "two": ["video", "video"], "image": ["image"]}.items():
        messages = []
        for number, kind in enumerate(kinds):
            if number:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": "A cup."}]})
            messages.append({"role": "user", "content": [{"type": kind}, {"type": "text", "text": "What?"}]})
        wording = {"video": "<video>\n", "image": "<image>\n"}
        text = processor.apply_chat_template(messages, chat_template=CHATML, tokenize=False, wording=wording)
        given: dict[str, Any] = {"text": text, "return_tensors": "pt"}
        if name == "image":
            given["images"] = torch.from_numpy(striped_frames(1, 60, 100)[0]).permute(2, 0, 1)
        else:
            clips = [striped_frames(2, 60, 100), striped_frames(2, 100, 60)][: len(kinds)]
            given["videos"] = [torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in clips]
        out = processor(**given)
        pixels = out["pixel_values" if name == "image" else "pixel_values_videos"]
        found |= {f"{name}.ids": out["input_ids"][0].numpy(), f"{name}.levels": levels(pixels, mean, std)}
        if name == "image":
            found["image.sizes"] = out["image_sizes"].numpy()
    return found


def main() -> None:
    """Write one file a family into the folder that is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for family in (qwen3_vl, llava_onevision):
        np.savez_compressed(folder / f"{family.__name__}.npz", **family())


if __name__ == "__main__":
    main()
