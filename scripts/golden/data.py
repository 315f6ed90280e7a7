"""Golden checks of training rows: ids, labels, frames and pixels of what the model is trained on.

What a row shows and says is made of it slowly, twice (`rows.py`): as the reference has it, which must be what was
recorded, and as ours should. Token counts and labels are restated here, so that each row which the reference corrupts
(labels masked away, the last frame unused, prompts cut through their visual tokens) still has an exact value of ours to
be compared with.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from golden.harness import Case, run_lengths
from golden.rows import Dialogue, RowTold, Told, pictures, tell
from golden.text import labels_of_prefixes, tokenizer_of, unrolled
from videochat_online.constants import IGNORE_INDEX
from videochat_online.data import Example, FrameSampling, PixelReader, Sample, SampleEncoder, Tiling, parse_row
from videochat_online.errors import InputError
from videochat_online.memory import TokenSchedule
from videochat_online.text import end_token_id, get_template, layout_prompt, split_placeholders, visual_token_id
from videochat_online.types import Turn
from videochat_online.video import FrameTransform, normalize

UNLEVELLED = 64
"""Tokens of a full-size frame at which the reference gives every frame as many."""

MAX_LENGTH = 10**6
"""Length of prompts that are to be whole, in tokens."""


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
    told, recorded = tell(case, sample), case.recorded
    for reason in told.reasons:
        case.exclude(reason)
    if "input_ids_rle" not in recorded:
        case.exclude(f"the reference raises {recorded['error']}; ours against what is made of the row slowly")
        _check_ours(case, encoder, sample, told)
        return
    _take_their_order(case, told)
    case.exact("recorded dialogue, restated", told.theirs.dialogue, _dialogue(recorded["conversations_after"]))
    _check_noted(case, told.theirs)
    ids, labels = (unrolled(recorded[key])[: recorded["attention_ones"]] for key in ("input_ids_rle", "labels_rle"))
    pads = (unrolled(recorded[key])[recorded["attention_ones"] :] for key in ("input_ids_rle", "labels_rle"))
    for name, values, pad in zip(("ids", "labels"), pads, (encoder.tokenizer.pad_token_id, IGNORE_INDEX), strict=True):
        case.exact(f"recorded {name} of pads", set(values) <= {pad}, True)
    case.exact("recorded ids that are no pads", len(ids), recorded["attention_ones"])
    ours = _check_ours(case, encoder, sample, told)
    if ours is None:
        return
    counts = _their_counts(case, encoder, told, ours)
    whole = ours if told.are_same and counts == _runs(encoder, ours) else _laid_out(encoder, told.theirs, counts)
    _check_recorded(case, encoder, told.theirs, whole, ids, labels)
    _check_recorded_pixels(case, sample, told, ours)
    if len(ids) == encoder.max_length:
        _check_cut(case, encoder, sample, ours)


def _check_noted(case: Case, told: Told) -> None:
    """What the recording says of itself: who speaks and when, counts, and a flag for each picture."""
    recorded, messages = case.recorded, case.recorded["conversations_after"]
    case.exact("recorded speakers", [one["from"] for one in messages], ["human", "gpt"] * (len(messages) // 2))
    times_s = [one["timestamps"] for one in messages if "timestamps" in one]
    if case.exact("recorded turns with times", len(times_s), len(told.asked_s)):
        case.close("recorded times of turns", told.asked_s, times_s, atol=1e-6)
    files = [one["image_file"] for one in messages if "image_file" in one]
    shown = case.params["sample"].get("all_image_files", files)
    case.exact("recorded files are in the row's order", files, [name for name in shown if name in files])
    labels = unrolled(recorded["labels_rle"])
    num_taught = sum(label != IGNORE_INDEX for label in labels)
    restated = {
        "n": len(labels),
        "n_supervised": num_taught,
        "image_flags": [1] * sum(recorded["num_patches"]),
        "is_video": [int(told.frames is not None)],
    }
    for key, value in restated.items():
        case.exact(f"recorded {key}", value, recorded.get(key, value))


def _take_their_order(case: Case, told: RowTold) -> None:
    """Several questions about a video are asked in a random order by the reference."""
    recorded = _dialogue(case.recorded["conversations_after"])
    if len(case.params["sample"].get("QA", ())) > 1 and len(recorded) == len(told.theirs.dialogue):
        case.exclude("the reference shuffles the questions; ours keeps their order")
        (first, *_), frames = told.theirs.dialogue, told.theirs.frames
        lines = first[0].removesuffix(_first_question(case))
        unplaced = [(user.removeprefix(lines), reply) for user, reply in recorded]
        expected = [(_first_question(case), first[1]), *told.theirs.dialogue[1:]]
        if case.exact("recorded questions", sorted(unplaced), sorted(expected)):
            told.theirs = Told([(lines + unplaced[0][0], unplaced[0][1]), *unplaced[1:]], frames)


def _first_question(case: Case) -> str:
    pair = case.params["sample"]["QA"][0]
    return f"{pair.get('i', '')} {pair.get('q', '')}".strip()


def _check_ours(case: Case, encoder: SampleEncoder, sample: Sample, told: RowTold) -> Example | None:
    """What ours makes of the whole row; None where it rightly refuses."""
    is_empty = told.ours.frames is not None and not told.ours.frames
    try:
        ours = replace(encoder, max_length=MAX_LENGTH).encode(sample, _draws(case))
    except InputError as error:
        case.exact("our refusal", str(error) if not is_empty else "no frame before a turn", "no frame before a turn")
        return None
    num_pictures = len(ours.pool_ratios)
    if told.ours.frames is None:
        ratios, counts = [1] * num_pictures, _runs(encoder, ours)
    else:
        case.exact("number of frames", num_pictures, len(told.ours.frames))
        ratios = [_pool_ratio(place, encoder.schedule.intervals) for place in range(len(told.ours.frames))]
        counts = [(encoder.full_grid[0] // ratio) ** 2 for ratio in ratios]
        means = _means(case, sample, told.ours.frames)
        case.close("pixel means", _normalised(ours).mean(dim=(2, 3)), means, atol=_pixel_atol(case))
    case.exact("pool ratios", list(ours.pool_ratios), ratios)
    _check_layout(case, "our", ours, _laid_out(encoder, told.ours, counts))
    return ours


def _runs(encoder: SampleEncoder, example: Example) -> list[int]:
    """Visual tokens of each picture of a layout."""
    context = visual_token_id(encoder.tokenizer)
    return [count for index, count in run_lengths(list(example.input_ids)) if index == context]


def _their_counts(case: Case, encoder: SampleEncoder, told: RowTold, ours: Example) -> list[int]:
    """Visual tokens of each picture as the reference has them."""
    if told.theirs.frames is None:
        return _runs(encoder, ours)
    side, num_frames = encoder.full_grid[0], len(told.theirs.frames)
    ratios = [_pool_ratio(place, encoder.schedule.intervals) for place in range(num_frames)]
    counts = [side**2 if side**2 == UNLEVELLED else side**2 // ratio**2 for ratio in ratios]
    if counts != [(side // ratio) ** 2 for ratio in ratios]:
        case.exclude(
            f"the reference has no levels at {UNLEVELLED} tokens a frame, and rounds others; ours has the rule's"
        )
    return counts


def _check_recorded(
    case: Case, encoder: SampleEncoder, told: Told, layout: Example, ids: list[int], labels: list[int]
) -> None:
    """Recorded ids and labels against a layout, of which the recording may be the beginning."""
    our_ids, our_labels = list(layout.input_ids), list(layout.labels)
    end, empty = end_token_id(encoder.tokenizer, encoder.template), sum(not user.strip() for user, _ in told.dialogue)
    for place, recorded in enumerate(ids):
        if empty and our_ids[place : place + 1] == [end] and recorded != end:
            del our_ids[place], our_labels[place]
            empty -= 1
            case.exclude("the reference leaves out the end token of an empty human side; compared without it")
    is_cut = len(ids) == encoder.max_length
    limit = len(ids) if is_cut else len(our_ids)
    case.exact("ids", run_lengths(our_ids[:limit]), run_lengths(ids))
    if case.recorded["mismatch_warning"]:
        case.exclude("the reference masks every label of a dialogue it cannot count; ours against those of prefixes")
        case.exact("recorded labels are all masked", set(labels), {IGNORE_INDEX})
    else:
        case.exact("labels", run_lengths(our_labels[:limit]), run_lengths(labels))


def _check_layout(case: Case, whose: str, ours: Example, expected: Example) -> None:
    case.exact(f"{whose} ids", run_lengths(list(ours.input_ids)), run_lengths(list(expected.input_ids)))
    case.exact(f"{whose} labels", run_lengths(list(ours.labels)), run_lengths(list(expected.labels)))
    case.exact(f"{whose} labels teach something", set(ours.labels) - {IGNORE_INDEX} != set(), True)


def _check_recorded_pixels(case: Case, sample: Sample, told: RowTold, ours: Example) -> None:
    """Ours where both show the same, else the row's own pictures."""
    recorded = case.recorded
    pixels_TCSS = _normalised(ours)
    means, shape = pixels_TCSS.mean(dim=(2, 3)), list(pixels_TCSS.shape)
    their_frames, our_frames = told.theirs.frames, told.ours.frames
    if their_frames is not None and our_frames is not None:
        shape[0] = len(their_frames)
        begins_alike = our_frames[: len(their_frames)] == their_frames
        means = means[: len(their_frames)] if begins_alike else _means(case, sample, their_frames)
    case.exact("recorded number of pictures", recorded["num_patches"], [shape[0]])
    case.exact("shape of the frames", shape, recorded["pixel_shape"])
    case.close("recorded pixel means", means, recorded["pixel_means"], atol=_pixel_atol(case))


