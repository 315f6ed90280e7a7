"""The Pyramid Memory Bank: its two policies against a slow re-statement, the reference, and by hand."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest
import torch

from videochat_online.errors import InputError
from videochat_online.memory import PyramidMemoryBank
from videochat_online.memory import pyramid as pyramid_module
from videochat_online.types import FrameTokens

ROOT = Path(__file__).resolve().parents[2]
FIGURES = json.loads((ROOT / "tests/figures/memory.json").read_text(encoding="utf-8"))
NUM_RANDOM_STREAMS = 120


def load_slow_pyramid():
    """The golden checks use the same re-statement; scripts/ is no installed package."""
    path = ROOT / "scripts" / "golden" / "slow_pyramid.py"
    spec = importlib.util.spec_from_file_location("slow_pyramid", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SlowPyramid = load_slow_pyramid().SlowPyramid


def write(bank, index, tokens_CHW):
    bank.write(FrameTokens(tokens_CHW, index, index / 8, index))


def tiers(bank):
    return [list(tier) for tier in bank.tier_indices()]


def random_case(seed):
    """Options of a bank and a stream for it: any tiers, grids, intervals; capacities 0 and 1 are common."""
    rng = random.Random(seed)
    num_tiers = rng.randint(1, 4)
    capacities = [rng.choice((0, 1, 1, 2, 3, 5)) for _ in range(num_tiers)]
    if not any(capacities):
        capacities[rng.randrange(num_tiers)] = 2
    grids = [(rng.randint(3, 9), rng.randint(3, 9))]
    for _ in range(num_tiers - 1):
        grids.append((rng.randint(1, grids[-1][0]), rng.randint(1, grids[-1][1])))
    intervals = [rng.choice((1, 2, 3, 4, 8)) for _ in range(num_tiers)]
    generator = torch.Generator().manual_seed(seed)
    stream_TCHW = torch.randn(rng.randint(20, 60), 6, *grids[0], generator=generator)
    if rng.random() < 0.5:
        # A scene that drifts: the similarity of neighbours carries information.
        stream_TCHW = stream_TCHW.cumsum(0)
    return tuple(capacities), tuple(grids), tuple(intervals), stream_TCHW


@pytest.mark.parametrize("policy", ["reference", "paper"])
def test_agrees_with_the_slow_restatement_on_random_streams(policy):
    num_evicting = 0
    for seed in range(NUM_RANDOM_STREAMS):
        capacities, grids, intervals, stream_TCHW = random_case(seed)
        bank = PyramidMemoryBank(capacities=capacities, grids=grids, intervals=intervals, policy=policy)
        slow = SlowPyramid(capacities, grids, intervals, policy)
        for index, tokens_CHW in enumerate(stream_TCHW):
            write(bank, index, tokens_CHW)
            slow.write(index, tokens_CHW.double().numpy())
            assert tiers(bank) == slow.indices(), (seed, index, capacities, grids, intervals)
        memory = bank.read()
        for ours, theirs in zip(memory, slow.read(), strict=True):
            assert ours.index == theirs.index
            torch.testing.assert_close(ours.tokens_CHW.double(), torch.from_numpy(theirs.tokens), atol=1e-5, rtol=1e-5)
        num_evicting += bool(slow.gaps)
        # Otherwise fp32 and float64 may part, and the case says nothing.
        assert all(gap > 1e-6 for _, gap in slow.gaps), seed
    assert num_evicting > NUM_RANDOM_STREAMS / 3


@pytest.mark.parametrize("figure", FIGURES["banks"], ids=lambda figure: figure["case"])
def test_survivors_match_the_reference(figure):
    bank = PyramidMemoryBank(capacities=figure["capacities"])
    for index, mean in enumerate(figure["frame_means"]):
        write(bank, index, torch.tensor(mean).view(-1, 1, 1).expand(-1, 16, 16))
    assert tiers(bank) == figure["tiers_at_end"]
    assert [frame.num_tokens for frame in bank.read()] == figure["tokens_per_frame"]


def directions(*degrees):
    """Frames [2, 4, 4] whose mean tokens point in these directions."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
    return torch.stack([angles.cos(), angles.sin()], 1).view(-1, 2, 1, 1).expand(-1, -1, 4, 4)


def fill(bank, *degrees):
    for index, tokens_CHW in enumerate(directions(*degrees)):
        write(bank, index, tokens_CHW)


@pytest.mark.parametrize("policy", ["reference", "paper"])
def test_the_earlier_of_the_most_similar_pair_leaves_and_the_newcomer_never_does(policy):
    bank = PyramidMemoryBank(capacities=(3, 9), full_grid=(4, 4), intervals=(1, 1), policy=policy)
    # 1 and 2 are closest; 3 equals 2, but is new.
    fill(bank, 0, 40, 50, 50)
    assert tiers(bank) == [[0, 2, 3], [1]]


