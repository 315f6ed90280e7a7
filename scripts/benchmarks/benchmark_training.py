#!/usr/bin/env python
r"""What a training step costs beside the model: the visual path, the trainer, the loader.

    python scripts/benchmarks/benchmark_training.py [--size tiny|vision|published] [--steps 20] [--frames 64] \
        [--workers 1]
    python scripts/benchmarks/benchmark_training.py --only loading

`visual`: encode, pool each frame and project, against one pass of the tower and one of the projector on all tokens, in
turns. `step`: our trainer with its loader, ours with batches made before, transformers' own with the same batches, on
the mixed set of benchmark_loader.py. `loading`: how long steps wait for data
where a batch takes half as long to load as to compute (both sleep, half a minute), and where the batches of a step are
before its first forward pass. `frozen`: a pass and its way back under autocast where the projector alone learns, frozen
matrices in float32 against bfloat16, in turns. Only ratios of one run are worth keeping; docs/performance.md has
records.
`vision` has the real vision tower, `published` the whole 4B, with random weights; on a GPU in bfloat16.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from benchmark_loader import Setup, machine, make_set
from measuring import now
from videochat_online.data import BATCH_REPORT, Collator, PackedDataset
from videochat_online.testing import SIZES
from videochat_online.train.loop.throughput import FlopModel, Work, peak_flops, work_of
from videochat_online.train.loop.trainer import OnlineTrainer
from videochat_online.train.setup.frozen_matrices import halve_frozen
from videochat_online.video import normalize

ACCUMULATION, COMPUTING_S = 8, 0.2


def visual(setup: Setup, options: argparse.Namespace) -> dict[str, Any]:
    """Median time of the visual path over that of the bare parts, in turns, with the schedule's ratios."""
    network, schedule = setup.network.eval(), setup.encoder.schedule
    frames = torch.randn(options.frames, 3, *(2 * [network.config.image_size]), device=setup.device, dtype=setup.dtype)
    ratios = [schedule.ratio(index) or 1 for index in range(options.frames)]
    tokens = schedule.num_tokens(range(options.frames), setup.encoder.full_grid)
    features = torch.randn(sum(tokens), network.config.feature_dim, device=setup.device, dtype=setup.dtype)

    def bare() -> None:
        network.encode(frames)
        network.project(features)

    seconds: dict[str, list[float]] = {"path": [], "bare": []}
    with torch.inference_mode():
        for turn in range(options.steps + 2):
            for name, run in (("path", lambda: network.embed_frames(frames, ratios)), ("bare", bare)):
                start = now(setup.device)
                run()
                if turn >= 2:
                    seconds[name].append(now(setup.device) - start)
    path, parts = (statistics.median(seconds[name]) for name in ("path", "bare"))
    return {
        "frames": options.frames,
        "tokens": sum(tokens),
        "path_ms": round(1e3 * path, 2),
        "ratio": round(path / parts, 4),
    }


