"""What every memory bank promises, whatever it keeps."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from videochat_online.errors import InputError
from videochat_online.memory import (
    MEMORY_BANKS,
    MEMORY_OPTIONS,
    make_memory,
)
from videochat_online.types import FrameTokens

GRID = (8, 8)
CHANNELS = 5
NUM_FRAMES = 150

OPTIONS = {
    "pyramid": {"capacities": (2, 3, 5)},
    "pyramid_paper": {"capacities": (2, 3, 5), "policy": "paper"},
    "pyramid_zero_and_one": {"capacities": (0, 1, 2)},
    "fifo": {"capacities": (2, 3, 5)},
    "fifo_paper": {"capacities": (2, 3, 5), "policy": "paper"},
    "window": {"num_frames": 3},
    "uniform": {"num_frames": 5},
    "keep_all": {"intervals": (8, 4, 2)},
    "moviechat": {"short_frames": 6, "long_frames": 7},
    "moviechat_breakpoint": {"short_frames": 6, "long_frames": 7, "reading": "breakpoint"},
    "moviechat_of_one": {"short_frames": 1, "long_frames": 1, "merged_frames": 1},
    "moviechat_plus": {"short_frames": 5, "long_frames": 9, "merged_frames": 3},
    "moviechat_plus_breakpoint": {"short_frames": 6, "long_frames": 7, "reading": "breakpoint"},
    "star": {"newest_frames": 2, "key_frames": 2, "cluster_frames": 6},
    "star_of_one": {"newest_frames": 1, "key_frames": 0, "cluster_frames": 1},
    "token_merging": {"num_frames": 7},
    "token_merging_of_one": {"num_frames": 1},
    "similarity_drop": {"num_frames": 5, "threshold": 0.95},
    "event_merging": {"recent_frames": 2, "event_frames": 5},
    "event_merging_of_one": {"recent_frames": 1, "event_frames": 1},
}


def kind_of(name):
    return max((kind for kind in MEMORY_BANKS if name.startswith(kind)), key=len)


def make(name, **more):
    return make_memory(kind_of(name), full_grid=GRID, **{**OPTIONS[name], **more})


@pytest.fixture(params=sorted(OPTIONS))
def name(request):
    return request.param


@pytest.fixture(scope="module", name="features_TCHW")
def make_features():
    steps = torch.randn(NUM_FRAMES, CHANNELS, *GRID, generator=torch.Generator().manual_seed(1))
    return 0.3 * steps.cumsum(0)


def frame_at(stream_TCHW, place, **changes):
    return replace(FrameTokens(stream_TCHW[place], place, place / 8, 1000 + place), **changes)


def push(bank, features_TCHW, start=0, stop=NUM_FRAMES, chunk=1):
    """As a session does: chunks are encoded together, and their tensor is reused afterwards."""
    for first in range(start, stop, chunk):
        chunk_TCHW = features_TCHW[first : min(first + chunk, stop)].clone()
        for offset in range(len(chunk_TCHW)):
            bank.write(replace(frame_at(features_TCHW, first + offset), tokens_CHW=chunk_TCHW[offset]))
        chunk_TCHW.fill_(float("nan"))


def described(frames):
    return [(f.index, f.time_s, f.content_id, tuple(f.tokens_CHW.shape)) for f in frames]


def assert_same_memory(left, right):
    assert described(left) == described(right)
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.tokens_CHW, b.tokens_CHW)


def test_every_bank_is_under_contract():
    assert {kind_of(name) for name in OPTIONS} == set(MEMORY_BANKS) == set(MEMORY_OPTIONS)


@pytest.mark.parametrize("chunk", [3, 8, 64])
def test_push_size_does_not_matter(name, features_TCHW, chunk):
    one_by_one, chunked = make(name), make(name)
    push(one_by_one, features_TCHW)
    push(chunked, features_TCHW, chunk=chunk)
    assert len(one_by_one.read()) > 0
    assert_same_memory(one_by_one.read(), chunked.read())


def test_budget_order_and_ids_hold_after_every_write(name, features_TCHW):
    bank = make(name)
    assert (bank.max_tokens is None) == (name == "keep_all")
    for index in range(NUM_FRAMES):
        push(bank, features_TCHW, index, index + 1)
        memory = bank.read()
        indices = [frame.index for frame in memory]
        assert indices == sorted(set(indices))
        assert indices[-1] <= index
        assert all(frame.time_s == frame.index / 8 for frame in memory)
        assert len({frame.content_id for frame in memory}) == len(memory)
        if bank.max_tokens is not None:
            assert sum(frame.num_tokens for frame in memory) <= bank.max_tokens


def test_budget_is_reached(features_TCHW):
    may_stay_below = {"pyramid_zero_and_one", "uniform", "keep_all"}
    for name in sorted(set(OPTIONS) - may_stay_below):
        bank = make(name)
        push(bank, features_TCHW)
        assert sum(frame.num_tokens for frame in bank.read()) == bank.max_tokens


def test_an_unchanged_frame_keeps_its_id_and_a_changed_one_gets_a_new_one(name, features_TCHW):
    bank = make(name)
    contents = {}
    for index in range(NUM_FRAMES):
        push(bank, features_TCHW, index, index + 1)
        for frame in bank.read():
            known = contents.setdefault(frame.content_id, frame)
            assert known.index == frame.index
            assert torch.equal(known.tokens_CHW, frame.tokens_CHW)
            assert frame.content_id == 1000 + frame.index or frame.content_id < 0


def test_reset_forgets_everything(name, features_TCHW):
    fresh, bank = make(name), make(name)
    push(bank, features_TCHW)
    given = {frame.content_id for frame in bank.read()}
    bank.reset()
    assert bank.read() == ()
    # Another stream, other features, the clock at zero again.
    other_TCHW = features_TCHW[:, :3].flip(0).double()
    push(fresh, other_TCHW)
    push(bank, other_TCHW)
    memory, expected = bank.read(), fresh.read()
    assert [(f.index, f.time_s) for f in memory] == [(f.index, f.time_s) for f in expected]
    for ours, theirs in zip(memory, expected, strict=True):
        assert ours.tokens_CHW.dtype == torch.float64
        assert torch.equal(ours.tokens_CHW, theirs.tokens_CHW)
    assert not {f.content_id for f in memory if f.content_id < 0} & given


@pytest.mark.parametrize("stop", [0, 1, 7, 60])
def test_save_and_restore_continue_identically(name, features_TCHW, stop):
    bank = make(name)
    push(bank, features_TCHW, 0, stop)
    # Through bytes, as a session writes it to disk: tensors only, nothing shared.
    state = load(save(bank.state_dict()))
    restored = make(name)
    push(restored, features_TCHW, 0, 90)
    restored.load_state_dict(state)
    assert_same_memory(bank.read(), restored.read())
    for index in range(stop, NUM_FRAMES):
        push(bank, features_TCHW, index, index + 1)
        push(restored, features_TCHW, index, index + 1)
        assert described(bank.read()) == described(restored.read())
    assert_same_memory(bank.read(), restored.read())
    ours, theirs = bank.state_dict(), restored.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_saved_state_is_a_copy(name, features_TCHW):
    bank = make(name)
    push(bank, features_TCHW, 0, 40)
    state = bank.state_dict()
    before = {key: value.clone() for key, value in state.items()}
    push(bank, features_TCHW, 40, 80)
    assert all(torch.equal(state[key], before[key]) for key in state)
    restored = make(name)
    restored.load_state_dict(state)
    memory = restored.read()
    for value in state.values():
        value.zero_()
    assert_same_memory(memory, restored.read())


def test_snapshot_and_bank_do_not_share_memory(name, features_TCHW):
    bank, twin = make(name), make(name)
    push(bank, features_TCHW, 0, 40)
    push(twin, features_TCHW, 0, 40)
    snapshot = bank.read()
    before = [replace(frame, tokens_CHW=frame.tokens_CHW.clone()) for frame in snapshot]
    push(bank, features_TCHW, 40, 80)
    assert_same_memory(snapshot, before)
    for frame in bank.read():
        frame.tokens_CHW.zero_()
    push(twin, features_TCHW, 40, 80)
    assert_same_memory(bank.read(), twin.read())


def test_query_is_accepted(name, features_TCHW):
    bank = make(name)
    push(bank, features_TCHW, 0, 9)
    # Nothing is relevant to a question of zeros: no frame less than another.
    assert_same_memory(bank.read(torch.zeros(CHANNELS)), bank.read())


BAD_FRAMES = {
    "index again": ({"index": 15}, "frame 15: expected an index above the last one, 15"),
    "index back": ({"index": 3}, "expected an index above the last one, 15"),
    "time back": ({"time_s": 1.8}, "expected a time of at least 1.875 s, got 1.8 s"),
    "time not a number": ({"time_s": math.nan}, "got nan s"),
    "time infinite": ({"time_s": math.inf}, "got inf s"),
    "id of the bank": ({"content_id": -1}, "got content_id -1"),
    "no grid": (
        {"tokens_CHW": torch.zeros(CHANNELS, 64)},
        r"expected .* \[C, H, W\], got torch.float32 \(5, 64\)",
    ),
    "whole numbers": ({"tokens_CHW": torch.zeros(CHANNELS, *GRID, dtype=torch.int64)}, "got torch.int64"),
    "another type": (
        {"tokens_CHW": torch.zeros(CHANNELS, *GRID, dtype=torch.float16)},
        "dtype of the frames before it, torch.float32, got torch.float16",
    ),
    "other channels": ({"tokens_CHW": torch.zeros(6, *GRID)}, "channels of the frames before it, 5, got 6"),
    "another device": (
        {"tokens_CHW": torch.zeros(CHANNELS, *GRID, device="meta")},
        "device of the frames before it, cpu, got meta",
    ),
    "too small": ({"tokens_CHW": torch.zeros(CHANNELS, 1, 1)}, "1x1 tokens is too small"),
}


@pytest.mark.parametrize("what", sorted(BAD_FRAMES))
def test_bad_frame_is_refused_and_changes_nothing(name, features_TCHW, what):
    changes, message = BAD_FRAMES[what]
    bank, twin = make(name), make(name)
    push(bank, features_TCHW, 0, 16)
    push(twin, features_TCHW, 0, 16)
    with pytest.raises(InputError, match=message):
        bank.write(frame_at(features_TCHW, 16, **changes))
    push(bank, features_TCHW, 16, 40)
    push(twin, features_TCHW, 16, 40)
    assert_same_memory(bank.read(), twin.read())


def test_first_frame_must_be_floating_point(name):
    bank = make(name)
    with pytest.raises(InputError, match="expected floating-point tokens"):
        bank.write(FrameTokens(torch.zeros(CHANNELS, *GRID, dtype=torch.int64), 0, 0.0, 0))
    assert bank.read() == ()


def test_time_may_stand_still_and_indices_may_skip(name, features_TCHW):
    bank = make(name)
    bank.write(frame_at(features_TCHW, 0))
    bank.write(frame_at(features_TCHW, 16, time_s=0.0))
    assert 16 in [frame.index for frame in bank.read()]


def test_state_of_another_kind_is_refused(features_TCHW):
    states = {}
    for kind in MEMORY_BANKS:
        bank = make(kind)
        push(bank, features_TCHW, 0, 9)
        states[kind] = bank.state_dict()
    for kind in MEMORY_BANKS:
        for other in set(MEMORY_BANKS) - {kind}:
            bank = make(kind)
            push(bank, features_TCHW, 0, 5)
            before = bank.read()
            with pytest.raises(InputError, match=rf"kind {other} \(this memory: {kind}\)"):
                bank.load_state_dict(states[other])
            assert_same_memory(before, bank.read())


@pytest.mark.parametrize(
    ("kind", "ours", "theirs", "named"),
    [
        ("pyramid", {}, {"capacities": (2, 3, 6)}, r"capacities \[2, 3, 6\] \(this memory: \[2, 3, 5\]\)"),
        ("pyramid", {}, {"policy": "paper"}, r"policy paper \(this memory: reference\)"),
        ("pyramid", {}, {"intervals": (4, 2, 1)}, r"intervals \[4, 2, 1\]"),
        ("pyramid", {}, {"grids": ((8, 8), (4, 4), (1, 1))}, r"grids .*\[1, 1\]\].* \(this memory: "),
        ("fifo", {}, {"capacities": (2, 3, 6)}, r"capacities \[2, 3, 6\] \(this memory: \[2, 3, 5\]\)"),
        ("window", {}, {"num_frames": 4}, r"num_frames 4 \(this memory: 3\)"),
        ("uniform", {}, {"full_grid": (4, 4)}, r"full_grid \[4, 4\] \(this memory: \[8, 8\]\)"),
        ("keep_all", {}, {"intervals": (1,)}, r"grids .*intervals \[1\]"),
        ("moviechat", {}, {"reading": "breakpoint"}, r"reading breakpoint \(this memory: global\)"),
        ("moviechat_plus", {}, {"short_frames": 6}, r"short_frames 6 \(this memory: 5\)"),
        ("star", {}, {"abstract_decay": 0.5}, r"abstract_decay 0.5 \(this memory: 0.9\)"),
        ("token_merging", {}, {"grid": (1, 2)}, r"grid \[1, 2\] \(this memory: \[4, 4\]\)"),
        ("similarity_drop", {}, {"threshold": 0.5}, r"threshold 0.5 \(this memory: 0.95\)"),
        ("event_merging", {}, {"penalty_weights": (1, 0, 0)}, r"penalty_weights \[1.0, 0.0, 0.0\] \(this memory: "),
    ],
)
def test_state_of_other_options_is_refused(kind, ours, theirs, named):
    options = {"full_grid": GRID, **OPTIONS[kind]}
    state = make_memory(kind, **{**options, **theirs}).state_dict()
    with pytest.raises(InputError, match=named):
        make_memory(kind, **{**options, **ours}).load_state_dict(state)


def test_broken_state_is_refused_and_changes_nothing(name, features_TCHW):
    bank = make(name)
    push(bank, features_TCHW, 0, 30)
    state, before = bank.state_dict(), bank.read()

    def without(key):
        return {k: v for k, v in state.items() if k != key}

    broken = [
        (without("config"), "no entry 'config'"),
        ({**state, "config": torch.tensor([1, 2], dtype=torch.uint8)}, "not JSON text"),
        ({**state, "config": torch.tensor([300])}, "not JSON text"),
        ({**state, "config": torch.tensor(list(b"[]"))}, r"holds \[\]"),
        (without("tier0.index"), r"missing entries \['tier0.index'\]"),
        ({**state, "extra": torch.zeros(1)}, r"unexpected entries \['extra'\]"),
        ({**state, "counters": torch.zeros(9, dtype=torch.int64)}, "counters, got 9"),
        (
            {**state, "tier0.time_s": torch.zeros(77)},
            r"tier0.time_s of a memory state: expected \d+ values, got 77",
        ),
        ({**state, "tier0.tokens": torch.zeros(1, 2, 3)}, r"tier0.tokens .* got \(1, 2, 3\)"),
    ]
    for bad, message in broken:
        with pytest.raises(InputError, match=message):
            bank.load_state_dict(bad)
        assert_same_memory(before, bank.read())


@pytest.mark.parametrize("start_inside", [True, False])
@pytest.mark.parametrize("restore", [True, False])
def test_inference_mode_may_come_and_go(name, features_TCHW, start_inside, restore):
    bank, plain = make(name), make(name)
    push(plain, features_TCHW)
    for first in range(0, NUM_FRAMES, 10):
        with torch.inference_mode((first % 20 == 0) == start_inside):
            push(bank, features_TCHW, first, first + 10)
            if restore:
                bank.load_state_dict(bank.state_dict())
    assert_same_memory(bank.read(), plain.read())


def test_no_graph_is_kept(name, features_TCHW):
    bank = make(name)
    leaf_TCHW = features_TCHW[:40].clone().requires_grad_()
    push(bank, leaf_TCHW, 0, 40)
    assert not any(frame.tokens_CHW.requires_grad for frame in bank.read())
    # Or the storage would hold on to the graph of every frame ever written.
    assert not any(store.slots.requires_grad for store in bank._stores)


def test_frames_are_kept_on_the_chosen_device(features_TCHW):
    # The meta device stands for a second one; the pyramid would have to look at values there.
    for kind in ("window", "uniform", "keep_all"):
        bank = make(kind, device="meta")
        push(bank, features_TCHW, 0, 20)
        assert {frame.tokens_CHW.device.type for frame in bank.read()} == {"meta"}


def test_state_moves_to_the_bank_s_device_or_else_stays(features_TCHW):
    source = make("window")
    push(source, features_TCHW, 0, 5)
    follows, elsewhere = make("window"), make("window", device="meta")
    follows.load_state_dict(source.state_dict())
    elsewhere.load_state_dict(source.state_dict())
    assert follows.read()[0].tokens_CHW.device.type == "cpu"
    assert elsewhere.read()[0].tokens_CHW.device.type == "meta"


def test_bfloat16_features_are_kept_as_they_are(name, features_TCHW):
    bank = make(name)
    push(bank, features_TCHW.bfloat16())
    assert {frame.tokens_CHW.dtype for frame in bank.read()} == {torch.bfloat16}


def test_options_agree_with_the_classes():
    for name, bank in MEMORY_BANKS.items():
        assert set(MEMORY_OPTIONS[name]) == set(inspect.signature(bank).parameters)


def test_factory_names_what_is_wrong():
    with pytest.raises(InputError, match=r"unknown memory 'pyramids': expected one of \['event_merging', 'fifo'"):
        make_memory("pyramids")
    with pytest.raises(InputError, match="memory 'window' does not take capacities, policy: it takes num_frames"):
        make_memory("window", capacities=(1, 1, 1), policy="paper", num_frames=None)
    assert make_memory("window", capacities=None, num_frames=2).max_tokens == 512
