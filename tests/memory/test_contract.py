"""What every memory bank promises, whatever it keeps."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch.utils._python_dispatch import TorchDispatchMode

from videochat_online.errors import InputError
from videochat_online.memory import MEMORIES, TokenSchedule, make_memory, sizes_within
from videochat_online.types import FrameTokens

GRID = (8, 8)
CHANNELS = 5
NUM_FRAMES = 60
"""Enough for every memory of `OPTIONS` to be full and to have merged or evicted many times over."""

MEMORY_OPTIONS = {kind: MEMORIES.options_of(kind) for kind in MEMORIES.built_in}

OPTIONS = {kind: sizes_within(kind, 3.25, {}) for kind in MEMORIES.built_in} | {
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
    return max((kind for kind in MEMORIES.built_in if name.startswith(kind)), key=len)


def make(name, **more):
    return make_memory(kind_of(name), full_grid=GRID, **{**OPTIONS[name], **more})


@pytest.fixture(params=sorted(OPTIONS))
def name(request):
    return request.param


@pytest.fixture(scope="module", name="features_TCHW")
def make_features():
    steps = torch.randn(NUM_FRAMES, CHANNELS, *GRID, generator=torch.Generator().manual_seed(1))
    return 0.3 * steps.cumsum(0)


def frame_at(stream_TCHW, index, /, **changes):
    return replace(FrameTokens(stream_TCHW[index], index, index / 8, 1000 + index), **changes)


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


def assert_same_state(left, right):
    """Everything that a bank goes on from, not only what it shows."""
    ours, theirs = left.state_dict(), right.state_dict()
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert ours[key].dtype == theirs[key].dtype, key
        assert torch.equal(ours[key], theirs[key]), key


SIZES = {
    kind: tuple(option for option in options if option == "capacities" or option.endswith("_frames"))
    for kind, options in MEMORY_OPTIONS.items()
    if kind != "keep_all"
}
"""The options that say how many frames a memory holds."""


@pytest.fixture(scope="module")
def one_by_one(features_TCHW):
    """By name, what is remembered of all frames that were pushed one by one."""

    @cache
    def remembered(name):
        bank = make(name)
        push(bank, features_TCHW)
        return bank.read()

    return remembered


@pytest.mark.parametrize("chunk", [3, 8, 64])
def test_push_size_does_not_matter(name, features_TCHW, one_by_one, chunk):
    chunked = make(name)
    push(chunked, features_TCHW, chunk=chunk)
    assert len(one_by_one(name)) > 0
    assert_same_memory(one_by_one(name), chunked.read())


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


@pytest.mark.parametrize("stop", [0, 1, 7, 40])
def test_save_and_restore_continue_identically(name, features_TCHW, stop):
    bank = make(name)
    push(bank, features_TCHW, 0, stop)
    # Through bytes, as a session writes it to disk: tensors only, nothing shared.
    state = load(save(bank.state_dict()))
    restored = make(name)
    push(restored, features_TCHW, 0, 20)
    restored.load_state_dict(state)
    assert_same_memory(bank.read(), restored.read())
    for index in range(stop, stop + 10):
        push(bank, features_TCHW, index, index + 1)
        push(restored, features_TCHW, index, index + 1)
        assert described(bank.read()) == described(restored.read())
    push(bank, features_TCHW, stop + 10, stop + 20)
    push(restored, features_TCHW, stop + 10, stop + 20)
    assert_same_memory(bank.read(), restored.read())
    assert_same_state(bank, restored)


def test_saved_state_is_a_copy(name, features_TCHW):
    bank = make(name)
    push(bank, features_TCHW, 0, 30)
    state = bank.state_dict()
    before = {key: value.clone() for key, value in state.items()}
    push(bank, features_TCHW, 30)
    assert all(torch.equal(state[key], before[key]) for key in state)
    restored = make(name)
    restored.load_state_dict(state)
    memory = restored.read()
    for value in state.values():
        value.zero_()
    assert_same_memory(memory, restored.read())


def test_snapshot_and_bank_do_not_share_memory(name, features_TCHW):
    bank, twin = make(name), make(name)
    push(bank, features_TCHW, 0, 30)
    push(twin, features_TCHW, 0, 30)
    snapshot = bank.read()
    before = [replace(frame, tokens_CHW=frame.tokens_CHW.clone()) for frame in snapshot]
    push(bank, features_TCHW, 30)
    assert_same_memory(snapshot, before)
    for frame in bank.read():
        frame.tokens_CHW.zero_()
    push(twin, features_TCHW, 30)
    assert_same_memory(bank.read(), twin.read())


@pytest.mark.parametrize("name", ["moviechat_plus", "moviechat_plus_breakpoint"])
def test_a_question_of_zeros_is_about_all_frames_alike(name, features_TCHW):
    bank = make(name)
    push(bank, features_TCHW, 0, 9)
    as_they_are = bank.read_for(torch.zeros(CHANNELS), lambda frame: frame.tokens_CHW.flatten(1).T)
    assert_same_memory(as_they_are, bank.read())


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
    "negative index": ({"index": -1}, "frame -1: expected an index above the last one, 15"),
    "index between two": ({"index": 16.5}, "frame 16.5: expected an index above the last one"),
    "no time": ({"time_s": None}, "expected a time of at least 1.875 s, got None s"),
    "time as text": ({"time_s": "2"}, "expected a time of at least 1.875 s, got 2 s"),
    "time minus infinite": ({"time_s": -math.inf}, "got -inf s"),
    "no id": ({"content_id": None}, "got content_id None"),
    "double precision": (
        {"tokens_CHW": torch.zeros(CHANNELS, *GRID, dtype=torch.float64)},
        "dtype of the frames before it, torch.float32, got torch.float64",
    ),
    "bfloat16": ({"tokens_CHW": torch.zeros(CHANNELS, *GRID).bfloat16()}, "torch.float32, got torch.bfloat16"),
    "8 bits": (
        {"tokens_CHW": torch.zeros(CHANNELS, *GRID).to(torch.float8_e4m3fn)},
        r"expected .* \[C, H, W\], got torch.float8_e4m3fn",
    ),
    "complex": ({"tokens_CHW": torch.zeros(CHANNELS, *GRID, dtype=torch.complex64)}, "got torch.complex64"),
    "a batch": ({"tokens_CHW": torch.zeros(1, CHANNELS, *GRID)}, r"got torch.float32 \(1, 5, 8, 8\)"),
    "no channels": ({"tokens_CHW": torch.zeros(0, *GRID)}, r"got torch.float32 \(0, 8, 8\)"),
    "no columns": ({"tokens_CHW": torch.zeros(CHANNELS, 8, 0)}, r"got torch.float32 \(5, 8, 0\)"),
    "sparse": ({"tokens_CHW": torch.zeros(CHANNELS, *GRID).to_sparse()}, r"expected .* \[C, H, W\]"),
    "all NaN": ({"tokens_CHW": torch.full((CHANNELS, *GRID), math.nan)}, "frame 16: expected finite features, got NaN"),
    "one NaN": ({"tokens_CHW": torch.zeros(CHANNELS, *GRID).index_fill(1, torch.tensor(3), math.nan)}, "finite feat"),
    "infinite": ({"tokens_CHW": torch.full((CHANNELS, *GRID), -math.inf)}, "expected finite features"),
    "too large to compare": ({"tokens_CHW": torch.full((CHANNELS, *GRID), 1e30)}, "expected finite features"),
}


def test_the_check_of_frames_names_what_is_wrong(features_TCHW):
    """The one check that `write` of every memory begins with."""
    bank = make("window")
    push(bank, features_TCHW, 0, 16)
    for changes, message in BAD_FRAMES.values():
        with pytest.raises(InputError, match=message):
            bank.write(frame_at(features_TCHW, 16, **changes))


def test_bad_frames_are_refused_and_change_nothing(name, features_TCHW):
    """One that the check refuses, and one that only the memory's own grid does."""
    bank, twin = make(name), make(name)
    push(bank, features_TCHW, 0, 16)
    push(twin, features_TCHW, 0, 16)
    for bad in ("one NaN", "too small"):
        changes, message = BAD_FRAMES[bad]
        with pytest.raises(InputError, match=message):
            bank.write(frame_at(features_TCHW, 16, **changes))
        assert_same_state(bank, twin)
    push(bank, features_TCHW, 16, 40)
    push(twin, features_TCHW, 16, 40)
    assert_same_memory(bank.read(), twin.read())


