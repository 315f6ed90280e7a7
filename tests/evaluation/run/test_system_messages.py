"""System messages: each kind of question has its own, one may be given for all, and both belong to a run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmark_sets import benchmark_config, ovo_set
from evaluation_sets import folder_set, make_config, noise, question, run, write_frames, write_set
from videochat_online.cli.main import main
from videochat_online.errors import InputError
from videochat_online.evaluation import make_plan, resolve_protocol
from videochat_online.evaluation.benchmark import KINDS
from videochat_online.evaluation.media.protocol_frames import VideoFrames
from videochat_online.evaluation.run import runner
from videochat_online.evaluation.run.contexts import make_context
from videochat_online.evaluation.run.plan import settled
from videochat_online.evaluation.tasks.ovbench import load_ovbench

WATCH = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, "
)
WORDS = {
    "choice": f"{WATCH}select the best option that accurately addresses the question.\n",
    "yes_no": f"{WATCH}answer the question with Yes or No.\n",
    "count": f"{WATCH}answer the question with a number.\n",
    "open": f"{WATCH}answer the question.\n",
}


def system_of(prompt):
    return prompt.layout.text.removeprefix("<|system|>\n").partition("<|end|>")[0]


@pytest.fixture
def asked_in(monkeypatch):
    """System message and question of each prompt of a run, in order."""

    def during(config, model):
        found, make = [], runner.make_context

        def spying(*given):
            context = make(*given)
            prepare = context.prepare

            def noting(question, text, prefix=""):
                view = prepare(question, text, prefix)
                found.append((system_of(view.prompt), text))
                return view

            context.prepare = noting
            return context

        monkeypatch.setattr(runner, "make_context", spying)
        run(config, model)
        monkeypatch.setattr(runner, "make_context", make)
        return found

    return during


@pytest.fixture(scope="module")
def ovo(tmp_path_factory):
    """Folder of a small OVO-Bench set."""
    root = tmp_path_factory.mktemp("ovo")
    ovo_set(root)
    return root


@pytest.fixture
def video(tmp_path):
    """A question of each kind at one moment of a folder of frames."""
    write_frames(tmp_path / "frames", noise(6))
    rows = [{"video_id": "v", "fps": 2.0, "questions": [question(2.0, kind=number) for number in range(4)]}]
    (video,) = load_ovbench([write_set(tmp_path / "one.json", rows)]).videos
    kinds = [replace(asked, kind=kind) for asked, kind in zip(video.questions, KINDS, strict=True)]
    return replace(video, questions=tuple(kinds))


@pytest.mark.parametrize("setting", ["streaming", "sliding_window", "blind"])
@pytest.mark.parametrize(
    ("given", "said"), [(None, WORDS), ("Look.", dict.fromkeys(KINDS, "Look.")), ("none", dict.fromkeys(KINDS, ""))]
)
def test_each_kind_of_question_has_its_own(tiny_model, video, tmp_path, setting, given, said):
    protocol = resolve_protocol("streaming" if setting == "blind" else setting, system_message=given)
    with VideoFrames(tmp_path / "frames", video, protocol) as video_frames:
        context = make_context(tiny_model, None if setting == "blind" else video_frames, protocol, video.questions)
        found = {}
        for asked in video.questions:
            context.advance_to(asked)
            found[asked.kind] = system_of(context.prepare(asked, "What?").prompt)
    assert found == said


def test_the_checkpoint_s_own(tiny_model, video):
    protocol = resolve_protocol("streaming", system_message="checkpoint")
    context = make_context(tiny_model, None, protocol, video.questions)
    assert {system_of(context.prepare(asked, "?").prompt) for asked in video.questions} == {tiny_model.system_message}


@pytest.mark.parametrize(
    ("answer_by", "shown"), [("generation", "choice"), ("likelihood", "choice"), ("text_likelihood", "open")]
)
def test_questions_of_ovobench(asked_in, tiny_model, ovo, tmp_path, answer_by, shown):
    """Options that are not shown are not to be chosen from."""
    short = {"max_new_tokens": 1}
    config = benchmark_config("ovobench", ovo, tmp_path / "out", blind=True, answer_by=answer_by, protocol=short)
    found = asked_in(config, tiny_model)
    assert len(found) == 9
    for message, text in found:
        kind = "yes_no" if text.endswith("Yes or No.") else "count" if text.endswith("a number.") else shown
        assert message == WORDS[kind]
    assert {message for message, _ in found} == {WORDS[kind] for kind in (shown, "yes_no", "count")}


def test_polls_and_outputs_of_streamingbench(asked_in, tiny_model, tmp_path, monkeypatch):
    """Every poll says Yes: the output is asked at once."""
    generate = runner.answer_by_generation
    said = lambda *given: replace(generate(*given), option=0)  # noqa: E731
    monkeypatch.setattr(runner, "answer_by_generation", said)
    found = asked_in(benchmark_config("streamingbench", tmp_path, tmp_path / "out", blind=True), tiny_model)
    polls = [message for message, text in found if "Is now the right time" in text]
    outputs = [message for message, text in found if 'output "' in text and "Is now" not in text]
    assert (polls, outputs) == ([WORDS["yes_no"]] * 2, [WORDS["open"]] * 2)
    assert [message for message, _ in found].count(WORDS["choice"]) == len(found) - 4


class TestIdentity:
    def test_words_that_are_not_asked_are_no_difference(self, ovo, tmp_path):
        config = make_config(folder_set(tmp_path, num_videos=1), tmp_path / "out")
        content = make_plan(config).content
        one = settled(config, content).protocol
        assert (one.system_message, one.kind_system_messages) == (WORDS["choice"], {})
        assert settled(replace(config, answer_by="text_likelihood"), content).protocol.system_message == WORDS["open"]
        given = make_config(config.annotations[0], tmp_path / "out", protocol={"system_message": WORDS["choice"]})
        assert settled(given, content).settings() == settled(config, content).settings()
        of_ovo = benchmark_config("ovobench", ovo, tmp_path / "out")
        others = settled(of_ovo, make_plan(of_ovo).content).protocol
        assert (others.system_message, set(others.kind_system_messages)) == (WORDS["choice"], {"yes_no", "count"})

    def test_a_memory_in_the_kv_cache_has_one(self, tiny_model, ovo, video, tmp_path):
        kv = {"kv_memory": True}
        config = benchmark_config("ovobench", ovo, tmp_path / "out", protocol=kv)
        with pytest.raises(InputError, match="^--kv_memory: expected one system message, .* choice, count, yes_no "):
            make_plan(config)
        make_plan(replace(config, protocol=resolve_protocol("streaming", **kv, system_message="Look.")))
        protocol = resolve_protocol("streaming", **kv)
        with VideoFrames(tmp_path / "frames", video, protocol) as video_frames:
            context = make_context(tiny_model, video_frames, protocol, video.questions)
            context.advance_to(video.questions[0])
            context.prepare(video.questions[0], "What?")
            with pytest.raises(InputError, match="^kv_memory has read frames after another system message than 'Caref"):
                context.prepare(video.questions[1], "What?")


def test_the_flag(tiny_dir, tmp_path, capsys):
    annotations = folder_set(tmp_path, num_videos=1)
    command = ["evaluate", "--blind", "--model", str(tiny_dir()), "--annotations", str(annotations), "--device", "cpu"]
    command += ["--max_new_tokens", "2", "--output", str(tmp_path / "out")]
    assert main([*command, "--system_message", "Look."]) == 0
    said = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["protocol"]
    assert (said["system_message"], said["kind_system_messages"]) == ("Look.", {})
    assert main(command) != 0
    refused = capsys.readouterr().err
    assert 'protocol.system_message was "Look.", now "Carefully watch' in refused
    assert "kind_system_messages" not in refused  # no other kinds are asked


def test_what_the_published_scripts_ask_is_not_trimmed(tiny_model, video):
    model = replace(tiny_model, template=replace(tiny_model.template, trims=True))
    for protocol, end in (("causal", "What?<|end|>"), ("reference", "What?\n<|end|>")):
        context = make_context(model, None, resolve_protocol("streaming", protocol=protocol), video.questions)
        assert context.prepare(video.questions[0], "What?\n").prompt.layout.text.endswith(f"{end}<|assistant|>\n")
