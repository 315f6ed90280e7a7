"""State of a scene at a moment, parts of it, and what is drawn."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from videochat_online.errors import InputError
from videochat_online.synthetic import Entity, Event, Preset, Renderer, Scene, StreamKind, scene_from_dict
from videochat_online.synthetic.scene.even_draws import Decks
from videochat_online.synthetic.scene.render import pattern_mask, shape_mask
from videochat_online.synthetic.scene.words import PATTERNS, span_name

SCENE = Scene(
    "scene",
    20,
    4,
    (Entity("red", "square", "checks", "fine"), Entity("blue", "circle", "weave", "coarse")),
    (
        Event("appear", 0, 0, 0, (0, 0)),
        Event("move", 0, 2, 3, (2, 1)),
        Event("flash", 0, 4, 5),
        Event("shake", 0, 6, 9),
        Event("vanish", 0, 10, 10),
        Event("appear", 1, 10, 10, (3, 3)),
        Event("pulse", 1, 12, 14),
        Event("hop", 1, 15, 17),
    ),
)


def seen(time_s, scene=SCENE):
    return [(one.entity, one.row, one.column) for one in scene.state_at(time_s)]


def test_state_at_a_moment():
    assert seen(0) == [(0, 0, 0)]
    assert seen(2) == [(0, 0, 0)]
    assert seen(2.5) == [(0, 1, 0.5)]
    assert seen(3) == [(0, 2, 1)]
    assert seen(9.99) == [(0, 2, 1)]
    assert seen(10) == [(1, 3, 3)]
    assert seen(20) == [(1, 3, 3)]
    assert SCENE.cell_at(0, 2.5) is None
    assert SCENE.cell_at(0, 12) is None
    assert [one.is_flashing for time_s in (3.9, 4, 4.9, 5) for one in SCENE.state_at(time_s)] == [0, 1, 1, 0]
    assert [one.action for time_s in (5.9, 6, 9, 12, 16) for one in SCENE.state_at(time_s)] == [
        None,
        "shake",
        None,
        "pulse",
        "hop",
    ]


def test_what_has_been_seen():
    part = SCENE.until(2)
    assert part.events == SCENE.events[:1]  # a move that begins now does not show yet
    assert SCENE.until(10).state_at(10) == SCENE.state_at(10)
    assert SCENE.until(20) is SCENE


def test_a_clip_is_a_stream_of_its_own():
    clip = SCENE.between(7, 13)
    assert clip.duration_s == 6
    for time_s in (0, 1, 2.5, 3, 5.5):
        assert clip.state_at(time_s) == SCENE.state_at(time_s + 7)
    assert SCENE.between(0, 20).state_at(19) == SCENE.state_at(19)
    assert SCENE.between(2, 5).state_at(0.5) == SCENE.state_at(2.5)
    assert SCENE.between(2, 5).state_at(2) == SCENE.state_at(4)
    assert SCENE.between(10, 12).spans == {1: (0, float("inf"))}


def test_a_frozen_scene_never_changes():
    frozen = SCENE.frozen_at(8)
    assert seen(0, frozen) == seen(8, frozen) == [(0, 2, 1)]
    assert len(frozen.events) == 1
    assert SCENE.frozen_at(2.5).state_at(2) == ()  # between two cells: a place has no name there


def test_quiet_moments():
    assert [SCENE.is_quiet(t - 1, t) for t in range(1, 12)] == [1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1]
    assert SCENE.is_quiet(12, 14)  # actions and flashes leave everything in its place


def test_scenes_go_through_json():
    assert scene_from_dict(json.loads(json.dumps(SCENE.to_dict()))) == SCENE
    with pytest.raises(InputError, match="scene: expected the keys of a scene file, found 'entities'"):
        scene_from_dict({})
    with pytest.raises(InputError, match="unexpected keyword argument 'colours'"):
        scene_from_dict({**SCENE.to_dict(), "colours": 1})


def test_frames_differ_exactly_where_keys_do():
    renderer = Renderer(SCENE, 64)
    keys = Counter()
    for frame in range(8 * 20):
        keys[renderer.key(frame / 8), renderer.frame(frame / 8).tobytes()] += 1
    assert len({key for key, _ in keys}) == len({pixels for _, pixels in keys}) == len(keys) > 15


@pytest.mark.parametrize("time_s", [6, 12, 15])
def test_an_action_shows_at_one_frame_per_second(time_s):
    renderer = Renderer(SCENE, 64)
    assert renderer.key(time_s) != renderer.key(time_s + 1)


def test_a_busy_background_drifts_behind_things_that_rest():
    busy = Renderer(Scene("busy", 20, 4, SCENE.entities, SCENE.events[:1], 3, is_busy=True), 64)
    before, after = busy.frame(0), busy.frame(1)
    np.testing.assert_array_equal(np.roll(before[20:], 9, axis=1), after[20:])
    np.testing.assert_array_equal(before[2:14, 2:14], after[2:14, 2:14])
    assert len({busy.frame(time_s).tobytes() for time_s in range(64)}) == 64
    np.testing.assert_array_equal(before, busy.frame(64))


def test_each_block_of_lines_is_half_black():
    for size, edge in (("fine", 2), ("coarse", 4)):
        for name in PATTERNS:
            means = pattern_mask(name, size).reshape(8 // edge, edge, 8 // edge, edge).mean((1, 3))
            assert (means == 0.5).all(), (name, size)


def test_names_that_do_not_exist():
    with pytest.raises(InputError, match="pattern: expected fine or coarse upright lines, .*, got tiny checks"):
        pattern_mask("checks", "tiny")
    with pytest.raises(InputError, match="shape: expected one of block, .*, got 'star'"):
        shape_mask("star", 16)
    with pytest.raises(InputError, match="at least 16 pixels for each of 4 cells, got 60 pixels"):
        Renderer(SCENE, 60)
    with pytest.raises(InputError, match="duration: expected 1 to 8 seconds, got 9"):
        span_name(9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world": "flat"}, "world: expected one of single, several, got 'flat'"),
        ({"world": "several"}, "video_fps: expected 8 .* got 2"),
        ({"test": (StreamKind(seconds=24, count=1),)}, "expected streams of 48 s"),
        ({"world": "several", "video_fps": 8, "test": (StreamKind(seconds=30, count=1),)}, "a multiple of 12 s"),
    ],
)
def test_presets_that_make_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        Preset(**{"name": "x", "world": "single", "video_fps": 2, "train": (), "val": (), "test": (), **changes})


def test_a_deck_deals_everything_before_anything_again():
    decks = Decks("seed")
    dealt = "".join(decks.draw("letters", "abc") for _ in range(30))
    assert [sorted(dealt[i : i + 3]) for i in range(0, 30, 3)] == [list("abc")] * 10
    assert len({dealt[i : i + 3] for i in range(0, 30, 3)}) > 1
