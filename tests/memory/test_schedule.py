"""The token schedule, and pooling by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from videochat_online.errors import InputError
from videochat_online.memory import KeepAllMemoryBank, TokenSchedule, pool_by_ratio, pool_to_grid
from videochat_online.memory.pooling import demote_to_grid
from videochat_online.types import FrameTokens

FIGURES = json.loads((Path(__file__).parents[1] / "figures" / "memory.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", FIGURES["schedules"], ids=lambda row: str(row["intervals"]))
def test_ratios_match_the_reference(row):
    schedule = TokenSchedule(tuple(row["intervals"]))
    ratios = [schedule.ratio(index) for index in range(row["T"])]
    assert [ratio for ratio in ratios if ratio is not None] == row["out"]


def test_default_levels_grids_and_token_counts():
    schedule = TokenSchedule()
    assert [schedule.level(index) for index in range(9)] == [0, 2, 2, 2, 1, 2, 2, 2, 0]
    assert schedule.grids() == ((16, 16), (8, 8), (4, 4))
    assert schedule.num_tokens(range(99_999, 100_002)) == [16, 256, 16]


def test_skipped_frame_has_no_level_and_no_tokens():
    schedule = TokenSchedule((8, 4, 2))
    assert [schedule.level(index) for index in (0, 1, 2, 3, 4)] == [0, None, 2, None, 1]
    assert schedule.ratio(3) is None
    assert schedule.num_tokens([3, 4]) == [0, 64]


def test_schedule_accepts_a_list_and_stays_hashable():
    assert hash(TokenSchedule([4, 1])) == hash(TokenSchedule((4, 1)))


@pytest.mark.parametrize("intervals", [(), (8, 0), (8, -1), (8, 1.0), (True,), ("8",)])
def test_bad_intervals_are_named(intervals):
    with pytest.raises(InputError, match="intervals: expected a list of whole numbers of at least 1") as caught:
        TokenSchedule(intervals)
    assert str(intervals) in str(caught.value)


def test_bad_index_and_grids_are_named():
    with pytest.raises(InputError, match="got -3"):
        TokenSchedule().level(-3)
    with pytest.raises(InputError, match="3x16 cannot be halved 2 times"):
        TokenSchedule().grids((3, 16))
    with pytest.raises(InputError, match=r"full_grid: expected 2 whole numbers of at least 1, got \(16,\)"):
        TokenSchedule().grids((16,))


def test_pooling_averages_and_demotion_interpolates():
    tokens_CHW = torch.arange(16.0).view(1, 4, 4)
    halved = torch.tensor([[[2.5, 4.5], [10.5, 12.5]]])
    assert torch.equal(pool_to_grid(tokens_CHW, (2, 2)), halved)
    assert torch.equal(demote_to_grid(tokens_CHW, (2, 2)), halved)
    # To a quarter: the mean of all against the mean of the central four, here made different.
    tokens_CHW[0, 0, 0] = 16.0
    assert pool_to_grid(tokens_CHW, (1, 1)).item() == 8.5
    assert demote_to_grid(tokens_CHW, (1, 1)).item() == 7.5


def test_pooling_cannot_enlarge():
    with pytest.raises(InputError, match="2x4 tokens is too small: its grid is 4x4"):
        pool_to_grid(torch.zeros(3, 2, 4), (4, 4))


@pytest.mark.parametrize(("intervals", "full_grid"), [((8, 4, 1), (16, 16)), ((4, 2), (6, 10)), ((1,), (4, 4))])
def test_training_pools_as_streaming_does(intervals, full_grid):
    schedule = TokenSchedule(intervals)
    features_TCHW = torch.randn(21, 6, *full_grid, generator=torch.Generator().manual_seed(0))
    first = 13
    bank = KeepAllMemoryBank(full_grid=full_grid, intervals=intervals)
    for offset, tokens_CHW in enumerate(features_TCHW):
        bank.write(FrameTokens(tokens_CHW, first + offset, float(offset), offset))
    streamed = {frame.index: frame.tokens_CHW for frame in bank.read()}

    kept = [offset for offset in range(21) if schedule.level(first + offset) is not None]
    assert [first + offset for offset in kept] == list(streamed)
    pooled = pool_by_ratio(features_TCHW[kept], [schedule.ratio(first + offset) for offset in kept])
    assert torch.equal(pooled, torch.cat([tokens_CHW.flatten(1).T for tokens_CHW in streamed.values()]))


def test_training_pools_once_per_ratio_and_keeps_gradients(monkeypatch):
    calls = []
    original = torch.nn.functional.adaptive_avg_pool2d

    def counted(tokens, grid):
        calls.append(tuple(tokens.shape))
        return original(tokens, grid)

    monkeypatch.setattr(torch.nn.functional, "adaptive_avg_pool2d", counted)
    features_TCHW = torch.randn(32, 3, 8, 8, requires_grad=True)
    # Two samples of 16 frames in one batch: each counts from its own start.
    schedule = TokenSchedule((8, 4, 1))
    pooled = pool_by_ratio(features_TCHW, [schedule.ratio(index) for index in (*range(16), *range(16))])
    assert sorted(calls) == [(4, 3, 8, 8), (24, 3, 8, 8)]
    assert pooled.shape == (2 * (2 * 64 + 2 * 16 + 12 * 4), 3)
    pooled.sum().backward()
    # Each pooled token spreads its gradient over the tokens it averages.
    per_frame = features_TCHW.grad.sum(dim=(1, 2, 3))
    assert torch.allclose(per_frame[:5], torch.tensor([192.0, 12.0, 12.0, 12.0, 48.0]))


def test_pooling_by_ratio_checks_counts():
    with pytest.raises(InputError, match="2 frames of features but 3 ratios"):
        pool_by_ratio(torch.zeros(2, 3, 4, 4), [1, 1, 1])
