"""OVBench: questions at moments of a stream, 16 cells of question type and source.

Three layouts of the same benchmark are read, also mixed. One row of each (`nested` holds many questions):

nested  {"video_id": "MeZvU3ffU7I.mp4", "dataset": "coin", "clip": [0.0, 107.0], "fps": 25, "questions": [
            {"middle_frame_timestamp": 107.0, "question": "Is the person still ...?", "options": ["A. Yes", "B. No"],
             "answer": "B", "answer_type": "Hallucination", "sub_answer_type": "Hallucination-1"}]}
flat    {"video_id": ..., "dataset": ..., "fps": ..., and the fields of a question}
lmms    {"video": "MeZvU3ffU7I.mp4", "start": 0.0, "end": 107.0, "middle_frame_timestamp": 107.0, "question": ...,
         "candidates": ["Yes", "No"], "answer": "No", "answer_type": ..., "sub_answer_type": ...}

In the nested and the flat layout a question may also be open: without `options`, its `answer` a text. `scorer`, in
itself or for all open questions of a nested row, says how replies to it are read: exact, contains, number, judge.

In the lmms layout a question is asked at `end`: for AVA `middle_frame_timestamp` counts from the start of the
movie, whose second 895 is the first frame of the folder. A set with fields of its own (`evidence_age_s`) keeps
them. A row that cannot be used is reported, never repaired.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from videochat_online.errors import InputError
from videochat_online.evaluation.benchmark import EvalQuestion, EvalSet, Source
from videochat_online.evaluation.protocol import OVBENCH_REFERENCE
from videochat_online.evaluation.scoring.open_answers import SCORER_NAMES
from videochat_online.evaluation.task import Task
from videochat_online.evaluation.tasks.reading import (
    Stream,
    expect,
    expect_letter,
    expect_questions,
    expect_readable,
    is_plain_number,
    question_id,
    read_rows,
    videos_of_streams,
)
from videochat_online.text import check_text
from videochat_online.text.questions import option_index, option_text, ovbench_question

GROUPS = {"ava": "action", "coin": "event", "hirest": "event", "tao": "object"}

CELLS = (
    *((kind, group) for kind in ("FuturePrediction", "Hallucination", "PastMemory", "TemporalPerception")
      for group in ("action", "event", "object")),
    *((kind, group) for kind in ("SpatialPerception", "SpatioTemporalPerception") for group in ("action", "object")),
)  # fmt: skip
"""Cells (type, group) of the average; no question about events asks where something is."""
FOLDER_FPS = {"ava": 1.0}
"""Rate of a dataset's folders of frames, where the annotation does not say it."""

_OF_THE_VIDEO = {"video_id", "video", "dataset", "clip", "fps", "start", "end", "questions", "image_file"}
_OF_A_QUESTION = {
    "middle_frame_timestamp", "question", "options", "candidates", "answer", "answer_type", "sub_answer_type",
    "scorer",
}  # fmt: skip
_LETTERED = re.compile(r"([A-Z])[.)] ")


def load_ovbench(paths: Sequence[Path]) -> EvalSet:
    """Read annotation files of any layout.

    Raises:
        InputError: a file that is missing or no JSON list, or files without a single usable question.
    """
    streams: dict[Stream, list[EvalQuestion]] = {}
    hints: dict[Stream, str] = {}
    problems: list[str] = []
    seen: Counter[str] = Counter()
    for path in paths:
        for number, row in enumerate(read_rows(path), start=1):
            where = f"{path.name} row {number}"
            try:
                stream = _stream(row, path)
                questions = row.get("questions", [row])
                expect(isinstance(questions, list), "questions", "a list", questions)
            except InputError as error:
                problems.append(f"{where}: {error}")
                continue
            for inner, fields in enumerate(questions, start=1):
                source = Source(path.name, number - 1, inner - 1 if "questions" in row else None)
                try:
                    question = replace(_question(fields, row, stream), source=source)
                except InputError as error:
                    problems.append(f"{where}{f' question {inner}' if 'questions' in row else ''}: {error}")
                    continue
                seen[question.id] += 1
                if seen[question.id] > 1:
                    question = replace(question, id=f"{question.id}-{seen[question.id]}")
                streams.setdefault(stream, []).append(question)
                if "image_file" in row:
                    hints.setdefault(stream, str(row["image_file"]))
    expect_questions(streams, paths, "OVBench", problems)
    return EvalSet(videos_of_streams(streams, hints, FOLDER_FPS), tuple(problems))


