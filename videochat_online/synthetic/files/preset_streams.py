"""The streams of a preset: scenes, questions, and in which kind of file each is to be written. No files here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from videochat_online.synthetic.presets import Preset, StreamKind
from videochat_online.synthetic.questions.question_templates import Question
from videochat_online.synthetic.scene.even_draws import random_of
from videochat_online.synthetic.scene.one_shape import SingleStreams
from videochat_online.synthetic.scene.scene import Scene
from videochat_online.synthetic.scene.several_shapes import SeveralStreams

VIDEO, VARIABLE, FOLDER = "video", "variable", "folder"
MAX_FULL_RATE_FOLDER_S = 60
"""Longer streams come as folders of one frame per second only, or there would be thousands of files in each."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream, ready to be written.

    Attributes:
        scene: scene that it shows.
        questions: questions in order of time.
        medium: `VIDEO`, `VARIABLE` (frame rate) or `FOLDER`.
        fps: frames per second of the file.
    """

    scene: Scene
    questions: tuple[Question, ...]
    medium: str
    fps: int

    @property
    def file(self) -> str:
        """Name of the video file or of the folder of frames."""
        return self.scene.name if self.medium == FOLDER else f"{self.scene.name}.mp4"


def make_streams(preset: Preset, seed: int, split: str) -> Iterator[Stream]:
    """The streams of a split, always the same for the same seed."""
    single, several = SingleStreams(seed, split), SeveralStreams(seed, split)
    for kind in preset.streams(split):
        media = _media(preset, seed, split, kind)
        random = random_of("busy", seed, split, kind.seconds)
        busy = set(random.sample(range(kind.count), round(preset.busy_share * kind.count)))
        for number in range(kind.count):
            name = f"{split}_{kind.seconds}s_{number:05d}"
            if preset.world == "single":
                scene, questions = single.make(name)
            else:
                scene, questions = several.make(name, kind.seconds, kind.num_questions, is_busy=number in busy)
            medium, fps = media[number]
            yield Stream(scene, tuple(questions), medium, fps)


def _media(preset: Preset, seed: int, split: str, kind: StreamKind) -> list[tuple[str, int]]:
    """(medium, frames per second) of each stream. Training streams are plain videos: their clips are cut by time."""
    media = [(VIDEO, preset.video_fps)] * kind.count
    if split == "train":
        return media
    num_variable = round(preset.variable_share * kind.count)
    num_folders = round(preset.folder_share * kind.count)
    media[:num_variable] = [(VARIABLE, preset.video_fps)] * num_variable
    rates = (1, preset.video_fps if kind.seconds <= MAX_FULL_RATE_FOLDER_S else 1)
    media[num_variable : num_variable + num_folders] = [(FOLDER, rates[i % 2]) for i in range(num_folders)]
    random_of("media", seed, split, kind.seconds).shuffle(media)
    return media
