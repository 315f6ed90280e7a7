"""The model that lmms-eval loads: arguments, requests in order, generation keywords, errors with names."""

from __future__ import annotations

import pkgutil
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lmms_eval_stub import GenerationResult, import_with_stub
from video_files import write_video
from videochat_online.errors import InputError, VideoError
from videochat_online.integrations import offline
from videochat_online.integrations.offline import OFFLINE, REFERENCE, OfflineAnswerer
from videochat_online.integrations.published_prompts import published_question
from videochat_online.streaming import GenerationSettings
from videochat_online.text.questions import OFFLINE_SUFFIX

ROOT = Path(__file__).resolve().parents[2]
KEYWORDS = {
    "max_new_tokens": 5,
    "temperature": 0.0,
    "top_p": 1.0,
    "num_beams": 1,
    "do_sample": False,
    "until": ["\n\n"],
}


@pytest.fixture
def adapter(monkeypatch):
    yield import_with_stub(monkeypatch)
    sys.modules.pop("videochat_online.integrations.lmms_eval", None)


@pytest.fixture
def lm(adapter, tiny_dir):
    """The model with a small memory, and two clips as documents."""
    return adapter.VideoChatOnline(str(tiny_dir()), device="cpu", capacities="1/1/2")


@pytest.fixture
def clips(tmp_path):
    return [str(write_video(tmp_path / f"{length}.mp4", range(length))) for length in (12, 20)]


def requests_for(lm, clips, texts, keywords=KEYWORDS):
    """A request for each text, about the clips in turn."""
    documents = [{"video": clips[i % len(clips)]} for i in range(len(texts))]
    lm.task_dict = {"toy": {"test": documents}}
    return [
        SimpleNamespace(args=(text, dict(keywords), lambda doc: [doc["video"]], i, "toy", "test"))
        for i, text in enumerate(texts)
    ]


def test_the_entry_point_names_the_model(adapter):
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    found = re.search(r'\[project\.entry-points\."lmms_eval\.models"\]\nvideochat_online = "(.+)"\n', text)
    manifest = pkgutil.resolve_name(found[1])()
    assert manifest.model_id == "videochat_online"
    assert pkgutil.resolve_name(manifest.simple_class_path) is adapter.VideoChatOnline
    assert adapter.VideoChatOnline.is_simple


def test_answers_come_in_the_order_of_the_requests(lm, clips, tiny_model):
    texts = ["What?", "Where?"]
    requests = requests_for(lm, clips, texts)
    answers = list(lm.generate_until(requests))
    protocol = lm.answerer.protocol
    assert protocol.memory_options == {"capacities": (1, 1, 2), "policy": "reference"}
    settings = GenerationSettings(max_new_tokens=5)
    expected = [
        OfflineAnswerer(tiny_model, protocol).answer(text, [clips[i % 2]], settings) for i, text in enumerate(texts)
    ]
    assert answers == expected
    assert expected[0] != expected[1]


def test_options_of_a_document_are_compared_together(lm, clips, monkeypatch):
    lm.task_dict = {"toy": {"test": [{"video": clips[0], "right": " no"}, {"video": clips[1], "right": " yes"}]}}
    options = [("What?", " a cup", 0), ("What?", lambda doc: doc["right"], 0), ("What?", " a cup", 1)]
    requests = [
        SimpleNamespace(args=(text, option, lambda doc: [doc["video"]], doc_id, "toy", "test"))
        for text, option, doc_id in options
    ]
    asked = []
    losses = lm.answerer.losses
    monkeypatch.setattr(lm.answerer, "losses", lambda *given: (asked.append(given), losses(*given))[1])
    found = list(lm.loglikelihood(requests))
    assert asked == [("What?", [clips[0]], ["a cup", "no"]), ("What?", [clips[1]], ["a cup"])]
    expected = [*losses("What?", [clips[0]], ["a cup", "no"]), *losses("What?", [clips[1]], ["a cup"])]
    assert found == [GenerationResult(pair) for pair in expected]
    assert expected[0][0] != expected[2][0]


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_an_error_names_task_document_and_video(lm, tmp_path, kind):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (request,) = requests_for(lm, [str(tmp_path / "broken.mp4")], ["What?"])
    if kind == "loglikelihood":
        request.args = (request.args[0], "no", *request.args[2:])
    with pytest.raises(InputError, match=r"^toy, document 0 \(.*broken\.mp4\): "):
        list(getattr(lm, kind)([request]))


