r"""Answer a benchmark's questions at their moments of the stream, score them, write a report.

    videochat-online evaluate --task ovbench --setting streaming|sliding_window --model DIR \
        --annotations FILE [FILE ...] --data-root DIR --output OUT [--memory NAME ...] [--strategy NAME ...] \
        [--blind] [--shard i/n|slurm]

A question sees the frames that start at or before its time and nothing later (--protocol reference: what it saw in
the published scripts); each frame is decoded and encoded once for all questions of its video. OUT gets
predictions.jsonl (a row an answer, written at once), videos.jsonl, metrics.json, report.md with plots, and result.json
to hand in. A run that was broken off goes on when it is started again with the same settings; with other settings it is
refused. Under torchrun, with --shard slurm, or with --shard 0/4 ... 3/4, processes share the videos.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from videochat_online.cli.evaluate.evaluate_output import show_counts, show_outcome, show_progress
from videochat_online.cli.options import (
    add_generation_arguments,
    add_memory_arguments,
    add_model_arguments,
    add_strategy_arguments,
    frames_of,
    generation_of,
    load_model_of,
    memory_options_of,
)
from videochat_online.cli.parser import Parser
from videochat_online.errors import InputError
from videochat_online.evaluation import (
    PROTOCOLS,
    TASKS,
    EvaluationConfig,
    EvaluationFolder,
    Plan,
    Shard,
    evaluate,
    get_task,
    make_plan,
    resolve_protocol,
)
from videochat_online.evaluation.config import ANSWER_BY
from videochat_online.evaluation.media.decoder_process import DECODE_TIMEOUT_S
from videochat_online.evaluation.protocol import FRAME_RULES, FRAME_TIMES
from videochat_online.evaluation.run.plan import settled
from videochat_online.evaluation.run.preview import TextModel, preview
from videochat_online.evaluation.scoring.judge import KEY_VARIABLE, UNNAMED, Judge
from videochat_online.evaluation.scoring.open_answers import JUDGE, SCORER_NAMES
from videochat_online.model.checkpoints.weight_files import weights_digest
from videochat_online.model.device_and_dtype import device_of_rank
from videochat_online.model.loading import family_and_config, template_for
from videochat_online.model.network_loading import resolve_checkpoint
from videochat_online.runs.provenance import git_revision, timestamp, versions
from videochat_online.text import TEMPLATES, get_template, load_tokenizer

_MODEL_OPTIONS = ("tokenizer", "template", "dtype", "attn_implementation", "quantization")
_NEWER_MODEL_OPTIONS = ("int8", "compile", "adapter", "frame_size")
"""Written down where they are given only: runs from before them can be resumed, and compared."""
_PROTOCOL_OPTIONS = (
    "fps", "window_s", "max_frames", "frame_times", "max_new_tokens", "kv_memory", "zero_start", "system_message",
)  # fmt: skip
_RUN_OPTIONS = ("data_root", "answer_by", "backend", "max_bad_fraction", "decode_timeout_s", "max_videos")
SLURM = "slurm"
"""Value of `--shard` in the tasks of a Slurm array."""


def add_arguments(parser: Parser) -> None:
    """Arguments of the subcommand."""
    group = parser.add_part(TASKS, "ovbench", "benchmark", default="ovbench")
    group.add_argument(
        "--setting", default="streaming", metavar="NAME", help=f"{', '.join(PROTOCOLS)} (default: streaming)"
    )
    group.add_argument(
        "--protocol",
        default="causal",
        metavar="NAME",
        help=f"{' or '.join(FRAME_RULES)}: the published scripts' frames, look-ahead included (default: causal)",
    )
    group.add_argument(
        "--annotations",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="JSON files, unless options of the task name its files",
    )
    group.add_argument("--data_root", type=Path, metavar="DIR", help="the videos are somewhere below it")
    group.add_argument("--output", type=Path, metavar="DIR", help="new, empty, or holding this very run")
    group.add_argument("--blind", action="store_true", help="no frames: what the text alone gives away")
    group.add_argument(
        "--answer_by", default="generation", metavar="HOW", help=f"{' or '.join(ANSWER_BY)} (default: generation)"
    )
    group.add_argument(
        "--system_message",
        metavar="TEXT",
        help="before all questions, or none, or checkpoint: its own (default: that of each kind of question)",
    )
    group.add_argument(
        "--dry_run",
        nargs="?",
        type=int,
        const=0,
        metavar="N",
        help="load no model: count questions and missing videos (with --data_root); show prompt, frame times, tokens "
        "(with --model) and right answer of N questions of each kind (default: 0)",
    )
    group.add_argument("--json", action="store_true", help="one line of JSON at the end")
    _add_scorer_arguments(parser)
    _add_frame_arguments(parser)
    _add_run_arguments(parser)
    add_model_arguments(parser, required=False)
    # The protocol decides unless a flag does.
    add_memory_arguments(parser, None)
    add_strategy_arguments(parser, None, with_kv_memory=True)
    add_generation_arguments(parser)
    parser.set_defaults(max_new_tokens=None)
    parser.add_replaced("--show", "--dry_run N")
    parser.add_replaced("--slurm_array", f"--shard {SLURM}")
    parser.add_replaced("--context", "--window_s with seconds or all")


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "--shard",
        metavar="I/N",
        help=f"part I (from 0) of N, or {SLURM}: the task of a Slurm array; under torchrun the rank is counted, too",
    )
    group.add_argument(
        "--max_bad_fraction", type=float, default=0.1, metavar="X", help="of videos or questions (default: 0.1)"
    )
    group.add_argument(
        "--decode_timeout_s",
        type=float,
        default=DECODE_TIMEOUT_S,
        metavar="X",
        help=f"a video that gives no frame for so long is bad (default: {DECODE_TIMEOUT_S:g})",
    )
    group.add_argument("--max_videos", type=int, metavar="N", help="only the first N videos")


def _add_scorer_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("open questions")
    group.add_argument(
        "--scorer",
        metavar="NAME",
        help=f"{', '.join(SCORER_NAMES)}: what reads replies to open questions that name no scorer; may be given later",
    )
    group.add_argument(
        "--judge_url",
        metavar="URL",
        help="scorer judge: API as OpenAI's chat completions; reads what names no scorer, unless --scorer does",
    )
    group.add_argument(
        "--judge_model",
        metavar="NAME",
        help=f"its model (default: the only one it lists); a key it wants is in the environment as {KEY_VARIABLE}",
    )
    group.add_argument(
        "--judge_timeout_s", type=float, default=Judge.timeout_s, metavar="X", help="longest wait for its reply"
    )


def _add_frame_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("frames (default: as published for the setting)")
    group.add_argument("--fps", type=float, metavar="X", help="frames a second")
    group.add_argument(
        "--window_s",
        type=_seconds_or_all,
        metavar="X",
        help="sliding window: how far it reaches back; all: the whole stream",
    )
    group.add_argument("--max_frames", type=int, metavar="N", help="sliding window: most frames")
    group.add_argument(
        "--frame_times",
        metavar="NAME",
        help=f"{' or '.join(FRAME_TIMES)}: which time of a file's frame is its label (default: start); an end may be "
        "later than a sliding window's question",
    )
    group.add_argument("--backend", default="auto", metavar="NAME", help="video decoder (default: auto)")
    group.add_argument(
        "--zero_start",
        action="store_true",
        default=None,
        help="times count from a file's first frame, not by its clock",
    )


def run(options: argparse.Namespace) -> int:
    """Check all that can be checked without a model, then evaluate."""
    is_dry = options.dry_run is not None
    if not is_dry:
        for name in ("model", "output"):
            if getattr(options, name) is None:
                raise InputError(f"--{name}: expected a directory, got none (only --dry_run needs none)")
    if is_dry and options.dry_run < 0:
        raise InputError(f"--dry_run: expected a number of questions, got {options.dry_run}")
    config = evaluation_config(options)
    plan = make_plan(config)
    config = settled(config, plan.content)
    if is_dry:
        # Without a place to look at, nothing is known to be missing.
        unknown = {"num_missing_videos": None} if options.data_root is None and not options.blind else {}
        counts = _counts(plan, config) | unknown
        if config.shard.count > 1:
            counts["shard"] = _shard_counts(plan, config.shard) | unknown
        if options.dry_run:
            counts["shown"] = preview(config, plan, options.dry_run, _text_model(options), is_blind=options.blind)
        show_counts(counts, options.json)
        return 0
    found = versions(("torch", "transformers", "av", "numpy")) | {"git": git_revision()}
    facts = {
        "command": _command(config),
        "started": timestamp(),
        "versions": {name: one for name, one in found.items() if one is not None},
        "counts": _counts(plan, config),
        # `export` reads them again.
        "annotation_paths": [str(path.resolve()) for path in config.annotations],
    }
    if config.protocol.memory is not None and not config.blind and not (config.output / "run.json").exists():
        frames = frames_of(options)  # a memory that cannot be made leaves no folder
        config.protocol.make_memory(frames.grid, frames.memory_intervals)
    folder = EvaluationFolder(config.output, config.settings(), facts, config.shard)
    options.device = device_of_rank(options.device)
    with show_progress() as update:
        outcome = evaluate(config, plan, folder, lambda: load_model_of(options), update)
    show_outcome(outcome, config, options.json)
    return 0


def evaluation_config(options: argparse.Namespace) -> EvaluationConfig:
    """Settings of the run that was asked for, as they are written down."""
    task = get_task(options.task, options.task_options)
    protocol = resolve_protocol(
        options.setting,
        of_task=task.settings,
        protocol=options.protocol,
        memory=options.memory,
        memory_options=memory_options_of(options),
        strategy=options.strategy,
        strategy_options=options.strategy_options,
        **{name: getattr(options, name) for name in _PROTOCOL_OPTIONS},
    )
    if options.blind and (protocol.strategy != "direct" or protocol.kv_memory):
        given = "--kv_memory" if protocol.kv_memory else f"--strategy {protocol.strategy}"
        raise InputError(f"--blind: expected no strategy or KV memory, as there are no frames, got {given}")
    limited = argparse.Namespace(**{**vars(options), "max_new_tokens": protocol.max_new_tokens})
    judge = _judge(options)
    return EvaluationConfig(
        task=task,
        protocol=protocol,
        annotations=task.annotations(options.annotations),
        **{name: getattr(options, name) for name in _RUN_OPTIONS},
        output=options.output or Path(),
        model=options.model or "",
        model_options=_model_options(options),
        generation=replace(generation_of(limited), min_new_tokens=protocol.min_new_tokens),
        scorer=options.scorer or (JUDGE if judge is not None else None),
        judge=judge,
        blind=options.blind or (options.dry_run is not None and options.data_root is None),
        shard=asked_shard(options.shard),
    )


def _judge(options: argparse.Namespace) -> Judge | None:
    if options.judge_url is not None:
        model = UNNAMED if options.dry_run is not None and options.judge_model is None else options.judge_model
        return Judge.from_environment(options.judge_url, model, options.judge_timeout_s)
    if options.judge_model is not None:
        raise InputError("--judge_url: expected one, as --judge_model is given, got none")
    return None


def _command(config: EvaluationConfig) -> list[str]:
    """As given, but for what may be a key in the judge's address."""
    if config.judge is None:
        return sys.argv
    return [argument.replace(config.judge.url, config.judge.public_url) for argument in sys.argv]


