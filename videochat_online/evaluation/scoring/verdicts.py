"""Open answers of a run that is answered as a whole, scored: by rules, or by a judge whose every word is kept.

Comes after the answers, so that a judge that fails loses none of them. Verdicts are appended to `judge.jsonl` as they
are given, and are asked for once:

    {"id": "a.mp4@12s-0f3c", "prompt": "Below are ...", "replies": ["Yes."], "is_right": true, "error": null}

An open question without a scorer, or without a verdict, is neither right nor wrong: its `correct` is null, and it is
in no figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from videochat_online.errors import InputError
from videochat_online.evaluation.config import EvaluationConfig
from videochat_online.evaluation.run.evaluation_folder import EvaluationFolder
from videochat_online.evaluation.run.plan import Plan
from videochat_online.evaluation.scoring.judge import Judge, JudgeError, prompt_of
from videochat_online.evaluation.scoring.open_answers import JUDGE, SCORERS
from videochat_online.runs.row_file import Row, RowFile

MAX_FAILED_IN_A_ROW = 3
"""So many answers in a row that a judge gives no reply to: it is broken for all others, too."""


def scored(rows: Sequence[Row], config: EvaluationConfig, plan: Plan, folder: EvaluationFolder) -> list[Row]:
    """The rows with what scorers say of the open ones: `scorer`, `correct`, and `judge` where one was asked.

    A question that could not be answered, or was answered with nothing, is wrong without asking anybody.

    Raises:
        InputError: the judge cannot be reached; its verdicts so far are kept.
    """
    scorers = {question.id: config.scorer_of(question) for question in plan.content.questions}
    done, to_judge = [], []
    for row in rows:
        scorer = scorers[row["id"]]
        if not is_open(row):
            done.append(row)
            continue
        row = {**row, "scorer": scorer, "correct": None}
        if scorer is not None and ("error" in row or not row["text"].strip()):
            row["correct"] = False
        elif scorer in SCORERS:
            row["correct"] = SCORERS[scorer](row["text"], row["answer_text"])
        elif scorer == JUDGE:
            to_judge.append(row)
        done.append(row)
    if to_judge and config.judge is not None:
        _judge(to_judge, config.judge, folder.verdicts)
    return done


def is_open(row: Row) -> bool:
    """Whether the row's question is answered in words; one that is polled is scored by its time."""
    return row.get("kind") == "open" and not row.get("polls")


def _judge(rows: Sequence[Row], judge: Judge, file: RowFile) -> None:
    """Put verdicts into rows: those that are there, and the judge's on all others."""
    with file.appending(wait=True) as (opened, before), judge.connected() as client:
        given = {(one["id"], one["prompt"]): one for one in before if one["is_right"] is not None}
        num_failed = 0
        for row in rows:
            asked = row["question"], row["answer_text"], row["text"]
            found: dict[str, Any] | None = given.get((row["id"], prompt_of(*asked)))
            if found is None:
                try:
                    verdict = judge.judge(client, *asked)
                except JudgeError as error:
                    raise _unjudged(str(error), rows) from error
                found = {"id": row["id"], **asdict(verdict)}
                num_failed = num_failed + 1 if found.pop("has_failed") else 0
                RowFile.append(opened, found)
                if num_failed >= MAX_FAILED_IN_A_ROW:
                    said = f"judge {judge.public_url}: {num_failed} answers in a row got no verdict: {verdict.error}"
                    raise _unjudged(said, rows)
            row["correct"] = found["is_right"]
            row["judge"] = {name: value for name, value in found.items() if name != "id"}


def _unjudged(said: str, rows: Sequence[Row]) -> InputError:
    num_open = sum(row["correct"] is None for row in rows)
    return InputError(
        f"{said}; every answer is kept, {num_open} of {len(rows)} are not judged: the same command, given again, "
        "goes on"
    )