BAD_FIRST_FRAMES = {
    "whole numbers": ({"tokens_CHW": torch.zeros(CHANNELS, *GRID, dtype=torch.int64)}, "floating-point tokens"),
    "no values": ({"tokens_CHW": torch.zeros(CHANNELS, *GRID, device="meta")}, "expected finite features"),
    "not finite": ({"tokens_CHW": torch.full((CHANNELS, *GRID), math.nan)}, "frame 0: expected finite features"),
    "negative index": ({"index": -1}, "frame -1: expected an index above the last one, -1"),
    "before all time": ({"time_s": -math.inf}, "got -inf s"),
    "too small": ({"tokens_CHW": torch.zeros(CHANNELS, 7, 8)[:, :, :1]}, "7x1 tokens is too small: its grid is"),
}


def test_the_check_of_a_first_frame_names_what_is_wrong(features_TCHW):
    bank = make("window")
    for changes, message in BAD_FIRST_FRAMES.values():
        with pytest.raises(InputError, match=message):
            bank.write(frame_at(features_TCHW, 0, **changes))


def test_bad_first_frames_leave_the_bank_as_it_was_made(name, features_TCHW):
    bank = make(name)
    for bad in ("not finite", "too small"):
        changes, message = BAD_FIRST_FRAMES[bad]
        with pytest.raises(InputError, match=message):
            bank.write(frame_at(features_TCHW, 0, **changes))
        assert_same_state(bank, make(name))
    # Another width and precision: nothing of the refused frame has stayed.
    push(bank, features_TCHW[:, :2].double(), 0, 20)
    assert bank.read()[-1].tokens_CHW.shape[0] == 2


