"""Questions about whole videos and images: which frames, one pass a video, no trace of other questions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from video_files import write_folder, write_video
from videochat_online.errors import InputError, VideoError
from videochat_online.integrations import offline
from videochat_online.integrations.offline import OFFLINE, OfflineAnswerer
from videochat_online.memory import make_model_memory
from videochat_online.model import VideoChatModel
from videochat_online.streaming import GenerationSettings, ImageChat, StreamingSession
from videochat_online.streaming.generate import generate_ids
from videochat_online.streaming.question_prompt import build_prompt
from videochat_online.streaming.strategies import chain_of_shot
from videochat_online.text.questions import OFFLINE_SUFFIX
from videochat_online.types import Turn
from videochat_online.video import read_video

SHORT = GenerationSettings(max_new_tokens=6)
SMALL = replace(OFFLINE, memory_options={"capacities": (1, 1, 2)})


@pytest.fixture
def clip(tmp_path):
    """30 numbered frames, 10 a second."""
    return write_video(tmp_path / "clip.mp4", range(30))


@pytest.fixture
def num_encoded(monkeypatch):
    """How many frames went through the vision tower, batch by batch."""
    counts, encode = [], VideoChatModel.encode

    def counting(self, pixels_THWC):
        counts.append(len(pixels_THWC))
        return encode(self, pixels_THWC)

    monkeypatch.setattr(VideoChatModel, "encode", counting)
    return counts


def session_with(model, pixels, protocol=OFFLINE):
    config = model.config
    memory = make_model_memory("pyramid", config.grid, config.memory_intervals, protocol.memory_options)
    session = StreamingSession(model, memory, with_times=protocol.with_times)
    session.push(np.stack(pixels), [float(i) for i in range(len(pixels))])
    return session


def frames_of(path):
    return [frame for chunk in read_video(path) for frame in chunk.pixels_THWC]


def same_prompt(one, other):
    return one.layout.input_ids == other.layout.input_ids and torch.equal(one.tokens.embeds_LD, other.tokens.embeds_LD)


def test_the_published_setting():
    assert (OFFLINE.fps, OFFLINE.max_frames, OFFLINE.with_times) == (4.0, 1800, False)
    bank = OFFLINE.make_memory((16, 16), (8, 4, 1))
    assert bank.max_tokens == 9984


@pytest.mark.parametrize(
    ("max_frames", "last_index", "indices"),
    [
        (1800, None, range(0, 30, 2)),  # round(10 / 4) = 2
        (4, None, (2, 10, 18, 26)),  # the middles of four segments of those fifteen
        (1800, 7, (0, 2, 4, 6)),
        (1800, 0, (0,)),
    ],
)
def test_frames(tiny_model, clip, max_frames, last_index, indices):
    answerer = OfflineAnswerer(tiny_model, replace(SMALL, max_frames=max_frames))
    visual = str(clip) if last_index is None else {"video_path": str(clip), "timestep": last_index}
    frames = frames_of(clip)
    expected = session_with(tiny_model, [frames[i] for i in indices], SMALL).prepare("What?").prompt
    assert same_prompt(answerer.prompt("What?", [visual]), expected)


def test_a_video_is_gone_through_once_for_questions_in_a_row_which_leave_no_trace(
    tiny_model, clip, tmp_path, num_encoded
):
    other = write_video(tmp_path / "other.mp4", range(12))
    answerer = OfflineAnswerer(tiny_model)
    first = answerer.answer("What happens?", [str(clip)], SHORT)
    assert sum(num_encoded) == 15
    second = answerer.answer("And where?", [str(clip)], SHORT)
    assert sum(num_encoded) == 15
    assert second == session_with(tiny_model, frames_of(clip)[::2]).ask("And where?", settings=SHORT).text
    num_encoded.clear()
    answerer.answer("What?", [{"video_path": str(clip), "timestep": 7}], SHORT)
    assert sum(num_encoded) == 4  # another part of it is another video
    answerer.answer("What?", [str(other)], SHORT)
    assert sum(num_encoded) == 4 + 6
    assert answerer.answer("What happens?", [str(clip)], SHORT) == first
    assert sum(num_encoded) == 4 + 6 + 15


def test_what_stands_around_the_question(tiny_model, clip):
    protocol = replace(SMALL, suffix=OFFLINE_SUFFIX, with_times=True, system_message="Look.")
    prompt = OfflineAnswerer(tiny_model, protocol).prompt("What?", [clip])
    text = tiny_model.tokenizer.decode(prompt.layout.input_ids)
    assert "Look." in text
    assert "Frame15 at 2.8s: " in text
    assert text.index("What?") < text.index("Answer:")


def test_stops_end_an_answer_unless_they_stand_before_it(tiny_model, clip, monkeypatch):
    answerer = OfflineAnswerer(tiny_model)
    whole = answerer.answer("What?", [clip], replace(SHORT, max_new_tokens=20))
    middle = whole[len(whole) // 2]
    settings = replace(SHORT, max_new_tokens=20)
    assert answerer.answer("What?", [clip], settings, ("never", middle)) == whole.split(middle)[0].strip()
    ids = tiny_model.tokenizer("\n\nA cup\nor so", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr("videochat_online.streaming.generate.generate_ids", lambda *_: iter(ids))
    assert answerer.answer("What?", [clip], settings, ("\n",)) == "A cup"


def test_images_and_nothing(tiny_model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)  # four channels: with transparency
    image.convert("RGB").save(tmp_path / "image.png")
    answerer = OfflineAnswerer(tiny_model)
    expected = ImageChat(tiny_model, [image.convert("RGB")], SHORT)
    assert same_prompt(answerer.prompt("What?", [image]), expected.prepare("What?"))
    assert answerer.answer("What?", [str(tmp_path / "image.png")], SHORT) == expected.ask("What?")
    two = ImageChat(tiny_model, [image.convert("RGB")] * 2, SHORT)
    assert same_prompt(answerer.prompt("Which?", [image, image]), two.prepare("Which?"))
    assert same_prompt(answerer.prompt("Why?", []), build_prompt(tiny_model, [Turn(("Why?",))], []))


def test_losses(tiny_model, clip, monkeypatch):
    answerer, replies = OfflineAnswerer(tiny_model, SMALL), ["a cup", "no"]
    prompt = answerer.prompt("What?", [clip])
    found = answerer.losses("What?", [clip], replies)
    embed = tiny_model.network.language_model.get_input_embeddings()
    for (loss, is_greedy), reply in zip(found, replies, strict=True):
        ids = torch.tensor(offline.reply_ids(tiny_model, reply))
        with torch.inference_mode():
            embeds = torch.cat((prompt.tokens.embeds_LD, embed(ids)))[None]
            logits = tiny_model.network.language_model(inputs_embeds=embeds).logits[0, -len(ids) - 1 : -1]
        assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits.float(), ids)), abs=1e-4)
        assert not is_greedy
    greedy = tuple(generate_ids(tiny_model.language_model, prompt.tokens, tiny_model.stop_ids, SHORT))
    others = {"greedy": greedy[:3], "other": (*greedy[:2], greedy[2] + 1)}
    monkeypatch.setattr(offline, "reply_ids", lambda model, text: others[text])
    assert [is_greedy for _, is_greedy in answerer.losses("What?", [clip], list(others))] == [True, False]


def test_strategies(tiny_model, clip, monkeypatch):
    """Retrieval is seen in the prompt, a contrast in answers and losses; nothing relevant is the plain answer."""
    retrieval = replace(SMALL, strategy="retrieval", strategy_options={"retrieved_frames": 1})
    assert len(OfflineAnswerer(tiny_model, retrieval).prompt("What?", [clip]).layout.visual_spans) == 1
    found = {}
    for name, relevant in (("none", ()), ("some", (3,))):
        monkeypatch.setattr(
            chain_of_shot,
            "are_relevant",
            lambda *given, relevant=relevant: [i in relevant for i in range(len(given[1]))],
        )
        answerer = OfflineAnswerer(tiny_model, replace(SMALL, strategy="chain_of_shot"))
        found[name] = (answerer.answer("What?", [clip], SHORT), answerer.losses("What?", [clip], ["a cup", "no"]))
    plain = OfflineAnswerer(tiny_model, SMALL)
    assert found["none"] == (plain.answer("What?", [clip], SHORT), plain.losses("What?", [clip], ["a cup", "no"]))
    assert found["some"][0] != found["none"][0]
    assert [loss for loss, _ in found["some"][1]] != [loss for loss, _ in found["none"][1]]


def test_what_cannot_be_used(tiny_model, clip, tmp_path):
    answerer = OfflineAnswerer(tiny_model)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    folder = write_folder(tmp_path / "frames", [f"f{i}.png" for i in range(6)])
    for visuals, error, message in (
        ([clip, clip], InputError, "one video or some images, got 2 of which 0"),
        ([{"array": [0.0], "sampling_rate": 16000}], InputError, r"got keys \['array', 'sampling_rate'\]"),
        ([3], InputError, "got int"),
        ([str(broken)], VideoError, "broken.mp4"),
        ([str(folder)], VideoError, "frames: expected a frame rate"),
    ):
        with pytest.raises(error, match=message):
            answerer.prompt("What?", visuals)
    expected = session_with(tiny_model, frames_of(folder)[::2]).prepare("What?").prompt
    assert same_prompt(OfflineAnswerer(tiny_model, folder_fps=8.0).prompt("What?", [str(folder)]), expected)
    with pytest.raises(InputError, match="capacities"):
        OfflineAnswerer(tiny_model, replace(OFFLINE, memory_options={"capacities": (1, 1)}))


def test_a_damaged_video_is_answered_from_what_can_be_read_and_said(tiny_model, tmp_path, caplog):
    whole = write_video(tmp_path / "whole.mp4", range(60), container_options={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    assert OfflineAnswerer(tiny_model, SMALL).prompt("What?", [cut]).layout.num_visual_tokens
    assert "cut.mp4: " in caplog.text
