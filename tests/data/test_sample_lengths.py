"""No sample has more tokens than is said before its media are opened, and most have just as many."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text_tokenizers import FAMILIES, family_tokenizers
from train_cases import dialogue
from videochat_online.data import FrameSampling, PixelReader, SampleEncoder, Tiling, parse_row
from videochat_online.data.samples import pixel_reader
from videochat_online.data.samples.pixel_reader import SampledClip
from videochat_online.data.samples.sample_lengths import LengthCounter
from videochat_online.data.samples.sample_reader import SetOptions
from videochat_online.data.samples.simulated_memory import SimulatedMemory
from videochat_online.errors import InputError
from videochat_online.memory import TokenSchedule
from videochat_online.text import add_special_tokens, get_template
from videochat_online.video import FrameTransform, choose_tile_grid

SIZE = 28
MEMORIES = {
    "pyramid": {"capacities": (2, 1, 3)},
    "window": {"num_frames": 3},
    "uniform": {"num_frames": 5},
    "fifo": {"capacities": (0, 2, 3)},
    "keep_all": {},
}


class Imagined(PixelReader):
    """Blank pixels of videos and images that are nowhere: the frames and tiles that the real one would read of them."""

    def __init__(self, facts: pixel_reader._Facts, sizes: list[tuple[int, int]]) -> None:
        super().__init__(FrameTransform(size=SIZE))
        self.facts, self.sizes = facts, sizes

    def clip(self, path, sampling, *, fps=None, clip_s=None, rng=None):
        # Frames are chosen as the real reader does, from facts of a file that is not there.
        chosen = pixel_reader._choose(self.facts, sampling, clip_s, rng)
        return SampledClip(blank(len(chosen.indices)), chosen.times_s, self.facts.duration_s)

    def tiles(self, path, tiling):
        if not tiling.dynamic:
            return blank(1)
        limits = {"min_tiles": tiling.min_tiles, "max_tiles": tiling.max_tiles}
        count = math.prod(choose_tile_grid(*self.sizes[int(path.name)], **limits, size=SIZE))
        return blank(count + (tiling.thumbnail and count > 1))


def blank(count: int) -> np.ndarray:
    return np.zeros((count, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return family_tokenizers(tmp_path_factory.mktemp("tokenizers"))


SIDES = st.sampled_from([(28, 28), (300, 60), (50, 400), (640, 480), (1000, 999)])
WORDS = ["the man ", "<img>", "Frame1", " ", "\n", "5.25", "\u4e16\u754c", "?", "x"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=6).map("".join)
FAMILY = st.sampled_from(sorted(FAMILIES))


@st.composite
def imagined(draw: st.DrawFn, kinds: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row of one of these kinds, and changes to an encoder that can read it."""
    kind = draw(st.sampled_from(kinds.split()))
    rate = draw(st.sampled_from(["0.5", "1", "2"]))
    method = draw(st.sampled_from([f"fps{rate}"] * 3 + ["rand", "middle"])) if kind != "clip" else f"fps{rate}"
    fps = draw(st.sampled_from([4.0 * float(rate), 8.0, 25.0, 29.97])) if kind != "folder" else float(rate)
    seconds = draw(st.integers(2, 130))
    turns = draw(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
    row: dict[str, Any] = {}
    texts = [text or "a" for turn in turns for text in turn]
    times: list[float] = []
    sizes = [draw(SIDES) for _ in range(draw(st.integers(1, 3)))]
    if kind == "image":
        row = {"image": [str(number) for number in range(len(sizes))]}
        if draw(st.booleans()):
            row |= {"width": [size[0] for size in sizes], "height": [size[1] for size in sizes]}
    elif kind == "track":
        boxes = [[round(draw(st.floats(0, 1)), 3) for _ in range(4)] for _ in range(draw(st.integers(1, 9)))]
        track = [{"timestamp": 1.3 * place, "bbox": box} for place, box in enumerate(boxes)]
        names = [str(place) for place in range(len(boxes))]
        query = texts[0].replace("<img>", "") + "<bbox>"
        row = {"video": "v", "all_image_files": names, "image_bboxes": track, "query_template": query}
    elif kind != "text":
        row = {"video": "v"}
        start = draw(st.integers(0, seconds * 10 - 10)) / 10
        end = draw(st.integers(int(start * 10) + 5, seconds * 10)) / 10
        if kind == "clip" or draw(st.booleans()):
            row["clip"] = [start, end]
        if kind in ("online", "folder"):
            row["need_reset_timestamp"] = draw(st.booleans())
            lowest, highest = row.get("clip", [0.0, seconds])
            lowest, highest = (0.0, highest - lowest) if row["need_reset_timestamp"] else (lowest, highest)
            times = sorted(round(draw(st.floats(lowest + 0.4, max(lowest + 0.4, highest))), 1) for _ in turns)
    if kind != "track":
        row["conversations"] = dialogue(*texts, times=times)
        if draw(st.booleans()):
            row["conversations"].insert(0, {"from": "system", "value": draw(TEXTS) or "s"})
    facts = pixel_reader._Facts(math.ceil(seconds * fps), fps, 0.0, kind == "folder")
    return row, {
        "reader": Imagined(facts, sizes),
        "sampling": FrameSampling(method=method, max_num_frames=draw(st.sampled_from([1, 8, 64]))),
        "schedule": TokenSchedule(draw(st.sampled_from([(8, 4, 1), (4, 2)]))),
        "tiling": Tiling(dynamic=draw(st.booleans()), max_tiles=draw(st.sampled_from([1, 6, 12]))),
        "max_length": draw(st.sampled_from([100_000, 100_000, 60])),
    }


def sizes(tokenizers: dict[str, Any], family: str, case: tuple[dict[str, Any], dict[str, Any]], memory=None):
    """Estimated, and what two encoded examples of the row have; none where it cannot be used."""
    tokenizer = tokenizers[family]
    add_special_tokens(tokenizer)
    row, changes = case
    fields = {"tokenizer": tokenizer, "template": get_template(FAMILIES[family]), "system_message": None}
    encoder = SampleEncoder(**fields, full_grid=(4, 4), **changes)
    sample, counter, found = parse_row(row, Path("/")), LengthCounter(encoder), []
    try:
        for seed in range(2):
            found.append(encoder.encode(sample, random.Random(seed), SetOptions(memory=memory)))
    except InputError:
        return None, []
    return counter.count([counter.outline(sample, SetOptions(memory=memory))])[0], found


@settings(max_examples=40, deadline=None, derandomize=True)
@given(family=FAMILY, case=imagined("text image clip track online video folder"))
def test_no_sample_is_longer_than_is_said(tokenizers, family, case):
    estimate, examples = sizes(tokenizers, family, case)
    for example in examples:
        assert estimate.tokens >= len(example)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(family=FAMILY, case=imagined("online video folder"), name=st.sampled_from(sorted(MEMORIES)))
def test_nor_is_what_a_memory_leaves(tokenizers, family, case, name):
    case[1]["sampling"] = replace(case[1]["sampling"], max_num_frames=8)
    estimate, examples = sizes(tokenizers, family, case, SimulatedMemory(name, MEMORIES[name]))
    for example in examples:
        assert estimate.tokens >= len(example)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(family=FAMILY, case=imagined("text image clip"))
def test_samples_are_as_long_as_is_said_where_their_rows_tell(tokenizers, family, case):
    row, changes = case
    if "image" in row and "width" not in row:
        changes["tiling"] = Tiling(dynamic=False)
    estimate, examples = sizes(tokenizers, family, case)
    for example in examples:
        assert estimate.tokens == len(example)
        assert estimate.pictures == len(example.pool_ratios)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(family=FAMILY, case=imagined("online"))
def test_online_samples_are_at_most_a_frame_a_token_a_turn_and_digits_longer(tokenizers, family, case):
    row, changes = case
    if not changes["sampling"].method.startswith("fps"):
        return
    estimate, examples = sizes(tokenizers, family, case)
    for example in examples:
        margin = 60 + len(row["conversations"]) + 2 * len(example.pool_ratios)
        assert estimate.tokens <= len(example) + margin


@pytest.mark.parametrize("video_fps", [1.0, 1.3])
@pytest.mark.parametrize("memory", [None, SimulatedMemory("keep_all", {})])
def test_questions_between_two_frames_count_the_one_that_may_come_before_them(tokenizers, video_fps, memory):
    """The frame nearest to the centre of an interval begins up to half of its length before or after it."""
    changes = {
        "reader": Imagined(pixel_reader._Facts(math.ceil(9 * video_fps), video_fps, 0.0, False), []),
        "sampling": FrameSampling(method="fps1", max_num_frames=64),
        "schedule": TokenSchedule((4, 2)),
        "tiling": Tiling(),
        "max_length": 100_000,
    }
    for tenth in range(20, 30, 2):
        row = {"video": "v", "conversations": dialogue("a", "b", "a", "b", times=[tenth / 10, tenth / 10 + 1.5])}
        estimate, examples = sizes(tokenizers, sorted(FAMILIES)[0], (row, changes), memory)
        for example in examples:
            assert estimate.tokens >= len(example)
            assert estimate.pictures >= len(example.pool_ratios)


@pytest.mark.parametrize(("name", "options"), MEMORIES.items())
def test_a_memory_leaves_as_many_frames_as_it_is_said_to_of_any_number(name, options):
    memory, grid, intervals = SimulatedMemory(name, options), (4, 4), (8, 4, 1)
    for num_frames, counts in enumerate(memory.kept_counts(12, grid, intervals), start=1):
        frames, _ = memory.kept_frames(blank(num_frames), range(num_frames), grid, intervals)
        assert counts == (len(frames), sum(frame.num_tokens for frame in frames))
