"""OVO-Bench: what was, what is, and whether enough has been seen yet; twelve tasks in three groups.

Backward (EPM, ASI, HLD) and real-time tasks (OCR, ACR, ATR, STU, FPD, OJR) are multiple choice at one time; `gt` is
the index of the right option (`answer` may be worded otherwise). Forward tasks ask the same again at each time of
`test_info`: REC how often something was done so far, SSR whether a step is being performed, CRR whether what was
seen is enough to answer a question. Each of these tests is a question of its own here. One row of each layout:

choice  {"id": 297, "task": "HLD", "video": "Ego4D/clips/93231c7e.mp4", "realtime": 371, "question": "what did I put
         in the black dustbin?", "options": ["old newspapers", "Unable to answer"], "answer": ..., "gt": 1}
REC     {"id": 1558, "task": "REC", "video": ..., "activity": "breaking something", "start_times": [6],
         "end_times": [17], "test_info": [{"realtime": 17, "count": 1}]}
SSR     {"id": 1516, "task": "SSR", "video": ..., "tutorial": "PutOnHairExtensions", "all_steps": [...],
         "start_time": [...], "end_time": [...], "test_info": [{"realtime": 27, "step": "pull up ...", "type": 1}]}
CRR     {"id": 1468, "task": "CRR", "video": ..., "question": ..., "answer": ..., "ask_time": 297, "clue_time": 308,
         "test_info": [{"realtime": 302, "type": 0}]}

`type` 1 means Yes. A question sees the frames that start at or before its time; `--protocol reference` those of the
official clips, which end at the ceiling of the time (722 of the 3,035 are no whole seconds). A row or test that
cannot be used is reported, never repaired. In six tests of the published file `count` is not the number of `end_times`
passed by then: they are scored as they are annotated.

Source: arXiv:2501.05510; groups and totals as in its tables. The wording of the questions is our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from videochat_online.documents import Text, TimeS, one_of, validated
from videochat_online.errors import expect
from videochat_online.evaluation.benchmark import YES_NO, EvalQuestion, EvalSet, Source
from videochat_online.evaluation.task import Average, Task
from videochat_online.evaluation.tasks.reading import (
    ONE_A_LETTER,
    AnnotatedRow,
    FoundQuestions,
    Stream,
    Words,
    plain_prompt,
    read_rows,
)

TASKS_OF_GROUPS = {
    "backward": ("EPM", "ASI", "HLD"),
    "realtime": ("OCR", "ACR", "ATR", "STU", "FPD", "OJR"),
    "forward": ("REC", "SSR", "CRR"),
}
GROUPS = {task: group for group, tasks in TASKS_OF_GROUPS.items() for task in tasks}
MOST_COUNTED = 999
"""Largest right answer to counting, which people do in minutes."""

_FORWARD_PROMPTS = {
    "REC": "In this video people may do a certain thing again and again. Count how often anyone has done it from the"
    " beginning of the video until now; what was done completely counts once. How often has this been done: {}?",
    "SSR": "This video shows how something is done, step by step. One of the steps is: {}. Is the person in the video"
    " performing this step right now?",
    "CRR": "Someone asks about what is happening at the end of this video: {} Does the video up to now, above all its"
    " latest frames, show enough to answer that?",
}


class _Row(AnnotatedRow):
    """What a row of any task says."""

    id: int | Text
    task: Annotated[str, one_of(GROUPS)]
    video: Words


class _ForwardRow(_Row):
    test_info: Annotated[list[Any], Field(min_length=1)]


class _Asked(AnnotatedRow):
    """What is asked at a moment."""

    realtime: TimeS


class _Choice(_Asked):
    question: Words
    options: Annotated[list[Words], ONE_A_LETTER]
    gt: Annotated[int, Field(ge=0)]


class _Repetition(_Asked):
    activity: Words
    count: Annotated[int, Field(ge=0, le=MOST_COUNTED)]


class _Step(_Asked):
    step: Words
    type: Annotated[int, Field(ge=0, le=1)]


class _Clue(_Asked):
    question: Words
    type: Annotated[int, Field(ge=0, le=1)]


_TESTS: dict[str, Any] = {"REC": _Repetition, "SSR": _Step, "CRR": _Clue}
"""What a test of a forward task says, by the task; activity and question stand in its row."""
_OF_THE_ROW = ("activity", "question")
_KNOWN = {*_ForwardRow.model_fields, *_Choice.model_fields, "activity", "start_times", "end_times", "all_steps"}
_KNOWN |= {"start_time", "end_time"}


def load_ovobench(paths: Sequence[Path]) -> EvalSet:
    """Read annotation files.

    Raises:
        InputError: a file that is missing or no JSON list, or files without a single usable question.
    """
    found = FoundQuestions()
    for path in paths:
        for index, fields in enumerate(read_rows(path)):
            where = f"{path.name} row {index + 1}"
            with found.row(where):
                row: _Row = validated(_Row, fields)
                tests = _tests(row, fields)
                for part, test in tests:
                    with found.row(where if part is None else f"{where} test {part + 1}"):
                        question = _question(row, fields, test, Source(path.name, index, part))
                        expect(not found.has(question.id), "id", "one that no row before has", row.id)
                        found.add(Stream(row.video), question)
    return found.content(paths, "OVO-Bench")


def _tests(row: _Row, fields: Mapping[str, Any]) -> list[tuple[int | None, Any]]:
    """What is asked in a row: itself, or its tests by their indices."""
    if GROUPS[row.task] != "forward":
        return [(None, fields)]
    tests: _ForwardRow = validated(_ForwardRow, fields)
    return list(enumerate(tests.test_info))


def _question(row: _Row, fields: Mapping[str, Any], test: Any, source: Source) -> EvalQuestion:
    if row.task in _TESTS and isinstance(test, dict):
        test = {key: fields[key] for key in _OF_THE_ROW if key in fields} | test
    asked = validated(_TESTS.get(row.task, _Choice), test)
    if isinstance(asked, _Choice):
        kind, text, options, answer = "choice", asked.question, tuple(asked.options), asked.gt
        expect(answer < len(options), "gt", f"a whole number from 0 to {len(options) - 1}", answer)
    elif isinstance(asked, _Repetition):
        kind, text, options, answer = "count", asked.activity, (), asked.count
    else:
        kind, text, options = "yes_no", asked.step if isinstance(asked, _Step) else asked.question, YES_NO
        answer = YES_NO.index("Yes" if asked.type else "No")
    return EvalQuestion(
        id=f"{row.id}" if source.part is None else f"{row.id}-{source.part + 1}",
        time_s=asked.realtime,
        question=text,
        options=options,
        answer_index=answer,
        answer_type=row.task,
        sub_answer_type=row.task,
        dataset=_source(row.video),
        extra={key: value for key, value in fields.items() if key not in _KNOWN},
        kind=kind,
        source=source,
    )


def _source(video: str) -> str | None:
    """First folder of a video's path, which names where it was taken from."""
    parts = Path(video).parts
    return parts[0].lower() if len(parts) > 1 else None


def _prompt(question: EvalQuestion) -> str:
    if question.kind == "choice":
        return plain_prompt(question)
    text = _FORWARD_PROMPTS[question.answer_type].format(question.question.strip())
    return plain_prompt(replace(question, question=text))


OVOBENCH = Task(
    name="ovobench",
    load=load_ovobench,
    prompt=_prompt,
    type_groups=GROUPS,
    averages=(
        Average(
            name="three_way_total",
            title="total: mean of backward, real-time and forward",
            groups=("backward", "realtime", "forward"),
        ),
        Average(
            name="two_way_total",
            title="without forward: mean of backward and real-time",
            groups=("backward", "realtime"),
        ),
        Average(name="backward", title="backward: mean of its tasks", groups=("backward",)),
        Average(name="realtime", title="real-time: mean of its tasks", groups=("realtime",)),
        Average(name="forward", title="forward: mean of its tasks", groups=("forward",)),
    ),
    settings={
        "sliding_window": {"window_s": None},
        "contexts": {"all": math.inf},
        # Its scripts ask about clips that end at the ceiling of the time, with no system message.
        "reference": {"causal": False, "clips": True, "system_message": None, "kind_system_messages": {}},
    },
)