def test_so_does_one_of_the_task_s_own_search_for_the_video(lm, clips):
    def cut(doc):
        raise VideoError("no frames before the question")

    (request,) = requests_for(lm, clips, ["What?"])
    request.args = (*request.args[:2], cut, *request.args[3:])
    with pytest.raises(InputError, match="^toy, document 0: no frames before the question$"):
        list(lm.generate_until([request]))


def test_what_was_answered_before_an_error_is_handed_out(lm, clips, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    answers = lm.generate_until(requests_for(lm, [clips[0], str(tmp_path / "broken.mp4")], ["What?", "Where?"]))
    assert next(answers)
    with pytest.raises(InputError, match="document 1"):
        next(answers)


def test_documents_without_visuals(lm):
    for visuals in (None, lambda doc: None, lambda doc: []):
        (request,) = requests_for(lm, ["none"], ["What?"])
        request.args = (*request.args[:2], visuals, *request.args[3:])
        (answer,) = lm.generate_until([request])
        assert answer == lm.answerer.answer("What?", [], GenerationSettings(max_new_tokens=5))


def test_the_weights_go_before_a_judge_comes(lm, clips):
    requests = requests_for(lm, clips, ["What?"])
    lm.clean()
    assert lm.is_clean
    assert lm.answerer is None
    with pytest.raises(InputError, match="clean"):
        next(lm.generate_until(requests))


def test_rounds_are_refused(lm):
    with pytest.raises(InputError, match="generate_until_multi_round"):
        lm.generate_until_multi_round([])


PAPER = {"memory.policy": "paper"}
RETRIEVED = {"strategy.retrieved_frames": 4}


def test_arguments(adapter, tiny_dir):
    def protocol(**arguments):
        return adapter.VideoChatOnline(str(tiny_dir()), device="cpu", **arguments).answerer.protocol

    assert protocol() == OFFLINE
    assert protocol(protocol="lmms_eval") == OFFLINE
    assert protocol(protocol="reference") == REFERENCE
    changed = protocol(protocol="reference", fps=2, max_frames=64, with_times=True, batch_size="1", **PAPER)
    assert (changed.fps, changed.max_frames, changed.with_times, changed.suffix) == (2.0, 64, True, OFFLINE_SUFFIX)
    assert changed.memory_options == {"capacities": (24, 24, 144), "policy": "paper"}
    window = protocol(memory="window", **{"memory.num_frames": 4})
    assert (window.memory, window.memory_options) == ("window", {"num_frames": 4})
    merging = protocol(
        memory="event_merging", **{"memory.event_frames": "9", "memory.penalty_weights": "0.5/0.25/0.25"}
    )
    assert merging.memory_options == {"event_frames": 9, "penalty_weights": (0.5, 0.25, 0.25)}
    found = protocol(strategy="retrieval", **RETRIEVED)
    assert (found.strategy, found.strategy_options) == ("retrieval", {"retrieved_frames": 4})
    for wrong, message in (
        ({"batch_size": 2}, "batch_size: expected 1"),
        ({"capacities": "24/x"}, "capacities: expected a list of whole numbers of at least 0 such as 2, 2, 12, got"),
        ({"capacites": "2/2/12"}, "unknown argument 'capacites': expected one of"),
        ({"memory": "wndow"}, "unknown memory 'wndow'"),
        (
            {"memory": "window", "capacities": "2/2/12"},
            "unknown argument 'capacities': expected .*, or of memory.num_frames",
        ),
        ({"capacities": "1/1/2", "memory.capacities": "1/1/2"}, "capacities: expected nothing beside memory.capacit"),
        ({"fps": 0}, "fps: expected a number above 0, found 0"),
        ({"strategy": "guess"}, "unknown strategy 'guess'"),
        (RETRIEVED, "unknown argument 'strategy.retrieved_frames': expected .*, or of memory.capacities, memory.pol"),
        ({"protocol": "published"}, "protocol: expected one of lmms_eval, reference, got 'published'"),
        ({"reference_suffix": True}, "unknown argument 'reference_suffix'"),
        ({"system_message": "a\ud800"}, "system message: expected Unicode text"),
    ):
        with pytest.raises(InputError, match=message):
            protocol(**wrong)


# As lmms-eval 0.7.3 hands them over; what is published of them stands in `integrations/published_prompts.py`.
DOCUMENTS = {
    "mvbench_action_antonym": {"question": "What is it?", "candidates": ["not sure", "open "], "answer": "open "},
    "videomme": {
        "videoID": "fFjv93ACGo8",
        "question": "When is it?\nThe latest.",
        "options": ["A. Noon.", "B. B. C.", "C.  Never"],
        "answer": "A",
    },
}
WATCH = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\n"
)
PUBLISHED = {
    "mvbench_action_antonym": "Question: What is it?\n(A) not sure\n(B) open\nAnswer:  \n",
    "videomme": "Question: When is it?\nThe latest.\n(A) Noon.\n(B) B. C.\n(C)  Never\nAnswer:  \n",
}
FRAMES = "".join(
    f"Frame{place}: <img><IMG_CONTEXT>*{size}</img>\n" for place, size in enumerate((16, 1, 1, 1, 4, 1), start=1)
)


