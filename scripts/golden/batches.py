"""Golden checks of batches: padding, and which samples come together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from golden.harness import Case
from videochat_online.constants import IGNORE_INDEX
from videochat_online.data import Collator, EpochSampler, Example
from videochat_online.data.batches.mixture import unpack_key

SEEDS = (0, 1, 42)


def check_collator(case: Case) -> None:
    """Ids and labels padded on the right, and one tensor of frames in the samples' order."""
    case.exclude("the reference attends to its own pads and not to tokens of id 0; ours: every token, no pad")
    features, batch = case.recorded["features"], case.recorded["batch"]
    size = case.recorded["pixel_values_shape"]
    examples = []
    for place, feature in enumerate(features):
        length = sum(feature["attention_mask"])
        frames = np.full((feature["num_patches"][0], *size[2:], 3), place + 1, np.uint8)
        ids, labels = (tuple(feature[key][:length]) for key in ("input_ids", "labels"))
        examples.append(Example(ids, labels, frames, (2**place,) * len(frames)))
    collate = Collator(pad_id=0, image_token_id=-1, image_size=size[-1], blank_ratio=1, num_blank_tokens=1)
    ours = collate(examples)
    longest = max(len(example) for example in examples)
    for place, example in enumerate(examples):
        length, more = len(example), longest - len(example)
        recorded_ids = batch["input_ids"][place]
        case.exact(f"recorded mask {place}", batch["attention_mask"][place], [index != 0 for index in recorded_ids])
        case.exact(f"input_ids {place}", ours["input_ids"][place, :length].tolist(), recorded_ids[:length])
        case.exact(f"labels {place}", ours["labels"][place, :length].tolist(), batch["labels"][place][:length])
        case.exact(f"our pads {place}", ours["input_ids"][place, length:].tolist(), [0] * more)
        case.exact(f"our labels of pads {place}", ours["labels"][place, length:].tolist(), [IGNORE_INDEX] * more)
        case.exact(f"our mask {place}", ours["attention_mask"][place].tolist(), [1] * length + [0] * more)
    pixels_TCSS = ours["pixel_values"].permute(0, 3, 1, 2).float()
    case.exact("shape of the frames", list(pixels_TCSS.shape), size)
    owners = [place for place, count in enumerate(batch["num_patches"]) for _ in range(count)]
    case.exact("order of the frames", pixels_TCSS.mean(dim=(1, 2, 3)).tolist(), [p + 1 for p in owners])
    case.exact("pool ratios", list(ours["pool_ratios"]), [2**place for place in owners])


def check_sampler(case: Case) -> None:
    """Grouping by length: the same samples come together in a step; ours are in another order within it.

    Our permutation is our own: the sample that it puts first gets the length of the one that the recorded
    permutation puts first, and so on.
    """
    lengths, drawn = case.recorded["lengths"], case.recorded["randperm"]
    num_ranks, num_items = case.recorded["world_size"], len(case.recorded["lengths"])
    group = num_ranks * case.recorded["batch_size"]
    case.exact("dealing, restated", _dealt(range(group), lengths, num_ranks), case.recorded["even_chunks"])
    case.exclude("the reference deals a step's samples out to the ranks by length; ours sorts them, longest first")
    case.exclude("the reference has the longest sample anywhere; ours, like transformers, in the very first place")
    for seed in SEEDS:
        recorded_of = dict(zip(EpochSampler(num_items, seed=seed), drawn, strict=True))
        our_lengths = [lengths[recorded_of[item]] for item in range(num_items)]
        sampler = EpochSampler(num_items, seed=seed, lengths=our_lengths, group_size=group)
        ours = [recorded_of[unpack_key(key, num_items)[1]] for key in sampler]
        case.exact(f"our order, seed {seed}", ours, _longest_first(_sorted_groups(drawn, lengths, group), lengths))
        back = _longest_back(ours, drawn, group)
        dealt = [_dealt(back[start : start + group], lengths, num_ranks) for start in range(0, num_items, group)]
        flat = [item for ranks in dealt for rank in ranks for item in rank]
        case.exact(f"our order dealt out, seed {seed}", flat, case.recorded["out"])


def _dealt(items: Sequence[int], lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """The reference's rule: each sample goes to the rank with the fewest tokens that still has room."""
    if len(items) % num_ranks:
        return [list(items[rank::num_ranks]) for rank in range(num_ranks)]
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    for item in items:
        with_room = [rank for rank in ranks if len(rank) < len(items) // num_ranks]
        min(with_room, key=lambda rank: sum(lengths[other] for other in rank)).append(item)
    return ranks


def _sorted_groups(drawn: Sequence[int], lengths: Sequence[int], group: int) -> list[int]:
    """Each run of `group` samples sorted by length, longest first; ties as drawn."""
    groups = [drawn[start : start + group] for start in range(0, len(drawn), group)]
    return [item for part in groups for item in sorted(part, key=lambda item: -lengths[item])]


def _longest_first(order: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """The first sample and the longest one change places, so that memory runs out at once if it does."""
    swapped = list(order)
    place = max(range(len(swapped)), key=lambda place: lengths[swapped[place]])
    swapped[0], swapped[place] = swapped[place], swapped[0]
    return swapped


def _longest_back(order: Sequence[int], drawn: Sequence[int], group: int) -> list[int]:
    """Undo `_longest_first`: find the place where a sample stands that was drawn for the first group."""
    back = list(order)
    first_group = set(drawn[:group])
    if back[0] not in first_group:
        place = next(place for place in range(group, len(back)) if back[place] in first_group)
        back[0], back[place] = back[place], back[0]
    return back


CHECKS: dict[str, Callable[[Case], None]] = {"collator": check_collator, "sampler": check_sampler}
