"""Questions as rows of annotation files: OVBench's nested layout, VideoChat2-IT, online dialogues, LLaVA images.

Dictionaries begin and end here. The words around a question are those of the benchmark (`text.questions`), so that
training and evaluation show the same text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from videochat_online.synthetic.questions.question_templates import TEMPLATES, Question
from videochat_online.synthetic.scene.scene import Scene
from videochat_online.text.questions import SLIDING_WINDOW_SUFFIX, STREAMING_SUFFIX, option_line, ovbench_question

Row = dict[str, Any]


def ovbench_row(video_id: str, scene: Scene, questions: Sequence[Question], fps: int | None) -> Row:
    """A video with its questions in OVBench's nested layout, and three more keys on each question.

    {"video_id": "s48_00003.mp4", "dataset": "synthetic", "clip": [0.0, 48.0], "background": "still", "questions": [
        {"middle_frame_timestamp": 14.0, "question": "Which shape appeared first?", "options": ["A. block", ...],
         "answer": "C", "answer_type": "PastMemory", "sub_answer_type": "PastMemory-1",
         "template": "first_shape", "evidence_age_s": 9.0, "detail": "coarse"}]}

    `fps` is that of a folder of frames; None for a video file.
    """
    return {
        "video_id": video_id,
        "dataset": "synthetic",
        "clip": [0.0, float(scene.duration_s)],
        **({} if fps is None else {"fps": fps}),
        "background": "busy" if scene.is_busy else "still",
        "questions": [_ovbench_question(question) for question in questions],
    }


def offline_row(video: str, start_s: float, end_s: float, pairs: Sequence[tuple[str, str]]) -> Row:
    """VideoChat2-IT: a clip with (question, answer) pairs, all answered from the whole clip."""
    answers = [{"i": "", "q": question, "a": answer} for question, answer in pairs]
    return {"video": video, "start": float(start_s), "end": float(end_s), "QA": answers}


def online_row(video: str, start_s: float, end_s: float, turns: Sequence[tuple[float, str, str]]) -> Row:
    """An online dialogue: (time, question, answer) turns, times counted from the start of the clip."""
    conversations: list[Row] = []
    for time_s, question, answer in turns:
        conversations += _exchange(question, answer, timestamps=float(time_s))
    clip = [float(start_s), float(end_s)]
    return {"video": video, "clip": clip, "need_reset_timestamp": True, "conversations": conversations}


def image_row(image: str, pairs: Sequence[tuple[str, str]]) -> Row:
    """LLaVA: an image with (question, answer) pairs."""
    conversations = [row for question, answer in pairs for row in _exchange(question, answer)]
    conversations[0]["value"] = f"<image>\n{conversations[0]['value']}"
    return {"image": image, "conversations": conversations}


def _exchange(question: str, answer: str, **more: float) -> list[Row]:
    return [{"from": "human", "value": question, **more}, {"from": "gpt", "value": answer}]


def pair_of(text: str, answer: str, options: Sequence[str] = ()) -> tuple[str, str]:
    """A question without a time, with its options where it has some, and its answer."""
    lines = ["Options:", *(option_line(i, option) for i, option in enumerate(options))] if options else []
    return "\n".join([f"Question: {text}", *lines]) + STREAMING_SUFFIX, _reply(answer, options)


def turn_at(
    text: str, answer: str, time_s: float, options: Sequence[str] = (), *, is_window: bool = False
) -> tuple[float, str, str]:
    """A question as the benchmark asks it at a time, with its options where it has some, and its answer.

    `is_window` takes the words of the sliding-window setting instead of the streaming one's.
    """
    question = ovbench_question(text, options, asked_at_s=float(time_s))
    question += SLIDING_WINDOW_SUFFIX if is_window else STREAMING_SUFFIX
    return float(time_s), question, _reply(answer, options)


def _reply(answer: str, options: Sequence[str]) -> str:
    return option_line(list(options).index(answer), answer) if options else answer


def json_document(rows: object) -> bytes:
    """A JSON file; a list has an element on each line."""
    if isinstance(rows, list):
        return ("[\n" + ",\n".join(_compact(row) for row in rows) + "\n]\n").encode()
    return (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode()


def to_json_lines(rows: Sequence[Row]) -> bytes:
    """A JSON lines file."""
    return "".join(_compact(row) + "\n" for row in rows).encode()


def _compact(row: object) -> str:
    return json.dumps(row, ensure_ascii=False)


def _ovbench_question(question: Question) -> Row:
    template = TEMPLATES[question.template]
    return {
        "middle_frame_timestamp": float(question.asked_at_s),
        "question": question.text,
        "options": [f"{ascii_uppercase[i]}. {option}" for i, option in enumerate(question.options)],
        "answer": ascii_uppercase[question.answer_index],
        "answer_type": template.sub_answer_type.partition("-")[0],
        "sub_answer_type": template.sub_answer_type,
        "template": question.template,
        "evidence_age_s": float(question.evidence_age_s),
        "detail": question.detail,
    }