def documents_of(lm, clip, tasks, keywords=KEYWORDS):
    """A request about a clip for each task's document, with a prompt of lmms-eval's."""
    lm.task_dict = {task: {"test": [DOCUMENTS.get(task, {"question": "What?"})]} for task in tasks}
    return [
        SimpleNamespace(args=("Its own words.", dict(keywords), lambda doc: [clip], 0, task, "test")) for task in tasks
    ]


@pytest.mark.parametrize("trims", [False, True], ids=["phi3-chat", "a template that trims"])
def test_published_words(adapter, tiny_model, clips, monkeypatch, caplog, trims):
    """Restated from the released scripts: the whole prompt, nothing trimmed, 1 to 20 new tokens."""
    model = replace(tiny_model, template=replace(tiny_model.template, trims=trims))
    monkeypatch.setattr(adapter, "load_model", lambda *given, **more: model)
    lm = adapter.VideoChatOnline("tiny", protocol="reference")
    layouts, generated = [], []
    prompt, generate = lm.answerer.prompt, offline.generate_ids
    monkeypatch.setattr(lm.answerer, "prompt", lambda *given: layouts.append(found := prompt(*given)) or found)
    used = "videochat_online.streaming.generate.generate_ids"
    monkeypatch.setattr(used, lambda *given: generated.append(given) or generate(*given))
    answers = list(lm.generate_until(documents_of(lm, clips[0], [*DOCUMENTS])))
    assert [found.layout.text for found in layouts] == [
        f"<|system|>\n{WATCH}<|end|><|user|>\n{FRAMES}{PUBLISHED[task]}<|end|><|assistant|>\n" for task in DOCUMENTS
    ]
    assert all(answers)
    assert {given[3] for given in generated} == {GenerationSettings(max_new_tokens=20, min_new_tokens=1)}
    assert caplog.text.count("answers have 20 new tokens, not 5") == 1


def test_without_a_name_the_words_are_the_task_s(lm, clips):
    (request,) = documents_of(lm, clips[0], ["videomme"])
    (answer,) = lm.generate_until([request])
    assert answer == lm.answerer.answer("Its own words.", [clips[0]], GenerationSettings(max_new_tokens=5))
    assert "select the best" not in lm.answerer.prompt("What?", [clips[0]]).layout.text