def _normalised(example: Example) -> torch.Tensor:
    """Pixels as the network gets them; none of a text."""
    return torch.zeros(0, 3, 1, 1) if example.pixels_TSSC is None else normalize(example.pixels_TSSC)


def _pixel_atol(case: Case) -> float:
    return float(case.tolerance["pixel_means_atol"])


def _means(case: Case, sample: Sample, places: Sequence[int]) -> torch.Tensor:
    """Mean colours of a row's frames, resized and normalised as recorded; places before 0 count from the end."""
    shown, _ = pictures(sample)
    size = FrameTransform().size
    resized = [
        np.array(shown[place % len(shown)].convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
        for place in places
    ]
    return torch.as_tensor(case.frames.normalise(np.stack(resized))).mean(dim=(2, 3)) if resized else torch.zeros(0, 3)


def _check_cut(case: Case, encoder: SampleEncoder, sample: Sample, whole: Example) -> None:
    """A prompt that is too long: ours is cut there, but not through visual tokens, nor through all that is learned."""
    limit, context = encoder.max_length, visual_token_id(encoder.tokenizer)
    refused = ""
    if context in whole.input_ids[limit:]:
        case.exclude("the reference cuts through the visual tokens and trains on nothing; ours refuses the row")
        refused = f"prompt of {len(whole)} tokens: expected at most {limit}; a cut would take tokens of "
    elif set(whole.labels[:limit]) == {IGNORE_INDEX}:
        case.exclude("the reference cuts off all that is learned and trains on nothing; ours refuses the row")
        refused = f"prompt of {len(whole)} tokens: expected at most {limit}; a cut would leave none of "
    try:
        cut = encoder.encode(sample, _draws(case))
    except InputError as error:
        case.exact("our refusal", str(error)[: len(refused)] or str(error), refused)
    else:
        case.exact("our refusal", "", refused)
        case.exact("our ids up to the cut", cut.input_ids, whole.input_ids[:limit])


def _draws(case: Case) -> random.Random:
    return random.Random(case.params["random_seed"])


def _dialogue(messages: Sequence[dict[str, Any]]) -> Dialogue:
    values = [str(message["value"]) for message in messages]
    return list(zip(values[::2], values[1::2], strict=True))


def _laid_out(encoder: SampleEncoder, told: Told, counts: Sequence[int]) -> Example:
    """Ids of a dialogue with `<image>` placeholders of so many tokens each; labels without offsets."""
    dialogue = told.dialogue
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


CHECKS: dict[str, Callable[[Case], None]] = {"dataset_sample": check_dataset_sample}
