"""From predictions to the figures of `metrics.json`: averages, tables by what a question says. All in percent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

from videochat_online.evaluation.scoring.averages import averages
from videochat_online.evaluation.scoring.bootstrap import Score, scores_by
from videochat_online.evaluation.task import Task
from videochat_online.runs.row_file import Row

AGE_EDGES_S = (2.0, 8.0, 32.0, 128.0, 512.0)
"""Upper ends of the buckets of evidence age; the last bucket is open."""

MOST_UNREADABLE = 0.5
"""Share of replies without an option beyond which figures by generation come with a warning."""

PROACTIVE_WITHIN_S = (1, 2, 3, 4)
"""Seconds that an output may be from its time, for the table of polled questions."""

EXTRA_KEYS: dict[str, Callable[[Row], str]] = {
    "evidence_age_s": lambda row: age_bucket(float(row["extra"]["evidence_age_s"])),
    "detail": lambda row: str(row["extra"]["detail"]),
    "template": lambda row: str(row["extra"]["template"]),
}
"""Functions that give a row's group, by the key of its `extra`, which generated sets have."""


def compute_metrics(rows: Sequence[Row], task: Task, *, seed: int = 0) -> dict[str, Any]:
    """Everything that can be said about the answers.

    Args:
        rows: rows of `predictions.jsonl`; one that names no option counts as wrong, one whose `correct` is null as
            nothing.
        task: benchmark: how datasets form groups, which cells are set apart, which totals it publishes.
        seed: random seed of the bootstrap.

    Returns:
        What `averages` gives; `accuracy`, the value of the most important average that can be given, with its name
        (`accuracy_of`) and its `chance`; tables; where questions were polled `proactive`.
    """
    answers, rows = rows, [row for row in rows if row["correct"] is not None]
    figures = averages(rows, task, seed=seed)
    published = figures.get("averages", {"cell_average": figures["cell_average"]})
    name = next((name for name, score in published.items() if score is not None), None)
    figures |= {
        "accuracy": None if name is None else published[name]["accuracy"],
        "accuracy_of": name,
        "chance": None if name is None else published[name]["chance"],
        "sub_answer_types": _named(
            scores_by(rows, lambda row: f"{row['sub_answer_type']} / {task.group(row['dataset'])}", seed)
        ),
        "datasets": _named(scores_by(rows, lambda row: str(row["dataset"] or "other"), seed)),
        "num_correct": sum(bool(row["correct"]) for row in rows),
        "num_unparsed": sum(row["predicted_index"] is None and not _says_no_option(row) for row in rows),
        "unreadable_share": _unreadable_share(rows),
        "num_without_scorer": sum(row["correct"] is None and row.get("scorer") is None for row in answers),
        "num_without_verdict": sum(row["correct"] is None and row.get("scorer") is not None for row in answers),
    }
    polled = [row for row in rows if row.get("polls")]
    return figures | _synthetic_tables(rows, seed) | ({"proactive": _proactive(polled, seed)} if polled else {})


def score_remarks(metrics: Mapping[str, Any]) -> list[str]:
    """What a reader of the figures has to know: open questions that are in none, replies that nothing is read from."""
    lines = []
    if number := metrics["num_without_scorer"]:
        lines.append(
            f"{_open(number)} without a scorer: in no figure (--scorer exact, contains, number or judge, "
            "given with the same command, scores them)."
        )
    if number := metrics["num_without_verdict"]:
        lines.append(f"{_open(number)} without a verdict of the judge: in no figure (the same command asks it again).")
    share = metrics["unreadable_share"]
    if metrics["answer_by"] == "generation" and share is not None and share > MOST_UNREADABLE:
        lines.append(
            f"{share:.0%} of the replies to questions with options name none of them: the figures say how replies are "
            "worded, not what the model knows. --answer_by likelihood asks for the option alone."
        )
    return lines


def _says_no_option(row: Row) -> bool:
    """Whether nothing is to be read from the row's reply: words are asked for, or a moment."""
    return row.get("kind") == "open" or bool(row.get("polls"))


def _open(number: int) -> str:
    return f"{number} open question{'' if number == 1 else 's'}"


def _unreadable_share(rows: Sequence[Row]) -> float | None:
    """Of the replies to questions with options, those that name none; None without such replies."""
    replies = [row for row in rows if row["options"] and "error" not in row]
    return round(sum(row["predicted_index"] is None for row in replies) / len(replies), 4) if replies else None


def _synthetic_tables(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Tables by what generated sets say about a question, where they say it."""
    tables: dict[str, Any] = {}
    for names in (*((name,) for name in EXTRA_KEYS), ("evidence_age_s", "detail")):
        if known := reduce(with_extra, names, rows):
            tables[f"by_{'_and_'.join(names)}"] = _named(scores_by(known, partial(_group, names), seed))
    return tables


def _group(names: Sequence[str], row: Row) -> str:
    return " / ".join(EXTRA_KEYS[name](row) for name in names)


def with_extra(rows: Sequence[Row], name: str) -> list[Row]:
    """Rows whose question says this about itself."""
    return [row for row in rows if row.get("extra", {}).get(name) is not None]


def age_bucket(age_s: float) -> str:
    """Name of the bucket of an evidence age: "0-2 s" has both its ends, "2-8 s" its upper one."""
    low = 0.0
    for high in AGE_EDGES_S:
        if age_s <= high:
            return f"{low:g}-{high:g} s"
        low = high
    return f"over {low:g} s"


def _proactive(polled: Sequence[Row], seed: int) -> dict[str, Any]:
    """Polled questions: how near to its time an output came, and whether it was the right one."""

    def share(rights: Sequence[bool]) -> dict[str, float | int]:
        judged = [{**row, "correct": right} for row, right in zip(polled, rights, strict=True)]
        return scores_by(judged, lambda row: "all", seed)["all"].as_dict()

    gaps_s = [None if row["output_s"] is None else abs(row["output_s"] - row["due_s"]) for row in polled]
    return {
        "num_without_output": gaps_s.count(None),
        "num_polls": sum(len(row["polls"]) for row in polled),
        "within": {
            f"{limit_s} s": share([gap is not None and gap <= limit_s for gap in gaps_s])
            for limit_s in PROACTIVE_WITHIN_S
        },
        "in_time": share([row["in_time"] for row in polled]),
        "in_time_and_right": share([bool(row["correct"] and row["output_correct"]) for row in polled]),
    }


def _named(scores: Mapping[Any, Score]) -> dict[str, dict[str, float | int]]:
    return {str(name): score.as_dict() for name, score in scores.items()}
