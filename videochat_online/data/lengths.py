"""About how many tokens a sample has, without opening its media: for grouping by length, nothing else.

Visual tokens dominate and are counted; where the row does not tell how long a video or how large an image is,
the most that the settings allow is assumed.
"""

from __future__ import annotations

from videochat_online.data.encoding import SampleEncoder
from videochat_online.data.frames import Tiling
from videochat_online.data.records import Sample
from videochat_online.video import choose_tile_grid

CHARACTERS_PER_TOKEN = 4
TOKENS_PER_FRAME_LINE = 12
"""Of `Frame12 at 11.5s: <img></img>`, around the visual tokens."""


def estimate_length(sample: Sample, encoder: SampleEncoder, tiling: Tiling | None = None) -> int:
    """Estimated tokens of a sample's prompt."""
    text = len(sample.query) + sum(len(turn.user) + len(turn.assistant) for turn in sample.turns)
    if sample.kind == "image":
        visual = _image_tokens(sample, encoder, (tiling or encoder.tiling).for_images(len(sample.media)))
    elif sample.kind == "text":
        visual = 0
    else:
        num_frames = _num_frames(sample, encoder)
        visual = sum(encoder.schedule.num_tokens(range(num_frames), encoder.full_grid))
        visual += TOKENS_PER_FRAME_LINE * num_frames
    return min(visual + text // CHARACTERS_PER_TOKEN, encoder.max_length)


def _image_tokens(sample: Sample, encoder: SampleEncoder, tiling: Tiling) -> int:
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
    return num_tiles * encoder.full_grid[0] * encoder.full_grid[1]


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
