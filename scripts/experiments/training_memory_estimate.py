#!/usr/bin/env python
"""What the dry run says of memory, against what a process really held; and the table of docs/training.md.

    python scripts/experiments/training_memory_estimate.py [--only NAME ...]
    python scripts/experiments/training_memory_estimate.py --table

The first trains a random model of about 85 million numbers for two optimizer steps in each set-up, each in a process of
its own, and prints the peak beyond what the process had before the model was loaded, with the estimate. CPU, half an
hour; buckets of DeepSpeed's plans are made small, since memory that nothing is written to is not there on a CPU.
The second prints estimates for the published size (4.15 billion numbers), a second each, nothing measured.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from training_plan_memory import give_back_what_is_free, held_bytes, small_plan

ROOT = Path(__file__).resolve().parents[2]

MIB, GIB = 2**20, 2**30
TEXT = {"model_type": "phi3", "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6}
TEXT |= {"num_attention_heads": 6, "num_key_value_heads": 6, "vocab_size": 96_000, "max_position_embeddings": 8192}
TEXT |= {"tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
VISION = {"model_type": "internvl_vision", "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4}
VISION |= {"num_attention_heads": 6, "attention_bias": True, "image_size": 224, "patch_size": 14}
"""Most numbers are in the vocabulary, where they take memory and little time."""

LORA = {"freeze_backbone": True, "freeze_mlp": True, "freeze_llm": True, "use_llm_lora": 16}
SETUPS: dict[str, dict[str, Any]] = {
    "float32, all learns": {"asked": 100, "answered": 5},
    "float32, checkpointing": {"asked": 300, "answered": 5, "activation_checkpointing": True},
    "float32, long answers": {"asked": 5, "answered": 80, "freeze_backbone": True},
    "float32, packed on sdpa": {"asked": 40, "answered": 5, "packing_tokens": 1200},
    "bf16, ZeRO-1": {"plan": "zero1"},
    "bf16, ZeRO-2": {"plan": "zero2"},
    "bf16, ZeRO-2, two processes": {"plan": "zero2", "processes": 2},
    "bf16, ZeRO-3": {"plan": "zero3"},
    "bf16, ZeRO-3, two processes": {"plan": "zero3", "processes": 2},
    "bf16, ZeRO-1, summed in bf16": {"plan": "zero1", "without": "data_types"},
    "bf16, ZeRO-2, summed in bf16": {"plan": "zero2", "without": "data_types"},
    "bf16, ZeRO-3, summed in bf16": {"plan": "zero3", "without": "data_types"},
    "bf16, adapters, checkpointing": {"plan": "zero2_one_gpu", "activation_checkpointing": True, **LORA},
    "bf16, frozen parts, no plan": {"freeze_backbone": True, "freeze_llm": True},
    "bf16, all learns, no plan": {},
}
"""Words of a question and of its answer, the plan and what is taken out of it, processes; other keys are `train`'s."""


COLUMNS = {"weights": "Weights", "gradients": "Gradients", "accumulation": "Sums", "optimizer": "AdamW"}
COLUMNS |= {"buckets": "Buckets", "pixels": "Pixels", "activations": "Activations", "logits": "Logits"}
PUBLISHED = (
    ("8 GPUs", 8, "stage1", "zero2", 4096, 64, 1024),
    ("8 GPUs", 8, "stage1", "zero2", 16384, 256, 4096),
    ("8 GPUs", 8, "stage1", "zero1", 16384, 256, 4096),
    ("8 GPUs", 8, "stage1", "zero3", 16384, 256, 4096),
    ("32 GPUs", 32, "stage1", "zero2", 16384, 256, 4096),
    ("1 GPU", 1, "stage1", "zero3_offload", 4096, 64, 1024),
    ("1 GPU, adapters", 1, "stage2_lora", "zero2_one_gpu", 8192, 32, 8192),
    ("1 GPU, projector alone", 1, "stage1", "", 4096, 64, 1024),
)
"""Rows of docs/training.md: processes, config, plan, tokens, frames and learned tokens of the largest batch."""


