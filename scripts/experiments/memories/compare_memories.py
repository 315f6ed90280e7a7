#!/usr/bin/env python
r"""Memories at equal budgets of tokens, with one model: accuracy by age and detail of the evidence, and costs.

    python scripts/experiments/memories/compare_memories.py --model DIR \
        --annotations data/annotations/ovbench_test.json --data_root data/videos/test --output OUT \
        [--memories NAME ...] [--budgets 4/4/16 2/2/8] [--fps 1] [--answer_by likelihood] \
        [--where KEY=VALUE[,VALUE] ...]

A budget is a pyramid, and every memory gets the largest sizes within its tokens. Each memory answers the same
questions by `videochat-online evaluate` (`OUT/runs`; the same command goes on where it was interrupted), beside
`keep_all`, which drops nothing, and `blind`, which sees nothing. Questions have to say `evidence_age_s` and `detail`,
as those of `videochat-online synthesize` do. Prints Markdown; OUT gets `compare.json` and `compare.png`. Exit status 2:
the input is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from memory_budgets import Capacities, add_memories, check_memories, flags, options_at, shown
from memory_costs import costs, features_of
from memory_table import draw, render
from videochat_online.cli.compare import parse_where
from videochat_online.cli.main import main as videochat_online
from videochat_online.cli.main import normalise_flags
from videochat_online.cli.options import add_model_arguments, load_model_of
from videochat_online.errors import InputError
from videochat_online.evaluation import Comparison, compare_runs
from videochat_online.evaluation.report.plots import save_figure
from videochat_online.memory import MemoryBank, make_model_memory
from videochat_online.model import VideoChatModel
from videochat_online.runs.row_file import RowFile

REFERENCES = ("keep_all", "blind")
SET_FLAGS = ("annotations", "data_root", "fps", "answer_by", "max_videos")


class FailedRunError(Exception):
    """A run ended with this exit status; it has said why."""


def bank_of(model: VideoChatModel, name: str, options: Mapping[str, Any]) -> MemoryBank:
    """An empty memory for the model's frames."""
    return make_model_memory(name, model.frames.grid, model.frames.memory_intervals, options)


def check_budgets(model: VideoChatModel, names: Sequence[str], budgets: Sequence[Capacities]) -> dict[str, int]:
    """Tokens of each budget, by how it is shown; InputError where a memory does not fit it."""
    tokens = {}
    for capacities in budgets:
        most = bank_of(model, "pyramid", {"capacities": capacities}).max_tokens
        for name in names:
            try:
                found = bank_of(model, name, options_at(name, capacities)).max_tokens
            except InputError as error:
                raise InputError(f"--budgets: {shown(capacities)} has no room for {name}: {error}") from error
            if most is None or found is None or found > most:
                raise InputError(f"{name} at {shown(capacities)}: expected at most {most} tokens, got {found}")
        tokens[shown(capacities)] = int(most or 0)
    return tokens


def model_flags() -> list[str]:
    """Names of the flags that say which model, and how it is loaded."""
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    return list(vars(parser.parse_args(["--model", ""])))


def evaluate(options: argparse.Namespace, folder: Path, more: Sequence[str]) -> Path:
    """Run, go on with or find finished one evaluation; gives its folder."""
    given = {name: getattr(options, name) for name in (*model_flags(), *SET_FLAGS)}
    words = flags({name: value for name, value in given.items() if value is not None})
    print(f"-- {folder.name}", file=sys.stderr, flush=True)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        status = videochat_online(["evaluate", "--output", str(folder), *words, *more])
    if status:
        raise FailedRunError(status)
    return folder


def evaluate_all(options: argparse.Namespace) -> dict[str, dict[str, Path]]:
    """Folders of the runs of each budget, by label; the references are the same in all."""
    runs = options.output / "runs"
    references = {
        name: evaluate(options, runs / name, ["--blind"] if name == "blind" else ["--memory", name])
        for name in REFERENCES
    }
    folders = {}
    for capacities in options.budgets:
        own = {
            name: evaluate(
                options,
                runs / f"{name}_{shown(capacities).replace('/', '_')}",
                ["--memory", name, *flags(options_at(name, capacities), "memory.")],
            )
            for name in options.memories
        }
        folders[shown(capacities)] = own | references
    return folders


