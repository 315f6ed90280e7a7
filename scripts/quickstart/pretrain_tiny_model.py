#!/usr/bin/env python
"""Make a tiny model that sees: what pretrained weights are to the real one, in half a minute on a CPU.

    python scripts/quickstart/pretrain_tiny_model.py DATA DIR [--seed 0] [--steps 150]

DATA is a folder of `videochat-online synthesize`. Single images, on grids of every size that a memory keeps, are
classified through the projector: the words of an image's caption against the language model's embeddings of all words
that captions have at that place. The language model itself learns nothing; that is what stage 1 and 2 are for.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils import logging as transformers_logging

from videochat_online.errors import InputError
from videochat_online.memory import TokenSchedule
from videochat_online.model import VideoChatOnlineConfig, VideoChatOnlineForConditionalGeneration
from videochat_online.synthetic.files.training_clips import IMAGE_QUESTION
from videochat_online.testing import build_word_tokenizer
from videochat_online.text import visual_token_id
from videochat_online.text.questions import OVBENCH_SYSTEM_MESSAGE
from videochat_online.video import FrameTransform

IMAGE_SIZE, PATCH_SIZE, VISION_WIDTH, WIDTH, NUM_HEADS = 64, 8, 64, 128, 4
BATCH_SIZE, LEARNING_RATE = 64, 3e-3
NUM_HELD_OUT, FEWEST_IMAGES = 256, 8
"""Images that only measure (a quarter where there are few), and that there have to be at all."""
REPORT_FILE = "pretraining.json"
_PLACES = [f" {name} {number}" for name in ("row", "column") for number in range(1, 5)]
_CAPTION = re.compile(
    r"(\w+) (\w+)(?: (upright|level|checks|weave)(?: lines)?)? "
    r"(row \d(?= column)|(?:left|right)(?! column)) (column \d|top|bottom)"
)


def tiny_config(vocab_size: int) -> VideoChatOnlineConfig:
    """1.25 million parameters; a frame has 4 x 4 tokens."""
    text = {
        "model_type": "qwen2",
        "vocab_size": vocab_size,
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_HEADS,
        "max_position_embeddings": 8192,
        # A narrow language model learns to read sooner from larger weights than the usual 0.02.
        "initializer_range": 0.06,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": True,
    }
    vision = {
        "model_type": "internvl_vision",
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 4 * VISION_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": NUM_HEADS,
        "attention_bias": True,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "layer_scale_init_value": 1.0,
    }
    return VideoChatOnlineConfig(
        text_config=text,
        vision_config=vision,
        image_size=IMAGE_SIZE,
        dynamic_image_size=False,
        system_message=OVBENCH_SYSTEM_MESSAGE,
        dtype="float32",
    )


def new_network(vocab_size: int) -> VideoChatOnlineForConditionalGeneration:
    """With random weights; patches know from the start where they are."""
    network = VideoChatOnlineForConditionalGeneration(tiny_config(vocab_size))
    embeddings = network.vision_tower.embeddings
    # Zero by default, and at the usual 0.02 places are still mixed up when the short training ends.
    for parameter in (embeddings.cls_token, embeddings.position_embeddings):
        nn.init.normal_(parameter, std=0.5)
    return network


class Captions:
    """Shapes in images, with the words of their captions.

    Attributes:
        pixels_NCSS: pixels of the N images, normalised.
        image_of_U: number of the image that each of the U shapes is in.
        labels_UW: number of each of its words among those that captions have at that place.
        word_ids: token ids of the words of each of the W places.
    """

    def __init__(self, data: Path, tokenizer: Any) -> None:
        names, shapes = _read_captions(data / "annotations" / "images.jsonl")
        self.image_of_U = torch.tensor([number for number, found in enumerate(shapes) for _ in found])
        words = np.array([shape for found in shapes for shape in found])  # [U, W]
        words = words[:, words[0] != ""]  # without patterns where there are none
        found = [sorted(set(column)) for column in words.T]
        # In a sentence a word has a blank before it.
        self.word_ids = [torch.tensor([tokenizer.convert_tokens_to_ids(f" {w}") for w in place]) for place in found]
        known = tokenizer.get_vocab()
        unknown = [word for place in found for word in place if f" {word}" not in known]
        if unknown:
            raise InputError(
                f"{data / 'vocabulary.json'}: expected all words of captions, found no {str(unknown[0])!r}"
            )
        columns = [np.searchsorted(place, column) for place, column in zip(found, words.T, strict=True)]
        self.labels_UW = torch.from_numpy(np.stack(columns, axis=1))
        images = [_read_image(data / "images" / "train" / name) for name in names]
        for name, image in zip(names, images, strict=True):
            if image.shape != images[0].shape:
                (height, width), (first_height, first_width) = image.shape[:2], images[0].shape[:2]
                raise InputError(
                    f"{data / 'images' / 'train' / name}: expected an image of {first_width} x {first_height} pixels "
                    f"as the first, found {width} x {height}"
                )
        self.pixels_NCSS = FrameTransform(size=IMAGE_SIZE)(np.stack(images))
        self._cells_UH = torch.tensor([_cell(*place) for place in words[:, -2:]])

    def __len__(self) -> int:
        return len(self.image_of_U)

    def masks(self, side: int) -> Tensor:
        """Which of the side x side tokens of its image show a shape and no other: [U, side^2], bool.

        All of them where it is alone in its image, none where others are in its tokens.
        """
        cells_per_side = 1 + int(self._cells_UH.max())
        tokens, cells_UH1 = torch.arange(side), self._cells_UH[..., None]
        # The token from i / side to (i + 1) / side and the cell from c / cells_per_side on overlap.
        begins = tokens * cells_per_side < (cells_UH1 + 1) * side
        ends = cells_UH1 * side < (tokens + 1) * cells_per_side
        rows, columns = (begins & ends).unbind(dim=1)  # [U, side] each
        own = (rows[:, :, None] & columns[:, None, :]).flatten(1)
        count = torch.zeros(len(self.pixels_NCSS), side**2).index_add(0, self.image_of_U, own.float())
        is_alone_U = torch.bincount(self.image_of_U)[self.image_of_U] == 1
        is_shared_U = (own & (count[self.image_of_U] > 1)).any(dim=1)
        return (own & ~is_shared_U[:, None]) | is_alone_U[:, None]


def _read_captions(path: Path) -> tuple[list[str], list[list[tuple[str, ...]]]]:
    """File names of images, and the words of each shape in them."""
    names, shapes = [], []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        try:
            row = json.loads(line)
            name, question, caption = row["image"], *(turn["value"] for turn in row["conversations"][:2])
            is_caption, found = question.endswith(IMAGE_QUESTION), _CAPTION.findall(caption)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path} line {number}: expected an image and a dialogue about it in JSON, found {line[:60]!r}"
            ) from error
        if is_caption and not (found and isinstance(name, str)):
            raise InputError(f"{path} line {number}: expected a caption such as 'red dot left top', found {caption!r}")
        if is_caption:
            names.append(name)
            shapes.append(found)
    if len(names) < FEWEST_IMAGES:
        raise InputError(f"{path}: expected at least {FEWEST_IMAGES} images with captions, found {len(names)}")
    return names, shapes


def _read_image(path: Path) -> np.ndarray:
    """uint8 [H, W, 3]."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises depends on where a file is broken
        raise InputError(f"{path}: expected an image, found none that can be read ({_reason(error)})") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a text file in UTF-8, found none ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _cell(first: str, second: str) -> tuple[int, int]:
    """Row and column of a place in words: `row 1`, `column 3`, or `left`, `top`."""
    if first.startswith("row"):
        return int(first[-1]) - 1, int(second[-1]) - 1
    return ("top", "bottom").index(second), ("left", "right").index(first)


