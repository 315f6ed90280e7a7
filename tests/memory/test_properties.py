"""Random options, long streams: budget and order hold, and a saved memory goes on as if nothing had happened."""

from __future__ import annotations

import random

import pytest
import torch

from videochat_online.memory import MEMORIES, QuestionAware, make_memory
from videochat_online.types import FrameTokens

GRID = (4, 4)
NUM_FRAMES = 160
"""Ten times and more what the largest of the random memories holds."""


def random_options(name, rng):
    if name in ("pyramid", "fifo"):
        return {"capacities": tuple(rng.randint(0, 4) for _ in range(2)) + (rng.randint(1, 9),)}
    if name in ("moviechat", "moviechat_plus"):
        sizes = {key: rng.randint(1, 9) for key in ("short_frames", "long_frames", "merged_frames")}
        return {**sizes, "reading": rng.choice(("global", "breakpoint"))}
    if name == "star":
        clusters = rng.randint(1, 9)
        return {"newest_frames": rng.randint(1, 4), "cluster_frames": clusters, "key_frames": rng.randint(0, clusters)}
    if name == "event_merging":
        weights = tuple(rng.choice((0, 0.5, 1)) for _ in range(3))
        return {"recent_frames": rng.randint(1, 4), "event_frames": rng.randint(1, 9), "penalty_weights": weights}
    if name == "similarity_drop":
        return {"num_frames": rng.randint(1, 9), "threshold": rng.uniform(-1, 1)}
    return {"num_frames": rng.randint(2, 9)}


def frame_at(stream_TCHW, index):
    return FrameTokens(stream_TCHW[index % len(stream_TCHW)], index, index // 3, index)


def read(bank, query):
    """By a question, where there is one and the memory knows of questions."""
    if query is None or not isinstance(bank, QuestionAware):
        return bank.read()
    return bank.read_for(query, lambda frame: frame.tokens_CHW.flatten(1).T)


def described(memory):
    return [(f.index, f.time_s, f.content_id, f.tokens_CHW.flatten().tolist()) for f in memory]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", sorted(set(MEMORIES.built_in) - {"keep_all"}))
def test_bounds_and_continuation(name, seed):
    rng = random.Random(f"{name} {seed}")
    options = {"full_grid": GRID, **random_options(name, rng)}
    bank, restored = make_memory(name, **options), make_memory(name, **options)
    stream_TCHW = torch.randn(61, 3, *GRID, generator=torch.Generator().manual_seed(seed))
    query = torch.randn(3, generator=torch.Generator().manual_seed(seed))
    saved_at = rng.randrange(NUM_FRAMES)
    for index in range(NUM_FRAMES):
        bank.write(frame_at(stream_TCHW, index))
        if index > saved_at:
            restored.write(frame_at(stream_TCHW, index))
        memory = read(bank, query if index % 2 else None)
        assert sum(frame.num_tokens for frame in memory) <= bank.max_tokens, options
        indices = [frame.index for frame in memory]
        assert indices == sorted(set(indices))
        assert len({frame.content_id for frame in memory}) == len(memory)
        if index == saved_at:
            restored.load_state_dict(bank.state_dict())
        if index >= saved_at and index % 10 == 0:
            assert described(restored.read()) == described(bank.read()), (options, index)
    assert described(read(restored, query)) == described(read(bank, query))
    ours, theirs = bank.state_dict(), restored.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
