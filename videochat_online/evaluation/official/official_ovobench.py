"""OVO-Bench as its own `score.py` reads it (github.com/JoeLeelyf/OVO-Bench).

- Options: right where the capital letter occurs in the reply, in whatever word.
- REC: right where all digits of the reply, put together, are the number.
- SSR, CRR: right where "Yes" or "No" occurs in the reply, with its capital, or the reply is "Y" or "N".

A question without a reply (null) is wrong. The script's "Total Avg." is the mean of all tasks; the total of the
published tables is the mean of the three groups.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from videochat_online.evaluation.benchmark import YES_NO, Source
from videochat_online.evaluation.official.official_rules import Exported, OfficialAverage, OfficialRules, Rule, rows_by
from videochat_online.evaluation.tasks.ovobench import GROUPS, TASKS_OF_GROUPS
from videochat_online.runs.row_file import Row


def _is_counted(row: Row) -> bool:
    """Whether the script counts a reply."""
    text, right = row["text"], row["answer_index"]
    kind = row.get("kind", "choice")
    if kind == "choice":
        return ascii_uppercase[right] in text
    if kind == "count":
        return "".join(re.findall(r"\d+", text)) == str(right)
    word = YES_NO[right]
    return text == word[0] or word in text


def _averages(script: str, rows: Sequence[Row], rule: Rule) -> list[OfficialAverage]:
    """Tasks, their means by group, and both totals."""
    of_tasks = rows_by(rows, lambda row: row["answer_type"])
    groups: list[OfficialAverage] = []
    tasks: list[OfficialAverage] = []
    for group, names in TASKS_OF_GROUPS.items():
        there = [OfficialAverage.of_rows(name, name, of_tasks[name], rule) for name in names if name in of_tasks]
        if there:
            groups.append(
                OfficialAverage.of_parts(group, f"{group}: mean of {len(there)} of {len(names)} tasks", there)
            )
        tasks += there
    total = OfficialAverage.of_parts(
        "total_of_tasks", f'"Total Avg.": mean of {len(tasks)} of {len(GROUPS)} tasks', tasks
    )
    published = [OfficialAverage.of_parts("three_way_total", "published total: mean of the three groups", groups)]
    return [*(published if len(groups) == len(TASKS_OF_GROUPS) else []), total, *groups, *tasks]


def _files(exported: Exported) -> dict[str, Any]:
    """`MODEL/MODEL_TASKS_offline_1.json`: `score.py --result_dir DIR --model MODEL --mode offline` reads the folder."""
    results: dict[str, list[dict[str, Any]]] = {group: [] for group in TASKS_OF_GROUPS}
    tasks: dict[str, None] = {}
    for file, rows in exported.annotations.items():
        for number, row in enumerate(rows):
            made = _choice(exported, file, number, row) or _forward(exported, file, number, row)
            if made is not None:
                tasks[row["task"]] = None
                results[GROUPS[row["task"]]].append(made)
    name = exported.model
    return {f"{name}/{name}_{'_'.join(tasks)}_offline_1.json": results}


def _choice(exported: Exported, file: str, number: int, row: dict[str, Any]) -> dict[str, Any] | None:
    source = Source(file, number)
    if source not in exported.questions:
        return None
    fields = {key: row[key] for key in ("id", "video", "task", "question")}
    letter = ascii_uppercase[exported.questions[source].answer_index]
    return {**fields, "response": _response(exported, source), "ground_truth": letter}


def _forward(exported: Exported, file: str, number: int, row: dict[str, Any]) -> dict[str, Any] | None:
    tests = [
        {**test, "response": _response(exported, source)}
        for part, test in enumerate(row.get("test_info") or ())
        if (source := Source(file, number, part)) in exported.questions
    ]
    return {**row, "test_info": tests} if tests else None


def _response(exported: Exported, source: Source) -> str | None:
    row = exported.rows.get(source, {"error": "its video could not be used"})
    return None if "error" in row else str(row["text"])


OVOBENCH_RULES = OfficialRules(
    rules={"score.py": _is_counted},
    averages=_averages,
    files=_files,
    reads=lambda row: row["answer_type"] in GROUPS and row.get("kind", "choice") != "open",
    skips="counts them as wrong",
)
