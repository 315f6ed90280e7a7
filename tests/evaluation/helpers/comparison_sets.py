"""A set with evidence of several ages, and finished runs over it, made without a model."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

from evaluation_sets import empty_plots, make_config, question, write_set
from videochat_online.evaluation import EvaluationFolder, make_plan
from videochat_online.evaluation.run.plan import settled
from videochat_online.evaluation.run.summarize import summarize
from videochat_online.runs.row_file import RowFile

FOUR = ("A. red", "B. blue", "C. green", "D. grey")
AGES_S = (0.0, 3.0, 20.0, 60.0)
WINDOW = {"memory": "window", "memory_options": {"num_frames": 6}}


def make_set(root: Path, num_videos=24, ages_s=AGES_S, **more) -> Path:
    """Videos with a question of each age; the recent half of another template, type and number of options."""
    (root / "media").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(num_videos):
        questions = []
        for place, age_s in enumerate(ages_s):
            is_old = age_s > 10
            kind = {"answer_type": "PastMemory", "options": FOUR} if is_old else {"answer_type": "SpatialPerception"}
            facts = {"evidence_age_s": age_s, "template": "first_shape" if is_old else "where_now", "detail": "coarse"}
            questions.append(
                question(61.0 + place, "AB"[number % 2], text=f"Question {place}?", **kind, **facts, **more)
            )
        rows.append({"video_id": f"v{number}", "dataset": "synthetic", "clip": [0, 70], "questions": questions})
    return write_set(root / "set.json", rows)


def append(config, is_right, num_tokens=96):
    """Write answers as a run does, and the summaries; `is_right(video, question)` may say None for no answer."""
    plan = make_plan(config)
    config = settled(config, plan.content)
    facts = {"counts": {"num_questions": len(plan.content.questions)}}
    folder = EvaluationFolder(config.output, config.settings(), facts, config.shard)
    with folder.predictions.appending() as (predictions, _), folder.videos.appending() as (videos, _):
        for video in (place.video for place in plan.share):
            given = {one.id: is_right(video.name, one) for one in video.questions}
            for one in video.questions:
                answer = {
                    "text": "",
                    "predicted_index": None,
                    "correct": given[one.id],
                    "num_visual_tokens": num_tokens,
                }
                timing = {"frames_used": [], "first_token_s": 0.1, "answer_s": 0.1}
                if given[one.id] is not None:
                    RowFile.append(predictions, {**asdict(one), "video": video.name, **answer, **timing})
            is_bad = None in given.values()
            cost = {"num_encoded": 8, "watch_s": 0.1, "answer_s": 0.1, "peak_memory_bytes": None}
            row = {"video": video.name, "problem": "no frame decodes" if is_bad else None, "is_bad": is_bad, **cost}
            RowFile.append(videos, row)
    with empty_plots():
        summarize(config, plan, folder)
    return config.output


def make_run(root: Path, name: str, chance_of_right, *, num_tokens=96, **changes) -> Path:
    """A finished run over `root / set.json`; `chance_of_right` is a number or a function of a question."""
    rng = random.Random(name)

    def is_right(video, one):
        return rng.random() < (chance_of_right(one) if callable(chance_of_right) else chance_of_right)

    return append(make_config(root / "set.json", root / name, **changes), is_right, num_tokens)


def by_age(recent, old):
    return lambda one: old if one.extra["evidence_age_s"] > 10 else recent


def finished_runs(folder: Path) -> Path:
    """A set and finished runs over it, in a folder that is given back. Not to be written to."""
    make_set(folder)
    make_run(folder, "pyramid", by_age(0.95, 0.85))
    make_run(folder, "window", by_age(0.95, 0.25), protocol=WINDOW)
    make_run(folder, "blind", by_age(0.5, 0.25), num_tokens=0, blind=True)
    make_run(folder, "sliding", 0.9, num_tokens=300, setting="sliding_window")
    return folder


def rows_of(folder: Path):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]


def clone(folder: Path, to: Path) -> Path:
    """A copy of a run that may be written to."""
    to.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (to / path.name).write_bytes(path.read_bytes())
    return to