@pytest.mark.parametrize(
    ("tasks", "keywords", "message"),
    [
        (["videomme", "egoschema"], {}, "expected a task with published words, mvbench or videomme, got egoschema "),
        (["videomme_w_subtitle"], {}, "got videomme_w_subtitle "),
        (["videomme"], {"do_sample": True, "temperature": 0.7}, "expected greedy answers without stops, got tempera"),
        (["videomme"], {"until": ["\n\n", "C"]}, r"without stops, got stops \['C'\]"),
    ],
)
def test_what_has_no_published_words_is_refused_before_anything_is_answered(
    adapter, tiny_dir, clips, tasks, keywords, message
):
    lm = adapter.VideoChatOnline(str(tiny_dir()), device="cpu", protocol="reference")
    answers = lm.generate_until(documents_of(lm, clips[0], tasks, KEYWORDS | keywords))
    with pytest.raises(InputError, match=f"^protocol=reference: .*{message}"):
        next(answers)
    request = documents_of(lm, clips[0], ["videomme"])[0]
    request.args = (request.args[0], "no", *request.args[2:])
    with pytest.raises(InputError, match="^protocol=reference: expected tasks that generate, got videomme"):
        next(lm.loglikelihood([request]))


@pytest.mark.parametrize(
    ("task", "doc", "message"),
    [
        ("mvbench_x", {"question": "What?", "candidates": []}, r"candidates: expected a list of texts, got \[\]"),
        ("mvbench_x", {"question": "What?", "options": ["a"]}, "candidates: expected a list of texts, got None"),
        ("mvbench_x", {"candidates": ["a"]}, "question: expected a text, got None"),
        ("videomme", {"question": "What?", "options": ["A. a", "C. c"]}, "expected texts that begin with A. B. and so"),
        ("videomme", {"question": "What?", "options": ["Apples", "Bananas"]}, "expected texts that begin with A. B."),
        ("videomme", {"question": "What?", "options": ["A. a", 2]}, "options: expected a list of texts"),
    ],
)
def test_documents_that_are_none_of_the_benchmark_s(task, doc, message):
    with pytest.raises(InputError, match=message):
        published_question(task, doc)


@pytest.mark.parametrize(
    ("given", "said"),
    [("Look.", "Look."), ("'Look, and say.'", "Look, and say."), (5, "5"), ("none", ""), ("checkpoint", None)],
)
def test_a_system_message_of_one_s_own(adapter, tiny_dir, clips, given, said):
    lm = adapter.VideoChatOnline(str(tiny_dir()), device="cpu", protocol="reference", system_message=given)
    expected = lm.answerer.model.system_message if said is None else said
    assert lm.answerer.prompt("What?", [clips[0]]).layout.text.startswith(f"<|system|>\n{expected}<|end|>")


def test_each_rank_takes_its_own_gpu(adapter, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert adapter.device_of_rank("auto") == ("cuda:3" if torch.cuda.is_available() else "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert adapter.device_of_rank("auto") == "cuda:3"
    assert adapter.device_of_rank("cpu") == "cpu"
    monkeypatch.delenv("LOCAL_RANK")
    assert adapter.device_of_rank("auto") == "auto"


@pytest.mark.parametrize(
    ("keywords", "settings", "until"),
    [
        (KEYWORDS, {"max_new_tokens": 5}, ()),
        ({}, {}, ()),
        ({"temperature": 0, "top_p": 0, "top_k": 0}, {}, ()),
        ({"temperature": 0.7, "do_sample": False}, {}, ()),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 5}, {"temperature": 0.7, "top_p": 0.9, "top_k": 5}, ()),
        ({"do_sample": True, "temperature": None}, {"temperature": 1.0}, ()),
        ({"until": "</s>"}, {}, ("</s>",)),
        ({"until": ["\n\n", "Question"], "num_beams": None}, {}, ("Question",)),
    ],
)
def test_generation_keywords(adapter, keywords, settings, until):
    assert adapter.settings_from_keywords(keywords) == (GenerationSettings(**settings), until)


def test_generation_keywords_that_mean_nothing_here(adapter, caplog):
    with pytest.raises(InputError, match="num_beams: expected 1"):
        adapter.settings_from_keywords({"num_beams": 4})
    adapter.settings_from_keywords({**KEYWORDS, "length_penalty": 2})
    assert "length_penalty" in caplog.text
    assert "until" not in caplog.text
