"""Answers from scenes instead of pixels: what a perfect memory knows, and what the last frame alone tells.

Both read a question as the benchmark states it (`template`, time, options, words), so they check the written files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random
from string import ascii_uppercase
from typing import Any

from videochat_online.errors import InputError
from videochat_online.synthetic.questions.question_templates import TEMPLATES, answer_of
from videochat_online.synthetic.questions.shared_facts import Params
from videochat_online.synthetic.scene.scene import Scene
from videochat_online.text.questions import option_text


def replay(scene: Scene, question: Mapping[str, Any], random: Random) -> str:
    """Letter of the option that the scene up to the time of asking bears out.

    Args:
        scene: scene that the stream shows.
        question: an entry of "questions" of the nested layout.
        random: generator that is not needed; there for the sake of the common signature.

    Raises:
        InputError: an unknown template, or a scene that does not tell.
    """
    options = [option_text(option) for option in question["options"]]
    answer = _answer(scene, question, options)
    if answer not in options:
        raise InputError(
            f"{scene.name}, {question['question']!r}: expected one of {options}, the scene says {answer!r}"
        )
    return ascii_uppercase[options.index(answer)]


def replay_last_frame(scene: Scene, question: Mapping[str, Any], random: Random) -> str:
    """The same from the frame at the time of asking, as if it had always looked like that; else a random letter."""
    options = [option_text(option) for option in question["options"]]
    answer = _answer(scene.frozen_at(question["middle_frame_timestamp"]), question, options)
    return ascii_uppercase[options.index(answer) if answer in options else random.randrange(len(options))]


def params_of(template: str, text: str) -> Params:
    """Parameters of a template, read back from the words of a question.

    Raises:
        InputError: an unknown template, or words that are not its own.
    """
    if template not in TEMPLATES:
        raise InputError(f"template: expected one of {', '.join(TEMPLATES)}, got {template!r}")
    pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\w+)", re.escape(TEMPLATES[template].text))
    match = re.fullmatch(pattern, text)
    if match is None:
        raise InputError(f"question: expected {TEMPLATES[template].text!r} of template {template!r}, got {text!r}")
    return match.groupdict()


def _answer(scene: Scene, question: Mapping[str, Any], options: Sequence[str]) -> str | None:
    template = question["template"]
    params = params_of(template, question["question"])
    return answer_of(scene, template, question["middle_frame_timestamp"], params, options)
