"""The memories that a better one is measured against: window, uniform, keep-all."""

from __future__ import annotations

import pytest
import torch

from videochat_online.errors import InputError
from videochat_online.memory import KeepAllMemoryBank, UniformMemoryBank, WindowMemoryBank
from videochat_online.types import FrameTokens

GRID = (8, 8)
NUM_FRAMES = 150


@pytest.fixture(scope="module", name="features_TCHW")
def make_features():
    return torch.randn(NUM_FRAMES, 3, *GRID, generator=torch.Generator().manual_seed(1))


def push(bank, features_TCHW, start=0, stop=NUM_FRAMES):
    for index in range(start, stop):
        bank.write(FrameTokens(features_TCHW[index], index, index / 8, index))


def test_window_keeps_the_newest(features_TCHW):
    bank = WindowMemoryBank(num_frames=4, full_grid=GRID)
    push(bank, features_TCHW, 0, 23)
    assert [frame.index for frame in bank.read()] == [19, 20, 21, 22]
    assert torch.equal(bank.read()[0].tokens_CHW, features_TCHW[19])
    assert WindowMemoryBank().max_tokens == 4 * 256


def test_one_frame_has_no_spacing():
    with pytest.raises(
        InputError, match="num_frames of memory 'uniform': expected a whole number of at least 2, got 1"
    ):
        UniformMemoryBank(num_frames=1)


@pytest.mark.parametrize("num_frames", [2, 3, 5, 8, 16])
def test_uniform_spacing(features_TCHW, num_frames):
    bank = UniformMemoryBank(num_frames=num_frames, full_grid=GRID)
    for newest in range(NUM_FRAMES):
        push(bank, features_TCHW, newest, newest + 1)
        # The smallest power of two whose multiples before the newest frame leave it a place.
        stride = 1
        while len(range(0, newest, stride)) > num_frames - 1:
            stride *= 2
        indices = [frame.index for frame in bank.read()]
        assert indices == [*range(0, newest, stride), newest]
        assert len(indices) <= num_frames
        if newest + 1 >= num_frames:
            assert len(indices) > num_frames / 2
    with pytest.raises(InputError, match="at least 2, got 1"):
        UniformMemoryBank(num_frames=1)


def test_keep_all_keeps_all(features_TCHW):
    bank = KeepAllMemoryBank(full_grid=GRID)
    push(bank, features_TCHW)
    assert [frame.num_tokens for frame in bank.read()] == [
        {0: 64, 4: 16}.get(index % 8, 4) for index in range(NUM_FRAMES)
    ]
    full = KeepAllMemoryBank(full_grid=GRID, intervals=(1,))
    push(full, features_TCHW)
    assert all(torch.equal(f.tokens_CHW, features_TCHW[f.index]) for f in full.read())
    assert len(full.read()) == NUM_FRAMES


@pytest.mark.parametrize(("written", "stride"), [(30, 0), (30, -8), (30, 6), (30, 4), (30, 16), (0, 8), (300, 8)])
def test_a_stride_that_no_stream_leads_to_is_refused(features_TCHW, written, stride):
    bank = UniformMemoryBank(num_frames=5, full_grid=GRID)
    push(bank, features_TCHW, 0, 30)
    state = bank.state_dict()
    assert state["counters"][2:].tolist() == [30, 8]
    state["counters"][2:] = torch.tensor([written, stride])
    with pytest.raises(InputError, match=rf"cannot be every {stride}-th of {written} and the newest"):
        bank.load_state_dict(state)
    push(bank, features_TCHW, 30, 60)
