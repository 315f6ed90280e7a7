"""Rows that are nearly right: each is refused with its reason, none is learned as something else."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from train_cases import dialogue, tiny_encoder, write_media
from videochat_online.data import SampleEncoder, parse_row
from videochat_online.data.samples import sample_reader as reading_module
from videochat_online.errors import InputError

ROOT = Path("/data")
TALK = dialogue("What?", "That.")
VIDEO = {"video": "v.mp4", "conversations": TALK}
HALF = "\ud83d"


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media(tmp_path_factory.mktemp("values") / "media")


@pytest.fixture(scope="module")
def encoder(tiny_model) -> SampleEncoder:
    return tiny_encoder(tiny_model)


def track(times_s: list[float], *boxes: list[float]) -> dict[str, Any]:
    """Boxes of the images of `write_media`'s folder; the last box again for all further times."""
    found = [*boxes, *[boxes[-1]] * len(times_s)]
    return {
        "video": "frames",
        "all_image_files": [f"frame{number}.png" for number in range(1, len(times_s) + 1)],
        "image_bboxes": [{"timestamp": t, "bbox": box} for t, box in zip(times_s, found, strict=False)],
        "query_template": "Follow <bbox>.",
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"images": ["a.png"]}, "expected pictures at image, or a video at video, found 'images'"),
        ({"videos": "a.mp4"}, "found 'videos'"),
        ({"Image": "a.png"}, "found 'Image'"),
        ({"image_path": "a.png", "image": ""}, "found 'image_path'"),
        ({"image": {}}, "image: expected a path, found {}"),
        ({"image": False}, "image: expected a path, found False"),
        ({"image": 0}, "image: expected a path, found 0"),
        ({"video": 0}, "video: expected a path, found 0"),
        ({"video": ["a.mp4"]}, "video: expected a path, found "),
        ({"video": "a.mp4", "image": "a.png"}, "expected image or video, found both"),
        ({"video": None, "conversations": dialogue("<video>\nWhat?", "b")}, "video: expected a path, as the text says"),
        ({"conversations": dialogue("a", "b", times=(1.0,))}, "expected a video beside timestamps, found none"),
        ({"video": "v", "need_reset_timestamp": "false"}, "need_reset_timestamp: expected true or false"),
        ({"conversations": [{"from": ["human"], "value": "a"}, TALK[1]]}, r"expected human, found \['human'\]"),
        (
            {"conversations": dialogue(HALF, "b")},
            "human: expected Unicode text, without halves of surrogate pairs",
        ),
        ({"video": HALF}, r"video: expected a path, found '\\ud83d'"),
        ({"image": f"a{HALF}"}, r"image: expected a path, found 'a\\ud83d'"),
        ({"image": "a" * 5000}, "image: expected a path of at most 4,096 characters, found 5,000"),
        ({"image": "http://["}, "expected a path or a URL that fsspec knows"),
        ({"video": "v", "clip": [0, 10**400]}, r"clip\[1\]: expected a number, found 1000"),
        ({"video": "v", "clip": [0, 1e308]}, r"clip\[1\]: expected a number of at most 1,000,000, found 1e.308"),
        ({"video": "v", "fps": 5e-324}, "fps: expected a number of at least 0.001, found 5e-324"),
        (
            {"video": "v", "conversations": dialogue("a", "b", times=(1e9,))},
            "expected a number of at most 1,000,000",
        ),
        (track([5, 1, 2, 0.5], [0, 0, 1, 1]), "image_bboxes 1: timestamp: expected at least 5, the one before's, fou"),
        (track([-1, 0], [0, 0, 1, 1]), r"image_bboxes\[0\].timestamp: expected a number of at least 0, found -1"),
        (
            track([0, 1e308], [0, 0, 1, 1]),
            r"image_bboxes\[1\].timestamp: expected a number of at most 1,000,000",
        ),
        (track([0], [0, 0, 1, 10**400]), r"image_bboxes\[0\].bbox\[3\]: expected a number, found 1000"),
        (track([0], [0, 0, 1, 1]) | {"query_template": "x" * 999}, r"found 'x{56}\.\.\.$"),
        (track([0], [0, 0, 1, 1]) | {"all_image_files": [HALF]}, r"all_image_files\[0\]: expected a path"),
    ],
)
def test_a_row_is_refused_with_a_short_reason(row, message):
    with pytest.raises(InputError, match=message) as raised:
        parse_row({"conversations": TALK} | row, ROOT)
    assert len(str(raised.value)) < 250
    str(raised.value).encode()