def test_layout_and_gradients_of_a_frame_do_not_matter(name, features_TCHW):
    plain, odd = make(name), make(name)
    push(plain, features_TCHW, 0, 40)
    for index in range(40):
        strided_CHW = features_TCHW[index].permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
        assert not strided_CHW.is_contiguous()
        odd.write(frame_at(features_TCHW, index, tokens_CHW=strided_CHW))
    assert_same_memory(plain.read(), odd.read())


def test_numbers_of_numpy_are_numbers(name, features_TCHW):
    plain, numpy = make(name), make(name)
    push(plain, features_TCHW, 0, 20)
    for index in range(20):
        numbers = {"index": np.int64(index), "time_s": np.float32(index / 8), "content_id": np.int32(1000 + index)}
        numpy.write(frame_at(features_TCHW, index, **numbers))
    assert_same_state(plain, numpy)


def test_more_frames_than_there_is_room_for_are_refused_at_the_first_one(features_TCHW):
    for kind, sizes in SIZES.items():
        for many in (2**42, 2**70):
            # The last one: what is reserved before it must not stay behind.
            last = "long_frames" if "long_frames" in sizes else sizes[-1]
            options = {"capacities": (2, 2, many)} if last == "capacities" else {**dict.fromkeys(sizes, 2), last: many}
            bank = make_memory(kind, full_grid=GRID, **options)
            for _ in range(2):
                with pytest.raises(InputError, match=r"memory of \d+ frames of \(5, .* expected room for .* GB on cpu"):
                    bank.write(frame_at(features_TCHW, 0))
            assert bank.read() == ()


def test_time_may_stand_still_and_indices_may_skip(name, features_TCHW):
    bank = make(name)
    bank.write(frame_at(features_TCHW, 0))
    bank.write(frame_at(features_TCHW, 16, time_s=0.0))
    assert 16 in [frame.index for frame in bank.read()]


