"""The FIFO pyramid against a slow re-statement and by hand."""

from __future__ import annotations

import random

import pytest
import torch

from videochat_online.memory import FifoMemoryBank, PyramidMemoryBank, pool_to_grid
from videochat_online.memory.pooling import demote_to_grid
from videochat_online.types import FrameTokens


class SlowFifo:
    """Tiers as plain lists of (index, tokens), in the order in which they came."""

    def __init__(self, capacities, grids, intervals, policy):
        self.capacities, self.grids, self.intervals = capacities, grids, intervals
        self.cascades = policy == "paper"
        self.tiers = [[] for _ in capacities]

    def write(self, index, tokens):
        for level, interval in enumerate(self.intervals):
            if index % interval == 0:
                while level < len(self.tiers) and self.capacities[level] == 0:
                    level += 1
                if level < len(self.tiers):
                    self.settle(level, (index, pool_to_grid(tokens, self.grids[level])), goes_on=True)
                return

    def settle(self, level, frame, goes_on):
        tier = self.tiers[level]
        oldest = None
        if len(tier) == self.capacities[level]:
            oldest = min(tier, key=lambda resident: resident[0])
            tier.remove(oldest)
        tier.append(frame)
        if self.cascades:
            tier.sort(key=lambda resident: resident[0])
        if oldest is not None and goes_on:
            index, tokens = oldest
            for lower in range(level + 1, len(self.tiers)):
                tokens = demote_to_grid(tokens, self.grids[lower])
                if self.capacities[lower]:
                    self.settle(lower, (index, tokens), goes_on=self.cascades)
                    return


def stream_case(seed):
    rng = random.Random(seed)
    num_tiers = rng.randint(1, 4)
    capacities = [rng.choice((0, 1, 2, 3, 5)) for _ in range(num_tiers)]
    capacities[rng.randrange(num_tiers)] += 1
    grids = [(rng.randint(3, 9), rng.randint(3, 9))]
    for _ in range(num_tiers - 1):
        grids.append((rng.randint(1, grids[-1][0]), rng.randint(1, grids[-1][1])))
    intervals = tuple(rng.choice((1, 2, 3, 4, 8)) for _ in range(num_tiers))
    stream = torch.randn(rng.randint(20, 60), 3, *grids[0], generator=torch.Generator().manual_seed(seed))
    return tuple(capacities), tuple(grids), intervals, stream


@pytest.mark.parametrize("policy", ["reference", "paper"])
def test_agrees_with_the_slow_restatement(policy):
    num_demoted = 0
    for seed in range(60):
        capacities, grids, intervals, stream_TCHW = stream_case(seed)
        bank = FifoMemoryBank(capacities=capacities, grids=grids, intervals=intervals, policy=policy)
        slow = SlowFifo(capacities, grids, intervals, policy)
        for index, tokens_CHW in enumerate(stream_TCHW):
            bank.write(FrameTokens(tokens_CHW, index, index / 8, index))
            slow.write(index, tokens_CHW)
            expected = [[resident[0] for resident in tier] for tier in slow.tiers]
            assert [list(tier) for tier in bank.tier_indices()] == expected, (seed, index)
        residents = sorted((resident for tier in slow.tiers for resident in tier), key=lambda resident: resident[0])
        memory = bank.read()
        for ours, (index, tokens_CHW) in zip(memory, residents, strict=True):
            assert ours.index == index
            assert torch.equal(ours.tokens_CHW, tokens_CHW)
        num_demoted += sum(frame.content_id < 0 for frame in memory)
    assert num_demoted > 60


def constant(num_frames):
    return torch.ones(num_frames, 2, 4, 4)


def fill(bank, num_frames):
    for index, tokens_CHW in enumerate(constant(num_frames)):
        bank.write(FrameTokens(tokens_CHW, index, float(index), index))
    return [list(tier) for tier in bank.tier_indices()]


def test_the_oldest_leaves_by_hand():
    # Level 0: 0 4 8 12; level 1: 2 6 10 14; level 2: the odd ones.
    bank = FifoMemoryBank(capacities=(2, 2, 2), full_grid=(4, 4), intervals=(4, 2, 1), policy="paper")
    assert fill(bank, 7) == [[0, 4], [2, 6], [3, 5]]
    bank.reset()
    # 8 pushes 0 out, 0 pushes 2 out, and 2 pushes 5 out of [5, 7].
    assert fill(bank, 9) == [[4, 8], [0, 6], [2, 7]]


def test_the_budget_is_the_pyramid_s():
    options = {"capacities": (2, 3, 5), "full_grid": (8, 8)}
    assert FifoMemoryBank(**options).max_tokens == PyramidMemoryBank(**options).max_tokens
