"""Show versions, devices, kernels and video decoders; check a model directory, training sets, or a benchmark.

    videochat-online doctor [--model MODEL] [--json]
    videochat-online doctor --registry FILE [--model MODEL] [--report FILE.json]
    videochat-online doctor --annotations FILE [FILE ...] --data_root DIR [--task NAME ...] [--report FILE.json]

With --model, everything a session needs is loaded. With --registry, every row of its sets is read with its media, as
training reads it; --model then says how large frames are. With --annotations, every video of a benchmark is found and
decoded at both ends of what its questions need. Exit status 2 when something is wrong.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.util import find_spec
from typing import Any

import torch

from videochat_online.cli.doctor.doctor_benchmark import (
    add_benchmark_arguments,
    benchmark_problem,
    inspect_annotations,
    inspection_text,
)
from videochat_online.cli.doctor.doctor_registry import (
    add_registry_arguments,
    inspect_registries,
    registry_problem,
    registry_text,
)
from videochat_online.cli.options import write_report_file
from videochat_online.cli.parser import Parser
from videochat_online.errors import InputError
from videochat_online.model import VideoChatModel, load_model
from videochat_online.runs.provenance import versions
from videochat_online.streaming.kv.cache import why_not_croppable
from videochat_online.streaming.kv.movable import why_not_movable
from videochat_online.video import BACKENDS

PACKAGES = (
    "torch", "transformers", "accelerate", "deepspeed", "peft", "tokenizers", "safetensors", "einops", "av", "decord",
    "torchcodec", "numpy", "pillow", "gradio", "wandb", "flash-attn", "liger-kernel", "bitsandbytes",
)  # fmt: skip


def add_arguments(parser: Parser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("--model", metavar="MODEL", help="to check: a directory, or OWNER/NAME on the Hugging Face Hub")
    parser.add_argument("--tokenizer", metavar="DIR", help="take the tokenizer from another directory")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_registry_arguments(parser)
    add_benchmark_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print the report; the exit status says whether all is sound."""
    is_of_benchmark = bool(options.annotations or options.task_options or options.data_root)
    if options.registry is not None and is_of_benchmark:
        raise InputError("expected --registry or --annotations, got both")
    if options.registry is not None:
        sets = inspect_registries(options)
        content = {name: one.to_json() for name, one in sets.items()}
        return _tell(options, content, registry_text(sets), registry_problem(sets))
    if is_of_benchmark:
        found = inspect_annotations(options)
        return _tell(options, found.as_dict(), inspection_text(found), benchmark_problem(found), indent=None)
    report = describe_machine()
    if options.model:
        report["model"] = describe_model(options.model, options.tokenizer)
    return _tell(options, report, _readable(report), report.get("model", {}).get("problem"))


def _tell(
    options: argparse.Namespace, content: dict[str, Any], text: str, problem: str | None, indent: int | None = 2
) -> int:
    """Say what was found, and what of it is wrong; the exit status."""
    print(json.dumps(content, indent=indent) if options.json else text)  # noqa: T201
    write_report_file(options.report, content)
    if problem is not None:
        print(f"error: {problem}", file=sys.stderr)  # noqa: T201
    return 0 if problem is None else 2


def describe_machine() -> dict[str, Any]:
    """Versions, devices, attention kernels and decoders as found here."""
    found = versions(PACKAGES)
    return {
        "videochat-online": found["videochat-online"],
        "python": found["python"],
        "platform": platform.platform(),
        "packages": {name: found[name] for name in PACKAGES},
        "devices": _devices(),
        "kernels": {
            "attention": "flash_attention_2" if find_spec("flash_attn") and torch.cuda.is_available() else "sdpa",
            "cuda": torch.version.cuda,
            "bfloat16": torch.cuda.is_bf16_supported() if torch.cuda.is_available() else "on the CPU",
        },
        "video_decoders": {name: found["av" if name == "pyav" else name] for name in BACKENDS},
    }


def _devices() -> list[str]:
    found = [f"cpu ({torch.get_num_threads()} threads)"]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found.append(f"cuda:{number} {properties.name} ({properties.total_memory / 2**30:.0f} GiB)")
    return found


def describe_model(directory: str, tokenizer: str | None = None) -> dict[str, Any]:
    """Load a model on the CPU in its own precision and say what it is, or what is wrong with it."""
    try:
        model = load_model(directory, device="cpu", tokenizer=tokenizer)
    except InputError as error:
        return {"path": directory, "problem": str(error)}
    return {"path": directory, "problem": None} | _facts(model)


def _facts(model: VideoChatModel) -> dict[str, Any]:
    frames, backbone, language_model = model.frames, model.backbone, model.language_model
    return {
        "family": backbone.family,
        "language_model": type(getattr(language_model, "model", language_model)).__name__,
        "template": model.template.name,
        "frame_size": list(frames.shape),
        "frames_per_entry": frames.frames_per_entry,
        "tokens_per_entry": frames.grid[0] * frames.grid[1],
        "memory_intervals": list(frames.memory_intervals),
        "times_in_prompts": backbone.writes_times,
        "prefix_reuse": why_not_croppable(language_model) or True,
        "kv_memory": why_not_movable(language_model) or True,
        **backbone.facts(),
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in backbone.parts().items()},
        "vocabulary": len(model.tokenizer),
    }


def _readable(report: dict[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in report.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{key}:")
            lines.append(_readable(value, indent + "  "))
        elif isinstance(value, list):
            lines.append(f"{indent}{key}: {', '.join(map(str, value))}")
        else:
            lines.append(f"{indent}{key}: {'-' if value is None else value}")
    return "\n".join(lines)
