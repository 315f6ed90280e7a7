"""Sessions, memories, caches and strategies on every family: what they answer is what a fresh prefill answers."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from videochat_online.errors import InputError
from videochat_online.memory import MEMORIES, make_model_memory
from videochat_online.model import load_model
from videochat_online.streaming import GenerationSettings, ImageChat, StreamingSession
from videochat_online.streaming.generate import first_logits
from videochat_online.streaming.kv.kv_budget import KvBudget
from videochat_online.streaming.strategies import STRATEGIES, make_strategy
from videochat_online.testing.tiny_backbones import FAMILIES, make_tiny_backbone

SHORT = GenerationSettings(max_new_tokens=4, min_new_tokens=4)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}
    for family in FAMILIES:
        directory = tmp_path_factory.mktemp(family)
        make_tiny_backbone(directory, family)
        made[family] = load_model(directory, device="cpu", frame_size=(128, 128) if "qwen3" in family else None)
    return made


def scene(num_frames, seed=0):
    """Frames of which neighbours are alike, and now and then none."""
    rng = np.random.default_rng(seed)
    frames, frame = [], rng.integers(0, 256, (60, 100, 3))
    for _ in range(num_frames):
        if rng.random() < 0.3:
            frame = rng.integers(0, 256, (60, 100, 3))
        frames.append(np.clip(frame + rng.integers(-20, 20, frame.shape), 0, 255).astype(np.uint8))
    return np.stack(frames)


def new_session(model, memory="pyramid", **options):
    bank = make_model_memory(memory, model.frames.grid, model.frames.memory_intervals, {})
    options.setdefault("kv_budget", KvBudget(1 << 30))
    return StreamingSession(model, bank, settings=SHORT, **options)


def logits_of(session, question):
    prompt = session.reusing(session.prepare(question))
    return first_logits(session.model.language_model, prompt.tokens, 4, prompt.contrasts, prompt.reuse)


@pytest.mark.parametrize("memory", sorted(MEMORIES.built_in))
@pytest.mark.parametrize("family", FAMILIES)
def test_reuse_equals_a_fresh_prefill(models, family, memory):
    """Over a schedule of frames, questions and idle moments; odd numbers of frames leave an entry that is not whole."""
    model, rng = models[family], random.Random(f"{family} {memory}")
    reusing, fresh = (new_session(model, memory, reuse_prefix=reuse) for reuse in (True, False))
    frames, done = scene(40, seed=len(memory)), 0
    while done < len(frames):
        count = rng.choice((1, 1, 2, 3, 5))
        for session in (reusing, fresh):
            session.push(frames[done : done + count], range(done, min(done + count, len(frames))))
        done += count
        act = rng.choice(("ask", "look", "idle", "nothing"))
        if act == "idle":
            reusing.prefill()
        elif act == "look":
            found, expected = (logits_of(session, "What now?") for session in (reusing, fresh))
            assert (found - expected).abs().max() <= 1e-5 * float(expected.max() - expected.min())
        elif act == "ask":
            answers = [session.ask("And here?") for session in (reusing, fresh)]
            assert answers[0] == answers[1]
    found, expected = (logits_of(session, "At last?") for session in (reusing, fresh))
    assert (found - expected).abs().max() <= 1e-5 * float(expected.max() - expected.min())
    assert expected.std() > 0.1
    assert reusing.kept_prefix.num_tokens


@pytest.mark.parametrize("num_frames", [6, 7])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_restored(models, family, num_frames, tmp_path):
    model, frames = models[family], scene(12)
    one, other = new_session(model), new_session(model)
    one.push(frames[:num_frames], range(num_frames))
    one.ask("What?")
    one.save(tmp_path / "session")
    other.restore(tmp_path / "session")
    assert other.num_frames == num_frames
    assert other.remembered() == one.remembered()
    for session in (one, other):
        session.push(frames[num_frames:], range(num_frames, 12))
    found, expected = logits_of(one, "And?"), logits_of(other, "And?")
    assert (found - expected).abs().max() <= 1e-5 * float(expected.max() - expected.min())
    assert one.ask("And?") == other.ask("And?")


@pytest.mark.parametrize("strategy", sorted(STRATEGIES.built_in))
@pytest.mark.parametrize("family", FAMILIES)
def test_strategies(models, family, strategy):
    session = new_session(models[family], strategy=make_strategy(strategy))
    session.push(scene(9), range(9))
    answer = session.ask("What is red?")
    assert 0 < len(answer.frames_used) <= 9
    assert session.ask("And now?").num_visual_tokens > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_static_caches_give_the_same(models, family, monkeypatch):
    model = models[family]
    sessions = [new_session(model)]
    monkeypatch.setattr(model.language_model.generation_config, "cache_implementation", "static")
    sessions.append(new_session(model))
    for session in sessions:
        session.push(scene(7), range(7))
    monkeypatch.undo()
    first = logits_of(sessions[0], "What?")
    monkeypatch.setattr(model.language_model.generation_config, "cache_implementation", "static")
    second = logits_of(sessions[1], "What?")
    assert (first - second).abs().max() <= 1e-5 * float(first.max() - first.min())
    again = [session.ask("What?").text for session in sessions]
    assert again[0] == again[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_images(models, family):
    model = models[family]
    pictures = [Image.fromarray(scene(1, seed)[0]) for seed in (1, 2)]
    chat = ImageChat(model, pictures, SHORT)
    assert len(chat.tokens_per_image) == 2
    assert chat.ask("Which one is red?") == ImageChat(model, pictures, SHORT).ask("Which one is red?")
    prompt = chat.prepare("And now?")
    assert [stop - start for start, stop in prompt.layout.visual_spans] == list(chat.tokens_per_image)
    assert ImageChat(model, [], SHORT).ask("Why?") is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_kv_memory(models, family):
    """With nothing evicted it is a fresh prefill; with evictions it goes on, and holds as much as is remembered."""
    model = models[family]
    kept, fresh = new_session(model, "keep_all", kv_memory=True), new_session(model, "keep_all", reuse_prefix=False)
    for start in range(0, 8, 2):
        for session in (kept, fresh):
            session.push(scene(8)[start : start + 2], range(start, start + 2))
    found, expected = (logits_of(session, "What?") for session in (kept, fresh))
    assert (found - expected).abs().max() <= 1e-4 * float(expected.max() - expected.min())
    moving = new_session(model, "window", kv_memory=True)
    moving.push(scene(30), range(30))
    assert moving.ask("What?").text == moving.history[0].answer
    assert torch.isfinite(logits_of(moving, "And?")).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_frame_has_to_do_with_a_question_before_it(models, family):
    """Nothing: the answer is the same whatever comes after."""
    model, frames, other = models[family], scene(10), scene(10, seed=5)
    answers = []
    for later in (frames[5:], other[5:]):
        session = new_session(model)
        session.push(frames[:5], range(5))
        answers.append((session.ask("What?"), logits_of(session, "And?")))
        session.push(later, range(5, 10))
    assert answers[0][0] == answers[1][0]
    assert torch.equal(answers[0][1], answers[1][1])


def test_frame_sizes_that_are_not_taken(models, tmp_path):
    for family, size in (("qwen3_vl", (100, 128)), ("qwen3_vl", (0, 128)), ("llava_onevision", (128, 128))):
        make_tiny_backbone(tmp_path / family, family)
        with pytest.raises(InputError, match="frame size: "):
            load_model(tmp_path / family, device="cpu", frame_size=size)


@pytest.mark.parametrize("option", [{"quantization": "8bit"}, {"compile": "language"}, {"adapter": "."}])
def test_options_of_another_family(tmp_path, option):
    make_tiny_backbone(tmp_path, "qwen3_vl")
    with pytest.raises(
        InputError, match=f"{next(iter(option))}: expected a model of the family internvl, found qwen3_vl"
    ):
        load_model(tmp_path, device="cpu", **option)


def test_what_is_remembered_costs_nothing(models, monkeypatch):
    """It is asked for after each frame of a live stream: a frame that waits for another is not encoded for it."""
    session = new_session(models["qwen3_vl"])
    session.push(scene(3), range(3))
    encoded = []
    monkeypatch.setattr(type(session.model.backbone), "encode", lambda *given: encoded.append(given))
    assert [frame.index for frame in session.remembered()] == [0]
    assert not encoded
    monkeypatch.undo()
    # What is computed ahead is what the question needs, though an entry is not whole.
    assert session.prefill() > 0
    assert session.prefill() == 0
    assert [frame.index for frame in session.ask("What?").frames_used] == [0, 2]
    assert [frame.time_s for frame in session.ask("What?").frames_used] == [0.5, 2.0]


@pytest.mark.parametrize("family", ["llava_onevision", "llava_video", "qwen3_vl"])
def test_without_the_file_that_says_how_images_are_prepared(tmp_path, family, caplog):
    make_tiny_backbone(tmp_path, family)
    (tmp_path / "preprocessor_config.json").unlink()
    with caplog.at_level("WARNING"):
        model = load_model(tmp_path, device="cpu")
    assert "no preprocessor_config.json; the family's own is taken: mean (0.5, 0.5, 0.5)" in caplog.text
    assert model.transform.normalization.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("mean", ["grey", [0.5, 0.5], [0.5, 0.5, "a"], 3])
def test_a_file_that_says_it_wrongly(tmp_path, mean):
    make_tiny_backbone(tmp_path, "qwen3_vl")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean}))
    with pytest.raises(InputError, match=r"preprocessor_config.json: image_mean(\[2\])?: expected "):
        load_model(tmp_path, device="cpu")


def test_a_family_that_is_not_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "cogvlm"}))
    with pytest.raises(
        InputError, match="expected a model of one of the families internvl, .*, found model_type 'cogvlm'"
    ):
        load_model(tmp_path, device="cpu")
