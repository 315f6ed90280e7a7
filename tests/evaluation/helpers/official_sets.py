"""Sets in the layouts of three benchmarks with every task in them, and runs over them that are made without a model."""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmark_sets import ovo_choice, ovo_forward, streaming_choice, streaming_proactive, streaming_row
from evaluation_sets import make_config, question, write_set
from made_up_replies import STYLES, made_rows
from videochat_online.evaluation import EvaluationFolder, get_task
from videochat_online.evaluation.benchmark import EvalSet
from videochat_online.evaluation.tasks import ovbench, ovobench, streamingbench

WORDS = ("a dog", "A man, who runs", "the No. 3 bus", "Yes, a cat", "Dad and Bob", "-", "1,000 birds", "[0.1, 0.2]")


def options(rng, number=4):
    return rng.sample(WORDS, number)


def ovo_files(root: Path, rng) -> tuple[Path, ...]:
    """Each task in a few rows, about a few videos."""
    rows = []
    for number, task in enumerate([*ovobench.GROUPS] * 4):
        video = f"COIN/{rng.randrange(5)}.mp4"
        if ovobench.GROUPS[task] != "forward":
            rows.append(ovo_choice(number, task, number / 4, rng.randrange(4), video, options=options(rng)))
        else:
            tests = [(i, rng.randrange(15) if task == "REC" else rng.randrange(2), "fry") for i in range(4)]
            rows.append(ovo_forward(number, task, tests, video))
    return (write_set(root / "ovo.json", rows),)


def streaming_files(root: Path, rng) -> tuple[Path, ...]:
    """The four files with each of the tasks; lists of rows in that of sequential questions."""
    rows: dict[str, list] = {"real": [], "omni": [], "sqa": [], "proactive": []}
    for number, task in enumerate([*streamingbench.GROUPS] * 3):
        texts = options(rng)
        lettered = [f"{letter}. {text}" for letter, text in zip("ABCD", texts, strict=True)]
        fields = {"question": f"Question {number}?", "options": rng.choice([texts, lettered])}
        kind = {streamingbench.SEQUENTIAL: "sqa", streamingbench.PROACTIVE: "proactive"}.get(task)
        kind = kind or ("real" if streamingbench.GROUPS[task] == "real_time" else "omni")
        video = f"sample_{number % 4}_{kind}.mp4"
        if kind == "proactive":
            start = rng.randrange(40)
            due = f"00:00:{start + 5:02d}"
            one = streaming_proactive(f"00:00:{start:02d}", due, rng.choice(["3", "Break point", "GOAL"]))
        else:
            one = streaming_choice(f"00:00:{number:02d}", task, rng.choice("ABCD"), **fields)
        rows[kind].append([streaming_row(video, one)] if kind == "sqa" else streaming_row(video, one))
    return tuple(write_set(root / f"questions_{name}.json", some) for name, some in rows.items())


def ovbench_files(root: Path, rng) -> tuple[Path, ...]:
    """Each of the sixteen cells in a few kinds."""
    rows = []
    for number, (kind, group) in enumerate(ovbench.CELLS * 3):
        dataset = next(name for name, of in ovbench.GROUPS.items() if of == group)
        lettered = [f"{letter}. {text}" for letter, text in zip("ABCD", options(rng), strict=True)]
        asked = question(float(number), rng.choice("ABCD"), kind, 1 + number % 2, f"Question {number}?", lettered)
        rows.append({"video_id": f"v{number % 7}", "dataset": dataset, "clip": [0, 99], "questions": [asked]})
    return (write_set(root / "ovb.json", rows),)


FILES = {"ovobench": ovo_files, "streamingbench": streaming_files, "ovbench": ovbench_files}


def mixed_rows(content: EvalSet, seed: int):
    """Rows of a model that words each reply in another of the ten styles, and one in twenty not at all."""
    rng = random.Random(seed)
    chosen = made_rows(content, lambda question: rng.choice([*STYLES]), seed)
    return [
        row | {"text": "", "error": "none"} if rng.random() < 0.05 and not row.get("polls") else row for row in chosen
    ]


def write_run(root: Path, name: str, task: str, paths, rows, *, bad=(), **changes) -> Path:
    """A finished run; `bad` names videos that could not be used, whose rows are not written."""
    config = make_config(paths[0], root / name, root, task=get_task(task), **changes)
    object.__setattr__(config, "annotations", tuple(paths))
    facts = {"annotation_paths": [str(path) for path in paths]}
    folder = EvaluationFolder(config.output, config.settings(), facts, config.shard)
    kept = [row for row in rows if row["video"] not in bad]
    folder.write("predictions.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
    counts = {"num_questions": len(rows), "num_answered": len(kept), "num_unanswered": len(rows) - len(kept)}
    counts |= {"num_bad_videos": len(bad), "num_left_out": 0, "bad_videos": [{"video": video} for video in bad]}
    folder.write("metrics.json", json.dumps(counts))
    return config.output


def made_run(root: Path, task: str, seed: int = 0, *, name="run", style=None, **changes) -> Path:
    """Annotation files of a benchmark below `root`, and a run over them in one style or in all."""
    paths = FILES[task](root, random.Random(seed))
    content = get_task(task).load(paths)
    rows = mixed_rows(content, seed) if style is None else made_rows(content, style, seed)
    return write_run(root, name, task, paths, rows, **changes)