def step(setup: Setup, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of an optimizer step of each trainer, its batches in the same order, and MFU where the peak is known."""
    tokens = 8192 if setup.device.type == "cuda" else 1024
    packs = PackedDataset(setup.dataset, tokens, False, 0)
    ready = _Ready(packs)
    reports: dict[str, Any] = {}
    work = sum((work_of(setup.collator.pack([ready[n]]), 0) for n in range(len(ready))), Work())
    for name, trainer in (
        ("transformers", _plain(setup, ready, options)),
        ("ours, ready batches", _ours(setup, ready, options)),
        ("ours, with loader", _ours(setup, packs, options)),
    ):
        trainer.train()
        # Steps are timed by their ends; the first two warm up.
        ends = trainer.ends
        reports[name] = {"step_s": round((ends[-1] - ends[1]) / (len(ends) - 2), 4)}
    peak = peak_flops(setup.device)
    flops = FlopModel(setup.network)(work) / len(ready)
    for report in reports.values():
        report["tokens_a_s"] = round(work.tokens / len(ready) / report["step_s"])
        report["mfu"] = None if peak is None else round(flops / report["step_s"] / peak, 3)
    base = reports["transformers"]["step_s"]
    cached = reports["ours, ready batches"]["step_s"]
    return reports | {
        "ours over transformers": round(cached / base, 3),
        "loader over ready": round(reports["ours, with loader"]["step_s"] / cached, 3),
        "tokens a step": work.tokens // len(ready),
    }


def frozen(setup: Setup, options: argparse.Namespace) -> dict[str, Any]:
    """Median time with frozen matrices in bfloat16 over that in float32, which autocast rounds in each pass."""
    network = copy.deepcopy(setup.network).float().train()
    network.requires_grad_(False).projector.requires_grad_(True)
    halved = copy.deepcopy(network)
    halve_frozen(halved, saves=False)
    packs = PackedDataset(setup.dataset, 1024, False, 0)
    batch = setup.collator.pack([packs[0]])
    batch = {key: value for key, value in batch.items() if key != BATCH_REPORT}
    batch["pixel_values"] = normalize(batch["pixel_values"])
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    losses: dict[str, float] = {}
    for turn in range(options.steps + 2):
        for name, model in (("float32", network), ("bfloat16", halved)):
            start = now(setup.device)
            with torch.autocast(setup.device.type, torch.bfloat16):
                loss = model(**batch).loss
            loss.backward()
            losses[name] = float(loss.detach())
            if turn >= 2:
                seconds[name].append(now(setup.device) - start)
    base, half = (statistics.median(seconds[name]) for name in ("float32", "bfloat16"))
    return {"ratio": round(half / base, 3), "same loss": losses["float32"] == losses["bfloat16"]}


class _Ready(PackedDataset):
    """Packs whose examples were encoded before."""

    def __init__(self, packs: PackedDataset) -> None:
        self.__dict__.update(packs.__dict__)
        self._made = [packs[number] for number in range(len(packs))]

    def __getitem__(self, key: int) -> Any:
        return self._made[key % len(self)]


class _Timed:
    """Writes down when each optimizer step ends."""

    ends: list[float]

    def training_step(self, *arguments: Any, **options: Any) -> Any:
        loss = super().training_step(*arguments, **options)  # type: ignore[misc]
        self.ends = [*getattr(self, "ends", []), now(loss.device)]
        return loss


class _TimedPlain(_Timed, Trainer):
    pass


class _TimedOurs(_Timed, OnlineTrainer):
    pass


class _Slow(_Ready):
    """Epochs of a few packs, each of which takes a while to load."""

    def __len__(self) -> int:
        return 2 * ACCUMULATION

    def __getitem__(self, key: int) -> Any:
        time.sleep(COMPUTING_S / 2)
        return self._made[key % len(self._made)]


class _Waiting(OnlineTrainer):
    """Only moves its batches and sleeps in place of computing; writes down what was waited for, and what was moved."""

    waits: list[float]
    held: list[dict[str, Any]]

    def get_batch_samples(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        batches = super().get_batch_samples(*arguments)
        self.waits = [*getattr(self, "waits", []), time.perf_counter() - start]
        sizes = {str(batch["pixel_values"].device): batch["pixel_values"].nbytes for batch in batches[0]}
        self.held = [*getattr(self, "held", []), {"batches": len(batches[0]), "bytes_of_one_by_device": sizes}]
        return batches

    def training_step(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        pixels_TSSC = inputs["pixel_values"]
        self.held[-1].setdefault("first", f"{pixels_TSSC.dtype} on {pixels_TSSC.device} until it is its turn")
        loss = 0.0 * self._prepare_inputs(inputs)["pixel_values"].sum()
        time.sleep(COMPUTING_S)
        return loss


def loading(setup: Setup, options: argparse.Namespace) -> dict[str, Any]:
    """Part of a step's time that it waits for data, and what its batches are before the first forward pass."""
    slow = _Slow(PackedDataset(setup.dataset, 1024, False, 0))
    found, keys = {}, {"max_steps": 6, "gradient_accumulation_steps": ACCUMULATION}
    for workers in (0, 1):
        trainer = _Waiting(
            model=setup.network,
            args=_arguments(setup, options, tempfile.mkdtemp(), workers, **keys),
            train_dataset=slow,
            data_collator=setup.collator.pack,
            tokenizer=setup.tokenizer,
            max_bad_fraction=0.0,
            scales={},
        )
        trainer.train()
        shares = [round(wait / (wait + ACCUMULATION * COMPUTING_S), 4) for wait in trainer.waits]
        found[f"{workers} loader processes"] = {
            "first steps of epochs": shares[::2],
            "other steps": shares[1::2],
            "before the first forward": trainer.held[-1],
        }
    return found


class _Batches(Dataset[Any]):
    def __init__(self, packs: _Ready, collator: Collator) -> None:
        made = [collator.pack([packs[number]]) for number in range(len(packs))]
        self.made = [batch | {"pixel_values": normalize(batch["pixel_values"])} for batch in made]

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, number: int) -> Any:
        return {key: value for key, value in self.made[number].items() if key != BATCH_REPORT}


def _arguments(
    setup: Setup, options: argparse.Namespace, folder: str, workers: int, **changes: Any
) -> TrainingArguments:
    keys: dict[str, Any] = {"max_steps": options.steps + 2} | changes
    return TrainingArguments(
        output_dir=folder,
        **keys,
        per_device_train_batch_size=1,
        learning_rate=1e-6,
        bf16=setup.device.type == "cuda",
        gradient_checkpointing=setup.device.type == "cuda",
        gradient_checkpointing_kwargs={"use_reentrant": False},
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        logging_steps=10_000,
        train_sampling_strategy="sequential",
        disable_tqdm=True,
        dataloader_num_workers=workers,
        optim="adamw_torch_fused" if setup.device.type == "cuda" else "adamw_torch",
        use_cpu=setup.device.type == "cpu",
    )


def _plain(setup: Setup, ready: _Ready, options: argparse.Namespace) -> Any:
    arguments = _arguments(setup, options, tempfile.mkdtemp(), 0)
    batches = _Batches(ready, setup.collator)
    return _TimedPlain(model=setup.network, args=arguments, train_dataset=batches, data_collator=lambda items: items[0])


def _ours(setup: Setup, packs: PackedDataset, options: argparse.Namespace) -> Any:
    is_ready = isinstance(packs, _Ready)
    workers = 0 if is_ready else options.workers
    return _TimedOurs(
        model=setup.network,
        args=_arguments(setup, options, tempfile.mkdtemp(), workers),
        train_dataset=packs,
        data_collator=setup.collator.pack,
        tokenizer=setup.tokenizer,
        max_bad_fraction=0.0,
        scales={},
    )


def main() -> int:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--only", choices=("visual", "step", "loading", "frozen"))
    parser.add_argument("--steps", type=int, default=20, help="that are timed")
    parser.add_argument("--frames", type=int, default=64, help="of the visual path")
    parser.add_argument("--workers", type=int, default=1, help="processes of the loader")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(options.size, make_set(Path(folder)))
        result = machine(setup)
        measures = (("visual", visual), ("step", step), ("loading", loading), ("frozen", frozen))
        for name, measure in measures:
            if options.only in (None, name):
                result[name] = measure(setup, options)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
