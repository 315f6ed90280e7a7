"""Rows with messages, or a prompt and its answer: the same samples as LLaVA's rows that say the same, or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from train_cases import dialogue
from videochat_online.data import parse_row
from videochat_online.errors import InputError

ROOT = Path("/data")


def talk(*contents: Any, **keys: Any) -> list[dict[str, Any]]:
    """Messages of user and assistant in turn; `keys` at the first."""
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]
    return [messages[0] | keys, *messages[1:]]


def part(kind: str, **keys: Any) -> dict[str, Any]:
    return {"type": kind, **keys}


WHAT = part("text", text="What?")
PLAIN = {"conversations": dialogue("<video>\nWhat?", "That."), "video": "a.mp4"}
IMAGES = {"conversations": dialogue("<image>\n<image>\nWhat?", "That."), "image": ["a.png", "b.png"]}
ENDS = {"start": 1, "end": "0:03"}


@pytest.mark.parametrize(
    ("row", "plain"),
    [
        ({"messages": talk("<video>\nWhat?", "That."), "videos": ["a.mp4"]}, PLAIN),
        ({"messages": talk("<video>\nWhat?", "That."), "videos": "a.mp4"}, PLAIN),
        ({"messages": talk("<video>\nWhat?", "That."), "video": "file:///data/a.mp4"}, PLAIN),
        ({"messages": talk("<video>\nWhat?", "That."), "videos": [{"path": "a.mp4", "bytes": None}], "id": 3}, PLAIN),
        ({"messages": talk([part("video", video="a.mp4"), WHAT], "That.")}, PLAIN),
        ({"messages": talk([part("video", video={"path": "a.mp4"}), WHAT], [part("text", text="That.")])}, PLAIN),
        ({"messages": talk([part("video"), WHAT], "That."), "videos": ["a.mp4"], "images": []}, PLAIN),
        (
            {"messages": talk([part("video", path="a.mp4", nframes=8, video_start=1, video_end=3), WHAT], "That.")},
            PLAIN | ENDS,
        ),
        (
            {"messages": talk("<video>\nWhat?", "That."), "videos": [{"path": "a.mp4", "start": 1, "end": 3}]},
            PLAIN | ENDS,
        ),
        ({"messages": talk("<video>\nWhat?", "That."), "videos": ["a.mp4"], "clip": [1, 3]}, PLAIN | ENDS),
        ({"messages": talk([part("video", video="a.mp4", fps=4), WHAT], "That.")}, PLAIN | {"fps": 4}),
        ({"messages": talk("<image>\n<image>\nWhat?", "That."), "images": ["a.png", {"path": "b.png"}]}, IMAGES),
        ({"messages": talk([part("image", url="a.png"), part("image", image="b.png"), WHAT], "That.")}, IMAGES),
        ({"messages": talk([part("image"), part("image"), WHAT], "That."), "images": ["a.png", "b.png"]}, IMAGES),
        (
            {"messages": talk([part("text", text="A\n"), part("text", text="B"), part("image", path="a.png")], "C")},
            {"conversations": dialogue("A\nB<image>", "C"), "image": "a.png"},
        ),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, *talk("a", "b", "c", "d")]},
            {"conversations": [{"from": "system", "value": "Be brief."}, *dialogue("a", "b", "c", "d")]},
        ),
        (
            {"messages": talk("a", "b", timestamps="0:02"), "videos": ["a.mp4"], "need_reset_timestamp": True},
            {"conversations": dialogue("a", "b", times=(2,)), "video": "a.mp4", "need_reset_timestamp": True},
        ),
        ({"prompt": "<video>\nWhat?", "response": "That.", "video": "a.mp4"}, PLAIN),
        (
            {"messages": talk("a", "b"), "system": "s", "conversations": None, "QA": None, "image_bboxes": None},
            {"conversations": [{"from": "system", "value": "s"}, *dialogue("a", "b")], "query_template": None},
        ),
        (
            {"messages": None, "prompt": "a", "query": None, "response": "b", "rejected": None},
            {"conversations": dialogue("a", "b"), "messages": None, "QA": None},
        ),
        ({"messages": talk([WHAT | {"image": None, "index": None}], "b")}, {"conversations": dialogue("What?", "b")}),
        ({"prompt": "a", "completion": "b"}, {"conversations": dialogue("a", "b")}),
        (
            {"prompt": talk("a"), "completion": [{"role": "assistant", "content": "b"}]},
            {"conversations": dialogue("a", "b")},
        ),
        (
            {"query": "c", "response": "d", "history": [["a", "b"]], "system": "s"},
            {"conversations": [{"from": "system", "value": "s"}, *dialogue("a", "b", "c", "d")]},
        ),
        (
            {"prompt": "a", "response": "b", "video": "a.mp4", "timestamps": 2},
            {"conversations": dialogue("a", "b", times=(2,)), "video": "a.mp4"},
        ),
    ],
)
def test_the_same_sample_as_of_a_row_of_conversations(row, plain):
    assert parse_row(row, ROOT) == parse_row(plain, ROOT)


AT_VIDEO = {"messages": talk("<video>\nWhat?", "That."), "videos": ["a.mp4"]}
SAID = {"messages": talk("a", "b")}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "hi"}, "messages: expected a list, found 'hi'"),
        ({"messages": talk("a")}, "messages: expected pairs of user and assistant, found 1 messages"),
        ({"messages": talk("a", "b")[::-1]}, "messages: turn 1: expected user, found 'assistant'"),
        ({"messages": dialogue("a", "b")}, "messages: turn 1: expected user, found none"),
        (
            {"messages": [*talk("a", "b", "c"), {"role": "tool", "content": "d"}]},
            "turn 2: expected assistant, found 'tool'",
        ),
        ({"messages": talk("a", None)}, "messages: turn 1: assistant: expected a text, found none"),
        (
            {"messages": talk("a", [part("audio", path="a.wav")])},
            "messages 2: part 1: expected text, image or video, found 'au",
        ),
        ({"messages": talk(["a"], "b")}, "messages 1: part 1: expected text, image or video, found 'a'"),
        ({"messages": talk(["text"], "b")}, "messages 1: part 1: expected text, image or video, found 'text'"),
        ({"messages": talk([part("text")], "b")}, "messages 1: part 1: expected a text, found none"),
        (
            {"messages": talk("a", [part("image", path="a.png")])},
            "messages 2: part 1: expected what is shown in messages of u",
        ),
        (
            {"messages": talk("a", "b", time=3.0), "videos": ["a.mp4"]},
            "user: unknown key 'time'; did you mean 'timestamps'",
        ),
        (
            {"messages": [SAID["messages"][0], SAID["messages"][1] | {"loss": False}]},
            "messages 2: loss: expected true, as",
        ),
        ({"messages": talk("a", "b", tool_calls=[{}])}, "messages 1: tool_calls: expected none"),
        (AT_VIDEO | {"videos": ["a.mp4", "b.mp4"]}, "videos: expected one video, found 2"),
        (
            AT_VIDEO | {"videos": [["1.png", "2.png"]]},
            "videos 1: expected one file or one folder of frames, found a list",
        ),
        (AT_VIDEO | {"videos": []}, "video: expected a path, as the text says <video>, found none"),
        (AT_VIDEO | {"videos": [{"start": 1}]}, "videos 1: expected one path, found 0"),
        (AT_VIDEO | {"videos": [None]}, "videos 1: expected a path, or an object with one, found none"),
        (
            AT_VIDEO | {"videos": [{"path": "a", "bytes": "x"}]},
            "videos 1: unknown key 'bytes'; known are video, path, url, st",
        ),
        (AT_VIDEO | {"videos": [{"path": "a", "sample_fps": 2}]}, "videos 1: unknown key 'sample_fps'"),
        (
            AT_VIDEO | {"videos": [{"path": "a", "start": 1, "video_start": 2}]},
            "expected one start and one end, found sev",
        ),
        (
            AT_VIDEO | {"videos": [{"path": "a", "start": 1, "end": 2}], "start": 3},
            "start: expected it beside the video or in",
        ),
        (AT_VIDEO | {"images": ["a.png"]}, "expected images or a video, found both"),
        (AT_VIDEO | {"video": "a.mp4"}, "expected videos or video, found both"),
        (
            AT_VIDEO | {"messages": talk("<image>What?", "b")},
            "messages: expected no <image> in a row of kind video, found",
        ),
        (
            SAID | {"messages": talk("<video><image>", "b"), "images": ["a.png"]},
            "expected no <video> in a row of kind image",
        ),
        (SAID | {"messages": talk("<image>", "b")}, "expected no <image> in a row of kind text"),
        ({"messages": talk([part("video"), WHAT], "b"), "videos": []}, "0 images, 1 videos, found 0 images, 0 videos"),
        (
            {"messages": talk([part("image", path="a"), WHAT], "b"), "images": ["b"]},
            "expected a path at each part of a con",
        ),
        (SAID | {"audios": ["a.wav"]}, "audios: expected none, as nothing is done with it, found"),
        (SAID | {"objects": {"bbox": [[0, 0, 1, 1]]}}, "objects: expected none"),
        (SAID | {"tools": [{}]}, "tools: expected none"),
        (SAID | {"rejected_response": "c"}, "rejected_response: expected none, as preferences are not learned"),
        ({"query": "a", "response": "b", "rejected_response": "c"}, "rejected_response: expected none, as pref"),
        ({"prompt": "a", "completion": "b", "rejected": "c"}, "rejected: expected none, as preferences"),
        (
            {"system": "s", "messages": [{"role": "system", "content": "s"}, *SAID["messages"]]},
            "system: expected it in the row or in its messages, found both",
        ),
        (
            AT_VIDEO | {"messages": talk([WHAT | {"timestamps": 3}], "b")},
            "messages 1: part 1: expected a text and nothing beside it, found 'timestamps'",
        ),
        (
            {"messages": talk("a", [WHAT | {"image": "a.png"}])},
            "messages 2: part 1: expected a text and nothing beside it, found 'image'",
        ),
        ({"prompt": None, "messages": None, "response": "b"}, "messages or prompt/response, found response"),
        (SAID | {"image_path": "a.png"}, "expected pictures at image, or a video at video, found 'image_path'"),
        (AT_VIDEO | {"start_time": 3}, "unknown key 'start_time'; did you mean 'clip'"),
        (SAID | {"messages": talk("a", "b", timestamps=2)}, "expected a video beside timestamps, found none"),
        ({"prompt": "a", "query": "a", "response": "b"}, "expected prompt or query, found both"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "messages or prompt/response, found prompt, chosen, rejected",
        ),
        ({"prompt": "a", "completion": "b", "label": False}, "label: expected true, as all answers are learned"),
        (
            {"prompt": "a", "completion": "b", "label": "0"},
            "label: expected true, as all .*, found '0'",
        ),
        (SAID | {"label": False}, "label: expected true, as all answers are learned"),
        (
            {"messages": [SAID["messages"][0], SAID["messages"][1] | {"weight": 0}]},
            "messages 2: weight: expected true, as",
        ),
        ({"query": "a", "response": "b", "history": ["c"]}, "history: expected a list of pairs, found"),
        ({"prompt": 3, "response": "b"}, "prompt: turn 1: user: expected a text, found 3"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(row, message):
    with pytest.raises(InputError, match=message):
        parse_row(row, ROOT)


def test_messages_beside_another_dialogue_are_not_read():
    """Rows that were read before there were messages stay what they were."""
    row = {"conversations": dialogue("a", "b"), "messages": talk("c", "d"), "prompt": "e", "response": "f"}
    assert parse_row(row, ROOT).turns[0].user == "a"
    assert parse_row({"messages": talk("c", "d"), "prompt": "e", "response": "f"}, ROOT).turns[0].user == "c"
