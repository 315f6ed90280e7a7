"""STAR against a slow re-statement, and what it promises beyond the contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from videochat_online.errors import InputError
from videochat_online.memory.star import StarMemoryBank
from videochat_online.types import FrameTokens

GRID = (4, 4)


def stream_of(seed, num_frames=40, channels=5):
    """Scenes that come back, some frames repeated."""
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.randn(6, channels, 1, 1, generator=generator).expand(-1, -1, *GRID)
    order = torch.randint(6, (num_frames,), generator=generator)
    frames = scenes[order] + 0.2 * torch.randn(num_frames, channels, *GRID, generator=generator)
    frames[7] = frames[6]
    return frames


def write(bank, stream_TCHW):
    for index, tokens_CHW in enumerate(stream_TCHW):
        bank.write(FrameTokens(tokens_CHW, index, index / 2, index))
        yield index


def pooled(frame, rows):
    size = frame.shape[1] // rows
    return frame.reshape(len(frame), rows, size, rows, size).mean(axis=(2, 4))


class SlowStar:
    """Clusters as lists of members; everything is computed again from them."""

    def __init__(self, frames, num_newest, num_keys, num_clusters, decay):
        self.frames = frames
        self.means = frames.mean(axis=(2, 3))
        self.num_newest, self.num_keys, self.num_clusters, self.decay = num_newest, num_keys, num_clusters, decay
        self.clusters = []  # (members, key), in the order of their newest members
        self.abstract = None

    def write(self, index):
        past = index - self.num_newest
        if past >= 1:
            self.clusters.append(([past - 1], past - 1))
        if past >= 0:
            small = pooled(self.frames[past], 1)
            self.abstract = small if past == 0 else self.decay * self.abstract + (1 - self.decay) * small
        if len(self.clusters) > self.num_clusters:
            self.merge()

    def merge(self):
        pairs = [(a, b) for a in range(len(self.clusters)) for b in range(a + 1, len(self.clusters))]
        a, b = min(pairs, key=lambda pair: (round(self.added_error(*pair), 7), pair))
        (old, old_key), (new, new_key) = self.clusters[a], self.clusters[b]
        centroid = self.means[old + new].mean(axis=0)
        away = [float(np.sum((self.means[key] - centroid) ** 2)) for key in (old_key, new_key)]
        key = old_key if away[0] < 0.999 * away[1] else new_key
        self.clusters[b] = (old + new, key)
        del self.clusters[a]

    def added_error(self, a, b):
        def error(members):
            points = self.means[members]
            return float(np.sum((points - points.mean(axis=0)) ** 2))

        (old, _), (new, _) = self.clusters[a], self.clusters[b]
        return error(old + new) - error(old) - error(new)

    def read(self, index):
        heaviest = sorted(self.clusters, key=lambda cluster: (-len(cluster[0]), -max(cluster[0])))[: self.num_keys]
        shown = [(i, self.frames[i]) for i in range(max(0, index - self.num_newest + 1), index + 1)]
        if self.abstract is not None:
            shown.append((index - self.num_newest, self.abstract))
        for members, key in self.clusters:
            if (members, key) in heaviest:
                shown.append((key, self.frames[key]))
            else:
                shown.append((max(members), np.mean([pooled(self.frames[i], 2) for i in members], axis=0)))
        return sorted(shown, key=lambda frame: frame[0])


@pytest.mark.parametrize(("newest", "keys", "clusters"), [(1, 3, 5), (2, 0, 4), (1, 1, 1), (3, 4, 4), (2, 3, 25)])
def test_agrees_with_its_restatement(newest, keys, clusters):
    num_replaced = 0
    for seed in range(3):
        stream_TCHW = stream_of(seed)
        bank = StarMemoryBank(
            newest_frames=newest, key_frames=keys, cluster_frames=clusters, abstract_decay=0.8, full_grid=GRID
        )
        slow = SlowStar(stream_TCHW.double().numpy(), newest, keys, clusters, 0.8)
        for index in write(bank, stream_TCHW):
            slow.write(index)
            memory, expected = bank.read(), slow.read(index)
            assert [frame.index for frame in memory] == [i for i, _ in expected], (seed, index)
            for frame, (_, tokens) in zip(memory, expected, strict=True):
                np.testing.assert_allclose(frame.tokens_CHW.numpy(), tokens, atol=1e-5)
        num_replaced += sum(key != max(members) for members, key in slow.clusters)
    assert num_replaced > 0 or clusters == 25


def test_budget():
    assert StarMemoryBank().max_tokens == (1 + 3) * 256 + (25 - 3) * 64 + 16
    assert StarMemoryBank(key_frames=0, cluster_frames=2, full_grid=(4, 4)).max_tokens == 16 + 2 * 4 + 1


def test_the_heaviest_cluster_is_shown_in_full():
    directions = torch.eye(3)[[0, 1, 1, 1, 2, 0, 0, 2]]
    stream_TCHW = directions[:, :, None, None].expand(-1, -1, *GRID) + torch.arange(8)[:, None, None, None] / 100
    bank = StarMemoryBank(newest_frames=1, key_frames=1, cluster_frames=3, full_grid=GRID)
    for _ in write(bank, stream_TCHW):
        pass
    # Clusters {0, 5}, {1, 2, 3}, {4}, with 2 in the middle of its own.
    # Frame 6 is on its way and gives the abstract its index, 7 is the newest.
    assert [(frame.index, frame.num_tokens) for frame in bank.read()] == [(2, 16), (4, 4), (5, 4), (6, 1), (7, 16)]
    assert torch.equal(bank.read()[0].tokens_CHW, stream_TCHW[2])
    assert [frame.content_id >= 0 for frame in bank.read()] == [True, False, False, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cluster_frames": 2}, "at most one for each of the 2 clusters, got 3"),
        ({"grids": ((4, 4), (8, 8), (1, 1))}, "grids of a star memory: expected them from the largest to the smallest"),
        ({"grids": ((4, 4), (2, 2))}, "expected three"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        StarMemoryBank(**options)


def test_a_state_without_a_key_frame_for_each_cluster_is_refused():
    bank = StarMemoryBank(full_grid=GRID)
    for _ in write(bank, stream_of(0)):
        pass
    state = bank.state_dict()
    for key in ("tokens", "index", "time_s", "content_id", "number"):
        state[f"tier3.{key}"] = state[f"tier3.{key}"][1:]
    with pytest.raises(InputError, match="expected a key frame for each cluster, got 24 for 25"):
        bank.load_state_dict(state)