def _stream(row: Mapping[str, Any], path: Path) -> Stream:
    name = row.get("video_id", row.get("video"))
    expect(isinstance(name, str) and bool(name.strip()), "video_id or video", "a name", name)
    check_text(name, "video_id or video")
    fps = row.get("fps")
    expect(fps is None or is_plain_number(fps, above=0.0), "fps", "a number above 0", fps)
    start_s, end_s = row.get("start", 0.0), None
    if "clip" in row:
        clip = row["clip"]
        good = isinstance(clip, list) and len(clip) == 2 and all(map(is_plain_number, clip)) and clip[0] <= clip[1]
        expect(good, "clip", "[start, end] in seconds", clip)
        start_s, end_s = clip
    expect(is_plain_number(start_s), "start", "a time in seconds", start_s)
    dataset = row.get("dataset") or _dataset_of(path)
    rate = None if fps is None else float(fps)
    return Stream(str(name), float(start_s), None if end_s is None else float(end_s), rate, dataset and str(dataset))


def _dataset_of(path: Path) -> str | None:
    """The lmms layout has a file for each dataset and does not name it otherwise."""
    words = re.split(r"[^a-z]+", path.stem.lower())
    return next((dataset for dataset in GROUPS if dataset in words), None)


def _question(fields: Any, row: Mapping[str, Any], stream: Stream) -> EvalQuestion:
    expect(isinstance(fields, dict), "question", "an object", fields)
    # Without candidates, a row of the lmms layout still has its end: it has lost them, and is no open question.
    in_lmms = "candidates" in fields or ("end" in fields and "options" not in fields)
    is_open = not in_lmms and fields.get("options") is None
    time_key = "end" if in_lmms else "middle_frame_timestamp"
    time_s, text = fields.get(time_key), fields.get("question")
    expect(is_plain_number(time_s), time_key, "a time of at least 0 seconds", time_s)
    expect(isinstance(text, str) and bool(text.strip()), "question", "a text", text)
    options = [] if is_open else fields.get("candidates" if in_lmms else "options")
    good = isinstance(options, list) and all(isinstance(option, str) for option in options)
    expect(is_open or (good and 2 <= len(options) <= len(ascii_uppercase)), "options", "2 to 26 texts", options)
    answer = fields.get("answer")
    expect(isinstance(answer, str) and bool(answer.strip() or not is_open), "answer", "a text", answer)
    scorer = fields.get("scorer", row.get("scorer") if is_open else None)
    if scorer is not None:
        expect(is_open, "scorer", "none, as there are options", scorer)
        expect(scorer in SCORER_NAMES, "scorer", f"one of {', '.join(SCORER_NAMES)}", scorer)
    for key in ("answer_type", "sub_answer_type"):
        expect(isinstance(fields.get(key), str), key, "a text", fields.get(key))
    expect_readable(text, *options)
    check_text(answer, "answer")
    texts = tuple(options) if in_lmms or is_open else _without_letters(options)
    known = _OF_THE_VIDEO | _OF_A_QUESTION
    more = {key: value for key, value in {**row, **fields}.items() if key not in known}
    return EvalQuestion(
        id=question_id(stream.id, float(time_s), text, texts),
        time_s=float(time_s),
        question=text,
        options=texts,
        answer_index=0 if is_open else option_index(texts, answer) if in_lmms else expect_letter(answer, len(texts)),
        answer_type=fields["answer_type"],
        sub_answer_type=fields["sub_answer_type"],
        dataset=stream.dataset,
        extra=more,
        kind="open" if is_open else "choice",
        answer_text=answer if is_open else None,
        scorer=scorer,
    )


def _without_letters(options: Sequence[str]) -> tuple[str, ...]:
    letters = [match[1] if (match := _LETTERED.match(option)) else None for option in options]
    expected = list(ascii_uppercase[: len(options)])
    expect(letters == expected, "options", f"texts that begin with {expected[0]}. to {expected[-1]}.", list(options))
    return tuple(map(option_text, options))


def _prompt(question: EvalQuestion) -> str:
    return ovbench_question(question.question, question.options, asked_at_s=question.time_s)


OVBENCH = Task(
    name="ovbench",
    load=load_ovbench,
    prompt=_prompt,
    groups=GROUPS,
    cells=CELLS,
    set_apart=(("Hallucination", "object"),),
    settings={"reference": OVBENCH_REFERENCE},
)