@pytest.mark.parametrize("nothing", [None, "", []])
def test_keys_that_name_nothing(nothing):
    assert (
        parse_row({"image": nothing, "video": nothing, "frames": nothing, "conversations": TALK}, ROOT).kind == "text"
    )
    assert parse_row(VIDEO | {"image": nothing}, ROOT).kind == "video"
    assert parse_row({"image": "a.png", "video": nothing, "QA": [{"q": "a", "a": "b"}]}, ROOT).kind == "image"


def test_numbers_at_the_bounds():
    sample = parse_row(VIDEO | {"clip": [0, 1e6], "fps": 1e4, "need_reset_timestamp": True}, ROOT)
    assert (sample.clip_s, sample.fps, sample.reset_times) == ((0, 1e6), 1e4, True)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 1.2, 0.5]], "image_bboxes 1: expected a box within 0 to 1, found"),
        ([[0.1, 0.1, 0.5, 0.5], [1, 1, 30, 30]], "image_bboxes 0: expected pixels, as in other boxes, found"),
        ([[1, 1, 30, 30], [1, 1, 65, 30]], "image_bboxes 1: expected a box within 64 x 48 pixels"),
    ],
)
def test_boxes_that_are_none(encoder, media, boxes, message):
    with pytest.raises(InputError, match=message):
        encoder.read(parse_row(track([0.0, 1.0], *boxes), media), random.Random(0))


@pytest.mark.parametrize(
    "boxes",
    [
        [[0, 0, 1, 1], [0.5, 0.5, 0.5, 1]],
        [[347.0 / 8, 1, 64, 48], [0, 0, 0, 0]],
        [[10.5, 0.5, 20.25, 1.5], [0, 0, 1, 1]],
    ],
)
def test_boxes_in_parts_or_in_pixels(encoder, media, boxes):
    shown = encoder.read(parse_row(track([0.0, 1.0], *boxes), media), random.Random(0))
    assert len(shown.ratios) == 2


def test_each_turn_of_a_track_follows_its_own_frame(encoder, media):
    """At 30 frames a second, times are not whole tenths; frame lines round them, and 0.27 s to 0.3."""
    row = track([0.07, 0.27, 0.47], [0, 0, 1, 1])
    shown = encoder.read(parse_row(row, media), random.Random(0))
    assert len(shown.ratios) == 3


def test_turns_before_the_clip_have_nothing_to_see(encoder, media):
    row = {"video": "clip.mp4", "clip": [2, 3], "conversations": dialogue("a", "b", times=(1.0,))}
    with pytest.raises(InputError, match="expected a turn at 2.2 s, the first frame, or later, found none"):
        encoder.read(parse_row(row, media), random.Random(0))


def test_as_many_frames_as_places(encoder, media, monkeypatch):
    """Whatever the layout does: the network would stop the run."""
    row = {"video": "clip.mp4", "conversations": dialogue("a", "b", times=(2.0,))}
    online_turns = reading_module.online_turns
    monkeypatch.setattr(reading_module, "online_turns", lambda turns, frames: online_turns(turns, frames[1:]))
    with pytest.raises(InputError, match="expected as many frames as places for them, found 4 and 3"):
        encoder.read(parse_row(row, media), random.Random(0))
