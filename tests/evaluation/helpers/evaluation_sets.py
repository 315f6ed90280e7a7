"""Small evaluation sets: frame folders or clips with timed questions, and runs over them."""

from __future__ import annotations

import json
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from videochat_online.evaluation import (
    EvaluationConfig,
    EvaluationFolder,
    Shard,
    evaluate,
    get_task,
    make_plan,
    resolve_protocol,
)
from videochat_online.evaluation.report import plots
from videochat_online.evaluation.run.plan import settled
from videochat_online.streaming import GenerationSettings

TIMINGS = {"first_token_s", "answer_s"}


def noise(num_frames, seed=0):
    """uint8 [T, 30, 40, 3]; frame t is the same whatever T."""
    return [
        np.random.default_rng((seed, t)).integers(0, 256, (30, 40, 3), dtype=np.uint8).copy() for t in range(num_frames)
    ]


def write_frames(folder: Path, frames) -> Path:
    """PNG files whose names only sort naturally and start anywhere."""
    folder.mkdir(parents=True)
    for t, pixels_HWC in enumerate(frames):
        Image.fromarray(pixels_HWC).save(folder / f"img{t + 95}.png")
    return folder


def question(time_s, answer="A", answer_type="PastMemory", kind=1, text="What?", options=("A. red", "B. blue"), **more):
    """A question of the nested layout."""
    return {
        "middle_frame_timestamp": time_s,
        "question": text,
        "options": list(options),
        "answer": answer,
        "answer_type": answer_type,
        "sub_answer_type": f"{answer_type}-{kind}",
        **more,
    }


def write_set(path: Path, rows) -> Path:
    """An annotation file."""
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def folder_set(root: Path, num_videos=3, num_frames=24, fps=4.0, times_s=(1.0, 3.0, 5.5)) -> Path:
    """Folders of noise frames below `root / media` and questions about them; returns the annotation file."""
    rows = []
    for number in range(num_videos):
        write_frames(root / "media" / f"video{number}", noise(num_frames, seed=number))
        questions = [question(time_s, "AB"[i % 2], kind=i, text=f"Question {i}?") for i, time_s in enumerate(times_s)]
        rows.append({"video_id": f"video{number}", "fps": fps, "clip": [0.0, 6.0], "questions": questions})
    return write_set(root / "set.json", rows)


def make_config(annotations, output, data_root=None, *, setting="streaming", protocol=None, **changes):
    """A configuration with short answers."""
    resolved = resolve_protocol(setting, **{"max_new_tokens": 4, **(protocol or {})})
    values = {
        "task": get_task("ovbench"),
        "protocol": resolved,
        "annotations": (annotations,),
        "data_root": annotations.parent / "media" if data_root is None else data_root,
        "output": output,
        "model": "tiny",
        "generation": GenerationSettings(max_new_tokens=resolved.max_new_tokens),
        **changes,
    }
    return EvaluationConfig(**values)


@contextmanager
def empty_plots():
    """Plots are made, and their files are empty: rendering takes longer than all the answers of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save_figure", lambda figure, path: path.touch())
        yield


def run(config, model, on_progress=lambda progress: None, *, rendered=False):
    """Evaluate; gives the outcome. `rendered`: its plots are pictures."""
    plan = make_plan(config)
    config = settled(config, plan.content)
    folder = EvaluationFolder(config.output, config.settings(), {}, config.shard)
    with nullcontext() if rendered else empty_plots():
        return evaluate(config, plan, folder, lambda: model, on_progress)


def rows_of(output: Path, name="predictions.jsonl"):
    """Rows of a file of a run, without what differs from run to run."""
    rows = [json.loads(line) for line in (output / name).read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


__all__ = ["Shard", "folder_set", "make_config", "noise", "question", "rows_of", "run", "write_frames", "write_set"]