def test_state_of_another_kind_is_refused(features_TCHW):
    states = {}
    for kind in MEMORIES.built_in:
        bank = make(kind)
        push(bank, features_TCHW, 0, 9)
        states[kind] = bank.state_dict()
    for kind in MEMORIES.built_in:
        for other in set(MEMORIES.built_in) - {kind}:
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


def moved_by(step):
    return lambda entry: entry + step


def filled(value):
    return lambda entry: torch.full_like(entry, value)


BROKEN_ENTRIES = [
    ("config", lambda _: torch.tensor([1, 2], dtype=torch.uint8), "not JSON text"),
    ("config", lambda _: torch.tensor([300]), "not JSON text"),
    ("config", lambda _: torch.tensor(7), "not JSON text"),
    ("config", lambda entry: entry.float(), "not JSON text"),
    ("config", lambda _: torch.tensor(list(b"[" * 100_000), dtype=torch.uint8), "not JSON text"),
    ("config", lambda _: torch.tensor(list(b"[]")), r"holds \[\]"),
    ("config", lambda _: b"{}", "expected a tensor as its entry 'config', got bytes"),
    ("counters", lambda _: torch.zeros(9, dtype=torch.int64), r"counters .* torch.int64 \(9,\)"),
    ("counters", lambda entry: entry.double(), "counters .* got torch.float64"),
    ("counters", lambda entry: entry.index_fill(0, torch.tensor(0), -2), "expected counters of a stream"),
    ("counters", lambda entry: entry.index_fill(0, torch.tensor(0), -1), "expected counters of a stream"),
    ("counters", lambda entry: entry.index_fill(0, torch.tensor(1), 0), "expected counters of a stream"),
    ("counters", lambda entry: entry.index_fill(0, torch.tensor(0), 5), "expected frames of index 0 to 5"),
    ("last_time_s", filled(math.nan), "expected counters of a stream, got .* at nan s"),
    ("last_time_s", filled(math.inf), "expected counters of a stream, got .* at inf s"),
    ("last_time_s", filled(-math.inf), "expected counters of a stream, got .* at -inf s"),
    ("last_time_s", filled(0.0), "at 0.0 s, in order of time"),
    ("last_time_s", lambda entry: entry.float(), "last_time_s .* expected one float64"),
    ("last_time_s", lambda entry: entry.repeat(2), "last_time_s .* expected one float64"),
    ("index", lambda entry: entry[:-1], r"time_s .* expected torch.float64 \(\d+,\), got|tokens .* expected"),
    ("index", lambda entry: entry.double(), "index .* expected torch.int64 .* got torch.float64"),
    ("index", lambda entry: entry[None], r"index .* got torch.int64 \(1, \d+\)"),
    ("index", moved_by(100), "expected frames of index 0 to 29"),
    ("index", filled(-3), "expected frames of index 0 to 29"),
    ("time_s", lambda _: torch.zeros(77), r"time_s .* expected torch.float64 .* got torch.float32 \(77,\)"),
    ("time_s", filled(math.nan), "time_s .* expected finite values"),
    ("time_s", moved_by(100.0), "in order of time"),
    ("content_id", lambda entry: entry[:-1], "content_id .* expected torch.int64"),
    ("content_id", lambda entry: entry.int(), "content_id .* expected torch.int64"),
    ("tokens", lambda _: torch.zeros(1, 2, 3), r"tokens .* got torch.float32 \(1, 2, 3\)"),
    ("tokens", lambda entry: entry[:-1], "tokens .* expected"),
    ("tokens", lambda entry: entry[..., :-1], "tokens .* expected"),
    ("tokens", lambda entry: entry.long(), "tokens .* got torch.int64"),
    ("tokens", lambda entry: entry[:, :0], "frames without features"),
    ("tokens", filled(math.nan), "tokens .* expected finite values"),
    ("tokens", lambda entry: entry.to("meta"), "tokens .* expected finite values"),
    ("mean", filled(math.inf), "mean .* expected finite values"),
    ("mean", lambda entry: entry.double(), "mean .* expected torch.float32"),
    ("similarity", filled(math.nan), "similarity .* expected finite values"),
    ("similarity", lambda entry: torch.zeros(77), r"similarity .* got torch.float32 \(77,\)"),
    ("number", filled(0), "number .* expected numbers of at least 1"),
    ("number", lambda entry: entry.double(), "number .* expected torch.int64"),
    ("number", lambda entry: entry[:-1], "number .* expected torch.int64"),
]


