"""What several subcommands share: which model, which memory, how answers are generated, where reports go."""

from __future__ import annotations

import argparse
import json
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from videochat_online.cli.parser import Parser
from videochat_online.errors import InputError
from videochat_online.memory import MEMORIES, MemoryBank, make_model_memory
from videochat_online.memory.labels import parse_label
from videochat_online.model import VideoChatModel, load_model
from videochat_online.model.backbones import FrameLayout
from videochat_online.model.compiling import PARTS
from videochat_online.model.device_and_dtype import DTYPES, QUANTIZATIONS
from videochat_online.model.loading import CACHES, frame_layout
from videochat_online.model.network_loading import resolve_checkpoint
from videochat_online.runs.files import check_writable, write_text
from videochat_online.streaming import STRATEGIES, GenerationSettings, Strategy, make_strategy
from videochat_online.text import TEMPLATES

DEFAULTS = GenerationSettings()


def add_model_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """`--model` and how it is loaded."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", required=required, metavar="DIR", help="model directory, or owner/name on the Hub")
    group.add_argument("--adapter", metavar="DIR", help="LoRA adapters of PEFT for it, merged while loading")
    group.add_argument("--tokenizer", metavar="DIR", help="take the tokenizer from another directory")
    add_template_argument(group, "the checkpoint's")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (default: auto)")
    group.add_argument("--dtype", default="auto", metavar="TYPE", help=f"auto, {', '.join(DTYPES)} (default: auto)")
    group.add_argument(
        "--attn_implementation", default="auto", metavar="NAME", help="auto, sdpa, flash_attention_2, eager"
    )
    group.add_argument("--quantization", choices=QUANTIZATIONS, help="language model in 8 or 4 bits (bitsandbytes)")
    group.add_argument("--int8", choices=PARTS, help="weights in 8 bits on any device (torchao)")
    group.add_argument("--cache", choices=CACHES, default="dynamic", help="of keys and values (default: dynamic)")
    group.add_argument(
        "--frame_size", type=frame_size, metavar="HxW", help="pixels of frames, where the model takes several sizes"
    )
    group.add_argument("--compile", choices=PARTS, help="compiled for fixed shapes; takes minutes at the start")


def add_template_argument(parser: argparse._ActionsContainer, usual: str, *, default: str | None = None) -> None:
    """`--template`, a name as `get_template` takes it; `usual` says what stands where none is given."""
    named = f"{', '.join(TEMPLATES.names())} (the tokenizer's chat_template), or package.module:NAME"
    parser.add_argument(
        "--template", default=default, metavar="NAME", help=f"chat template: {named} (default: {usual})"
    )


def load_model_of(options: argparse.Namespace) -> VideoChatModel:
    """The model that the arguments name."""
    names = ("adapter", "tokenizer", "template", "device", "dtype", "attn_implementation", "quantization", "int8")
    more = ("cache", "compile", "frame_size")
    return load_model(options.model, **{name: getattr(options, name) for name in (*names, *more)})


def frame_size(text: str) -> tuple[int, int]:
    """`448x448` -> height and width in pixels."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"expected height and width such as 448x448, got {text!r}")
    return int(found[1]), int(found[2])


def add_memory_arguments(parser: Parser, default: str | None = "pyramid") -> None:
    """`--memory` and the flags of the memory that is named; `default` is what stands where none is."""
    parser.add_part(
        MEMORIES, "pyramid", "memory of the stream", short=("capacities",), action=_MemoryLabel, default=default
    )


def memory_options_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options of a memory that the arguments name, by flags and by the label behind its name, `pyramid 2/2/12`.

    Raises:
        InputError: a size that `--memory` has said otherwise.
    """
    given = dict(options.memory_options)
    for name, value in getattr(options, "memory_sizes", {}).items():
        if given.setdefault(name, value) != value:
            raise InputError(
                f"--memory.{name}: expected nothing else than {options.memory!r} says ({value}), got {given[name]}"
            )
    return given


class _MemoryLabel(argparse.Action):
    """A memory's name, perhaps with the sizes that tables have behind it."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        namespace.memory, namespace.memory_sizes = parse_label(values)


