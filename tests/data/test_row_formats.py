from __future__ import annotations

import copy
from pathlib import Path

import pytest

from train_cases import dialogue
from videochat_online.data import parse_row
from videochat_online.data.rows.sample import BoxAt, DialogueTurn
from videochat_online.errors import InputError

ROOT = Path("/data")
TALK = dialogue("What?", "That.")
TRACK = {
    "video": "folder",
    "all_image_files": ["1.png", "2.png"],
    "image_bboxes": [{"timestamp": 0.0, "bbox": [0.1, 0.2, 0.3, 0.4]}, {"timestamp": 1.0, "bbox": [0, 1, 0, 1]}],
    "query_template": {"from": "human", "value": "Follow <bbox>."},
}


def test_llava_rows():
    sample = parse_row({"image": "a/b.png", "conversations": TALK, "width": 4, "height": 3}, ROOT)
    assert (sample.kind, sample.media, sample.sizes) == ("image", (ROOT / "a/b.png",), ((4, 3),))
    assert sample.turns == (DialogueTurn("What?", "That."),)
    several = parse_row({"image": ["a.png", "/b.png"], "conversations": TALK}, ROOT)
    assert several.media == (ROOT / "a.png", Path("/b.png"))
    assert parse_row({"image": "", "conversations": TALK}, ROOT).kind == "text"
    video = parse_row({"video": "v.mp4", "start": 1, "end": 2.5, "fps": 4, "conversations": TALK}, ROOT)
    assert (video.kind, video.clip_s, video.fps) == ("video", (1, 2.5), 4)
    system = [{"from": "system", "value": "Be brief."}, *TALK]
    assert parse_row({"conversations": system}, ROOT).system_message == "Be brief."


def test_questions_and_answers():
    pairs = [{"i": "Look.", "q": "What?", "a": " That. "}, {"q": "Who?", "a": "Me"}, {"i": "Say.", "q": "", "a": "x"}]
    sample = parse_row({"video": "v.mp4", "QA": pairs, "clip": [0, 3]}, ROOT)
    assert [(turn.user, turn.assistant) for turn in sample.turns] == [
        ("Look. What?", "That."),
        ("Who?", "Me"),
        ("Say.", "x"),
    ]
    assert parse_row({"image": "i.png", "QA": pairs}, ROOT).kind == "image"


def test_online_rows():
    row = {"video": "v.mp4", "need_reset_timestamp": True, "conversations": dialogue("a", "b", "c", "d", times=(0, 2))}
    before = copy.deepcopy(row)
    sample = parse_row(row, ROOT)
    assert (sample.kind, sample.reset_times, [turn.time_s for turn in sample.turns]) == ("online", True, [0, 2])
    assert row == before


def test_tracks():
    sample = parse_row(TRACK, ROOT)
    assert sample.media == (ROOT / "folder/1.png", ROOT / "folder/2.png")
    assert (sample.boxes[1], sample.query) == (BoxAt(1.0, (0, 1, 0, 1)), "Follow <bbox>.")


def test_times_as_a_clock_shows_them():
    """Wherever a row has times; the answer may repeat its question's in the other form."""
    talk = dialogue("a", "b", "c", "d", times=("00:03", "1:02:03.5"))
    talk[1]["timestamps"] = 3
    sample = parse_row({"video": "v", "clip": ["0:01", 7200], "conversations": talk}, ROOT)
    assert (sample.clip_s, [turn.time_s for turn in sample.turns]) == ((1, 7200), [3, 3723.5])
    ends = parse_row({"video": "v", "start": "0:01.5", "end": "2", "QA": [{"q": "a", "a": "b"}]}, ROOT)
    assert ends.clip_s == (1.5, 2)
    boxes = [box | {"timestamp": time} for box, time in zip(TRACK["image_bboxes"], ("0:59", "1:00"), strict=True)]
    assert [box.time_s for box in parse_row(TRACK | {"image_bboxes": boxes}, ROOT).boxes] == [59, 60]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "expected conversations, QA, image_bboxes, messages or prompt/response, found an empty"),
        ({"conversations": []}, "expected pairs of human and gpt, found 0"),
        ({"conversations": TALK[:1]}, "expected pairs of human and gpt, found 1"),
        ({"conversations": TALK[::-1]}, "turn 1: expected human, found 'gpt'"),
        ({"conversations": [*TALK, *TALK[::-1]]}, "turn 2: expected human, found 'gpt'"),
        ({"conversations": "hi"}, "conversations: expected a list, found 'hi'"),
        ({"conversations": [{"from": "human"}, TALK[1]]}, "turn 1: human: expected a text, found none"),
        ({"image": [1], "conversations": TALK}, "image: expected a path, found"),
        ({"video": [""], "conversations": TALK}, r"video: expected a path, found \[''\]"),
        ({"video": "v", "clip": [1], "conversations": TALK}, "clip: expected at least 2 of them, found 1"),
        ({"video": "v", "clip": [2, 1], "conversations": TALK}, "clip: expected 0 <= start <= end .* found .2.0, 1.0."),
        ({"video": "v", "start": 1, "conversations": TALK}, r"clip\[1\]: expected a number, found none"),
        ({"video": "v", "fps": 0, "conversations": TALK}, "fps: expected a number of at least 0.001, found 0"),
        (
            {"video": "v", "conversations": dialogue("a", "b", "c", "d", times=(3,))},
            "turn 2: timestamps: expected a time, as at the others",
        ),
        (
            {"video": "v", "conversations": dialogue("a", "b", "c", "d", times=(3, 2))},
            "turn 2: timestamps: expected at least 3.* found 2",
        ),
        (
            {"video": "v", "conversations": dialogue("a", "b", times=(-1,))},
            "turn 1: timestamps: expected a number of at least 0, found -1",
        ),
        (
            {"video": "v", "conversations": dialogue("a", "b", times=("1:5",))},
            "turn 1: timestamps: .* 1:05, found '1:5'",
        ),
        (
            {"video": "v", "clip": ["0:09", "1:70"], "conversations": TALK},
            r"clip\[1\]: expected a number, or a .* found '1:70'",
        ),
        (
            {"video": "v", "clip": ["0:09", "0:03"], "conversations": TALK},
            "clip: expected 0 <= start <= .*9.0, 3.0",
        ),
        (
            {"video": "v", "end": "1e3", "start": 0, "QA": [{"q": "a", "a": "b"}]},
            r"clip\[1\]: expected a number, .* found '1e3'",
        ),
        (
            TRACK | {"image_bboxes": [{"timestamp": "x", "bbox": [0, 0, 1, 1]}] * 2},
            r"image_bboxes\[0\].timestamp: expected a number, or",
        ),
        ({"video": "v", "QA": []}, "QA: expected at least 1 of them, found"),
        ({"video": "v", "QA": [{"q": "", "a": "b"}]}, "QA 1: expected an instruction i or a question q"),
        ({"video": "v", "QA": [{"q": "a"}]}, "QA 1: a: expected a text, found none"),
        ({"QA": [{"q": "a", "a": "b"}]}, "expected video or image beside QA"),
        (TRACK | {"image_bboxes": []}, "image_bboxes: expected 2 boxes, one for each image file, found 0"),
        (TRACK | {"query_template": "Follow."}, "query_template: expected <bbox>"),
        (
            TRACK | {"image_bboxes": [{"timestamp": 0, "bbox": [1]}] * 2},
            r"image_bboxes\[0\].bbox: expected at least 4",
        ),
    ],
)
def test_a_bad_row_says_what_is_wrong(row, message):
    with pytest.raises(InputError, match=message):
        parse_row(row, ROOT)
