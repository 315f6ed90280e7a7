"""Token merging, similarity drop and event merging against slow re-statements and by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from videochat_online.errors import InputError
from videochat_online.memory import make_memory
from videochat_online.memory.event_merging import EventMergingMemoryBank
from videochat_online.memory.similarity_drop import SimilarityDropMemoryBank
from videochat_online.memory.token_merging import TokenMergingMemoryBank
from videochat_online.types import FrameTokens

GRID = (4, 4)
SEEDS = range(12)


def stream_of(seed, num_frames=40, channels=6):
    """A wandering scene with cuts and repeated frames: features [T, C, H, W], times in seconds that may stand still."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    frames, times, time_s = [], [], 0.0
    scene = torch.randn(channels, *GRID, generator=generator)
    for _ in range(num_frames):
        if rng.random() < 0.15:
            scene = torch.randn(channels, *GRID, generator=generator)
        if rng.random() < 0.8:
            scene = scene + 0.3 * torch.randn(channels, *GRID, generator=generator)
        frames.append(scene)
        time_s += rng.choice((0.0, 0.5, 2.0))
        times.append(time_s)
    return torch.stack(frames), times


def write(bank, stream_TCHW, times):
    for index, (tokens_CHW, time_s) in enumerate(zip(stream_TCHW, times, strict=True)):
        bank.write(FrameTokens(tokens_CHW, index, time_s, index))
        yield index


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def mean_of(tokens):
    return tokens.reshape(len(tokens), -1).mean(axis=1)


def halved(tokens):
    channels, rows, columns = tokens.shape
    return tokens.reshape(channels, rows // 2, 2, columns // 2, 2).mean(axis=(2, 4))


def assert_holds(memory, expected):
    """`expected`: (index, tokens) of each frame, in time order."""
    assert [frame.index for frame in memory] == [index for index, _ in expected]
    for frame, (_, tokens) in zip(memory, expected, strict=True):
        np.testing.assert_allclose(frame.tokens_CHW.numpy(), tokens, atol=1e-5)


@pytest.mark.parametrize("num_frames", [1, 2, 7])
def test_token_merging_agrees_with_its_restatement(num_frames):
    for seed in SEEDS:
        stream_TCHW, times = stream_of(seed)
        bank = TokenMergingMemoryBank(num_frames=num_frames, full_grid=GRID)
        members = []  # lists of indices: an average is the average of all its members, whatever the order of merging
        pooled = [halved(frame) for frame in stream_TCHW.double().numpy()]
        for index in write(bank, stream_TCHW, times):
            members.append([index])
            if len(members) > num_frames:
                averages = [mean_of(np.mean([pooled[i] for i in group], axis=0)) for group in members]
                pairs = list(zip(averages, averages[1:], strict=False))
                best = max(range(len(pairs)), key=lambda place, pairs=pairs: round(cosine(*pairs[place]), 6))
                members[best : best + 2] = [members[best] + members[best + 1]]
            expected = [(group[-1], np.mean([pooled[i] for i in group], axis=0)) for group in members]
            assert_holds(bank.read(), expected)


def test_equal_frames_merge_from_the_oldest_on():
    bank = TokenMergingMemoryBank(num_frames=3, full_grid=GRID)
    still = stream_of(0)[0][:1].expand(9, -1, -1, -1)
    for _ in write(bank, still, range(9)):
        pass
    assert [frame.index for frame in bank.read()] == [6, 7, 8]
    assert bank.stores[0].numbers == [7, 1, 1]
    assert torch.equal(bank.read()[0].tokens_CHW, bank.read()[2].tokens_CHW)


@pytest.mark.parametrize("threshold", [-1.0, 0.3, 0.9, 1.0])
def test_similarity_drop_agrees_with_its_restatement(threshold):
    num_dropped = 0
    for seed in SEEDS:
        stream_TCHW, times = stream_of(seed)
        bank = SimilarityDropMemoryBank(num_frames=5, threshold=threshold, full_grid=GRID)
        kept = []
        for index in write(bank, stream_TCHW, times):
            frame = stream_TCHW[index].double().numpy()
            if kept:
                last = kept[-1][1]
                similarities = [
                    cosine(frame[:, row, column], last[:, row, column])
                    for row in range(GRID[0])
                    for column in range(GRID[1])
                ]
                # A repeated frame is exactly as similar as can be, up to rounding.
                repeats = np.array_equal(frame, last)
                if np.mean(similarities) > threshold and not (repeats and threshold == 1):
                    num_dropped += 1
                    continue
                if repeats and threshold == 1:
                    kept = [(f.index, f.tokens_CHW.double().numpy()) for f in bank.read()]
                    continue
            kept.append((index, frame))
            del kept[:-5]
            assert_holds(bank.read(), kept)
    assert (num_dropped > 0) == (threshold < 1)


def test_slow_changes_add_up():
    angles = torch.linspace(0, 3.1, 63)
    stream_TCHW = torch.stack([angles.cos(), angles.sin()], dim=1)[:, :, None, None].expand(-1, -1, *GRID)
    bank = SimilarityDropMemoryBank(num_frames=99, threshold=float(torch.tensor(0.28).cos()), full_grid=GRID)
    for _ in write(bank, stream_TCHW, range(63)):
        pass
    # 0.05 a frame: the sixth frame on is the first one that is 0.28 away.
    assert [frame.index for frame in bank.read()] == list(range(0, 63, 6))


@pytest.mark.parametrize(("recent", "events", "weights"), [(1, 1, (1, 1, 1)), (2, 4, (1, 0, 0)), (3, 5, (1, 2, 0.5))])
def test_event_merging_agrees_with_its_restatement(recent, events, weights):
    for seed in SEEDS:
        stream_TCHW, times = stream_of(seed)
        bank = EventMergingMemoryBank(
            recent_frames=recent, event_frames=events, penalty_weights=weights, full_grid=GRID
        )
        frames = stream_TCHW.double().numpy()
        small = [halved(frame) for frame in frames]
        nodes = []
        for index in write(bank, stream_TCHW, times):
            past = index - recent
            if past >= 0:
                nodes.append([past])
            if len(nodes) > events:
                best = best_merge(nodes, small, times, weights)
                nodes[best : best + 2] = [nodes[best] + nodes[best + 1]]
            expected = [(node[-1], np.mean([small[i] for i in node], axis=0)) for node in nodes]
            expected += [(i, frames[i]) for i in range(max(0, past + 1), index + 1)]
            assert_holds(bank.read(), expected)


def best_merge(nodes, small, times, weights):
    means = [mean_of(np.mean([small[i] for i in node], axis=0)) for node in nodes]
    now, oldest = times[nodes[-1][-1]], times[nodes[0][-1]]
    penalties = []
    for place in range(len(nodes) - 1):
        unlike = (1 - round(cosine(means[place], means[place + 1]), 6)) / 2
        size = (len(nodes[place]) + len(nodes[place + 1])) / sum(map(len, nodes))
        age = 0 if now == oldest else (now - times[nodes[place + 1][-1]]) / (now - oldest)
        penalties.append(weights[0] * unlike + weights[1] * size + weights[2] * (1 - age))
    return penalties.index(min(penalties))


def test_each_penalty_does_its_part():
    # Nodes 0 to 3 of three directions; 1 and 2 are alike. Frame 5 brings one node too many, frame 5 itself is recent.
    directions = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]])
    stream_TCHW = directions[:, :, None, None].expand(-1, -1, *GRID)

    def indices(weights):
        bank = EventMergingMemoryBank(event_frames=4, penalty_weights=weights, full_grid=GRID)
        for _ in write(bank, stream_TCHW, range(6)):
            pass
        return [frame.index for frame in bank.read()]

    assert indices((1, 0, 0)) == [0, 2, 3, 4, 5]
    assert indices((0, 0, 1)) == [1, 2, 3, 4, 5]  # what is long ago
    assert indices((0, 1, 0)) == [1, 2, 3, 4, 5]  # all are of one size: the earliest


