"""What is on disk shows what the scenes say, when they say it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from synthetic_sets import TINY_SEVERAL, TINY_SINGLE, all_streams
from videochat_online.synthetic import Entity, Event, Renderer, Scene, synthesize
from videochat_online.synthetic.files.preset_streams import FOLDER, VARIABLE, VIDEO
from videochat_online.synthetic.files.video_files import write_video
from videochat_online.synthetic.questions.question_templates import answer_of
from videochat_online.synthetic.scene.render import pattern_mask
from videochat_online.synthetic.scene.words import PATTERNS, RGB, SEVERAL_COLOURS, SEVERAL_SHAPES, all_cells
from videochat_online.video import list_frame_files, open_video


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for preset in (TINY_SINGLE, TINY_SEVERAL):
        folders[preset.name] = tmp_path_factory.mktemp(preset.name) / "set"
        synthesize(folders[preset.name], seed=3, preset=preset)
    return folders


def streams_and_files(made, preset):
    for split in ("test", "train"):
        for stream in all_streams(preset, split, seed=3):
            yield stream, made[preset.name] / "videos" / split / stream.file


def frames_at(path, stream, times_s):
    fps = stream.fps if stream.medium == FOLDER else None
    with open_video(path, fps=fps) as video:
        frames = [frame for chunk in video.read(times_s=times_s) for frame in chunk.pixels_THWC]
        video.finish()
        assert video.report.problem is None
    return frames


def look(frame_HWC):
    """(colour, shape, cell) of the one thing on a decoded frame."""
    is_thing = np.abs(frame_HWC.astype(int) - 128).max(-1) > 60
    rows, columns = np.nonzero(is_thing)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    middle = np.median(frame_HWC[is_thing], axis=0)
    colour = min(RGB, key=lambda name: np.abs(middle - RGB[name]).sum())
    if max(height, width) > 1.8 * min(height, width):
        shape = "bar" if width > height else "pole"
    else:
        shape = "block" if is_thing.sum() > 0.9 * height * width else "dot"
    return colour, shape, (int(rows.mean() > 32), int(columns.mean() > 32))


def scene_seen(frames):
    """The scene as somebody finds it who looks once a second."""
    entities, events, last = [], [], None
    for time_s, frame in enumerate(frames):
        colour, shape, cell = look(frame)
        if last is None or last[0] != colour:
            if last is not None:
                events.append(Event("vanish", len(entities) - 1, time_s, time_s))
            entities.append(Entity(colour, shape))
            events.append(Event("appear", len(entities) - 1, time_s, time_s, cell))
        elif last[1] != cell:
            events.append(Event("move", len(entities) - 1, time_s - 1, time_s, cell))
        last = (colour, cell)
    return Scene("seen", len(frames), 2, tuple(entities), tuple(events))


def test_answers_follow_from_the_pixels(made):
    """One frame per second of every kind of file, decoded, is enough for every question."""
    media = set()
    for stream, path in streams_and_files(made, TINY_SINGLE):
        found = scene_seen(frames_at(path, stream, range(48)))
        for question in stream.questions:
            answer = answer_of(found, question.template, question.asked_at_s, question.params, question.options)
            assert answer == question.answer, (path, question)
        media.add(stream.medium)
    assert media == {VIDEO, VARIABLE, FOLDER}


@pytest.mark.parametrize("preset", [TINY_SINGLE, TINY_SEVERAL], ids=lambda preset: preset.world)
def test_files_show_the_scene_at_every_time(made, preset):
    """Off the background, a decoded frame is the drawn one; nothing comes a frame early or late."""
    for stream, path in streams_and_files(made, preset):
        renderer = Renderer(stream.scene, 64)
        times_s = [frame / stream.fps for frame in range(int(stream.scene.duration_s * stream.fps))]
        for time_s, frame in zip(times_s, frames_at(path, stream, times_s), strict=True):
            drawn = renderer.frame(time_s).astype(int)
            assert np.abs(frame.astype(int) - drawn).mean() < (14 if stream.scene.is_busy else 6), (path, time_s)
            changed = np.abs(drawn - renderer.frame(max(time_s - 1 / stream.fps, 0)).astype(int)).max(-1) > 80
            if changed.any():
                assert np.abs(frame.astype(int) - drawn)[changed].mean() < 45, (path, time_s)


def test_variable_frame_rate_leaves_out_repeats_only(made):
    stream, path = next(pair for pair in streams_and_files(made, TINY_SINGLE) if pair[0].medium == VARIABLE)
    with open_video(path) as video:
        times_s = video.frame_times_s()
    gaps_s = np.diff(times_s)
    assert times_s[0] == 0
    assert times_s[-1] == 47.5
    assert gaps_s.min() == 0.5
    assert gaps_s.max() > 1
    renderer = Renderer(stream.scene, 64)
    for time_s in np.arange(0, 48, 0.5):
        shown_s = max(shown for shown in times_s if shown <= time_s)
        assert renderer.key(time_s) == renderer.key(shown_s)


def test_folders_are_in_natural_order(made):
    for preset in (TINY_SINGLE, TINY_SEVERAL):
        rates = set()
        for stream, path in streams_and_files(made, preset):
            if stream.medium == FOLDER:
                names = [file.name for file in list_frame_files(path)]
                assert names != sorted(names)
                assert len(names) == stream.scene.duration_s * stream.fps
                rates.add(stream.fps)
        assert rates == {1, preset.video_fps}


def test_patterns_survive_the_video(made, tmp_path):
    """Both sizes can be told apart on decoded frames."""
    cells = [(0, 0), (1, 1), (2, 2)]
    for size in ("fine", "coarse"):
        for offset in range(2):
            shown = PATTERNS[offset : offset + 3]
            entities = tuple(Entity("red", "diamond", pattern, size) for pattern in shown)
            events = tuple(Event("appear", i, 0, 0, cell) for i, cell in enumerate(cells))
            path = tmp_path / f"{size}{offset}.mp4"
            write_video(path, Renderer(Scene("s", 2, 4, entities, events), 64), 2, 8, seed="", is_variable=False)
            with open_video(path) as video:
                frame = [frame for chunk in video.read(times_s=[1.5]) for frame in chunk.pixels_THWC][0].mean(-1)
            for (row, column), pattern in zip(cells, shown, strict=True):
                plate = frame[16 * row + 4 : 16 * row + 12, 16 * column + 4 : 16 * column + 12]
                fits = {name: -(plate * pattern_mask(name, size)).sum() for name in PATTERNS}
                assert max(fits, key=fits.get) == pattern


def probe_accuracy(size: str, pooling: int) -> float:
    """A ridge regression names the pattern from the pixels of its cell, averaged over squares; chance is 1/4."""
    random = np.random.default_rng(0)
    inputs, labels = [], []
    for number in range(900):
        pattern, cell = random.integers(4), all_cells(4)[random.integers(16)]
        colour, shape = (str(random.choice(names)) for names in (SEVERAL_COLOURS, SEVERAL_SHAPES))
        entity = Entity(colour, shape, PATTERNS[pattern], size)
        frame = Renderer(Scene("s", 1, 4, (entity,), (Event("appear", 0, 0, 0, cell),), number), 64).frame(0)
        patch = frame[16 * cell[0] : 16 * cell[0] + 16, 16 * cell[1] : 16 * cell[1] + 16] / 255
        pooled = patch.reshape(16 // pooling, pooling, 16 // pooling, pooling, 3).mean((1, 3))
        inputs.append([*pooled.ravel(), 1])
        labels.append(pattern)
    known, asked = np.array(inputs[:600]), np.array(inputs[600:])
    gram = known.T @ known + 0.1 * np.eye(known.shape[1])
    weights = np.linalg.solve(gram, known.T @ np.eye(4)[labels[:600]])
    return float(((asked @ weights).argmax(1) == labels[600:]).mean())


@pytest.mark.parametrize(
    ("size", "pooling", "is_kept"),
    [("fine", 1, True), ("fine", 2, False), ("coarse", 1, True), ("coarse", 2, True), ("coarse", 4, False)],
)
def test_pooling_destroys_what_it_is_meant_to_destroy(size, pooling, is_kept):
    accuracy = probe_accuracy(size, pooling)
    assert accuracy >= 0.9 if is_kept else accuracy <= 1.3 / 4
