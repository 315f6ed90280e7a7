"""Keys that nobody reads: those that say what is shown, or when, are errors; all others are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from train_cases import dialogue
from videochat_online.data import parse_row
from videochat_online.data.rows.row_formats import RowParser
from videochat_online.errors import InputError

TALK = dialogue("What?", "That.")
TIMED = dialogue("What?", "That.", times=(3.0,))


def timed(**keys: Any) -> dict[str, Any]:
    """A row of which the human's message has these keys, and no timestamps."""
    return {"video": "a.mp4", "conversations": [TALK[0] | keys, TALK[1]]}


NAMES = (
    "timestamp time t ts start_time frame_time frameTime Timestamps timestmaps time_s video_time asked_at when second"
)
NAMES += " seconds sec ask_time at_s pts moment timecode ms offset start frame frame_idx begin time_stamp tstamp"


@pytest.mark.parametrize("key", NAMES.split())
@pytest.mark.parametrize("value", [3.0, "00:03", [3.0]])
def test_a_time_of_a_turn_under_another_name(key, value):
    with pytest.raises(InputError, match=rf"turn 1: human: unknown key '{key}'; did you mean 'timestamps'"):
        parse_row(timed(**{key: value}), Path())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"video": "a.mp4", "QA": [{"q": "a", "a": "b", "time": 2.0}]}, "QA 1: unknown key 'time'"),
        ({"video": "a.mp4", "QA": [{"i": "a", "question": "b", "a": "c"}]}, "'question'; did you mean 'q'"),
        ({"video": "a.mp4", "conversations": [TALK[0], TALK[1] | {"timestamps": 3.0}]}, "gpt: timestamps: expected no"),
        ({"video": "a.mp4", "conversations": [TIMED[0], TALK[1] | {"timestamps": 9.0}]}, "3.0, found 9.0"),
        ({"video": "a.mp4", "conversations": [TIMED[0] | {"image": "b.png"}, TALK[1]]}, "shown at image or video of t"),
        ({"video": "a.mp4", "conversations": TALK, "QA": [{"q": "a", "a": "b"}]}, "conversations or QA, found both"),
        *(
            ({"video": "a.mp4", "conversations": TALK, key: value}, f"unknown key '{key}'; did you mean")
            for key, value in {
                "timestamps": [3.0],
                "timestamp": 3.0,
                "middle_frame_timestamp": 3.0,
                "Clip": [1, 2],
                "clips": [[1, 2]],
                "segment": [1.0, 2.0],
                "time_span": "0:03-0:09",
                "start_time": 1,
                "endTime": "00:00:09.5",
                "start_s": 1.0,
                "begin": 1,
                "video_start": 2,
                "start_frame": 30,
                "window": {"from": 1, "to": 3},
                "reset_timestamps": True,
                "reset": True,
                "conversation": TALK,
                **{"clpi": [1, 2], "strat": 1, "viedo": "b"},
            }.items()
        ),
        *(
            ({"conversations": TALK, key: value}, f"found (a file at )?'{key}'")
            for key, value in {"images": ["a.png"], "clip_path": "a.mp4", "visual": ["b.JPG"], "video_url": "x"}.items()
        ),
        ({"image": "a.png", "conversations": TALK, "images": ["a.png", "b.png"]}, "found 'images' beside it"),
        ({"Video": "a.mp4", "conversations": TALK}, "found 'Video'"),
        ({"vidoe": "folder", "conversations": TALK}, "unknown key 'vidoe'; did you mean 'video'"),
        ({"video": "a.mp4", "conversations": TALK, "clip": [0, 1], "start": 2, "end": 3}, "clip or start and end"),
        ({"video": "folder", "conversations": TIMED, "frame_rate": 4}, "'frame_rate'; did you mean 'fps'"),
        ({"video": "folder", "conversations": TIMED, "video_fps": 4}, "'video_fps'; did you mean 'fps'"),
    ],
)
def test_what_is_shown_under_another_name(row, message):
    with pytest.raises(InputError, match=message):
        parse_row(row, Path())


