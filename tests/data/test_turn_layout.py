"""A dialogue during a stream is the same prompt in a training row and in a session."""

from __future__ import annotations

import random

import pytest

from text_tokenizers import NAMED_TEMPLATES
from videochat_online.data.rows.sample import DialogueTurn
from videochat_online.data.samples.turn_layout import online_turns, video_turns
from videochat_online.streaming import Exchange, GenerationSettings, StreamingSession
from videochat_online.streaming.question_prompt import stream_turns
from videochat_online.testing import build_tiny_tokenizer
from videochat_online.text import get_template, layout_prompt
from videochat_online.types import FrameUse, Turn

NUM_DIALOGUES = 1000
WORDS = (
    "What now?",
    " ",
    "\n",
    "  and\n",
    "the cat",
    "世",
    "<|end|>",
    "(A) yes\n(B) no",
    "",
    ".",
    "now",
    "?",
    "so",
    "1",
)
FPS = 2


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = build_tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def said(rng: random.Random) -> str:
    return "".join(rng.choices(WORDS, k=rng.randint(1, 4)))


def test_random_dialogues_are_laid_out_alike_for_training_and_in_a_session(tokenizer):
    num_without_frames = 0
    for seed in range(NUM_DIALOGUES):
        rng = random.Random(seed)
        frames = [FrameUse(index, index / FPS, rng.randint(1, 4)) for index in range(rng.randint(1, 6))]
        with_times = rng.random() < 0.8
        last_s = frames[-1].time_s
        # Some ask twice at one time, some before the first frame; about a video without times all ask at its end.
        asked = sorted(rng.choice([-0.5, *(frame.time_s for frame in frames)]) for _ in range(rng.randint(1, 4)))
        dialogue = [DialogueTurn(said(rng), said(rng), time_s if with_times else None) for time_s in asked]
        row = online_turns(dialogue, frames) if with_times else video_turns(dialogue, frames)
        history = []
        for turn in dialogue:
            time_s = last_s if turn.time_s is None else turn.time_s
            num_seen = sum(frame.time_s <= time_s for frame in frames)
            history.append(Exchange(turn.user, turn.assistant, time_s, num_seen))
        # Frames that come after the question are not there yet when it is asked.
        there = frames[: history[-1].num_frames_seen]
        session = stream_turns(there, history[:-1], dialogue[-1].user, with_times=with_times)
        template = get_template(rng.choice(NAMED_TEMPLATES))
        of_row, of_session = (
            layout_prompt(
                [*turns[:-1], Turn(turns[-1].user)], tokenizer=tokenizer, template=template, system_message=""
            )
            for turns in (row, session)
        )
        assert of_row.input_ids == of_session.input_ids, (seed, template.name)
        assert of_row.visual_spans == of_session.visual_spans
        num_without_frames += len(asked) - len(set(asked))
    assert num_without_frames > 500


@pytest.mark.parametrize(("with_times", "between"), [(True, "\n\n"), (False, "\n")])
def test_a_session_asked_twice_without_a_new_frame(tiny_model, frames, tmp_path, with_times, between):
    settings, before = GenerationSettings(max_new_tokens=2), [Exchange("Hello?", "Hi.")]
    session = StreamingSession(tiny_model, settings=settings, history=before, with_times=with_times)
    session.push(frames(2), [0.0, 0.5])
    session.ask("What?")
    session.save(tmp_path / "state")
    text = session.prepare("And?").prompt.layout.text
    assert text.count("<|user|>\nHello?<|end|>") == text.count(f"<|user|>{between}And?<|end|>") == 1
    session.restore(tmp_path / "state")
    assert session.prepare("And?").prompt.layout.text == text
    session.push(frames(3)[2:], [1.0])
    assert "<|user|>\nFrame3" in session.prepare("And?").prompt.layout.text