def frames_of(options: argparse.Namespace) -> FrameLayout:
    """How the model that the arguments name takes frames: what a memory has to fit, without the weights."""
    adapter = None if options.adapter is None else resolve_checkpoint(options.adapter, with_weights=False)
    directory = resolve_checkpoint(options.model, with_weights=False)
    return frame_layout(directory, adapter, options.frame_size)


def memory_of(options: argparse.Namespace) -> MemoryBank:
    """The memory that the arguments name, for frames of the model that they name."""
    frames = frames_of(options)
    return make_model_memory(options.memory, frames.grid, frames.memory_intervals, memory_options_of(options))


def add_strategy_arguments(parser: Parser, default: str | None = "direct", *, with_kv_memory: bool = False) -> None:
    """`--strategy` and the flags of the strategy that is named; `--kv_memory`, which has none."""
    purpose = "what is done with the memory's frames for a question"
    group = parser.add_part(STRATEGIES, "direct", purpose, default=default)
    if with_kv_memory:
        group.add_argument(
            "--kv_memory",
            action="store_true",
            default=None,
            help="experimental: the language model reads each frame as it arrives, and keeps what it computed of it "
            "while the frame is remembered",
        )


def strategy_of(options: argparse.Namespace) -> Strategy:
    """The strategy that the arguments name."""
    return make_strategy(options.strategy, **options.strategy_options)


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """How an answer is generated; the defaults are those of `GenerationSettings`."""
    group = parser.add_argument_group("answers")
    group.add_argument("--max_new_tokens", type=int, default=DEFAULTS.max_new_tokens, metavar="N")
    group.add_argument("--temperature", type=float, default=DEFAULTS.temperature, metavar="X", help="0: greedy")
    group.add_argument("--top_p", type=float, default=DEFAULTS.top_p, metavar="X")
    group.add_argument("--top_k", type=int, default=DEFAULTS.top_k, metavar="N")
    group.add_argument("--repetition_penalty", type=float, default=DEFAULTS.repetition_penalty, metavar="X")
    group.add_argument("--seed", type=int, metavar="N", help="of the draws, when the temperature is above 0")


def generation_of(options: argparse.Namespace) -> GenerationSettings:
    """The generation settings that the arguments name; the default of what has no flag."""
    names = [field.name for field in fields(GenerationSettings) if hasattr(options, field.name)]
    flags: dict[str, Any] = {name: getattr(options, name) for name in names}
    return GenerationSettings(**flags)


def processes_of(options: argparse.Namespace) -> int:
    """How many processes read files for `--processes`; 0 is this one.

    Raises:
        InputError: a number below 0.
    """
    count: int | None = options.processes
    if count is not None and count < 0:
        raise InputError(f"--processes: expected 0 or more, got {count}")
    return len(os.sched_getaffinity(0)) if count is None else count


def check_report_path(path: Path | None) -> None:
    """Before hours of work: InputError where `--report` cannot be written; what is there stays as it is."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise InputError(f"--report: expected a file in a folder that is there, got {path}")
    was_there = path.exists()
    try:
        path.open("ab").close()
        if not was_there:
            path.unlink()
        if path.is_file() or not was_there:  # another one is put in its place
            check_writable(path.resolve().parent)
    except OSError as error:
        raise InputError(f"--report: expected a file that can be written, got {path} ({error.strerror})") from error


def write_report_file(path: Path | None, content: Any) -> None:
    """Write `--report` as JSON, if it was given. Names of files need not be UTF-8: escapes hold all of them.

    Raises:
        InputError: the file cannot be written.
    """
    if path is None:
        return
    try:
        write_text(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"--report: expected a file that can be written, got {path} ({error.strerror})") from error
