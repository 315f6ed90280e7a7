"""Golden checks of training samples and batches.

Rows that the reference corrupts (labels masked away, the last frame dropped, prompts cut through the visual
tokens, pads attended to) are excluded by what the recording shows, and our own value is asserted instead.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from golden.harness import Case, run_lengths
from videochat_online.constants import IGNORE_INDEX
from videochat_online.data import (
    Collator,
    Example,
    FrameSampling,
    PixelReader,
    Sample,
    SampleEncoder,
    Tiling,
    parse_row,
)
from videochat_online.data.encoding import trimmed
from videochat_online.data.layout import online_turns, tracking_turns
from videochat_online.errors import InputError
from videochat_online.memory import TokenSchedule
from videochat_online.text import decode_reply, end_token_id, get_template, layout_prompt, load_tokenizer, special_ids
from videochat_online.types import FrameUse
from videochat_online.video import FrameTransform, uniform_subset

RECORDED_GRID = (16, 16)


@cache
def _tokenizer(root: Path, name: str) -> Any:
    return load_tokenizer(root / "tokenizers" / name)


@cache
def _reader() -> PixelReader:
    return PixelReader(FrameTransform(), cache_mb=256)


def _encoder(case: Case, grid: tuple[int, int]) -> SampleEncoder:
    settings = case.params["settings"]
    return SampleEncoder(
        tokenizer=_tokenizer(case.root, case.params["tokenizer"]),
        template=get_template(case.params["template"]),
        system_message=None,
        reader=_reader(),
        full_grid=grid,
        schedule=TokenSchedule(tuple(settings["reverse_memory_sample_ratio"])),
        sampling=FrameSampling(method=settings["sampling_method"], max_num_frames=settings["max_num_frame"]),
        tiling=Tiling(
            dynamic=settings["dynamic_image_size"],
            min_tiles=settings["min_dynamic_patch"],
            max_tiles=settings["max_dynamic_patch"],
            thumbnail=settings["use_thumbnail"],
        ),
        max_length=case.params["model_max_length"],
    )


def check_dataset_sample(case: Case) -> None:
    """Ids, labels, frames and pixels of one training row."""
    side = int(case.params["settings"]["num_image_token"] ** 0.5)
    encoder = _encoder(case, (side, side))
    row = case.params["sample"]
    sample = parse_row(row, case.root / case.params["media_root"])
    rng = random.Random(case.params["random_seed"])
    if "input_ids_rle" not in case.recorded:
        case.exclude(f"the reference raises ({case.recorded['error']}); ours is the dialogue alone")
        example = encoder.encode(sample, rng)
        learned = [label for label in example.labels if label != IGNORE_INDEX]
        reply = decode_reply(encoder.tokenizer, learned, encoder.template)
        case.exact("learned text", reply, row["conversations"][1]["value"])
        return
    ids = _unrolled(case.recorded["input_ids_rle"])
    if case.recorded["n"] == encoder.max_length and case.recorded["attention_ones"] == encoder.max_length:
        case.exclude("the reference cuts through the visual tokens; ours refuses the row")
        _check_refused(case, encoder, sample, rng)
        return
    ids = ids[: case.recorded["attention_ones"]]
    example = encoder.encode(sample, rng)
    if sample.kind in ("online", "tracking") and len(example.pool_ratios) > len(case.recorded["pixel_means"]):
        case.exclude("the reference never uses the last sampled frame; compared without it, and it is asserted")
        case.exact("frames", len(example.pool_ratios), len(case.recorded["pixel_means"]) + 1)
        example = _without_last_frame(case, encoder, sample, example)
    if (side, side) != RECORDED_GRID and sample.kind == "video":
        case.exclude("fewer than 256 tokens a frame: the reference then has no levels; the text is compared")
        context = special_ids(encoder.tokenizer).image_context
        ours, recorded = ([i for i in part if i != context] for part in (example.input_ids, ids))
        case.exact("text ids", ours, recorded)
        counts = encoder.schedule.num_tokens(range(len(example.pool_ratios)), encoder.full_grid)
        case.exact("our visual tokens", sum(i == context for i in example.input_ids), sum(counts))
    else:
        _check_ids(case, encoder, list(example.input_ids), ids)
    _check_labels(case, example)
    _check_pixels(case, example)


def _check_ids(case: Case, encoder: SampleEncoder, ours: list[int], recorded: list[int]) -> None:
    if len(ours) == len(recorded) + 1:
        place = next(place for place, index in enumerate(recorded) if ours[place] != index)
        if ours[place] == end_token_id(encoder.tokenizer, encoder.template):
            case.exclude("the reference leaves out the end token of an empty human side; compared without it")
            ours = ours[:place] + ours[place + 1 :]
    case.exact("ids", run_lengths(ours), run_lengths(recorded))


def _check_labels(case: Case, example: Example) -> None:
    recorded = _unrolled(case.recorded["labels_rle"])[: case.recorded["attention_ones"]]
    if case.recorded["mismatch_warning"]:
        case.exclude("the reference masks every label of a dialogue it cannot count; ours are asserted")
        learned = [label for label in example.labels if label != IGNORE_INDEX]
        case.exact("something is learned", len(learned) > 0 and set(recorded) == {IGNORE_INDEX}, True)
        return
    ours = [label for label in example.labels if label != IGNORE_INDEX]
    case.exact("learned ids", ours, [label for label in recorded if label != IGNORE_INDEX])
    if len(recorded) == len(example.labels):
        case.exact("labels", run_lengths(list(example.labels)), run_lengths(recorded))


def _check_pixels(case: Case, example: Example) -> None:
    assert example.pixels_TCSS is not None
    means = example.pixels_TCSS.mean(dim=(2, 3))
    case.close("pixel means", means, case.recorded["pixel_means"], atol=case.tolerance["pixel_means_atol"])
    case.exact("frames", list(example.pixels_TCSS.shape), case.recorded["pixel_shape"])


def _check_refused(case: Case, encoder: SampleEncoder, sample: Sample, rng: random.Random) -> None:
    try:
        encoder.encode(sample, rng)
    except InputError as error:
        case.exact("our refusal", str(error).startswith("prompt of "), True)
    else:
        case.exact("our refusal", "accepted", "refused")


def _without_last_frame(case: Case, encoder: SampleEncoder, sample: Sample, example: Example) -> Example:
    """The same sample laid out from all frames but the last."""
    turns = sample.turns
    if sample.kind == "tracking":
        places = uniform_subset(range(len(sample.media)), encoder.sampling.max_num_frames)
        turns = tracking_turns(sample, places, random.Random(case.params["random_seed"]))
        times_s = [sample.boxes[place].time_s for place in places]
    else:
        clip = encoder.reader.clip(sample.media[0], encoder.sampling, clip_s=sample.clip_s)
        first_s = clip.times_s[0] if sample.reset_times else 0.0
        times_s = [round(time_s - first_s, 1) for time_s in clip.times_s]
    counts = encoder.schedule.num_tokens(range(len(times_s)), encoder.full_grid)
    frames = [FrameUse(index, *rest) for index, rest in enumerate(zip(times_s, counts, strict=True))]
    ids = []
    for seen in (frames, frames[:-1]):
        laid_out = online_turns(turns, seen)
        if encoder.template.name == "internlm2-chat":
            laid_out = tuple(trimmed(turn) for turn in laid_out)
        ids.append(layout_prompt(laid_out, tokenizer=encoder.tokenizer, template=encoder.template))
    case.exact("our ids with the last frame", example.input_ids, ids[0].input_ids)
    assert example.pixels_TCSS is not None
    return Example(ids[1].input_ids, ids[1].labels, example.pixels_TCSS[:-1], example.pool_ratios[:-1])


def check_collator(case: Case) -> None:
    """Padding of ids and labels, and one tensor of frames."""
    case.exclude("the reference attends to its own pads and not to tokens of id 0; ours: every token, no pad")
    features, batch = case.recorded["features"], case.recorded["batch"]
    size = case.recorded["pixel_values_shape"]
    examples = []
    for feature in features:
        length = sum(feature["attention_mask"])
        frames = torch.zeros(feature["num_patches"][0], *size[1:])
        examples.append(
            Example(tuple(feature["input_ids"][:length]), tuple(feature["labels"][:length]), frames, (1,) * len(frames))
        )
    collate = Collator(pad_id=0, image_token_id=-1, image_size=size[-1], blank_ratio=1, num_blank_tokens=1)
    ours = collate(examples)
    longest = max(len(example) for example in examples)
    for place, example in enumerate(examples):
        length = len(example)
        for key in ("input_ids", "labels"):
            case.exact(f"{key} {place}", ours[key][place, :length].tolist(), batch[key][place][:length])
        mask = [1] * length + [0] * (longest - length)
        case.exact(f"our mask {place}", ours["attention_mask"][place].tolist(), mask)
        case.exact(f"our labels of pads {place}", set(ours["labels"][place, length:].tolist()) <= {IGNORE_INDEX}, True)
    case.exact("frames", list(ours["pixel_values"].shape), size)


def _unrolled(runs: list[list[int]]) -> list[int]:
    return [index for index, count in runs for _ in range(count)]


CHECKS: dict[str, Callable[[Case], None]] = {
    "collator": check_collator,
    "dataset_sample": check_dataset_sample,
}