def test_broken_state_is_refused_and_changes_nothing(name, features_TCHW):
    bank, other = make(name), make(name)
    push(bank, features_TCHW, 0, 30)
    push(other, features_TCHW, 0, 11)
    state, before = bank.state_dict(), other.state_dict()

    def refuse(broken, message):
        with pytest.raises(InputError, match=message):
            other.load_state_dict(broken)
        after = other.state_dict()
        assert all(torch.equal(after[key], before[key]) for key in before)

    for key in state:
        rest = {other: entry for other, entry in state.items() if other != key}
        refuse(rest, "no entry 'config'" if key == "config" else rf"missing entries \['{key}'\]")
    refuse({**state, "extra": torch.zeros(1)}, r"unexpected entries \['extra'\]")
    num_broken = 0
    for entry, breaking, message in BROKEN_ENTRIES:
        for key in (key for key in state if key.split(".")[-1] == entry and state[key].numel()):
            refuse({**state, key: breaking(state[key])}, message)
            num_broken += 1
    assert num_broken > 30
    other.load_state_dict(state)
    assert_same_state(other, bank)


def test_state_of_frames_that_no_stream_leaves_is_refused(name, features_TCHW):
    """More than the memory holds, out of order, twice."""
    bank = make(name)
    push(bank, features_TCHW, 0, 40)
    state = bank.state_dict()
    for store, held in enumerate(bank.stores):
        keys = [key for key in state if key.startswith(f"tier{store}.")]
        if held.capacity and len(held):
            many = {key: state[key].repeat((held.capacity + 1, *(1,) * (state[key].ndim - 1))) for key in keys}
            with pytest.raises(InputError, match=rf"tier{store} .* holds \d+ frames, more than its {held.capacity}"):
                bank.load_state_dict({**state, **many})
        # Which tiers keep time order is each memory's own.
        if len(held) > 1 and held in bank._stores_in_order():
            with pytest.raises(InputError, match="in order of time"):
                bank.load_state_dict({**state, **{key: state[key].flip(0) for key in keys if "similarity" not in key}})
        same = {f"tier{store}.{key}": state[f"tier{store}.{key}"][:1].repeat(len(held)) for key in ("index", "time_s")}
        if len(held) > 1:
            with pytest.raises(InputError, match="expected each frame once"):
                bank.load_state_dict({**state, **same})
    if len(bank.read()) > 1:
        ids = {key: torch.full_like(state[key], 7) for key in state if key.endswith("content_id")}
        with pytest.raises(InputError, match="with an id of its own"):
            bank.load_state_dict({**state, **ids})
    assert_same_memory(bank.read(), restored_from(name, state).read())


def restored_from(name, state):
    bank = make(name)
    bank.load_state_dict(state)
    return bank


def test_state_of_another_width_or_precision_is_a_stream_of_its_own(name, features_TCHW):
    """A bank does not know its model; a session does, and refuses it."""
    source, bank, fresh = make(name), make(name), make(name)
    push(bank, features_TCHW, 0, 20)
    push(source, features_TCHW[:, :3].double(), 0, 25)
    push(fresh, features_TCHW[:, :3].double(), 0, 40)
    bank.load_state_dict(source.state_dict())
    with pytest.raises(InputError, match="channels of the frames before it, 3, got 5"):
        bank.write(frame_at(features_TCHW, 25))
    push(bank, features_TCHW[:, :3].double(), 25, 40)
    assert_same_state(bank, fresh)


# Where it is restored each time, it is restored in both modes whichever comes first.
@pytest.mark.parametrize(("start_inside", "restore"), [(True, False), (False, False), (True, True)])
def test_inference_mode_may_come_and_go(name, features_TCHW, one_by_one, start_inside, restore):
    bank = make(name)
    for first in range(0, NUM_FRAMES, 10):
        with torch.inference_mode((first % 20 == 0) == start_inside):
            push(bank, features_TCHW, first, first + 10)
            if restore:
                bank.load_state_dict(bank.state_dict())
    assert_same_memory(bank.read(), one_by_one(name))


