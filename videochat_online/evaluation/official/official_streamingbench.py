"""StreamingBench as its own `count.py` reads it (github.com/THUNLP-MT/StreamingBench).

- Options: right where the first character of the reply is the letter.
- Proactive output: of the last thing said, in time where it is within 2 s of the due time, right where it also has
  the output in it, with its capitals. Who never said Yes has last been polled 4 s too late.

Questions without a reply are left out of what is counted. The script stops at an empty reply: a blank stands for one.
It gives the accuracy of each task. The tables of the paper also have means over all questions of a group, for which 51
of the 250 proactive questions were asked: of a run they are taken, or all where it has none of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from string import ascii_uppercase
from typing import Any

from videochat_online.errors import InputError
from videochat_online.evaluation.official.figures import Exported, OfficialAverage, Rule, Scoring, average, by
from videochat_online.evaluation.run.results import Row
from videochat_online.evaluation.tasks.streamingbench import (
    GROUPS,
    OVERALL,
    PROACTIVE,
    TASKS_OF_GROUPS,
    TOLERANCE_S,
    is_published,
)


def is_right(row: Row) -> bool:
    """Whether the script counts a reply; of a proactive one, whether it came in time and says the output."""
    if row["answer_type"] != PROACTIVE:
        return bool(row["text"][:1] == ascii_uppercase[row["answer_index"]])
    return is_in_time(row) and row["output"] in _last(row)["text"]


def is_in_time(row: Row) -> bool:
    """Whether the last thing said of a proactive question came within 2 s of its time."""
    return bool(abs(_last(row)["time_s"] - row["due_s"]) <= TOLERANCE_S)


def _last(row: Row) -> Row:
    """The output, or the last poll where there is none."""
    if row["output_s"] is None:
        return dict(row["polls"][-1])
    return {"time_s": row["output_s"], "text": row["text"]}


def averages(script: str, rows: Sequence[Row], rule: Rule) -> list[OfficialAverage]:
    """The groups' means of the paper's tables, with proactive output by time and content and by time alone; tasks."""
    by_time = [row for row in rows if row["answer_type"] == PROACTIVE]
    counted = [row for row in by_time if is_published(row)] or by_time
    kept = [row for row in rows if row["answer_type"] != PROACTIVE] + counted
    found: list[OfficialAverage] = []
    for name, groups in (("overall", OVERALL), *((group, (group,)) for group in OVERALL)):
        of_groups = [row for row in kept if GROUPS[row["answer_type"]] in groups]
        if {row["answer_type"] for row in of_groups} != {task for group in groups for task in TASKS_OF_GROUPS[group]}:
            continue
        if "contextual" not in groups:
            found.append(average(name, f"{name}: all its questions alike", of_groups, rule))
            continue
        title = f"{name}: all its questions alike, {len(counted)} of them proactive"
        found.append(average(name, title, of_groups, rule))
        found.append(average(f"{name}_by_time", f"{title}, by time alone", of_groups, _by_time(rule)))
    for task, answers in by(rows, lambda row: row["answer_type"]).items():
        found.append(average(task, task, answers, rule))
        if task == PROACTIVE:
            found.append(average(f"{task} by time", f"{task}, by time alone", answers, is_in_time))
    return found


def _by_time(rule: Rule) -> Rule:
    return lambda row: is_in_time(row) if row["answer_type"] == PROACTIVE else rule(row)


def files(exported: Exported) -> dict[str, Any]:
    """`TASK_output_MODEL.json`: each annotation file with the replies in it, under the model's name."""
    made = {}
    for file, content in exported.annotations.items():
        content = copy.deepcopy(content)
        kinds = set()
        for place, fields in _questions(file, content):
            if exported.model in fields:
                raise InputError(
                    f"--model_name: expected a name that no question has as a field, got {exported.model!r}"
                )
            kinds.add(fields.get("task_type") == PROACTIVE if isinstance(fields, dict) else None)
            if place in exported.rows:
                fields[exported.model] = _reply(exported, place)
        if {True, False} <= kinds:
            raise InputError(f"{file}: expected proactive questions in a file of their own, found others with them")
        stem = file.removesuffix(".json").removeprefix("questions_")
        made[f"{stem}_output_{exported.model}.json"] = content
    return made


def _questions(file: str, content: Any) -> Iterator[tuple[tuple[str, int, int | None], Any]]:
    """Each question of a file, with its place; rows may stand in lists of their own."""
    rows = [row for entry in content for row in (entry if isinstance(entry, list) else [entry])]
    for number, row in enumerate(rows):
        for part, fields in enumerate(row.get("questions") or ()):
            yield (file, number, part), fields


def _reply(exported: Exported, place: tuple[str, int, int | None]) -> Any:
    """A text, never an empty one; of a proactive question, what was said, with its times."""
    row, question = exported.rows[place], exported.questions[place]
    if question.proactive is None:
        return row["text"] or " "
    asked = {poll.time_s: poll.question for poll in question.proactive.polls}
    said = [(poll["time_s"], asked.get(poll["time_s"], question.question), poll["text"]) for poll in row["polls"]]
    if row["output_s"] is not None:
        said.append((row["output_s"], question.question, row["text"]))
    history = [
        {"role": role, "content": text, "time": time_s}
        for time_s, *texts in said
        for role, text in zip(("user", "assistant"), texts, strict=True)
    ]
    return {"answered": False if row["output_s"] is None else row["output_s"], "dialog_history": history}


STREAMINGBENCH = Scoring(
    rules={"count.py": is_right},
    averages=averages,
    files=files,
    reads=lambda row: row["answer_type"] in GROUPS and (row["answer_type"] == PROACTIVE) == bool(row.get("polls")),
    skips="leaves them out",
)
