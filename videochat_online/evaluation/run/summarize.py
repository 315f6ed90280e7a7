"""The end of an evaluation: what all shards have written, judged where a judge is needed, summed up and reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videochat_online.errors import InputError, PromptTooLongError
from videochat_online.evaluation.config import EvaluationConfig
from videochat_online.evaluation.report.environment import run_conditions
from videochat_online.evaluation.report.run_report import cost_figures, summary_figures, write_report
from videochat_online.evaluation.run.evaluation_folder import EvaluationFolder, split_answers
from videochat_online.evaluation.run.plan import Plan
from videochat_online.evaluation.scoring.metrics import compute_metrics, score_remarks
from videochat_online.evaluation.scoring.verdicts import scored
from videochat_online.runs.row_file import Row


@dataclass(frozen=True)
class Outcome:
    """What a process leaves.

    Attributes:
        metrics: figures of the whole set; None while other shards have answers to give.
        num_answered: number of answers in the folder, all shards together.
        num_open: number of questions that other shards still have to answer.
        bad_videos: a line for each.
        remarks: lines about what else of the set could not be used as it is; of a whole set only.
    """

    metrics: dict[str, Any] | None
    num_answered: int
    num_open: int
    bad_videos: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def summarize(config: EvaluationConfig, plan: Plan, folder: EvaluationFolder) -> Outcome:
    """Read what all shards have written; write metrics and report once nothing is missing.

    Raises:
        InputError: too many bad videos, or questions with too long a prompt.
    """
    videos = folder.all_videos()
    bad = {row["video"]: f"{row['video']}: {row['problem']}" for row in videos if row["is_bad"]}
    if bad:
        check_bad(len(bad), len(plan.content.videos), next(iter(bad.values())), config)
    order = {question.id: index for index, question in enumerate(plan.content.questions)}
    predictions = sorted(folder.all_predictions(), key=lambda row: order[row["id"]])
    too_long = too_long_rows(predictions)
    if too_long:
        check_too_long(len(too_long), too_long[-1], plan, config)
    answered = {row["id"] for row in predictions}
    seen = {row["video"] for row in videos}
    missing = [
        question
        for video in plan.content.videos
        if video.name not in bad
        for question in video.questions
        if question.id not in answered or video.name not in seen
    ]
    if missing:
        num_open = sum(question.id not in answered for question in missing)
        return Outcome(None, len(answered), num_open, tuple(bad.values()))
    predictions = scored(predictions, config, plan, folder)
    folder.write_merged(predictions, videos)
    counted, left_out = split_answers(predictions, bad)
    num_too_long = len(too_long_rows(counted))
    metrics = summary_figures(config, plan.content, counted, left_out, videos) | {"num_too_long": num_too_long}
    metrics["conditions"] = run_conditions(folder.run, videos)
    metrics |= compute_metrics(counted, config.task)
    if num_too_long:
        said = "questions count as wrong: with their frames they are longer than the model's context."
        metrics["notes"].append(f"{num_too_long} {said}")
    metrics["notes"] += [*_unusable(plan), *score_remarks(metrics)]
    metrics["cost"] = cost_figures(predictions, videos)
    write_report(folder, metrics, counted)
    return Outcome(metrics, len(answered), 0, tuple(bad.values()), _remarks(metrics, plan))


def _remarks(metrics: Mapping[str, Any], plan: Plan) -> tuple[str, ...]:
    """Rows without an answer, videos that are odd (questions after their end among it), and notes on the files."""
    odd = [f"{video['video']}: {video['problem']}" for video in metrics["damaged_videos"]]
    return (*_unusable(plan), *odd, *plan.content.notes, *score_remarks(metrics))


def _unusable(plan: Plan) -> list[str]:
    rows = plan.content.problems
    return [f"{len(rows)} annotated questions cannot be used; the first: {rows[0]}"] if rows else []


def check_bad(num_bad: int, num_all: int, example: str, config: EvaluationConfig, what: str = "videos") -> None:
    """Raise an `InputError` with an example where more cannot be used than the config allows."""
    if num_bad > config.max_bad_fraction * num_all:
        raise InputError(
            f"{num_bad} of {num_all} {what} cannot be used, more than max_bad_fraction "
            f"{config.max_bad_fraction:g} allows; the latest: {example}"
        )


def too_long_rows(rows: Sequence[Row]) -> list[Row]:
    """Those of questions whose prompt was longer than the model's context."""
    return [row for row in rows if row.get("error_kind") == PromptTooLongError.__name__]


def check_too_long(num_too_long: int, row: Row, plan: Plan, config: EvaluationConfig) -> None:
    """How long a prompt becomes is known once its frames are: it cannot be refused at the start."""
    example = f"{row['video']}: question {row['id']}: {row['error']}"
    check_bad(num_too_long, len(plan.content.questions), example, config, "questions")