def test_sizes_keep_events_from_growing():
    def sizes(weights):
        bank = EventMergingMemoryBank(event_frames=4, penalty_weights=weights, full_grid=GRID)
        for _ in write(bank, torch.ones(33, 2, *GRID), range(33)):
            pass
        return bank.stores[1].numbers

    assert sizes((1, 0, 0)) == [29, 1, 1, 1]
    assert max(sizes((1, 1, 0))) <= 16


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("token_merging", {"grid": (0, 1)}, "grid: expected 2 whole numbers of at least 1, got"),
        ("similarity_drop", {"threshold": -1.5}, "threshold of .*: expected a number from -1 to 1, got -1.5"),
        ("event_merging", {"penalty_weights": (1, 1)}, r"penalty_weights of .* expected 3 numbers .* got \(1, 1\)"),
        ("event_merging", {"grid": (32, 32)}, r"expected at most \(16, 16\), got \(32, 32\)"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(InputError, match=message):
        make_memory(name, **options)


def test_a_bfloat16_average_is_rounded_once():
    bank = TokenMergingMemoryBank(num_frames=1, full_grid=GRID)
    stream_TCHW = stream_of(3)[0][:2].bfloat16()
    for _ in write(bank, stream_TCHW, range(2)):
        pass
    # Whole rows and columns of two pool to a frame in bf16 first.
    pooled = torch.nn.functional.adaptive_avg_pool2d(stream_TCHW, (2, 2)).float()
    assert torch.equal(bank.read()[0].tokens_CHW, pooled.mean(0).bfloat16())
