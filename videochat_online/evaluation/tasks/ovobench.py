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
from typing import Any

from videochat_online.errors import InputError
from videochat_online.evaluation.benchmark import YES_NO, EvalQuestion, EvalSet, Source
from videochat_online.evaluation.task import Average, Task
from videochat_online.evaluation.tasks.reading import (
    expect,
    expect_options,
    expect_questions,
    expect_readable,
    expect_text,
    is_plain_number,
    read_rows,
    whole_videos,
)
from videochat_online.text.questions import ovbench_question

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
_KNOWN = {
    "id", "task", "video", "realtime", "question", "options", "gt", "test_info", "activity", "start_times", "end_times",
    "all_steps", "start_time", "end_time",
}  # fmt: skip


def load_ovobench(paths: Sequence[Path]) -> EvalSet:
    """Read annotation files.

    Raises:
        InputError: a file that is missing or no JSON list, or files without a single usable question.
    """
    of_videos: dict[str, list[EvalQuestion]] = {}
    problems: list[str] = []
    seen: set[str] = set()
    for path in paths:
        for number, row in enumerate(read_rows(path), start=1):
            where = f"{path.name} row {number}"
            try:
                video = expect_text(row, "video")
                tests = _tests(row)
            except InputError as error:
                problems.append(f"{where}: {error}")
                continue
            for part, test in tests:
                try:
                    question = replace(_question(row, test, part), source=Source(path.name, number - 1, part))
                    expect(question.id not in seen, "id", "one that no row before has", row["id"])
                except InputError as error:
                    problems.append(f"{where}{'' if part is None else f' test {part + 1}'}: {error}")
                    continue
                seen.add(question.id)
                of_videos.setdefault(video, []).append(question)
    expect_questions(of_videos, paths, "OVO-Bench", problems)
    return EvalSet(whole_videos(of_videos), tuple(problems))


def _tests(row: Mapping[str, Any]) -> list[tuple[int | None, Any]]:
    """What is asked in a row: itself, or its tests by their indices."""
    task = row.get("task")
    expect(task in GROUPS, "task", f"one of {', '.join(GROUPS)}", task)
    number = row.get("id")
    expect(isinstance(number, (int, str)) and not isinstance(number, bool), "id", "a number or a name", number)
    if GROUPS[str(task)] != "forward":
        return [(None, row)]
    tests = row.get("test_info")
    expect(isinstance(tests, list) and len(tests) > 0, "test_info", "a list of tests", tests)
    return list(enumerate(tests or ()))


def _question(row: dict[str, Any], test: Any, part: int | None) -> EvalQuestion:
    expect(isinstance(test, dict), "test_info", "an object", test)
    time_s, task, video = test.get("realtime"), str(row["task"]), str(row["video"])
    expect(is_plain_number(time_s), "realtime", "a time of at least 0 seconds", time_s)
    kind = "choice" if part is None else "count" if task == "REC" else "yes_no"
    text = expect_text(test if task == "SSR" else row, {"REC": "activity", "SSR": "step"}.get(task, "question"))
    options = expect_options(row) if kind == "choice" else YES_NO if kind == "yes_no" else ()
    expect_readable(text, *options)
    return EvalQuestion(
        id=f"{row['id']}" if part is None else f"{row['id']}-{part + 1}",
        time_s=float(time_s),
        question=text,
        options=options,
        answer_index=_answer(test, kind, len(options)),
        answer_type=task,
        sub_answer_type=task,
        dataset=_source(video),
        extra={key: value for key, value in row.items() if key not in _KNOWN},
        kind=kind,
    )


def _answer(test: Mapping[str, Any], kind: str, num_options: int) -> int:
    key, most = {"choice": ("gt", num_options - 1), "yes_no": ("type", 1), "count": ("count", MOST_COUNTED)}[kind]
    value = test.get(key)
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
    expect(good, key, f"a whole number from 0 to {most}", value)
    number = int(value or 0)
    return YES_NO.index("Yes" if number else "No") if kind == "yes_no" else number


def _source(video: str) -> str | None:
    """First folder of a video's path, which names where it was taken from."""
    parts = Path(video).parts
    return parts[0].lower() if len(parts) > 1 else None


def _prompt(question: EvalQuestion) -> str:
    if question.kind == "choice":
        return ovbench_question(question.question, question.options, asked_at_s=question.time_s)
    text = _FORWARD_PROMPTS[question.answer_type].format(question.question.strip())
    return ovbench_question(text, (), asked_at_s=question.time_s)


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