def test_the_first_pair_leaves_on_a_tie():
    bank = PyramidMemoryBank(capacities=(4,), full_grid=(4, 4), intervals=(1,))
    fill(bank, 7, 7, 7, 7, 90)
    assert tiers(bank) == [[1, 2, 3, 4]]


def test_the_reference_drops_a_displaced_frame_and_the_paper_cascades():
    degrees = (0, 1, 90, 120)
    for policy, expected in (("reference", [[2, 3], [1], []]), ("paper", [[2, 3], [1], [0]])):
        bank = PyramidMemoryBank(capacities=(2, 1, 3), full_grid=(4, 4), intervals=(1, 1, 1), policy=policy)
        fill(bank, *degrees)
        assert tiers(bank) == expected


def test_the_reference_appends_a_demoted_frame_and_the_paper_keeps_time_order():
    # Frames 0 and 3 enter the first tier, the rest the second; 0 is demoted when 6 comes.
    for policy, expected in (("reference", [1, 2, 4, 5, 0]), ("paper", [0, 1, 2, 4, 5])):
        bank = PyramidMemoryBank(capacities=(2, 9), full_grid=(4, 4), intervals=(3, 1), policy=policy)
        fill(bank, *range(7))
        assert tiers(bank) == [[3, 6], expected]
        assert [frame.index for frame in bank.read()] == list(range(7))


@pytest.mark.parametrize("policy", ["reference", "paper"])
def test_capacity_one_swaps_the_resident(policy):
    bank = PyramidMemoryBank(capacities=(1, 1), full_grid=(4, 4), intervals=(1, 1), policy=policy)
    fill(bank, 0, 90, 10, 80)
    assert tiers(bank) == [[3], [2]]


@pytest.mark.parametrize("policy", ["reference", "paper"])
def test_capacity_zero_passes_frames_on(policy):
    generator = torch.Generator().manual_seed(0)
    stream_TCHW = torch.randn(3, 2, 8, 8, generator=generator)
    first = PyramidMemoryBank(capacities=(0, 0, 2), full_grid=(8, 8), intervals=(1, 1, 1), policy=policy)
    between = PyramidMemoryBank(capacities=(1, 0, 2), full_grid=(8, 8), intervals=(1, 1, 1), policy=policy)
    last = PyramidMemoryBank(capacities=(1, 0, 0), full_grid=(8, 8), intervals=(4, 2, 1), policy=policy)
    for bank in (first, between, last):
        for index, tokens_CHW in enumerate(stream_TCHW):
            write(bank, index, tokens_CHW)
    assert tiers(first) == [[], [], [1, 2]]
    assert tiers(between) == [[2], [], [0, 1]]
    assert tiers(last) == [[0], [], []]
    # Arriving: the mean of each 4x4 block; demoted: halved twice, which is the same mean.
    expected = torch.nn.functional.avg_pool2d(stream_TCHW, 4)
    torch.testing.assert_close(first.read()[0].tokens_CHW, expected[1])
    torch.testing.assert_close(between.read()[0].tokens_CHW, expected[0])
    assert first.read()[0].content_id == 1
    assert between.read()[0].content_id < 0


def test_a_skipped_frame_is_not_remembered():
    bank = PyramidMemoryBank(capacities=(4,), full_grid=(4, 4), intervals=(2,))
    fill(bank, 0, 10, 20, 30)
    assert tiers(bank) == [[0, 2]]


def test_demotion_without_resizing_keeps_the_id():
    bank = PyramidMemoryBank(capacities=(1, 2), grids=[(4, 4), (4, 4)], intervals=(1, 1))
    fill(bank, 0, 10, 20)
    assert [frame.content_id for frame in bank.read()] == [0, 1, 2]
    assert torch.equal(bank.read()[0].tokens_CHW, directions(0)[0])


def test_frames_at_their_tier_s_grid_are_stored_as_they_are():
    bank = PyramidMemoryBank(capacities=(1, 2), full_grid=(4, 4), intervals=(2, 1))
    small = torch.randn(2, 2, 2)
    write(bank, 0, torch.randn(2, 4, 4))
    write(bank, 1, small)
    assert torch.equal(bank.read()[1].tokens_CHW, small)


