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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from videochat_online.documents import Text, TimeS, one_of, validated
from videochat_online.errors import InputError, expect
from videochat_online.evaluation.benchmark import EvalQuestion, EvalSet, Source
from videochat_online.evaluation.protocol import OVBENCH_REFERENCE
from videochat_online.evaluation.scoring.open_answers import SCORER_NAMES
from videochat_online.evaluation.task import Task
from videochat_online.evaluation.tasks.reading import (
    ONE_A_LETTER,
    AnnotatedRow,
    FoundQuestions,
    FrameRate,
    Stream,
    Words,
    letter_index,
    plain_prompt,
    question_id,
    read_rows,
    without_letters,
)
from videochat_online.text.questions import option_index

GROUPS = {"ava": "action", "coin": "event", "hirest": "event", "tao": "object"}

CELLS = (
    *((kind, group) for kind in ("FuturePrediction", "Hallucination", "PastMemory", "TemporalPerception")
      for group in ("action", "event", "object")),
    *((kind, group) for kind in ("SpatialPerception", "SpatioTemporalPerception") for group in ("action", "object")),
)  # fmt: skip
"""Cells (type, group) of the average; no question about events asks where something is."""
FOLDER_FPS = {"ava": 1.0}
"""Rate of a dataset's folders of frames, where the annotation does not say it."""

_LETTERED = re.compile(r"([A-Z])[.)] ")


class _Row(AnnotatedRow):
    """What a row of any layout says of its video."""

    video_id: Words | None = None
    video: Words | None = None
    dataset: Any = None
    clip: Annotated[list[TimeS], Field(min_length=2, max_length=2)] | None = None
    fps: FrameRate | None = None
    start: TimeS = 0.0
    questions: list[Any] | None = None
    image_file: Any = None


class _Asked(AnnotatedRow):
    """What questions of all layouts say."""

    question: Words
    answer: Text
    answer_type: Text
    sub_answer_type: Text
    scorer: None = None


class _Lettered(_Asked):
    middle_frame_timestamp: TimeS
    options: Annotated[list[Text], ONE_A_LETTER]


class _Open(_Asked):
    middle_frame_timestamp: TimeS
    answer: Words
    options: None = None
    scorer: Annotated[str, one_of(SCORER_NAMES)] | None = None  # type: ignore[assignment]


class _Lmms(_Asked):
    end: TimeS
    candidates: Annotated[list[Text], ONE_A_LETTER]


_KNOWN = {*_Row.model_fields, *_Lettered.model_fields, *_Open.model_fields, *_Lmms.model_fields}


def load_ovbench(paths: Sequence[Path]) -> EvalSet:
    """Read annotation files of any layout.

    Raises:
        InputError: a file that is missing or no JSON list, or files without a single usable question.
    """
    found = FoundQuestions()
    hints: dict[Stream, str] = {}
    for path in paths:
        for index, fields in enumerate(read_rows(path)):
            where = f"{path.name} row {index + 1}"
            with found.row(where):
                row: _Row = validated(_Row, fields)
                stream = _stream(row, path)
                for part, asked in [(None, fields)] if row.questions is None else list(enumerate(row.questions)):
                    with found.row(where if part is None else f"{where} question {part + 1}"):
                        question = _question(asked, fields, stream)
                        found.add(stream, replace(question, source=Source(path.name, index, part)))
                        if row.image_file is not None:
                            hints.setdefault(stream, str(row.image_file))
    return found.content(paths, "OVBench", hints, FOLDER_FPS)


def _stream(row: _Row, path: Path) -> Stream:
    name = row.video_id or row.video
    if name is None:
        raise InputError("video_id or video: expected a name, found none")
    start_s, end_s = row.clip or (row.start, None)
    expect(end_s is None or start_s <= end_s, "clip", "[start, end] in seconds", row.clip)
    dataset = row.dataset or _dataset_of(path)
    return Stream(name, start_s, end_s, row.fps, dataset and str(dataset))


def _dataset_of(path: Path) -> str | None:
    """The lmms layout has a file for each dataset and does not name it otherwise."""
    words = re.split(r"[^a-z]+", path.stem.lower())
    return next((dataset for dataset in GROUPS if dataset in words), None)


def _question(fields: Any, row: Mapping[str, Any], stream: Stream) -> EvalQuestion:
    expect(isinstance(fields, dict), "question", "an object", fields)
    # Without candidates, a row of the lmms layout still has its end: it has lost them, and is no open question.
    in_lmms = "candidates" in fields or ("end" in fields and "options" not in fields)
    is_open = not in_lmms and fields.get("options") is None
    if is_open and "scorer" in row:
        fields = {"scorer": row["scorer"], **fields}
    asked = validated(_Lmms if in_lmms else _Open if is_open else _Lettered, fields)
    time_s = asked.end if in_lmms else asked.middle_frame_timestamp
    options = tuple(asked.candidates) if in_lmms else () if is_open else without_letters(asked.options, _LETTERED, True)
    index = 0 if is_open else option_index(options, asked.answer) if in_lmms else letter_index(asked.answer, options)
    return EvalQuestion(
        id=question_id(stream.id, time_s, asked.question, options),
        time_s=time_s,
        question=asked.question,
        options=options,
        answer_index=index,
        answer_type=asked.answer_type,
        sub_answer_type=asked.sub_answer_type,
        dataset=stream.dataset,
        extra={key: value for key, value in {**row, **fields}.items() if key not in _KNOWN},
        kind="open" if is_open else "choice",
        answer_text=asked.answer if is_open else None,
        scorer=asked.scorer,
    )


OVBENCH = Task(
    name="ovbench",
    load=load_ovbench,
    prompt=plain_prompt,
    groups=GROUPS,
    cells=CELLS,
    set_apart=(("Hallucination", "object"),),
    settings={"reference": OVBENCH_REFERENCE},
)
