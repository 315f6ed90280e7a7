"""Golden checks of training rows: ids, labels, frames and pixels of what the model is trained on.

The recording holds, beside ids and labels, the dialogue after the reference has put its frame lines in. What we
expect is laid out from that dialogue, with token counts, the last frame and labels restated here slowly, so that
each row which the reference corrupts (labels masked away, the last frame unused, prompts cut through their visual
tokens) still has an exact value of ours to be compared with.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from golden.harness import Case, run_lengths
from golden.text import labels_of_prefixes, tokenizer_of, unrolled
from videochat_online.constants import IGNORE_INDEX
from videochat_online.data import Example, FrameSampling, PixelReader, Sample, SampleEncoder, Tiling, parse_row
from videochat_online.errors import InputError
from videochat_online.memory import TokenSchedule
from videochat_online.text import end_token_id, get_template, layout_prompt, special_ids, split_placeholders
from videochat_online.types import Turn
from videochat_online.video import FrameTransform

RECORDED_SIDE = 16
"""Tokens a side of a full-size frame, by which alone the reference's levels exist."""

_FRAME_LINES = re.compile(r"((?:Frame\d+ at [\d.]+s: <image>\n)*)\n?(.*)", re.DOTALL)

Dialogue = list[tuple[str, str]]


@dataclass(frozen=True)
class LastFrame:
    """The last sampled frame of an online row: its time as prompts print it, the first turn after it, its pixels."""

    time_s: float
    turn: int
    image: Image.Image


@cache
def _reader() -> PixelReader:
    return PixelReader(FrameTransform(), cache_mb=256)


