"""A run summed up: `metrics.json` for programs, `report.md` with plots for people, `result.json` to hand in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from videochat_online.evaluation.benchmark import EvalSet
from videochat_online.evaluation.config import EvaluationConfig
from videochat_online.evaluation.protocol import context_of
from videochat_online.evaluation.report.plots import plot_run
from videochat_online.evaluation.report.submission import submission
from videochat_online.evaluation.run.evaluation_folder import EvaluationFolder
from videochat_online.evaluation.scoring.averages import WITHOUT
from videochat_online.runs.markdown import markdown_table
from videochat_online.runs.row_file import Row

NOT_CAUSAL = (
    "**Not causal:** `--protocol reference` takes the frames of the published scripts. {} For comparison with "
    "published figures only."
)
_LOOKS_AHEAD = {
    False: "The last question of a video sees frames up to the end of its clip.",
    True: "A question sees frames up to the end of the second that it falls into.",
}
"""Sentences by whether the scripts cut a clip for each question."""
_SEEN_BEFORE = "{} questions have a start of their own; the memory has seen what was before it, too."
_TABLES = {
    "cells": "By answer type and source",
    "answer_types": "By answer type",
    "sub_answer_types": "By kind of question",
    "datasets": "By source",
    "by_evidence_age_s": "By age of the evidence",
    "by_detail": "By detail",
    "by_evidence_age_s_and_detail": "By age of the evidence and detail",
    "by_template": "By template",
}
_TABLES_OF_TYPES = {"cells": "By group and type", "datasets": "By source"}
"""Titles of the tables where types form the groups: the cells say what tables by type would."""


def summary_figures(
    config: EvaluationConfig,
    content: EvalSet,
    predictions: Sequence[Row],
    left_out: Sequence[Row],
    videos: Sequence[Row],
) -> dict[str, Any]:
    """What was evaluated, how, and what could not be; `left_out` are answers about videos that turned out bad."""
    settings = config.settings()
    num_left_out = Counter(row["video"] for row in left_out)
    bad = [
        {"video": row["video"], "problem": row["problem"], "num_left_out": num_left_out[row["video"]]}
        for row in videos
        if row["is_bad"]
    ]
    damaged = [
        {"video": row["video"], "problem": row["problem"]} for row in videos if row["problem"] and not row["is_bad"]
    ]
    notes = [*config.task.notes, *content.notes]
    num_own_starts = sum(question.starts_s is not None for question in content.questions)
    if num_own_starts and config.protocol.memory is not None and not config.blind:
        notes.append(_SEEN_BEFORE.format(num_own_starts))
    context = context_of(config.protocol, config.task.settings)
    return {
        "task": settings["task"],
        "task_options": settings["task_options"],
        "setting": config.protocol.setting,
        **({} if context is None else {"context": context}),
        "causal": config.protocol.causal,
        "model": settings["model"],
        "blind": config.blind,
        "answer_by": config.answer_by,
        "scorers": dict(sorted(Counter(row["scorer"] for row in predictions if row.get("scorer")).items())),
        "judge": settings["judge"],
        "protocol": settings["protocol"],
        "num_videos": len(content.videos),
        "num_questions": len(content.questions),
        "num_answered": len(predictions),
        "num_left_out": len(left_out),
        "num_unanswered": len(content.questions) - len(predictions) - len(left_out),
        "num_without_frames": sum(row.get("error_kind") == "NoFrameError" for row in predictions),
        "num_not_finite": sum(row.get("error_kind") == "NonFiniteError" for row in predictions),
        "num_bad_videos": len(bad),
        "bad_videos": bad,
        "damaged_videos": damaged,
        "bad_rows": list(content.problems),
        "notes": notes,
    }


def cost_figures(predictions: Sequence[Row], videos: Sequence[Row]) -> dict[str, Any]:
    """Seconds, frames, tokens and bytes, summed over all shards (the peak: the largest)."""
    watch_s = sum(row["watch_s"] for row in videos)
    num_encoded = sum(row["num_encoded"] for row in videos)
    waits_s = [row["first_token_s"] for row in predictions if row["first_token_s"] is not None]
    tokens = [row["num_visual_tokens"] for row in predictions]
    return {
        # A video that could not be used has no count of its own.
        "num_frames_decoded": sum(row.get("num_decoded", 0) for row in videos),
        "num_frames_encoded": num_encoded,
        "watch_s": round(watch_s, 3),
        "frames_per_s": round(num_encoded / watch_s, 3) if num_encoded and watch_s else None,
        "first_token_s_p50": _percentile(waits_s, 50),
        "first_token_s_p95": _percentile(waits_s, 95),
        "answer_s": round(sum(row["answer_s"] for row in predictions), 3),
        "visual_tokens_mean": round(float(np.mean(tokens)), 2) if tokens else None,
        "visual_tokens_max": max(tokens, default=None),
        "peak_memory_bytes": max((row["peak_memory_bytes"] or 0 for row in videos), default=0) or None,
    }


def write_report(folder: EvaluationFolder, metrics: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write all summaries of a complete run; `rows` are the answers that count."""
    folder.write_json("metrics.json", metrics)
    folder.write("result.json", json.dumps(submission(metrics, rows), indent=1, ensure_ascii=False) + "\n")
    folder.write("report.md", render(metrics, plot_run(folder.path, rows)))


