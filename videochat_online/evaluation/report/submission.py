"""`result.json`: a run's answers and scores in one file, to hand in.

OVBench's leaderboard takes a file of that name by mail and publishes no format. Ours says everything in plain
words; its first lines are the run, then a row for each question:

    {"benchmark": "ovbench", "model": "MCG-NJU/VideoChatOnline-4B", "setting": "streaming", ..., "scores": {...},
     "results": [{"id": "a.mp4@12s-0f3c", "video": "a.mp4", "time_s": 12.0, "question": "What?",
                  "options": ["red", "blue"], "prediction": "B", "prediction_text": "blue", "response": "(B) blue",
                  "answer": "A", "correct": false, "answer_type": "PastMemory", "sub_answer_type": "PastMemory-1",
                  "dataset": "coin"}]}

`prediction` is null where the response names no option, and a number where there are none to choose from. An open
question has the right text as `answer`, and null as `correct` where nothing scored it. A question
about a video that could not be used has no row, and neither has one that was answered before that showed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

_OF_THE_RUN = (
    "model", "setting", "blind", "answer_by", "scorers", "judge", "protocol", "conditions", "num_videos",
    "num_questions", "num_answered", "bad_videos",
)  # fmt: skip
_SCORES = (
    "averages", "cell_average", "micro_average", "without_object_existence", "lacking", "answer_types", "cells",
)  # fmt: skip
_OF_A_QUESTION = ("answer_type", "sub_answer_type", "dataset")


def submission(metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of `result.json`.

    Args:
        metrics: content of `metrics.json`.
        rows: rows of `predictions.jsonl`, in any order.
    """
    in_order = sorted(rows, key=lambda row: (row["dataset"] or "", row["video"], row["time_s"], row["id"]))
    return {
        "benchmark": metrics["task"],
        **{name: metrics[name] for name in _OF_THE_RUN},
        "scores": {name: metrics[name] for name in _SCORES if name in metrics},
        "results": [_result(row) for row in in_order],
    }


def _result(row: Mapping[str, Any]) -> dict[str, Any]:
    chosen = row["predicted_index"]
    has_text = chosen is not None and bool(row["options"])
    return {
        **{name: row[name] for name in ("id", "video", "time_s", "question", "options")},
        "prediction": _named(row, chosen),
        "prediction_text": row["options"][chosen] if has_text else None,
        "response": row["text"],
        "answer": _named(row, row["answer_index"]),
        "correct": row["correct"],
        **{name: row[name] for name in _OF_A_QUESTION},
    }


def _named(row: Mapping[str, Any], index: int | None) -> str | int | None:
    """Letter of an option; of a question without options, what it asks for: a text, a number, or a second."""
    if index is not None and row.get("answer_text") is not None:
        return str(row["answer_text"])
    return index if index is None or not row["options"] else ascii_uppercase[index]