def test_no_graph_is_kept(name, features_TCHW):
    bank = make(name)
    leaf_TCHW = features_TCHW[:40].clone().requires_grad_()
    push(bank, leaf_TCHW, 0, 40)
    assert not any(frame.tokens_CHW.requires_grad for frame in bank.read())
    # Or the storage would hold on to the graph of every frame ever written.
    assert not any(store.slots.requires_grad for store in bank.stores)


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


BAD_OPTIONS = {
    "grid": [5, (4,), (0, 4), "44"],
    "grids": [5, (4, 4), ((8, 8), (4, 4), 5), ((4, 4), (8, 8), (2, 2))],
    "intervals": [8, (), (0,), (8, 4, 1.5), "841"],
    "capacities": [8, (), (0, 0, 0), (1, 2), (1, -1, 1), (1, 1.0, 1), "111"],
    "policy": ["papers", 1, ""],
    "reading": ["all", 1, ""],
    "threshold": [1.1, math.nan, "0.5", True, ()],
    "abstract_decay": [-0.1, math.nan, "0.5", True, ()],
    "penalty_weights": [1, (1, 1), (1, 1, -1), (1, 1, math.nan), "111"],
}
BAD_FOR_ALL = [math.nan, {}]
BAD_COUNTS = [-1, 1.5, True, "2", (1,)]


@pytest.mark.parametrize(
    ("kind", "option"), [(kind, option) for kind, options in MEMORY_OPTIONS.items() for option in options]
)
def test_bad_options_are_named(kind, option):
    of_numbers = BAD_COUNTS if option.endswith("_frames") else []
    for value in BAD_FOR_ALL + BAD_OPTIONS.get(option, of_numbers):
        with pytest.raises(InputError) as refused:
            make_memory(kind, full_grid=GRID, **{option: value})
        said = str(refused.value)
        assert option.removesuffix("s") in said.replace(" ", "_"), said
        assert re.search(r"\bgot \S|cannot be halved", said), said


@pytest.mark.parametrize("kind", MEMORIES.built_in)
def test_bad_grids_and_devices_are_named(kind):
    for value in (5, (4,), (0, 4), (4.0, 4), "44", (-1, 2)):
        with pytest.raises(InputError, match=r"full_grid.*got \S"):
            make_memory(kind, full_grid=value)
    for value in ("tpu1", -1, 1.5, ()):
        with pytest.raises(InputError, match=rf"device of a {kind} memory: .*got \S"):
            make_memory(kind, full_grid=GRID, device=value)


def test_counts_of_nothing_are_refused():
    for kind, sizes in SIZES.items():
        for option in sizes:
            if option == "key_frames":
                assert make_memory(kind, full_grid=GRID, key_frames=0).max_tokens > 0
                continue
            nothing = (0, 0, 0) if option == "capacities" else 0
            with pytest.raises(InputError, match=rf"{option}.*at least"):
                make_memory(kind, full_grid=GRID, **{option: nothing})


def test_a_budget_below_one_frame_is_refused_or_kept():
    for kind in SIZES.keys() - {"pyramid", "fifo"}:
        for budget in (0.0, 0.05, 0.5, 0.99, 1.0, 1.5, 2.2):
            try:
                bank = make_memory(kind, full_grid=(16, 16), **sizes_within(kind, budget, {}))
            except InputError as refused:
                assert re.search(r"_frames of memory '\w+': expected .* at least \d, got -?\d", str(refused))  # noqa: PT017
            else:
                assert bank.max_tokens <= budget * 256


def test_a_full_grid_too_small_for_a_quarter():
    """Halved by the schedule it is refused; otherwise a direction has one token at least."""
    for kind, options in MEMORY_OPTIONS.items():
        if "intervals" in options:
            with pytest.raises(InputError, match="3x8 cannot be halved 2 times, as the 3 intervals"):
                make_memory(kind, full_grid=(3, 8))
            continue
        bank = make_memory(kind, full_grid=(1, 3))
        for index in range(60):
            bank.write(FrameTokens(torch.full((2, 1, 3), float(index % 7)), index, 0.0, index))
        assert {frame.tokens_CHW.shape[1] for frame in bank.read()} == {1}


