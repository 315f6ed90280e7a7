"""Clips to try without a video at hand: generated on the spot, with questions whose answers are known."""

from __future__ import annotations

import secrets
from pathlib import Path

from videochat_online.synthetic import PRESETS, Renderer, make_streams
from videochat_online.synthetic.files.preset_streams import VIDEO
from videochat_online.synthetic.files.video_files import write_video
from videochat_online.synthetic.questions.question_templates import Question

EXAMPLES = {
    "One shape after another (48 s)": "quickstart",
    "Several shapes that move and flash (24 s)": "full",
}
"""Titles and the presets whose test streams they are."""

VIDEO_FPS = 8


def make_example(title: str, path: Path, seed: int | None = None) -> tuple[Question, ...]:
    """Write a clip, a new one each time unless `seed` says which; returns the questions that it answers.

    Args:
        title: one of `EXAMPLES`.
        path: the file.
        seed: the same clip for the same one.
    """
    preset = PRESETS[EXAMPLES[title]]
    number = secrets.randbelow(2**31) if seed is None else seed
    stream = next(each for each in make_streams(preset, number, "test") if each.medium == VIDEO)
    renderer = Renderer(stream.scene, preset.size_px)
    write_video(path, renderer, stream.scene.duration_s, VIDEO_FPS, seed="", is_variable=False)
    return stream.questions