def render(metrics: Mapping[str, Any], plots: Mapping[str, str] | None = None) -> str:
    """The report as Markdown; `plots` are titles and names of pictures beside it."""
    frames = "no frames (blind)" if metrics["blind"] else metrics["setting"]
    mark = [] if metrics["causal"] else [NOT_CAUSAL.format(_LOOKS_AHEAD[metrics["protocol"]["clips"]])]
    conditions = {"model": metrics["model"], **metrics["conditions"]}
    parts = [f"# {metrics['task']}, {frames}", *mark, _headline(metrics)]
    parts += ["## Protocol", _protocol(metrics), "## Conditions", _value_table(conditions), "## Accuracy"]
    parts.append("Percent, with 95% intervals of a bootstrap over videos. An answer that names no option is wrong.")
    for key, title in (_TABLES_OF_TYPES if metrics.get("averages") else _TABLES).items():
        if metrics.get(key):
            parts += [f"### {title}", _score_table(metrics[key].items())]
    if metrics.get("proactive"):
        parts += ["### Output at the right time", _proactive(metrics["proactive"])]
    parts += ["## Cost", _cost(metrics["cost"])]
    if plots:
        parts += ["## Plots", "\n\n".join(f"![{title}]({name})" for title, name in plots.items())]
    for key, title in (
        ("bad_videos", "Videos that could not be used"),
        ("damaged_videos", "Videos that are odd or damaged, answered from what decodes"),
    ):
        if metrics[key]:
            parts += [f"## {title}", "\n".join(map(_problem, metrics[key]))]
    if metrics["bad_rows"]:
        parts += ["## Rows that could not be used", "\n".join(f"- {line}" for line in metrics["bad_rows"])]
    return "\n\n".join(parts) + "\n"


def headline(averages: Mapping[str, Any]) -> dict[str, Mapping[str, Any] | None]:
    """The averages over everything, by what they are called; None for one that lacks some of what belongs to it."""
    scores = {**averages, **averages.get("averages", {})}
    scores |= {f"{WITHOUT}.{name}": score for name, score in averages.get(WITHOUT, {}).items()}
    rows = {}
    for name, title in averages["average_titles"].items():
        lacking = "" if scores[name] else f" (incomplete: lacks {', '.join(averages['lacking'][name])})"
        rows[f"{title}{lacking}"] = scores[name]
    return rows