def loss_and_accuracy(
    network: VideoChatOnlineForConditionalGeneration, captions: Captions, chosen: Tensor, masks: Tensor
) -> tuple[Tensor, float]:
    """Of the words of some shapes, each read from the tokens of its mask on a grid of the masks' size."""
    ratio = network.config.grid[0] // math.isqrt(masks.shape[1])
    pixels_NCSS = captions.pixels_NCSS[captions.image_of_U[chosen]]
    tokens_NLD = network.embed_frames(pixels_NCSS, [ratio] * len(chosen)).unflatten(0, (len(chosen), -1))
    means_ND = (tokens_NLD * masks[chosen, :, None]).sum(dim=1) / masks[chosen].sum(dim=1, keepdim=True)
    seen_ND = functional.layer_norm(means_ND, (WIDTH,))
    embeddings_VD = network.get_input_embeddings().weight
    loss, correct = seen_ND.new_zeros(()), []
    for place, ids in enumerate(captions.word_ids):
        scores = seen_ND @ embeddings_VD[ids].T
        labels = captions.labels_UW[chosen, place]
        loss = loss + functional.cross_entropy(scores, labels)
        correct.append((scores.argmax(dim=1) == labels).float().mean())
    return loss, float(torch.stack(correct).mean())


def pretrain(data: Path, directory: Path, seed: int, num_steps: int) -> float:
    """Train and write a checkpoint.

    Args:
        data: folder that `videochat-online synthesize` has written.
        directory: directory of the checkpoint; one with the same settings is left as it is.
        seed: seed of weights and of the order of images.
        num_steps: steps of `BATCH_SIZE` images each.

    Returns:
        The part of words that are right in new images seen as one token.

    Raises:
        InputError: there is no such data, or it is damaged or too little; the directory cannot be made, or holds a
            model made with other settings; a number out of range.
    """
    if num_steps < 1:
        raise InputError(f"--steps: expected at least 1, got {num_steps}")
    if not 0 <= seed < 2**64:
        raise InputError(f"--seed: expected a whole number from 0 to {2**64 - 1}, got {seed}")
    settings = {"data": str(data.resolve()), "seed": seed, "num_steps": num_steps}
    finished = _finished(data, directory, settings)
    if finished is not None:
        return finished
    words = _vocabulary(data / "vocabulary.json")
    phrases = [OVBENCH_SYSTEM_MESSAGE, *(_PLACES if "row" in words else ())]
    last_s = _longest_stream_s(data)
    is_long = last_s >= 60
    tokenizer = build_word_tokenizer(words, last_s, 1 if is_long else 2, phrases, split_times=is_long)
    torch.manual_seed(seed)
    network = new_network(len(tokenizer))
    network.config.image_token_id = visual_token_id(tokenizer)
    captions = Captions(data, tokenizer)
    # Made before the work, so that nothing is lost where it cannot be.
    unfinished = _make_folder(directory.resolve().with_name(f"{directory.resolve().name}.unfinished"))
    accuracy = train(network, captions, num_steps)
    transformers_logging.disable_progress_bar()
    network.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    report = {"settings": settings, "accuracy": accuracy}
    (unfinished / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
    unfinished.rename(directory.resolve())
    return accuracy


def train(network: VideoChatOnlineForConditionalGeneration, captions: Captions, num_steps: int) -> float:
    """Part of the words that are right in shapes that were held out, seen as one token."""
    learning = [*network.vision_tower.parameters(), *network.projector.parameters()]
    learning.append(network.get_input_embeddings().weight)
    optimizer = torch.optim.AdamW(learning, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / num_steps))
    )
    num_held_out = min(NUM_HELD_OUT, len(captions.pixels_NCSS) // 4)
    is_held_out_U = captions.image_of_U < num_held_out
    masks = [captions.masks(rows) for rows, _ in TokenSchedule().grids(network.config.grid)]
    visible = [mask.any(dim=1).nonzero()[:, 0] for mask in masks]
    held_out = [found[is_held_out_U[found]] for found in visible]
    seen = [found[~is_held_out_U[found]] for found in visible]
    if not all(len(found) for found in [*seen, held_out[-1]]):
        raise InputError(
            f"expected shapes that no other one covers on grids of every size, to learn and to measure, found none "
            f"among some of {num_held_out} images that measure and {len(captions.pixels_NCSS) - num_held_out} others"
        )
    for step in track(range(num_steps), description="pretraining"):
        level = step % len(masks)
        chosen = seen[level][torch.randint(len(seen[level]), (BATCH_SIZE,))]
        loss, _ = loss_and_accuracy(network, captions, chosen, masks[level])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        return loss_and_accuracy(network, captions, held_out[-1], masks[-1])[1]


def _vocabulary(path: Path) -> list[str]:
    text = _read_text(path)
    try:
        words = json.loads(text)["words"]
        if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
            return list(words)
    except (ValueError, TypeError, KeyError):
        pass
    raise InputError(f"{path}: expected a JSON object with a list of words, found something else")


def _longest_stream_s(data: Path) -> int:
    """Of the benchmark: later times need no tokens of their own."""
    path = data / "annotations" / "ovbench_test.json"
    text = _read_text(path)
    try:
        longest_s = int(max(row["clip"][1] for row in json.loads(text)))
    except (ValueError, TypeError, KeyError, IndexError, OverflowError):
        longest_s = 0
    if longest_s < 1:
        raise InputError(f"{path}: expected a JSON list of videos, each with its clip in seconds, found something else")
    return longest_s


def _make_folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: expected a folder that can be made ({_reason(error)})") from error
    return path


def _finished(data: Path, directory: Path, settings: dict[str, Any]) -> float | None:
    """The accuracy of an earlier run that went to its end."""
    if not (data / "annotations" / "images.jsonl").is_file():
        raise InputError(
            f"{data}: expected a folder of `videochat-online synthesize`, found no annotations/images.jsonl"
        )
    report = directory / REPORT_FILE
    if not report.is_file():
        if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
            raise InputError(f"{directory}: expected a new or empty directory, found something else in it")
        return None
    text = _read_text(report)
    try:
        found = json.loads(text)
        accuracy = float(found["accuracy"])
        there = found["settings"] | {"data": str(Path(found["settings"]["data"]).resolve())}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{report}: expected settings and accuracy of a model, found something else") from error
    if there != settings:
        raise InputError(f"{directory}: expected a model made with {settings}, found one made with {there}")
    return accuracy


def main() -> int:
    """Parse the command line and write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    torch.set_num_threads(1)  # two threads on two busy cores are many times slower than one
    try:
        accuracy = pretrain(options.data, options.directory, options.seed, options.steps)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.directory}: {100 * accuracy:.1f}% of caption words right in new images seen as one token")
    return 0


if __name__ == "__main__":
    sys.exit(main())
