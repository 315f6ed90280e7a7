"""`evaluate --dry_run N`: what it says beforehand is what a run then asks with."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmark_sets import benchmark_config
from evaluation_sets import folder_set, make_config, noise, question, write_frames, write_set
from videochat_online.cli.main import main
from videochat_online.evaluation import make_plan
from videochat_online.evaluation.media.protocol_frames import VideoFrames
from videochat_online.evaluation.run.answering import LETTER_PREFIX, asked_kind, question_text
from videochat_online.evaluation.run.contexts import make_context
from videochat_online.evaluation.run.preview import UNKNOWN_FRAMES, TextModel, preview
from videochat_online.memory import MEMORIES, make_memory

BY_ORDER = {name for name in MEMORIES.built_in if make_memory(name).goes_by_order}


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    return folder_set(tmp_path_factory.mktemp("set"), num_videos=1)


@pytest.fixture
def text_model(tiny_model):
    model = tiny_model
    return TextModel(model.frames, model.tokenizer, model.template, model.system_message)


def asked_with(config, plan, model):
    """Layout and frames of each question, as a run has them."""
    (place,) = plan.share
    video_frames = None if place.path is None else VideoFrames(place.path, place.video, config.protocol)
    context = make_context(model, video_frames, config.protocol, [asked for asked, _ in place.video.moments])
    found = []
    for one in place.video.questions:
        context.advance_to(one)
        prefix = LETTER_PREFIX if config.answer_by == "likelihood" else ""
        text = question_text(one, config.answer_by, config.task, config.protocol)
        view = context.prepare(replace(one, kind=asked_kind(one, config.answer_by)), text, prefix)
        found.append((view.prompt.layout, [[use.index, use.time_s, use.num_tokens] for use in view.frames]))
    return found


@pytest.mark.parametrize(
    ("changes", "answer_by"),
    [
        ({"setting": "sliding_window"}, "generation"),
        ({"setting": "sliding_window"}, "likelihood"),
        ({"blind": True}, "text_likelihood"),
        ({"setting": "sliding_window", "protocol": {"protocol": "reference"}}, "generation"),
        *(({"protocol": {"memory": name, "fps": 4.0}}, "generation") for name in sorted(BY_ORDER)),
        ({"protocol": {"memory": "window", "protocol": "reference"}}, "generation"),
    ],
)
def test_as_a_run_asks(annotations, tmp_path, tiny_model, text_model, changes, answer_by):
    """Word for word, frame for frame, token for token."""
    config = make_config(annotations, tmp_path / "out", answer_by=answer_by, **changes)
    plan = make_plan(config)
    found = preview(config, plan, 9, text_model, is_blind=config.blind)
    expected = asked_with(config, plan, tiny_model)
    assert len(found) == len(expected) == 3
    for one, (layout, frames) in zip(found, expected, strict=True):
        assert (one["prompt"], one["frames_used"], one["unknown"]) == (layout.text, frames, [])
        assert one["num_visual_tokens"] == layout.num_visual_tokens
        assert one["num_text_tokens"] == len(layout) - layout.num_visual_tokens


@pytest.mark.parametrize("memory", sorted(MEMORIES.built_in.keys() - BY_ORDER))
def test_what_depends_on_pixels_is_said_to_be_unknown(annotations, tmp_path, tiny_model, text_model, memory):
    config = make_config(annotations, tmp_path / "out", protocol={"memory": memory})
    plan = make_plan(config)
    found = preview(config, plan, 9, text_model)
    for one, (layout, _) in zip(found, asked_with(config, plan, tiny_model), strict=True):
        assert (one["frames_used"], one["num_visual_tokens"]) == (None, None)
        assert layout.num_visual_tokens <= one["max_visual_tokens"]
        assert UNKNOWN_FRAMES in one["prompt"]
        assert memory in one["unknown"][0]
        assert one["frames_seen"] == [t / 4 for t in range(int(one["time_s"] * 4) + 1)]


def test_memories_that_go_by_order():
    assert {"window", "uniform", "fifo", "keep_all"} == BY_ORDER


def test_of_each_kind(tmp_path):
    """Choices, counts, polls and yes-or-no questions of a benchmark, so many of each; the right answer of each."""
    counts = {}
    for name in ("ovobench", "streamingbench"):
        config = benchmark_config(name, tmp_path / name, tmp_path / "out", blind=True)
        shown = preview(config, make_plan(config), 1, None, is_blind=True)
        counts[name] = [one["kind"] for one in shown]
        assert all(one["expected"] and one["prompt"] for one in shown)
    assert counts == {"ovobench": ["choice", "count", "yes_no"], "streamingbench": ["choice", "proactive"]}


@pytest.fixture
def call(tmp_path, capsys):
    asked = [question(1.0, "B"), {**question(2.0, "a red cup", text="What?"), "options": None, "scorer": "exact"}]
    write_frames(tmp_path / "media" / "v", noise(12))
    path = write_set(tmp_path / "set.json", [{"video_id": "v", "fps": 4.0, "questions": asked}])

    def run(*more):
        status = main(["evaluate", "--annotations", str(path), "--dry_run", *map(str, more)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_on_the_command_line(call, tmp_path, tiny_dir):
    places = ("--data_root", tmp_path / "media", "--model", tiny_dir())
    status, out, _ = call(5, *places)
    assert status == 0
    for text in (
        "choice: v@1s-", "  expected: B. blue", "open: v@2s-", "  expected: a red cup (scorer exact)",
        "not known: which frames are used: memory pyramid chooses", "frames that may be seen: 5, 0.0 to 1.0 s",
    ):  # fmt: skip
        assert text in out
    shown = json.loads(call(1, "--json", "--setting", "sliding_window", *places)[1])["shown"]
    assert [(one["kind"], len(one["frames_used"])) for one in shown] == [("choice", 3), ("open", 5)]
    assert "shown" not in json.loads(call("--json", *places)[1])


def test_without_model_and_videos(call):
    """Nothing is made up: the text of the question, and what is lacking for the rest."""
    shown = json.loads(call(1, "--json")[1])["shown"]
    for one in shown:
        unknown = ["frames: no --data_root", "tokens, and what the template puts around the text: no --model"]
        assert one["unknown"] == unknown
        assert all(one[name] is None for name in ("frames_seen", "frames_used", "num_text_tokens"))
    out = call(1)[1]
    assert "not known: frames: no --data_root" in out
    assert "    | Question at 1.0s: What?" in out
    assert "  tokens: an unknown number of text (without the lines of frames), an unknown number of frames\n" in out


def test_a_number_of_questions(call):
    status, _, err = call(-1)
    assert (status, err) == (2, "error: --dry_run: expected a number of questions, got -1\n")
    with pytest.raises(SystemExit, match="2"):
        call("--show", 1)