def _headline(metrics: Mapping[str, Any]) -> str:
    num_not_finite = metrics["num_not_finite"]
    not_finite = f", {num_not_finite} for which the model gave no finite number" if num_not_finite else ""
    counts = (
        f"{metrics['num_answered']} of {metrics['num_questions']} questions answered about {metrics['num_videos']} "
        f"videos; {metrics['num_unparsed']} answers name no option, {metrics['num_without_frames']} questions came "
        f"before the first frame{not_finite}; {metrics['num_bad_videos']} videos could not be used."
    )
    if metrics["num_left_out"]:
        num_videos = sum(row["num_left_out"] > 0 for row in metrics["bad_videos"])
        counts += f" {metrics['num_left_out']} answers of {num_videos} bad videos are left out."
    lacking = [
        f"Of {metrics['average_titles'].get(name, name)} there are no questions: {', '.join(cells)}."
        for name, cells in metrics["lacking"].items()
        if metrics["average_titles"].get(name) and {**metrics, **metrics.get("averages", {})}.get(name)
    ]
    return "\n\n".join([counts, *metrics["notes"], _score_table(headline(metrics).items()), *lacking])


def _protocol(metrics: Mapping[str, Any]) -> str:
    context = {"context": metrics["context"]} if "context" in metrics else {}
    scored_by = {name: metrics[name] for name in ("task_options", "scorers", "judge") if metrics.get(name)}
    return _value_table({"answer_by": metrics["answer_by"], **scored_by, **context, **metrics["protocol"]})


def _value_table(values: Mapping[str, Any]) -> str:
    rows = [[name, json.dumps(value, ensure_ascii=False)] for name, value in values.items()]
    return markdown_table(["", ""], rows, "---")


def _problem(row: Mapping[str, Any]) -> str:
    left_out = f" ({row['num_left_out']} answers left out)" if row.get("num_left_out") else ""
    return f"- `{row['video']}`: {row['problem']}{left_out}"


def _score_table(rows: Iterable[tuple[str, Mapping[str, Any] | None]]) -> str:
    """With what guessing gives, where the scores say it."""
    listed = list(rows)
    has_chance = any(row and "chance" in row for _, row in listed)
    lines = []
    for name, row in listed:
        chance = [_number(row["chance"] if row else None)] if has_chance else []
        values = [_number(row["accuracy"]), f"{_number(row['low'])} - {_number(row['high'])}"] if row else ["-", "-"]
        lines.append([name, *values, *chance, str(row["num_questions"]) if row else "-"])
    return markdown_table(["", "accuracy", "95%", *(["chance"] if has_chance else []), "questions"], lines)


def _proactive(figures: Mapping[str, Any]) -> str:
    rows = [(f"within {limit} of its time", score) for limit, score in figures["within"].items()]
    rows += [("within its tolerance, whatever the output", figures["in_time"])]
    rows += [("within its tolerance, and the right output (what counts)", figures["in_time_and_right"])]
    return f"{figures['num_polls']} polls; {figures['num_without_output']} times no output.\n\n{_score_table(rows)}"


def _cost(cost: Mapping[str, Any]) -> str:
    memory = cost["peak_memory_bytes"]
    values = {
        "frames decoded": cost["num_frames_decoded"],
        "frames encoded": cost["num_frames_encoded"],
        "frames a second (decoding and encoding)": cost["frames_per_s"],
        "time to the first token, median, s": cost["first_token_s_p50"],
        "time to the first token, 95th percentile, s": cost["first_token_s_p95"],
        "visual tokens a question, mean": cost["visual_tokens_mean"],
        "visual tokens a question, most": cost["visual_tokens_max"],
        "peak memory, MiB": None if memory is None else round(memory / 2**20),
    }
    rows = [[name, "-" if value is None else str(value)] for name, value in values.items()]
    return markdown_table(["", ""], rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return round(float(np.percentile(values, percent)), 4) if values else None
