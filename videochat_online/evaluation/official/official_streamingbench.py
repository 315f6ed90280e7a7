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
from videochat_online.evaluation.benchmark import Source
from videochat_online.evaluation.official.official_rules import Exported, OfficialAverage, OfficialRules, Rule, rows_by
from videochat_online.evaluation.scoring.averages import chosen_by
from videochat_online.evaluation.tasks.streamingbench import GROUPS, PROACTIVE, STREAMINGBENCH, TOLERANCE_S
from videochat_online.runs.row_file import Row


def _is_counted(row: Row) -> bool:
    """Whether the script counts a reply; of a proactive one, whether it came in time and says the output."""
    if row["answer_type"] != PROACTIVE:
        return bool(row["text"][:1] == ascii_uppercase[row["answer_index"]])
    return _is_in_time(row) and row["output"] in _last(row)["text"]


def _is_in_time(row: Row) -> bool:
    """Whether the last thing said of a proactive question came within 2 s of its time."""
    return bool(abs(_last(row)["time_s"] - row["due_s"]) <= TOLERANCE_S)


def _last(row: Row) -> Row:
    """The output, or the last poll where there is none."""
    if row["output_s"] is None:
        return dict(row["polls"][-1])
    return {"time_s": row["output_s"], "text": row["text"]}


def _averages(script: str, rows: Sequence[Row], rule: Rule) -> list[OfficialAverage]:
    """The groups' means of the paper's tables, with proactive output by time and content and by time alone; tasks."""
    found: list[OfficialAverage] = []
    for published in STREAMINGBENCH.averages:
        is_chosen = None if published.beside else chosen_by(published, STREAMINGBENCH, rows)
        if is_chosen is None:
            continue
        chosen, name = list(filter(is_chosen, rows)), published.name
        title = f"{name}: all its questions alike"
        if "contextual" not in published.groups:
            found.append(OfficialAverage.of_rows(name, title, chosen, rule))
            continue
        title += f", {sum(row['answer_type'] == PROACTIVE for row in chosen)} of them proactive"
        found.append(OfficialAverage.of_rows(name, title, chosen, rule))
        found.append(OfficialAverage.of_rows(f"{name}_by_time", f"{title}, by time alone", chosen, _by_time(rule)))
    for task, answers in rows_by(rows, lambda row: row["answer_type"]).items():
        found.append(OfficialAverage.of_rows(task, task, answers, rule))
        if task == PROACTIVE:
            found.append(OfficialAverage.of_rows(f"{task} by time", f"{task}, by time alone", answers, _is_in_time))
    return found


def _by_time(rule: Rule) -> Rule:
    return lambda row: _is_in_time(row) if row["answer_type"] == PROACTIVE else rule(row)


def _files(exported: Exported) -> dict[str, Any]:
    """`TASK_output_MODEL.json`: each annotation file with the replies in it, under the model's name."""
    made = {}
    for file, content in exported.annotations.items():
        content = copy.deepcopy(content)
        kinds = set()
        for source, fields in _questions(file, content):
            if exported.model in fields:
                raise InputError(
                    f"--model_name: expected a name that no question has as a field, got {exported.model!r}"
                )
            kinds.add(fields.get("task_type") == PROACTIVE if isinstance(fields, dict) else None)
            if source in exported.rows:
                fields[exported.model] = _reply(exported, source)
        if {True, False} <= kinds:
            raise InputError(f"{file}: expected proactive questions in a file of their own, found others with them")
        stem = file.removesuffix(".json").removeprefix("questions_")
        made[f"{stem}_output_{exported.model}.json"] = content
    return made


def _questions(file: str, content: Any) -> Iterator[tuple[Source, Any]]:
    """Each question of a file, with its source; rows may stand in lists of their own."""
    rows = [row for entry in content for row in (entry if isinstance(entry, list) else [entry])]
    for number, row in enumerate(rows):
        for part, fields in enumerate(row.get("questions") or ()):
            yield Source(file, number, part), fields


def _reply(exported: Exported, source: Source) -> Any:
    """A text, never an empty one; of a proactive question, what was said, with its times."""
    row, question = exported.rows[source], exported.questions[source]
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


STREAMINGBENCH_RULES = OfficialRules(
    rules={"count.py": _is_counted},
    averages=_averages,
    files=_files,
    reads=lambda row: row["answer_type"] in GROUPS and (row["answer_type"] == PROACTIVE) == bool(row.get("polls")),
    skips="leaves them out",
)
