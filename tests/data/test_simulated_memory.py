"""Training rows laid out as a memory leaves them: the very prompt that a session makes of the same frames."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from train_cases import dialogue, tiny_encoder, write_media, write_registry
from videochat_online.data import (
    FrameSampling,
    SampleEncoder,
    TrainingDataset,
    load_registries,
    parse_row,
)
from videochat_online.data.samples.sample_lengths import LengthCounter
from videochat_online.data.samples.sample_reader import SetOptions
from videochat_online.data.samples.simulated_memory import SimulatedMemory, thumbnails
from videochat_online.errors import InputError
from videochat_online.memory import make_memory
from videochat_online.streaming import StreamingSession

ROW = {
    "video": "clip.mp4",
    "conversations": dialogue("Early?", "Yes.", "Where?", "Left.", "What?", "Red.", times=(1.0, 3.5, 3.5)),
}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media(tmp_path_factory.mktemp("data") / "media")


@pytest.fixture
def encoder(tiny_model) -> SampleEncoder:
    return tiny_encoder(tiny_model)


@pytest.mark.parametrize(
    ("name", "options", "ratios"),
    [
        ("window", {"num_frames": 2}, (1, 1)),
        ("uniform", {"num_frames": 3}, (1, 1, 1)),
        ("pyramid", {"capacities": (1, 1, 5)}, (1, 4, 4, 4, 2, 4, 4)),
        ("keep_all", {}, (1, 4, 4, 4, 2, 4, 4)),
    ],
)
def test_a_row_is_what_a_session_would_say(encoder, media, tiny_model, name, options, ratios):
    example = encoder.encode(parse_row(ROW, media), random.Random(0), SetOptions(memory=SimulatedMemory(name, options)))
    assert example.pool_ratios == ratios
    memory = make_memory(
        name, full_grid=(4, 4), **options, **({} if name in ("window", "uniform") else {"intervals": (8, 4, 1)})
    )
    session = StreamingSession(tiny_model, memory, system_message="Watch.")
    clip = encoder.reader.clip(media / "clip.mp4", encoder.sampling)
    session.push(clip.pixels_TSSC[:7], clip.times_s[:7])
    asked = session.prepare("Where?").prompt.layout.input_ids
    assert example.input_ids[: len(asked)] == tuple(asked)
    shown = [frame.index for frame in memory.read()]
    assert np.array_equal(example.pixels_TSSC, encoder.reader.transform.resized(clip.pixels_TSSC[shown]))


def test_only_the_last_questions_are_kept_and_all_of_them_learned(encoder, media):
    memory = SimulatedMemory("window", {"num_frames": 2})
    example = encoder.encode(parse_row(ROW, media), random.Random(0), SetOptions(memory=memory))
    text = encoder.tokenizer.decode(example.input_ids)
    assert "Early?" not in text
    assert text.index("Where?") < text.index("Left.") < text.index("What?") < text.index("Red.")
    questions = {"video": "clip.mp4", "QA": [{"q": "One?", "a": "1."}, {"q": "Two?", "a": "2."}]}
    example = encoder.encode(parse_row(questions, media), random.Random(0), SetOptions(memory=memory))
    assert example.pool_ratios == (1, 1)
    assert "Frame7: " in encoder.tokenizer.decode(example.input_ids)


def test_frames_after_the_question_are_not_there_to_be_remembered(encoder, media):
    row = {"video": "clip.mp4", "conversations": dialogue("Where?", "Left.", times=(1.0,))}
    of_set = SetOptions(memory=SimulatedMemory("window", {"num_frames": 9}))
    example = encoder.encode(parse_row(row, media), random.Random(0), of_set)
    assert len(example.pool_ratios) == 2  # at 0.25 and 0.75 s


def test_the_frame_that_is_most_like_its_neighbour_leaves():
    pixels = np.zeros((4, 16, 16, 3), dtype=np.uint8)
    for place, columns in enumerate((slice(0, 4), slice(8, 12), slice(8, 12), slice(0, 8))):
        pixels[place, :, columns] = 200
    times_s = (0.0, 1.0, 2.0, 3.0)
    frames, ratios = SimulatedMemory("pyramid", {"capacities": (3, 1)}).kept_frames(pixels, times_s, (8, 8), (1, 1))
    assert ([frame.index for frame in frames], ratios) == ([0, 1, 2, 3], [1, 2, 1, 1])
    frames, ratios = SimulatedMemory("pyramid", {"capacities": (3, 0)}).kept_frames(pixels, times_s, (8, 8), (1, 1))
    assert ([frame.index for frame in frames], ratios) == ([0, 2, 3], [1, 1, 1])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("window", {"num_frames": 6}),
        ("uniform", {"num_frames": 5}),
        ("pyramid", {"capacities": (2, 1, 3)}),
        ("pyramid", {"capacities": (2, 1, 3), "policy": "paper"}),
        ("fifo", {"capacities": (0, 2, 3)}),
        ("keep_all", {}),
        ("moviechat", {"short_frames": 4, "long_frames": 5}),
        ("moviechat_plus", {"short_frames": 4, "long_frames": 5, "reading": "breakpoint"}),
        ("star", {"key_frames": 2, "cluster_frames": 4}),
        ("token_merging", {"num_frames": 5}),
        ("event_merging", {"event_frames": 5}),
    ],
)
def test_how_many_frames_of_each_size_are_left_is_a_matter_of_their_number_alone(name, options):
    memory = SimulatedMemory(name, options)
    for num_frames in (1, 7, 30):
        clips = [np.random.default_rng(seed).integers(0, 256, (num_frames, 16, 16, 3)) for seed in range(3)]
        clips.append(np.zeros((num_frames, 16, 16, 3)))
        kept = [memory.kept_frames(clip.astype(np.uint8), range(num_frames), (8, 8), (8, 4, 1)) for clip in clips]
        assert len({tuple(sorted(ratios)) for _, ratios in kept}) == 1


def test_similarity_drop_leaves_at_most_what_is_estimated():
    memory = SimulatedMemory("similarity_drop", {"num_frames": 5})
    still = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).repeat(30, axis=0)
    still[0] = 0  # else all frames would be the clip's mean
    kept = [memory.kept_frames(clip.astype(np.uint8), range(30), (8, 8), (8, 4, 1)) for clip in (still, 0 * still)]
    assert [len(frames) for frames, _ in kept] == [2, 5]


@pytest.mark.parametrize(
    ("name", "options"),
    [("window", {"num_frames": 2}), ("pyramid", {"capacities": (1, 1, 2)}), ("keep_all", {})],
)
def test_the_estimated_length_is_that_of_what_is_left(encoder, media, tmp_path, name, options):
    path = write_registry(tmp_path / "registry", media, a=[ROW], b=[ROW])
    entries = json.loads(path.read_text())
    entries["a"]["memory"] = {"name": name, **options}
    path.write_text(json.dumps(entries))
    data = TrainingDataset(load_registries(str(path)), encoder)
    for estimate, number in zip(data.estimates(), range(2), strict=True):
        num_more = estimate.pictures - len(data[number].pool_ratios)
        assert num_more == int(name == "keep_all" or number)  # one that can come just before the question
        assert 0 <= estimate.tokens - len(data[number]) <= 2 + estimate.pictures + 16 * num_more


def test_a_long_video_is_no_longer_than_its_memory(encoder, media):
    texts = {"conversations": dialogue("Where?", "Left."), "clip": [0.0, 500.0]}
    memory, found = SimulatedMemory("window", {"num_frames": 3}), []
    for count in (64, 99):
        counter = LengthCounter(replace(encoder, sampling=FrameSampling(method="fps2", max_num_frames=count)))
        sample = parse_row({"video": "clip.mp4", **texts}, media)
        found += counter.count([counter.outline(sample, SetOptions(memory=memory))])
    assert found[0] == found[1]
    assert (found[0].visual_tokens, found[0].pictures) == (3 * 16, 3)


def test_thumbnails_are_means_around_the_mean_of_the_clip():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    expected = np.empty((3, 8, 8, 3))
    for row in range(8):
        for column in range(8):
            expected[:, row, column] = pixels[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].mean(axis=(1, 2))
    expected -= expected.mean(axis=0)
    assert np.abs(thumbnails(pixels).numpy() - expected.reshape(3, -1)).max() < 1e-3
    assert thumbnails(pixels[:0]).shape == (0, 192)


def test_a_row_without_a_video_has_nothing_to_remember(encoder, media):
    row = {"image": "image0.png", "conversations": dialogue("What?", "Noise.")}
    with pytest.raises(InputError, match="memory: expected a video with questions, found a sample of kind image"):
        encoder.encode(parse_row(row, media), random.Random(0), SetOptions(memory=SimulatedMemory("window")))


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ({"name": "pyramids"}, "entry 'a': memory: unknown memory 'pyramids'"),
        ({"name": "window", "capacities": [1, 1, 1]}, "entry 'a': memory: memory 'window' does not take capacities"),
        ({"name": "moviechat", "grid": [4, 4]}, "entry 'a': memory: memory 'moviechat' does not take grid"),
        ({"name": "pyramid", "full_grid": [4, 4]}, "entry 'a': memory: memory 'pyramid' does not take full_grid"),
        ({"name": "pyramid", "capacities": 5}, "'a': memory: capacities: expected a list of whole numbers.*got 5"),
        ({"name": "fifo", "capacities": []}, "'a': memory: .* one capacity, .* for each tier, got capacities \\(\\)"),
        ({"name": "pyramid", "capacities": "222"}, "memory: capacities: expected a list of whole numbers.*got '222'"),
        ({"name": "pyramid", "capacities": [2, True, 1]}, "capacities: expected a list of whole numbers.*, True, 1"),
        ({"name": "pyramid", "capacities": None}, "'a': memory: capacities: expected a value, found None"),
        ({"name": "window", "num_frames": None}, "'a': memory: num_frames: expected a value, found None"),
        ({"name": "window", "num_frames": "6"}, "'a': memory: num_frames: expected a whole number .*, got '6'"),
        ({"name": "window", "self": 1}, "'a': memory: memory 'window' does not take self"),
        ({"name": "pyramid", "capacities": [0, 0, 0]}, "entry 'a': memory: capacities: expected at least one above 0"),
        ({"capacities": [1, 1, 1]}, "'a': memory: expected a name, or an object .* found {'capac"),
        (5, "entry 'a': memory: expected a name, or an object with a name and options, found 5"),
    ],
)
def test_a_wrong_memory_of_a_set_is_named(media, tmp_path, memory, message):
    path = write_registry(tmp_path / "registry", media, a=[ROW])
    path.write_text(path.read_text().replace('"data_root"', f'"memory": {json.dumps(memory)}, "data_root"'))
    with pytest.raises(InputError, match=message):
        load_registries(str(path))


def test_a_memory_that_does_not_fit_the_model_is_found_before_the_first_row(encoder, media, tmp_path):
    path = write_registry(tmp_path / "registry", media, a=[ROW])
    path.write_text(
        path.read_text().replace('"data_root"', '"memory": {"name": "fifo", "capacities": [1, 1]}, "data_root"')
    )
    with pytest.raises(InputError, match="a: memory: .*one capacity, one grid and one interval"):
        TrainingDataset(load_registries(str(path)), encoder)