def _text_model(options: argparse.Namespace) -> TextModel | None:
    """What lays out prompts, if a model is named; no weights."""
    if options.model is None:
        return None
    directory = resolve_checkpoint(options.model, with_weights=False)
    adapter = None if options.adapter is None else resolve_checkpoint(options.adapter, with_weights=False)
    family, config = family_and_config(directory, adapter)
    tokenizer = load_tokenizer(options.tokenizer or directory)
    template = template_for(config, tokenizer, options.template, family.template)
    own = getattr(config, "system_message", None)
    message = template.default_system_message if own is None else own
    return TextModel(
        family.layout_of(config, options.frame_size), tokenizer, template, message, family.wording_of(config)
    )


def _model_options(options: argparse.Namespace) -> dict[str, Any]:
    newer = {name: getattr(options, name) for name in _NEWER_MODEL_OPTIONS}
    given = {name: value for name, value in newer.items() if value is not None}
    if options.template is not None and options.template not in TEMPLATES.built_in:
        given["template"] = get_template(options.template).to_config()  # what a name stands for may be changed
    if options.adapter is not None:
        given["adapter_weights"] = weights_digest(options.adapter)
    return {name: getattr(options, name) for name in _MODEL_OPTIONS} | given


def _seconds_or_all(text: str) -> float:
    """Seconds, or "all" for infinity."""
    try:
        return math.inf if text == "all" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected seconds or all, got {text!r}") from None