@pytest.mark.parametrize(("policy", "most_per_tier"), [("reference", 2), ("paper", 3)])
def test_a_write_computes_new_pairs_only(monkeypatch, policy, most_per_tier):
    """A tier that loses one frame and gains one has at most one bridged pair and the newcomer's pairs."""
    calls = []
    # Counts the comparisons that a write makes.
    original = pyramid_module._Tier._similarity

    def counted(tier, left, right):
        calls.append((id(tier), tier.entries[left].index, tier.entries[right].index))
        return original(tier, left, right)

    monkeypatch.setattr(pyramid_module._Tier, "_similarity", counted)
    bank = PyramidMemoryBank(capacities=(24, 24, 48), full_grid=(4, 4), intervals=(3, 2, 1), policy=policy)
    stream_TCHW = torch.randn(400, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    most = 0
    for index, tokens_CHW in enumerate(stream_TCHW):
        before = len(calls)
        write(bank, index, tokens_CHW)
        counts = [sum(call[0] == tier for call in calls[before:]) for tier in {call[0] for call in calls[before:]}]
        most = max(most, *counts, 0)
    assert most == most_per_tier


def test_an_eviction_fetches_similarities_once(monkeypatch):
    """On an accelerator each fetch waits for the device."""
    fetches = []
    monkeypatch.setattr("videochat_online.memory.tiered.check_finite", lambda *_: None)  # frames on the CPU only
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: fetches.append(tensor.numel()) or original(tensor))
    bank = PyramidMemoryBank(capacities=(2, 3, 4), full_grid=(4, 4))
    stream_TCHW = torch.randn(80, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    num_fetches = 0
    for index, tokens_CHW in enumerate(stream_TCHW):
        fetches.clear()
        write(bank, index, tokens_CHW)
        # The tier of the frame, and the one that its displaced frame enters.
        assert len(fetches) <= 2
        num_fetches += len(fetches)
    assert num_fetches > 60


@pytest.mark.parametrize("policy", ["reference", "paper"])
def test_storage_is_allocated_once(policy):
    bank = PyramidMemoryBank(capacities=(2, 3, 4), full_grid=(4, 4), policy=policy)
    stream_TCHW = torch.randn(300, 3, 4, 4)
    write(bank, 0, stream_TCHW[0])
    places = [store.slots.data_ptr() for store in bank.stores]
    assert [len(store.slots) for store in bank.stores] == [2, 3, 4]
    for index in range(1, 300):
        write(bank, index, stream_TCHW[index])
    assert [store.slots.data_ptr() for store in bank.stores] == places


def test_similarity_is_taken_in_full_precision():
    """Rounded to bfloat16 the mean tokens are equal, and the first pair would leave; in fp32 the second is closer."""
    tokens_TCHW = torch.ones(4, 2, 16)
    for frame, num_larger in enumerate((0, 6, 7)):
        tokens_TCHW[frame, 0, :num_larger] += 2**-7
    tokens_TCHW = tokens_TCHW.view(4, 2, 4, 4).bfloat16()
    assert torch.equal(tokens_TCHW.mean(dim=(2, 3))[:3], torch.ones(3, 2).bfloat16())
    bank = PyramidMemoryBank(capacities=(3,), full_grid=(4, 4), intervals=(1,))
    for index, tokens_CHW in enumerate(tokens_TCHW):
        write(bank, index, tokens_CHW)
    assert tiers(bank) == [[0, 2, 3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"capacities": (2, 2)},
            r"one capacity, one grid and one interval for each tier, got capacities \(2, 2\)",
        ),
        ({"capacities": (0, 0, 0)}, r"capacities: expected at least one above 0, got \(0, 0, 0\)"),
        ({"grids": ((4, 4), (8, 8), (2, 2))}, "grids: expected them from the largest to the smallest"),
        ({"grids": ((4, 4), (2, 0), (1, 1))}, r"grids: expected a list of 2 whole numbers of at least 1.*\(2, 0\)"),
        ({"full_grid": (2, 2)}, "2x2 cannot be halved 2 times"),
        ({"intervals": (8, 0, 1)}, "intervals: expected a list of whole numbers of at least 1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        PyramidMemoryBank(**options)


def test_state_with_too_many_frames_or_wrong_similarities_is_refused():
    bank = PyramidMemoryBank(capacities=(2,), full_grid=(4, 4), intervals=(1,))
    fill(bank, 0, 10)
    state = bank.state_dict()
    many = {key: value.repeat_interleave(2, 0) if key.startswith("tier0") else value for key, value in state.items()}
    with pytest.raises(InputError, match="tier0 of a memory state holds 4 frames, more than its 2"):
        bank.load_state_dict(many)
    with pytest.raises(InputError, match=r"tier0.similarity .* torch.float32 \(1,\), got torch.float32 \(3,\)"):
        bank.load_state_dict({**state, "tier0.similarity": torch.zeros(3)})


def test_state_whose_tiers_hold_different_features_is_refused():
    bank = PyramidMemoryBank(capacities=(2, 2), full_grid=(4, 4), intervals=(2, 1))
    fill(bank, 0, 10)
    state = bank.state_dict()
    other = {"tier1.tokens": torch.zeros(1, 3, 2, 2), "tier1.mean": torch.zeros(1, 3)}
    with pytest.raises(InputError, match=r"equal channels and dtypes in all tiers, got \[\(2, .*\(3, "):
        bank.load_state_dict({**state, **other})


def test_defaults_are_the_published_ones():
    assert PyramidMemoryBank().max_tokens == 832
    assert PyramidMemoryBank(capacities=(24, 24, 144)).max_tokens == 9984