def test_a_grid_larger_than_the_frame_is_refused(features_TCHW):
    for kind, options in MEMORY_OPTIONS.items():
        for option in {"grid", "grids"} & set(options):
            large = (9, 8) if option == "grid" else ((9, 8), (8, 8), (4, 4))
            with pytest.raises(InputError, match=r"too small: its grid is 9x8|at most \(8, 8\), got \(9, 8"):
                make_memory(kind, full_grid=GRID, **{option: large}).write(frame_at(features_TCHW, 0))


def smallest_options():
    """Every way of having 0, 1 or 2 frames of each sort."""
    for kind, sizes in SIZES.items():
        if sizes == ("capacities",):
            for capacities in set(itertools.product(range(3), repeat=3)) - {(0, 0, 0)}:
                for policy in ("reference", "paper"):
                    yield kind, {"capacities": capacities, "policy": policy}
            continue
        readings = ("global", "breakpoint") if "reading" in MEMORY_OPTIONS[kind] else (None,)
        for counts in itertools.product(range(3), repeat=len(sizes)):
            options = dict(zip(sizes, counts, strict=True))
            least = {"key_frames": 0, **({"num_frames": 2} if kind == "uniform" else {})}
            is_enough = all(count >= least.get(option, 1) for option, count in options.items())
            if is_enough and options.get("key_frames", 0) <= options.get("cluster_frames", 0):
                yield from ((kind, {**options, "reading": reading}) for reading in readings)


@pytest.mark.parametrize("kind", sorted(SIZES))
def test_the_smallest_memories_keep_budget_and_order_and_can_be_saved(kind, features_TCHW):
    few_TCHW = features_TCHW[:, :2]
    for options in (options for name, options in smallest_options() if name == kind):
        bank, restored = (make_memory(kind, full_grid=GRID, **options) for _ in range(2))
        for index in range(20):
            push(bank, few_TCHW, index, index + 1)
            if index >= 11:
                push(restored, few_TCHW, index, index + 1)
            memory = bank.read()
            assert sum(frame.num_tokens for frame in memory) <= bank.max_tokens, options
            indices = [frame.index for frame in memory]
            assert indices == sorted(set(indices)), options
            # What becomes of the newest frame, whatever the sizes are: docs/memories.md.
            level = TokenSchedule().level(index) if "capacities" in options else 0
            if kind != "similarity_drop" and any(options.get("capacities", (1,))[level:]):
                assert indices[-1] == index, options
            if index == 10:
                restored.load_state_dict(bank.state_dict())
            if index >= 10:
                assert_same_memory(memory, restored.read())
        assert_same_state(bank, restored)


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", sorted(MEMORIES.built_in))
def test_a_frame_costs_the_same_however_long_the_stream_is(kind, features_TCHW):
    bank, counts, sizes, num_frames = make(kind), [], [], 40
    for start in range(0, 4 * num_frames, num_frames):
        with Operations() as done:
            for index in range(start, start + num_frames):
                # The same frames again and again: what differs is how long the stream has been.
                bank.write(frame_at(features_TCHW, index % num_frames, index=index, time_s=index / 8, content_id=index))
        counts.append(done.count)
        sizes.append(sum(store.slots.nbytes for store in bank.stores))
    assert counts[3] <= 1.1 * counts[1]
    if kind != "keep_all":
        assert len(set(sizes)) == 1


def test_factory_names_what_is_wrong():
    with pytest.raises(InputError, match=r"unknown memory 'pyramids': expected one of \['event_merging', 'fifo'"):
        make_memory("pyramids")
    with pytest.raises(InputError, match="memory 'window' does not take capacities, policy: it takes num_frames"):
        make_memory("window", capacities=(1, 1, 1), policy="paper", num_frames=None)
    assert make_memory("window", capacities=None, num_frames=2).max_tokens == 512
