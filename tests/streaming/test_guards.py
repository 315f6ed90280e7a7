"""What a session refuses instead of hanging, mixing streams up, or breaking later."""

from __future__ import annotations

import threading

import pytest
import torch
from PIL import Image

from videochat_online.errors import InputError
from videochat_online.model import load_model
from videochat_online.streaming import Exchange, GenerationSettings, ImageChat, StreamingSession
from videochat_online.streaming.session_file import SessionState, save_state

IMAGE = Image.new("RGB", (28, 28))
SHORT = GenerationSettings(max_new_tokens=4, min_new_tokens=4)


@pytest.fixture
def session(tiny_model, frames):
    session = StreamingSession(tiny_model, settings=SHORT)
    session.push(frames(3), range(3))
    return session


@pytest.mark.parametrize("call", ["ask", "save", "reset"])
def test_calls_that_would_wait_for_ones_own_answer(session, tmp_path, call):
    arguments = {"ask": ["And?"], "save": [tmp_path / "state"], "reset": []}[call]
    stream = session.stream("What?")
    next(stream)
    with pytest.raises(InputError, match="still being streamed in this thread"):
        getattr(session, call)(*arguments)
    stream.close()
    getattr(session, call)(*arguments)


def test_frames_arrive_while_another_thread_waits_to_save(session, frames, tmp_path):
    stream = session.stream("What?")
    next(stream)
    saver = threading.Thread(target=session.save, args=[tmp_path / "state"])
    saver.start()
    pusher = threading.Thread(target=session.push, args=[frames(4)[3:], [3.0]])
    pusher.start()
    pusher.join(timeout=30)
    assert not pusher.is_alive()
    list(stream)
    saver.join(timeout=30)
    assert not saver.is_alive()
    assert (tmp_path / "state").is_file()


def test_a_reply_that_spells_a_reserved_token_does_not_break_the_next_question(session, monkeypatch):
    said = ["the tag <img>,", " closed by </img>"]
    monkeypatch.setattr("videochat_online.streaming.generate.text_pieces", lambda tokenizer, ids: iter(said))
    answer = session.ask("Which tag shows a picture?")
    assert answer.text == "the tag <img>, closed by </img>"
    assert session.history[-1].answer == "the tag <img>, closed by </img>"
    layout = session.prepare("And then?").prompt.layout
    assert (
        layout.input_ids.count(session.model.tokenizer.convert_tokens_to_ids("<img>")) == len(layout.visual_spans) == 3
    )
    assert layout.text.count("the tag <img>, closed by </img>") == 1
    session.ask("And then?")


def test_half_of_a_surrogate_pair_is_refused_and_the_session_goes_on(tiny_model, session, frames, tmp_path):
    told = "expected Unicode text, found half of a surrogate pair at position 1"
    for call in (session.ask, session.prepare, ImageChat(tiny_model, [IMAGE]).ask):
        with pytest.raises(InputError, match=f"^question: {told}$"):
            call("a\ud800")
    with pytest.raises(InputError, match=f"^text: {told}$"):
        tiny_model.embed_text("a\ud800")
    with pytest.raises(InputError, match=f"question: {told}"):
        list(session.stream("a\udfff"))
    with pytest.raises(InputError, match=f"generation prefix: {told}"):
        session.ask("What?", generation_prefix="a\ud800")
    with pytest.raises(InputError, match="question: expected text, found bytes"):
        session.ask(b"What?")
    with pytest.raises(InputError, match=f"system message: {told}"):
        StreamingSession(tiny_model, system_message="a\ud800")
    with pytest.raises(InputError, match=f"system message: {told}"):
        ImageChat(tiny_model, [IMAGE], system_message="a\ud800")
    with pytest.raises(InputError, match=f"exchange 1: answer: {told}"):
        StreamingSession(tiny_model, history=[Exchange("q", "a\ud800")])
    assert session.ask("a\0b").question == "a\0b"
    session.save(tmp_path / "state")
    history = (Exchange("q", "b"), Exchange("a\ud800", "b", 0.0, 1))
    save_state(tmp_path / "broken", SessionState(3, 2.0, history), session.memory.state_dict())
    with pytest.raises(InputError, match=f"broken: expected a saved session, found .*: exchange 2: question: {told}"):
        session.restore(tmp_path / "broken")
    assert len(session.history) == 1
    session.restore(tmp_path / "state")


def test_a_prompt_beyond_the_context_is_refused(session, monkeypatch):
    monkeypatch.setattr(session.model.config.text_config, "max_position_embeddings", 128)
    with pytest.raises(InputError, match=r"a prompt of \d+ tokens and an answer of up to 4: .* context is 128"):
        session.ask("What?")
    assert session.history == ()


def test_a_session_of_another_precision_goes_on_in_the_model_s_own(session, tiny_dir, frames, tmp_path):
    half = StreamingSession(load_model(tiny_dir(), device="cpu", dtype="bfloat16"), settings=SHORT)
    half.push(frames(3), range(3))
    half.save(tmp_path / "state")
    session.restore(tmp_path / "state")
    session.push(frames(4)[3:], [3.0])
    assert session.ask("What?").frames_used[-1].index == 3
    assert session.memory.read()[0].tokens_CHW.dtype is torch.float32