def compared(
    folders: Mapping[str, Path], where: Mapping[str, Sequence[str]]
) -> tuple[Comparison, dict[str, Comparison]]:
    """All questions, and those of each detail by its name; InputError where questions do not say what is asked for."""

    def on(more: Mapping[str, Sequence[str]]) -> Comparison:
        return compare_runs(list(folders.values()), labels=list(folders), where={**where, **more})

    everything = on({})
    groups = everything.runs[0].groups
    for key in ("evidence_age_s", "detail"):
        if key not in groups:
            raise InputError(f"--annotations: expected questions that say their {key}, found none")
    return everything, {detail: on({"detail": [detail]}) for detail in groups["detail"]}


def record(
    options: argparse.Namespace, tokens: Mapping[str, int], folders: Mapping[str, Mapping[str, Path]]
) -> dict[str, Any]:
    """Everything that is compared, for JSON; costs are added later."""
    where, tables = parse_where(options.where), []
    for name, capacities in zip(folders, options.budgets, strict=True):
        everything, by_detail = compared(folders[name], where)
        runs = []
        for place, run in enumerate(everything.runs):
            label = run.label
            ages = {detail: comparison.runs[place].groups["evidence_age_s"] for detail, comparison in by_detail.items()}
            runs.append({
                "label": label,
                "options": None if label in REFERENCES else dict(options_at(label, capacities)),
                "visual_tokens_mean": round(run.visual_tokens_mean, 2),
                "all": run.overall.as_dict(),
                "cells": {
                    detail: {age: figures.as_dict() for age, figures in of_age.items()}
                    for detail, of_age in ages.items()
                },
            })  # fmt: skip
        tables.append({
            "budget": name,
            "tokens": tokens[name],
            "baseline": everything.baseline,
            "num_questions": everything.num_questions,
            "num_videos": everything.num_videos,
            "runs": runs,
        })  # fmt: skip
    facts = {name: getattr(options, name) for name in (*model_flags(), "fps", "answer_by", "max_videos")}
    facts["annotations"] = [str(path) for path in options.annotations]
    return {**facts, "where": where, "tables": tables}


def add_costs(report: dict[str, Any], model: VideoChatModel, folder: Path, fps: float, num_frames: int) -> None:
    """Time the memories on frames of the benchmark's own videos."""
    paths = [Path(row["path"]) for row in RowFile(folder / "videos.jsonl", key="video").rows() if not row["is_bad"]]
    files = [path for path in paths if path.is_file()]
    features_TCHW = features_of(model, files or paths, fps, num_frames)
    for table in report["tables"]:
        runs = {run["label"]: run for run in table["runs"] if run["label"] != "blind"}
        make = {
            label: lambda label=label, run=run: bank_of(model, label, run["options"] or {})
            for label, run in runs.items()
        }
        with torch.no_grad():
            found = costs(make, features_TCHW, num_frames)
        for label, run in runs.items():
            bank = make[label]()
            run["max_tokens"], run["cost"] = bank.max_tokens, found[label]


def compare(options: argparse.Namespace) -> None:
    """Evaluate, compare, time, write and print."""
    check_memories(options)
    where = parse_where(options.where)
    if options.cost_frames < 1 or not 0 < options.fps < 1e4:
        raise InputError(f"--cost_frames, --fps: expected numbers above 0, got {options.cost_frames}, {options.fps:g}")
    model = load_model_of(options)
    tokens = check_budgets(model, options.memories, options.budgets)
    folders = evaluate_all(options)
    report = record(options, tokens, folders)
    add_costs(report, model, next(iter(folders.values()))["keep_all"], options.fps, options.cost_frames)
    (options.output / "compare.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    save_figure(draw(report), options.output / "compare.png")
    print(render(report, where), end="")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_memories(parser)
    group = parser.add_argument_group("questions")
    group.add_argument("--annotations", nargs="+", type=Path, required=True, metavar="FILE")
    group.add_argument("--data_root", type=Path, required=True, metavar="DIR", help="the videos are below it")
    group.add_argument("--output", type=Path, required=True, metavar="DIR", help="runs, tables and picture")
    group.add_argument("--fps", type=float, default=1.0, help="frames a second (default: 1)")
    group.add_argument("--answer_by", default="likelihood", help="as of evaluate (default: likelihood)")
    group.add_argument("--max_videos", type=int, metavar="N", help="only the first N videos")
    group.add_argument("--where", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="as of compare")
    group.add_argument("--cost_frames", type=int, default=960, metavar="N", help="to time memories with (default: 960)")
    add_model_arguments(parser)
    options = parser.parse_args(normalise_flags(sys.argv[1:] if arguments is None else arguments))
    try:
        compare(options)
    except FailedRunError as failure:
        return int(failure.args[0])
    except (InputError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
