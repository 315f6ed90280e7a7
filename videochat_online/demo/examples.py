"""Clips to try without a video at hand: generated on the spot, with questions whose answers are known."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from videochat_online.synthetic import PRESETS, Renderer, make_streams
from videochat_online.synthetic.files.preset_streams import VIDEO
from videochat_online.synthetic.files.video_files import write_video

EXAMPLES = {
    "One shape after another (48 s)": "quickstart",
    "Several shapes that move and flash (24 s)": "full",
}
"""Titles and the presets whose test streams they are."""

VIDEO_FPS = 8


@dataclass(frozen=True, slots=True)
class ExampleQuestion:
    """A question that a clip answers.

    Attributes:
        asked_at_s: when it is meant to be asked.
        text: the question.
        options: texts to choose from.
        answer: the right one.
    """

    asked_at_s: float
    text: str
    options: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class ExampleClip:
    """A clip in a file."""

    path: Path
    questions: tuple[ExampleQuestion, ...]


def make_example(title: str, folder: Path, seed: int | None = None) -> ExampleClip:
    """Write a clip, a new one each time unless `seed` says which; `title` is one of `EXAMPLES`."""
    preset = PRESETS[EXAMPLES[title]]
    number = secrets.randbelow(2**31) if seed is None else seed
    stream = next(each for each in make_streams(preset, number, "test") if each.medium == VIDEO)
    path = folder / "example.mp4"
    renderer = Renderer(stream.scene, preset.size_px)
    write_video(path, renderer, stream.scene.duration_s, VIDEO_FPS, seed="", is_variable=False)
    questions = (
        ExampleQuestion(float(one.asked_at_s), one.text, one.options, one.options[one.answer_index])
        for one in stream.questions
    )
    return ExampleClip(path, tuple(questions))