HARMLESS: dict[str, Any] = {
    **{"id": 7, "sample_id": "7", "source": "youtube", "dataset": "coin", "data_source": "x", "task": "dvc"},
    **{"duration": 93.5, "video_duration_s": 9.5, "num_frames": 64, "width": 4, "height": 3, "width_list": [4]},
    **{"metadata": {"dataset": "a", "split": "b"}, "choice_list": ["A"], "model": "gpt4", "score": 0.5},
    **{"created_at": 1700000000, "timestamp": "2024-05-01T10:00:00Z", "upload_time": 12, "clip_id": 3},
    **{"video_id": "abc", "image_id": 5, "video_path": "/x/a.mp4", "video_name": "a", "thumbnail": "t.jpg"},
    **{"segments": None, "clip": None, "start_time": "", "images": [], "original_fps": 30, "language": "en"},
    **{"conversation_id": "7", "num_conversations": 2, "query_template_id": 1, "vid": "v_7", "clip_score": 0.3},
    **{"clip_similarity": 0.3, "generation_time": 1.5, "latency_ms": 80, "end_token": 2, "timezone": 1},
}


@pytest.mark.parametrize("media", [{"video": "a.mp4"}, {"image": "a.png"}])
def test_what_published_sets_say_of_their_rows_stops_nobody(media):
    messages = [TALK[0] | {"weight": 1, "id": 3, "lang": "en", "turn_id": 0, "time": None}, TALK[1] | {"loss": 1.0}]
    assert len(parse_row(HARMLESS | media | {"conversations": messages}, Path()).turns) == 1
    parse_row({"conversations": TALK, "id": 1, "source": "chat", "start_time": 12.0, "runtime": 3}, Path())
    equal = [TIMED[0], TALK[1] | {"timestamps": 3.0}]
    assert parse_row({"video": "a.mp4", "conversations": equal}, Path()).kind == "online"


def test_keys_that_are_not_read_are_told():
    row = {"id": 1, "conversations": [TALK[0] | {"weight": 1}, TALK[1]], "QA": [{"q": "a", "x": 1}, 3]}
    assert RowParser().unread_keys(row) == {"id", "conversations.weight", "QA.x"}


NUMBERS = "said_s position until clock now elapsed cutoff visible_until upto runtime"


@pytest.mark.parametrize("key", NUMBERS.split())
def test_any_number_of_a_question_about_a_video_may_be_its_time(key):
    with pytest.raises(InputError, match=f"unknown key '{key}'; did you mean 'timestamps'"):
        parse_row(timed(**{key: 3.0}), Path())
    parse_row({"conversations": [TALK[0] | {key: 3.0}, TALK[1]]}, Path())  # of a text it is none


@pytest.mark.parametrize("value", ["three", "t=3", "at 3 s", "1m5s", "00:00:03.500 --> 00:00:05.000"])
def test_a_time_is_told_by_its_name_whatever_it_holds(value):
    with pytest.raises(InputError, match="unknown key 'timestamp'; did you mean 'timestamps'"):
        parse_row(timed(timestamp=value), Path())


@pytest.mark.parametrize(
    "keys",
    [
        {"id": 3, "score": 0.5, "loss": 1, "weight": 1.0, "turn_id": 2, "num_tokens": 9, "label": 4, "index": 0},
        {"timestamp": 1_700_000_000, "time": "2024-05-01 10:00", "created_at": "2024-05-01"},
    ],
)
def test_other_numbers_and_dates_of_a_question_stop_nobody(keys):
    assert parse_row(timed(**keys), Path()).kind == "video"


@pytest.mark.parametrize("key", ["path", "visual", "source_video", "frames_dir"])
def test_a_text_that_begins_with_its_video_wants_one(key):
    for text in ("<video>\nWhat?", "What?\n<video>"):
        with pytest.raises(InputError, match="video: expected a path, as the text says <video>"):
            parse_row({key: "a/b", "conversations": dialogue(text, "That.")}, Path())
    about_html = dialogue("How does <video> differ from <audio>?", "It shows.")
    assert parse_row({key: "a/b", "conversations": about_html}, Path()).kind == "text"


def test_what_is_no_media_and_no_time_stops_nobody():
    row = {"video": "a.mp4", "conversations": TALK, "vid": "a.mp4", "images": [None], "send": 3, "segment": "003"}
    assert parse_row(row, Path()).kind == "video"
    assert parse_row({"conversations": TALK, "file": "src/index.ts", "title": "see a.gif"}, Path()).kind == "text"