def asked_shard(argument: str | None) -> Shard:
    """What `--shard` says, else the rank that torchrun gives, within the task of a Slurm array if it says so."""
    if argument not in (None, SLURM):
        return Shard.parse(argument)
    env = os.environ
    task, rank = Shard(), Shard()
    if argument == SLURM:
        if "SLURM_ARRAY_TASK_ID" not in env or "SLURM_ARRAY_TASK_COUNT" not in env:
            raise InputError(f"--shard {SLURM}: expected a task of a Slurm array, found none in the environment")
        first, step = int(env.get("SLURM_ARRAY_TASK_MIN", "0")), int(env.get("SLURM_ARRAY_TASK_STEP", "1"))
        task = Shard.parse(f"{(int(env['SLURM_ARRAY_TASK_ID']) - first) // step}/{env['SLURM_ARRAY_TASK_COUNT']}")
    if "RANK" in env and "WORLD_SIZE" in env:
        rank = Shard.parse(f"{env['RANK']}/{env['WORLD_SIZE']}")
    return Shard(task.index * rank.count + rank.index, task.count * rank.count)


def _counts(plan: Plan, config: EvaluationConfig) -> dict[str, Any]:
    """Of the whole set, whatever the shard."""
    content, task = plan.content, config.task
    cells = Counter(" / ".join(task.cell(question.answer_type, question.dataset)) for question in content.questions)
    return {
        "num_videos": len(content.videos),
        "num_questions": len(content.questions),
        "num_missing_videos": len(plan.missing),
        "num_bad_rows": len(content.problems),
        "num_without_scorer": sum(
            question.kind == "open" and question.proactive is None and config.scorer_of(question) is None
            for question in content.questions
        ),
        "cells": dict(sorted(cells.items())),
        "missing_videos": [located.video.name for located in plan.missing],
        "bad_rows": list(content.problems),
        "notes": list(content.notes),
    }


def _shard_counts(plan: Plan, shard: Shard) -> dict[str, Any]:
    return {
        "index": shard.index,
        "count": shard.count,
        "num_videos": len(plan.share),
        "num_questions": sum(len(located.video.questions) for located in plan.share),
        "num_missing_videos": sum(located.problem is not None for located in plan.share),
    }