def _encoder(case: Case) -> SampleEncoder:
    settings = case.params["settings"]
    side = round(settings["num_image_token"] ** 0.5)
    return SampleEncoder(
        max_overrun_s=math.inf,  # recorded rows ask at 99 s what holds at the end of four
        tokenizer=tokenizer_of(case.root, case.params["tokenizer"]),
        template=get_template(case.params["template"]),
        system_message=None,
        reader=_reader(),
        full_grid=(side, side),
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
    encoder = _encoder(case)
    sample = parse_row(case.params["sample"], case.root / case.params["media_root"])
    if "input_ids_rle" not in case.recorded:
        case.exclude(f"the reference raises {case.recorded['error']}; ours is the dialogue alone")
        example = encoder.encode(sample, _draws(case))
        case.exact("no pictures", (example.pixels_TCSS, example.pool_ratios), (None, ()))
        _check_layout(case, "our", example, _laid_out(encoder, _dialogue(case.params["sample"]["conversations"]), []))
    elif case.recorded["attention_ones"] == encoder.max_length:
        _check_cut(case, encoder, sample)
    else:
        _check_row(case, encoder, sample)


def _check_row(case: Case, encoder: SampleEncoder, sample: Sample) -> None:
    example = encoder.encode(sample, _draws(case))
    recorded = case.recorded
    (num_pictures,) = recorded["num_patches"]
    ids = unrolled(recorded["input_ids_rle"])[: recorded["attention_ones"]]
    padding = unrolled(recorded["input_ids_rle"])[recorded["attention_ones"] :]
    case.exact("recorded pads", set(padding) <= {encoder.tokenizer.pad_token_id}, True)
    context = special_ids(encoder.tokenizer).image_context
    runs = [count for index, count in run_lengths(ids) if index == context]
    dialogue = _dialogue(recorded["conversations_after"])

    # What the reference was given and what it should have made of it; the same but for the exclusions.
    expected, counts = list(dialogue), list(runs)
    last = _last_frame(case, sample) if sample.kind in ("online", "tracking") else None
    if last is not None:
        case.exclude("the reference never uses the last sampled frame; ours has it, in its place")
        expected[last.turn] = (_with_last_line(dialogue[last.turn][0], num_pictures, last), dialogue[last.turn][1])
    ratios = _check_ratios(case, encoder, example, sample, num_pictures + (last is not None))
    if sample.kind != "image":
        counts = [(encoder.full_grid[0] // ratio) ** 2 for ratio in ratios]
        if counts[: len(runs)] != runs and encoder.full_grid[0] < RECORDED_SIDE:
            case.exclude("the reference has levels at 256 tokens a frame only; here ours are compared with the rule")
        else:
            case.exact("visual tokens of the rule", counts[: len(runs)], runs)
    unchanged = expected == dialogue and counts == runs
    _check_recorded(case, encoder, example if unchanged else _laid_out(encoder, dialogue, runs), ids)
    _check_layout(case, "our", example, _laid_out(encoder, expected, counts))
    _check_pixels(case, example, last)


def _check_recorded(case: Case, encoder: SampleEncoder, ours: Example, recorded_ids: list[int]) -> None:
    """Ids and labels against the recording's."""
    ids, labels = list(ours.input_ids), list(ours.labels)
    if len(ids) == len(recorded_ids) + 1:
        place = next(place for place, pair in enumerate(zip(ids, recorded_ids, strict=False)) if pair[0] != pair[1])
        if ids[place] == end_token_id(encoder.tokenizer, encoder.template):
            case.exclude("the reference leaves out the end token of an empty human side; compared without it")
            del ids[place], labels[place]
    case.exact("ids", run_lengths(ids), run_lengths(recorded_ids))
    recorded_labels = unrolled(case.recorded["labels_rle"])
    case.exact("recorded labels of pads", set(recorded_labels[len(recorded_ids) :]) <= {IGNORE_INDEX}, True)
    if case.recorded["mismatch_warning"]:
        case.exclude("the reference masks every label of a dialogue it cannot count; ours against those of prefixes")
        case.exact("recorded labels are all masked", set(recorded_labels), {IGNORE_INDEX})
    else:
        case.exact("labels", run_lengths(labels), run_lengths(recorded_labels[: len(recorded_ids)]))


def _check_layout(case: Case, whose: str, ours: Example, expected: Example) -> None:
    case.exact(f"{whose} ids", run_lengths(list(ours.input_ids)), run_lengths(list(expected.input_ids)))
    case.exact(f"{whose} labels", run_lengths(list(ours.labels)), run_lengths(list(expected.labels)))
    case.exact(f"{whose} labels teach something", set(ours.labels) - {IGNORE_INDEX} != set(), True)


def _check_ratios(case: Case, encoder: SampleEncoder, ours: Example, sample: Sample, num_pictures: int) -> list[int]:
    """By how much each picture is pooled: tiles of images not at all."""
    case.exact("frames, not images", sample.kind != "image", case.recorded["is_video"] == [1])
    ratios = [1] * num_pictures
    if sample.kind != "image":
        ratios = [_pool_ratio(place, encoder.schedule.intervals) for place in range(num_pictures)]
    case.exact("pool ratios", list(ours.pool_ratios), ratios)
    return ratios


def _without(index: int, example: Example) -> Example:
    """Ids and labels where another id stands."""
    pairs = [pair for pair in zip(example.input_ids, example.labels, strict=True) if pair[0] != index]
    return Example(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs), None, ())


def _check_pixels(case: Case, example: Example, last: LastFrame | None) -> None:
    assert example.pixels_TCSS is not None
    means = example.pixels_TCSS.mean(dim=(2, 3))
    recorded, atol = case.recorded["pixel_means"], case.tolerance["pixel_means_atol"]
    num_more = 0 if last is None else 1
    shape = [len(means) - num_more, *example.pixels_TCSS.shape[1:]]
    case.exact("shape of the frames", shape, case.recorded["pixel_shape"])
    case.close("pixel means", means[: shape[0]], recorded, atol=atol)
    if last is not None:
        size = example.pixels_TCSS.shape[-1]
        resized = last.image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        pixels = case.frames.normalise(np.array(resized)[None])
        case.close("pixel means of the last frame", means[-1], pixels[0].mean(dim=(1, 2)), atol=atol)


def _check_cut(case: Case, encoder: SampleEncoder, sample: Sample) -> None:
    """The whole prompt begins with the recorded part; ours refuses to be cut there."""
    case.exclude("the reference cuts through the visual tokens and trains on nothing; ours refuses the row")
    limit = encoder.max_length
    whole = replace(encoder, max_length=10**6).encode(sample, _draws(case))
    case.exact("ids up to the cut", list(whole.input_ids[:limit]), unrolled(case.recorded["input_ids_rle"]))
    case.exact("labels up to the cut", list(whole.labels[:limit]), unrolled(case.recorded["labels_rle"]))
    context = special_ids(encoder.tokenizer).image_context
    case.exact("visual tokens are cut off", context in whole.input_ids[limit:], True)
    dialogue = _dialogue(case.recorded["conversations_after"])
    expected = _laid_out(encoder, dialogue, [1] * sum(user.count("<image>") for user, _ in dialogue))
    _check_layout(case, "our text", _without(context, whole), _without(context, expected))
    ratios = _check_ratios(case, encoder, whole, sample, case.recorded["num_patches"][0])
    num_tokens = sum((encoder.full_grid[0] // ratio) ** 2 for ratio in ratios)
    case.exact("our visual tokens", whole.input_ids.count(context), num_tokens)
    _check_pixels(case, whole, None)
    try:
        encoder.encode(sample, _draws(case))
    except InputError as error:
        start = f"prompt of {len(whole)} tokens: expected at most {limit}; a cut would take tokens of "
        case.exact("our refusal", str(error)[: len(start)], start)
    else:
        case.exact("our refusal", "accepted", "refused")


def _draws(case: Case) -> random.Random:
    return random.Random(case.params["random_seed"])


def _dialogue(messages: Sequence[dict[str, Any]]) -> Dialogue:
    values = [str(message["value"]) for message in messages]
    return list(zip(values[::2], values[1::2], strict=True))


def _laid_out(encoder: SampleEncoder, dialogue: Dialogue, counts: Sequence[int]) -> Example:
    """Ids of a dialogue with `<image>` placeholders of so many tokens each; labels without offsets."""
    if encoder.template.name == "internlm2-chat":
        dialogue = [(user.strip(), reply.strip()) for user, reply in dialogue]
    turns, first = [], 0
    for user, reply in dialogue:
        stop = first + user.count("<image>")
        turns.append(Turn(split_placeholders(user, counts[first:stop]), reply))
        first = stop
    if first != len(counts):
        raise InputError(f"expected {len(counts)} placeholders, as pictures, found {first}")
    layout = layout_prompt(turns, tokenizer=encoder.tokenizer, template=encoder.template)
    labels = labels_of_prefixes(turns, layout, encoder.tokenizer, encoder.template)
    return Example(layout.input_ids, tuple(labels), None, ())


def _pool_ratio(place: int, intervals: Sequence[int]) -> int:
    """Frame i has the first level whose interval divides i, and is pooled by 2 to that level."""
    return next(1 << level for level, interval in enumerate(intervals) if place % interval == 0)


def _with_last_line(user: str, num_before: int, last: LastFrame) -> str:
    """The human side with one more frame line; the empty line of a turn without frames gives way to it."""
    match = _FRAME_LINES.fullmatch(user)
    assert match is not None
    return f"{match[1]}Frame{num_before + 1} at {last.time_s:.1f}s: <image>\n{match[2]}"


def _last_frame(case: Case, sample: Sample) -> LastFrame | None:
    """The last sampled frame, unless it comes after the last turn. Subsets of frames keep the first and the last."""
    if sample.kind == "tracking":
        last_turn = len(case.recorded["conversations_after"]) // 2 - 1
        return LastFrame(sample.boxes[-1].time_s, last_turn, Image.open(sample.media[-1]))
    frames, fps = _decoded(sample.media[0])
    start_s, end_s = sample.clip_s or (0.0, len(frames) / fps)
    if end_s > len(frames) / fps:
        raise InputError(f"expected a clip inside the video of {len(frames) / fps} s, found one up to {end_s} s")
    rate = float(case.params["settings"]["sampling_method"].removeprefix("fps"))
    first, num_available = int(start_s * fps), int((end_s - start_s) * fps)
    centres = [round((number + 0.5) / rate * fps) for number in range(len(frames))]
    inside = [first + centre for centre in centres if centre < num_available]
    time_s = round(inside[-1] / fps, 1)
    if sample.reset_times:
        time_s = round(time_s - round(inside[0] / fps, 1), 1)
    turns = [place for place, turn in enumerate(sample.turns) if (turn.time_s or 0.0) >= time_s]
    return LastFrame(time_s, turns[0], frames[inside[-1]]) if turns else None


@cache
def _decoded(path: Path) -> tuple[list[Image.Image], float]:
    """All frames of a small video, one after the other, and its rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        return [frame.to_image() for frame in container.decode(stream)], float(stream.average_rate)


CHECKS: dict[str, Callable[[Case], None]] = {"dataset_sample": check_dataset_sample}