def make_model(folder: Path, text: Mapping[str, Any] = TEXT, vision: Mapping[str, Any] = VISION) -> Path:
    """A model with random weights in bfloat16."""
    import torch

    from videochat_online.model import VideoChatOnlineConfig, VideoChatOnlineForConditionalGeneration
    from videochat_online.testing import build_tiny_tokenizer

    tokenizer = build_tiny_tokenizer()
    config = VideoChatOnlineConfig(
        text_config=dict(text), vision_config=dict(vision), image_size=vision["image_size"], template="phi3-chat"
    )
    config.image_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    torch.manual_seed(0)
    VideoChatOnlineForConditionalGeneration(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(folder: Path, asked: int, answered: int, count: int = 8) -> Path:
    """A registry of still pictures, with so many words in the question and in the answer."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    question, answer = (" ".join(["square"] * words) for words in (asked, answered))
    turns = [{"from": "human", "value": f"<image>\n{question}?"}, {"from": "gpt", "value": f"{answer}."}]
    (folder / "rows.json").write_text(json.dumps([{"image": "image.png", "conversations": turns}] * count))
    path = folder / "registry.json"
    path.write_text(json.dumps({"rows": {"annotation": "rows.json", "data_root": str(folder)}}))
    return path


def command_line(model: Path, folder: Path, *, asked: int = 5, answered: int = 1, **keys: Any) -> list[str]:
    """Of `train`, for two steps of two micro-batches: in the first some optimizers have not begun to hold anything."""
    given = {
        "model_name_or_path": model,
        "meta_path": make_rows(folder / "rows", asked, answered),
        "output_dir": folder / "run",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "max_steps": 2,
        "dynamic_image_size": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-5,
    }
    return [str(part) for key, value in (given | keys).items() for part in (f"--{key}", value)]


def measure(flags: Sequence[str]) -> dict[str, Any]:
    """Train in this process: MiB at its peak beyond the start, and the estimate.

    Loading and saving are left out: the peak is that of steps.
    """
    give_back_what_is_free()
    from videochat_online.train import dry_run, parse_arguments, run

    class Measured(run.OnlineTrainer):
        def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
            if not hasattr(self, "_is_watched"):
                self._is_watched = True
                Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
            return super().get_batch_samples(*arguments, **options)

        def train(self, *arguments: Any, **options: Any) -> Any:
            for parameter in self.model.parameters():  # pages of the checkpoint's file would not count
                parameter.data = parameter.data.clone()
            result = super().train(*arguments, **options)
            self.peak = held_bytes("VmHWM") - held_bytes("RssFile", "RssShmem")
            return result

    kept: dict[str, Any] = {}

    def keep(trainer: Any, _: Any) -> None:
        kept["peak"] = trainer.peak

    run.OnlineTrainer, run.save_result = Measured, keep
    arguments = parse_arguments(None, flags)
    estimate = dry_run(arguments)["estimate"]["memory_gib_a_process"]
    before = held_bytes("RssAnon")
    run.train(arguments)
    parts = {name: round(1024 * value) for name, value in estimate.items()}
    return {"measured": round((kept["peak"] - before) / MIB), **parts}


def measure_apart(model: Path, folder: Path, setup: Mapping[str, Any]) -> dict[str, Any]:
    """`measure` in a process of its own, or in several of one launch; of the first of them.

    They are forked from this one, which has imported everything and computed nothing.
    """
    keys = {key: value for key, value in setup.items() if key not in ("plan", "without", "processes")}
    num = int(setup.get("processes", 1))
    if "plan" in setup:
        keys |= {"deepspeed": json.dumps(small_plan(setup["plan"], setup.get("without")))}
    flags = command_line(model, folder, **keys)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_write, args=(folder / f"result{rank}", flags, _of_rank(rank, num, port)))
        for rank in range(num)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit(f"{folder.name}: ended with status {process.exitcode}; its messages are above")
    return dict(json.loads((folder / "result0").read_text()))


def _write(path: Path, flags: Sequence[str], variables: Mapping[str, str]) -> None:
    os.environ.update(variables, OMP_NUM_THREADS="1")
    path.write_text(json.dumps(measure(flags)))


def _of_rank(rank: int, num: int, port: str) -> dict[str, str]:
    if num == 1:
        return {}
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num, "LOCAL_WORLD_SIZE": num}
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | {key: str(value) for key, value in names.items()}


def table() -> None:
    """Print the table of docs/training.md."""
    from videochat_online.testing import published_config
    from videochat_online.train import parse_arguments
    from videochat_online.train.estimate.device_memory import memory_estimate
    from videochat_online.train.estimate.run_estimate import planned_network
    from videochat_online.train.loop.throughput import Work

    print("| | Longest batch | Plan | " + " | ".join(COLUMNS.values()) + " | Together |")
    print("|---|---|---|" + "---:|" * (len(COLUMNS) + 1))
    for label, processes, config, plan, tokens, frames, learned in PUBLISHED:
        os.environ["PLANNED_PROCESSES"] = str(processes)
        path = ROOT / f"configs/train/{config}.yaml"
        keys = ["--deepspeed", "", "--use_cpu", "True", "--global_batch_size", str(1024 * processes)]
        arguments = parse_arguments(path, keys, ROOT)
        if plan:
            arguments.training.deepspeed = str(ROOT / f"configs/deepspeed/{plan}.json")
        options = arguments.model if plan else replace(arguments.model, freeze_llm=True)
        network = planned_network(published_config(), options)
        batch = Work(tokens=tokens, learned_tokens=learned, pictures=frames, samples=1)
        found = memory_estimate(network, arguments, batch)
        cells = [f"{found[name]:.1f}" for name in (*COLUMNS, "together")]
        print(f"| {label} | {tokens:,} tokens, {frames} frames | {plan or 'none'} | {' | '.join(cells)} |")


def main() -> int:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SETUPS, default=list(SETUPS), metavar="NAME")
    parser.add_argument("--table", action="store_true", help="estimates for the published size, as Markdown")
    options = parser.parse_args()
    if options.table:
        table()
        return 0
    import deepspeed  # noqa: F401 - counts as the process's own

    import videochat_online.train  # noqa: F401 - likewise

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model")
        print("| MiB | measured | estimated | ratio | of which |\n|---|---:|---:|---:|---|")
        for setup in options.only:
            place = folder / f"run{options.only.index(setup)}"
            row = measure_apart(model, place, {"bf16": setup.startswith("bf16"), **SETUPS[setup]})
            measured, together = row.pop("measured"), row.pop("together")
            parts = ", ".join(f"{part} {value}" for part, value in row.items() if value)
            print(f"| {setup} | {measured} | {together} | {together / measured:.2f} | {parts} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
