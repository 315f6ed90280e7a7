"""About how many tokens a sample has, without opening its media: for grouping by length and for packing.

Visual tokens dominate and are counted; where the row does not tell how long a video or how large an image is,
the most that the settings allow is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from videochat_online.data.encoding import SampleEncoder
from videochat_online.data.frames import Tiling
from videochat_online.data.layout import last_turns
from videochat_online.data.records import Sample
from videochat_online.data.remembered import THUMBNAIL_SIDE, MemoryLayout
from videochat_online.memory import Grid
from videochat_online.video import choose_tile_grid

CHARACTERS_PER_TOKEN = 4
"""Of texts in letters."""

FIRST_SIGN = "\u2e80"
"""From here on characters are signs: Chinese, Japanese and Korean ones, emoji. Each counts as a token."""

TOKENS_PER_FRAME_LINE = 12
"""Of `Frame12 at 11.5s: <img></img>`, around the visual tokens."""


@dataclass(frozen=True, slots=True)
class EstimatedSample:
    """About what a sample's prompt holds.

    Attributes:
        tokens: all of them.
        visual_tokens: those of pictures among them.
        pictures: frames and tiles.
    """

    tokens: int
    visual_tokens: int = 0
    pictures: int = 0


def estimate_sample(
    sample: Sample, encoder: SampleEncoder, tiling: Tiling | None = None, memory: MemoryLayout | None = None
) -> EstimatedSample:
    """Estimated size of a sample's prompt.

    Args:
        sample: validated.
        encoder: of the run.
        tiling: of the sample's set, instead of the run's.
        memory: shows of a video what it would hold at the last question, which alone is kept.
    """
    turns = sample.turns
    if memory is not None:
        turns = last_turns(turns)
    text = _text_tokens("".join([sample.query, *(turn.user + turn.assistant for turn in turns)]))
    pictures = visual = lines = 0
    if sample.kind == "image":
        pictures = _num_tiles(sample, encoder, (tiling or encoder.tiling).for_images(len(sample.media)))
        visual = pictures * encoder.full_grid[0] * encoder.full_grid[1]
    elif sample.kind != "text":
        pictures = _num_frames(sample, encoder)
        if memory is None:
            visual = sum(encoder.schedule.num_tokens(range(pictures), encoder.full_grid))
        else:
            pictures, visual = _held(memory, pictures, encoder.full_grid, encoder.schedule.intervals)
        lines = TOKENS_PER_FRAME_LINE * pictures
    return EstimatedSample(min(visual + lines + text, encoder.max_length), visual, pictures)


def _text_tokens(text: str) -> int:
    num_signs = 0 if text.isascii() else sum(character >= FIRST_SIGN for character in text)
    return num_signs + (len(text) - num_signs) // CHARACTERS_PER_TOKEN


@lru_cache(maxsize=4096)
def _held(memory: MemoryLayout, num_frames: int, full_grid: Grid, intervals: tuple[int, ...]) -> tuple[int, int]:
    """Frames that are left of so many, and their tokens: the most where what they show has a say."""
    blank_TSSC = np.zeros((num_frames, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3), dtype=np.uint8)
    left = memory.remembered(blank_TSSC, range(num_frames), full_grid, intervals)
    return len(left), sum(frame.num_tokens for frame in left)


def _num_tiles(sample: Sample, encoder: SampleEncoder, tiling: Tiling) -> int:
    num_tiles = 0
    for place in range(len(sample.media)):
        if not tiling.dynamic:
            num_tiles += 1
            continue
        count = tiling.max_tiles
        if sample.sizes:
            columns, rows = choose_tile_grid(
                *sample.sizes[place],
                min_tiles=tiling.min_tiles,
                max_tiles=tiling.max_tiles,
                size=encoder.reader.transform.size,
            )
            count = columns * rows
        num_tiles += count + (1 if tiling.thumbnail and count > 1 else 0)
    return num_tiles


def _num_frames(sample: Sample, encoder: SampleEncoder) -> int:
    limit = encoder.sampling.max_num_frames
    if sample.kind == "tracking":
        return min(len(sample.media), limit)
    ends = [] if sample.clip_s is None else [sample.clip_s[1] - sample.clip_s[0]]
    last_s = sample.turns[-1].time_s
    if last_s is not None:
        start_s = 0.0 if sample.clip_s is None or sample.reset_times else sample.clip_s[0]
        ends.append(last_s - start_s)
    if not ends or not encoder.sampling.method.startswith("fps"):
        return limit
    rate = float(encoder.sampling.method.removeprefix("fps"))
    return max(1, min(int(min(ends) * rate), limit))
