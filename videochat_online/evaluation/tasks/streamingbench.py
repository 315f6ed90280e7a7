"""StreamingBench: real-time, omni-source and contextual questions about streams; eighteen tasks in three groups.

Four files, in any choice: real, omni, sqa (a list of such rows for each video) and proactive. One row of each:

real, omni, sqa  {"time": "[0:03:17 - 0:03:27]", "video_path": "./videos/sample_348_real.mp4", "questions": [
                     {"task_type": "Clips Summarize", "question": "Which of ...?", "time_stamp": "00:03:26",
                      "answer": "A", "options": ["A. The individual ...", ...], "required_ability": ...}]}
proactive        {..., "questions": [{"task_type": "Proactive Output", "time_stamp": "00:00:20", "question": "When the
                     scoreboard shows 3 points for USA, output '3'.", "ground_truth_time_stamp": "00:00:29",
                     "ground_truth_output": "3"}]}

- A sequential question (sqa) gets the questions before it about its video, with their right answers, in its prompt.
- A proactive question is polled each second from one second after it was put until 4 s after its time: whether now
  is the time. At the first Yes it is asked itself. It is right when that Yes comes within 2 s of the time and the
  answer says what is due. It has a start of its own, which is when it was put: a window shows nothing before that.
- Of omni-source videos only the frames are used.

A row that cannot be used is reported, never repaired: times that are none or beyond an hour (no video lasts so long),
options whose letters are not A, B, C ... in order, a sequential question that is put before the one it follows. Options
without letters are taken as they are; so is one that merely begins like a letter ("A.Lebrun.") where no other does.

Source: arXiv:2411.03628; groups as in its tables. The wording of the questions is our own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BeforeValidator

from videochat_online.documents import Text, one_of, validated
from videochat_online.errors import InputError, expect, shown
from videochat_online.evaluation.benchmark import YES_NO, EvalQuestion, EvalSet, Proactive, Source
from videochat_online.evaluation.task import Average, Task
from videochat_online.evaluation.tasks.reading import (
    ONE_A_LETTER,
    AnnotatedRow,
    FoundQuestions,
    Stream,
    Words,
    letter_index,
    plain_prompt,
    poll_id,
    question_id,
    read_rows,
    without_letters,
)
from videochat_online.text.questions import option_line

SEQUENTIAL, PROACTIVE = "Sequential Question Answering", "Proactive Output"
TASKS_OF_GROUPS = {
    "real_time": (
        "Object Recognition", "Causal Reasoning", "Clips Summarize", "Attribute Recognition", "Event Understanding",
        "Text-Rich Understanding", "Prospective Reasoning", "Spatial Understanding", "Action Recognition", "Counting",
    ),
    "omni_source": ("Emotion Recognition", "Scene Understanding", "Source Discrimination", "Multimodal Alignment"),
    "contextual": ("Misleading Context Understanding", "Anomaly Context Understanding", SEQUENTIAL, PROACTIVE),
}  # fmt: skip
GROUPS = {task: group for group, tasks in TASKS_OF_GROUPS.items() for task in tasks}

PUBLISHED_PROACTIVE_S = (
    (407,), (708, 749), (404,), (441,), (320,), (678,), (352,), (443,), (673,), (325,),
    (434,), (650,), (611,), (160,), (120,), (700,), (170,), (440,), (360,), (285,),
    (618,), (260,), (353,), (335,), (405,), (336,), (451,), (120,), (511,), (444,),
    (174,), (624,), (0,), (160,), (174,), (4,), (4,), (5,), (70,), (3,),
    (180,), (330,), (295,), (3,), (240,), (112,), (241,), (289,), (381,), (130,),
)  # fmt: skip
"""Seconds at which the 51 proactive questions of the published table are put, of `sample_1_proactive.mp4` and on: no
rule of their own tells them from the others of the 250."""
_PROACTIVE_VIDEO = re.compile(r"sample_([1-9]\d?)_proactive\.mp4")

POLL_EVERY_S, POLL_BEYOND_S, TOLERANCE_S = 1, 4, 2.0
"""Seconds between polls, seconds of polling after the right time, and seconds from it within which a Yes is right."""
LONGEST_S = 3600
_TIME = re.compile(r"(?:(\d{1,2}):)?([0-5]?\d):([0-5]?\d)")
_LETTERED = re.compile(r"([A-Z])[.)]\s*(?=\S)")


def _seconds(text: Any) -> float:
    """Seconds of "0:05:11", "00:05:11" or "05:11"."""
    match = _TIME.fullmatch(text.strip()) if isinstance(text, str) else None
    time_s = LONGEST_S if match is None else 3600 * int(match[1] or 0) + 60 * int(match[2]) + int(match[3])
    if time_s >= LONGEST_S:
        raise InputError(f"expected hours:minutes:seconds below an hour, found {shown(text)}")
    return float(time_s)


ClockTime = Annotated[float, BeforeValidator(_seconds)]


class _Row(AnnotatedRow):
    video_path: Words


class _Asked(AnnotatedRow):
    """What every question says."""

    task_type: Annotated[str, one_of(GROUPS)]
    question: Words
    time_stamp: ClockTime
    required_ability: Any = "unknown"


class _Choice(_Asked):
    answer: Text
    options: Annotated[list[Words], ONE_A_LETTER]


class _Due(_Asked):
    """A proactive question."""

    ground_truth_time_stamp: ClockTime
    ground_truth_output: Words


_KNOWN = {*_Choice.model_fields, *_Due.model_fields} - {"required_ability"}


def load_streamingbench(paths: Sequence[Path]) -> EvalSet:
    """Read annotation files.

    Raises:
        InputError: a file that is missing or no JSON list, or files without a single usable question.
    """
    found = FoundQuestions()
    for source, row, fields in _entries(paths):
        question_of_row = "" if source.part is None else f" question {source.part + 1}"
        with found.row(f"{source.file} row {source.row + 1}{question_of_row}"):
            expect(isinstance(fields, dict), "questions", "a list of objects", fields)
            stream = Stream(PurePosixPath(validated(_Row, row).video_path).name)
            question = replace(_question(fields, row, stream.id), source=source)
            if question.answer_type == SEQUENTIAL:
                question = _with_context(question, found.streams.get(stream, []))
            found.add(stream, question)
    return found.content(paths, "StreamingBench")


def _entries(paths: Sequence[Path]) -> Iterator[tuple[Source, dict[str, Any], Any]]:
    """Each question with its row and where it stands; a row without a list of questions as one that is none."""
    for path in paths:
        for index, row in enumerate(read_rows(path, flatten=True)):
            questions = row.get("questions")
            if not isinstance(questions, list):
                yield Source(path.name, index), row, questions
                continue
            for part, fields in enumerate(questions):
                yield Source(path.name, index, part), row, fields


def _question(fields: dict[str, Any], row: dict[str, Any], video: str) -> EvalQuestion:
    is_proactive = fields.get("task_type") == PROACTIVE
    asked = validated(_Due if is_proactive else _Choice, fields)
    time_s, options = asked.time_stamp, () if is_proactive else without_letters(asked.options, _LETTERED, False)
    more = {"video_categories": row.get("video_categories"), **fields}
    question = EvalQuestion(
        id=question_id(video, time_s, asked.question, options),
        time_s=time_s,
        question=asked.question,
        options=options,
        answer_index=0 if is_proactive else letter_index(asked.answer, options),
        answer_type=asked.task_type,
        sub_answer_type=str(asked.required_ability),
        dataset=_dataset(asked.task_type),
        extra={key: value for key, value in more.items() if key not in _KNOWN and value is not None},
        kind="open" if is_proactive else "choice",
    )
    return _with_polls(question, asked) if isinstance(asked, _Due) else question


def _dataset(task: str) -> str:
    """Which of the four files a task is in."""
    special = {SEQUENTIAL: "sqa", PROACTIVE: "proactive"}
    return special.get(task, "real" if GROUPS[task] == "real_time" else "omni")


def _with_context(question: EvalQuestion, before: Sequence[EvalQuestion]) -> EvalQuestion:
    """With what was asked and answered before in the video, as it follows from that."""
    chain = [earlier for earlier in before if earlier.answer_type == SEQUENTIAL]
    latest_s = max((earlier.time_s for earlier in chain), default=0.0)
    expected = f"a time that is not before {latest_s:g} s, when the question it follows is put"
    expect(question.time_s >= latest_s, "time_stamp", expected, question.time_s)
    lines = []
    for earlier in chain:
        answer = option_line(earlier.answer_index, earlier.options[earlier.answer_index])
        lines.append(f"At {earlier.time_s}s: {earlier.question} {answer}")
    return replace(question, context=tuple(lines))


def _with_polls(question: EvalQuestion, asked: _Due) -> EvalQuestion:
    output, due_s = asked.ground_truth_output, asked.ground_truth_time_stamp
    expect(due_s >= question.time_s, "ground_truth_time_stamp", f"none before {question.time_s:g} s", due_s)
    times_s = range(int(question.time_s) + POLL_EVERY_S, int(due_s) + POLL_BEYOND_S + 1, POLL_EVERY_S)
    polls = tuple(
        replace(
            question,
            id=poll_id(question.id, time_s),
            starts_s=question.time_s,
            time_s=float(time_s),
            question=f'{question.question} Is now the right time to output "{output}"?',
            options=YES_NO,
            answer_index=YES_NO.index("Yes" if abs(time_s - due_s) <= TOLERANCE_S else "No"),
            kind="yes_no",
        )
        for time_s in times_s
    )
    proactive = Proactive(polls=polls, due_s=due_s, tolerance_s=TOLERANCE_S, output=output)
    return replace(question, answer_index=round(due_s), proactive=proactive, starts_s=question.time_s)


def _prompt(question: EvalQuestion) -> str:
    text = plain_prompt(question)
    if not question.context:
        return text
    return "\n".join(("Earlier questions about this video and their answers:", *question.context, text))


def is_published(row: Mapping[str, Any]) -> bool:
    """Whether a row is of one of the 51 proactive questions that the published averages are of."""
    match = _PROACTIVE_VIDEO.fullmatch(str(row["video"]))
    number = 0 if match is None else int(match[1])
    return 0 < number <= len(PUBLISHED_PROACTIVE_S) and row["time_s"] in PUBLISHED_PROACTIVE_S[number - 1]


OVERALL = ("real_time", "omni_source", "contextual")
_ONLY = {PROACTIVE: is_published}
STREAMINGBENCH = Task(
    name="streamingbench",
    load=load_streamingbench,
    prompt=_prompt,
    type_groups=GROUPS,
    averages=(
        Average(name="overall", title="overall: all questions alike", groups=OVERALL, per_question=True, only=_ONLY),
        *(
            Average(
                name=group, title=f"{group}: all its questions alike", groups=(group,), per_question=True, only=_ONLY
            )
            for group in OVERALL
        ),
        *(
            Average(
                name=f"{name}_250",
                title=f"{name}, with all proactive questions in place of the published 51",
                groups=groups,
                per_question=True,
                beside=name,
            )
            for name, groups in (("overall", OVERALL), ("contextual", ("contextual",)))
        ),
    ),
    settings={
        "sliding_window": {"window_s": 60.0, "fps": 1.0},
        "contexts": {"60s": 60.0, "all": math.inf},
        # Its scripts ask about clips that end before the time, with no system message.
        "reference": {"clips": True, "system_message": None, "kind_system_messages": {}},
    },
    notes=("Only the frames of a video are used: its audio, which omni-source questions are about, is not heard.",),
)
