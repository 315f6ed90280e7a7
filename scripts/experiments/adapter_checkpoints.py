"""What checkpoints of runs over adapters, or the projector alone, take on disk, and that runs go on from them.

    python scripts/experiments/adapter_checkpoints.py [--work outputs/adapter_checkpoints]

Trains a model whose language model is mostly frozen, without DeepSpeed and under ZeRO-1, 2 and 3, in one process and in
two, for four steps. Each run is then gone on with from the checkpoint of its second step, and its result is taken from
that of the fourth. Prints the bytes of a checkpoint, and the largest difference of losses and weights: it should be
zero. Takes some 20 minutes on two cores; needs what the tests need.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/helpers"))

from safetensors.torch import load_file  # noqa: E402

from train_cases import flags, launch, mixed_rows, write_media, write_registry  # noqa: E402
from videochat_online.testing import make_tiny_model  # noqa: E402

FROZEN = {"freeze_backbone": True, "freeze_llm": True}
LEARNING: dict[str, dict[str, object]] = {
    "LoRA": FROZEN | {"freeze_mlp": True, "use_llm_lora": 4},
    "projector": FROZEN,
}
RUN = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "bf16": True, "per_device_train_batch_size": 1}
WEIGHTS = ("model.safetensors", "learned.safetensors")


def train(folder: Path, processes: int, **keys: object) -> dict[str, Any]:
    """Report of a run to its end."""
    done = launch(flags(**keys | {"output_dir": folder}), processes=processes)
    if done.returncode:
        raise SystemExit(f"{folder}: {done.stderr[-2000:]}")
    return dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))


def gone_on(folder: Path, step: int, processes: int, **keys: object) -> tuple[float, float]:
    """Largest differences of losses and weights between a run and the same from its checkpoint of a step."""
    other = folder.with_name(f"{folder.name}_{step}")
    shutil.copytree(folder, other)
    for file in (other / "report.json", *other.glob("model*")):
        file.unlink()
    for checkpoint in other.glob("checkpoint-*"):
        if checkpoint.name != f"checkpoint-{step}":
            shutil.rmtree(checkpoint)
    reports = [json.loads((folder / "report.json").read_text(encoding="utf-8")), train(other, processes, **keys)]
    first, second = ([entry["loss"] for entry in report["losses"]] for report in reports)
    weights = [load_file(place / "model.safetensors") for place in (folder, other)]
    far = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    shutil.rmtree(other)
    return max(abs(a - b) for a, b in zip(first, second, strict=True)), far


def size(folder: Path) -> tuple[int, int]:
    """Bytes of all files, and of those with the weights."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return sum(f.stat().st_size for f in files), sum(f.stat().st_size for f in files if f.name in WEIGHTS)


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("outputs/adapter_checkpoints"))
    work: Path = parser.parse_args().work
    logging.disable(logging.WARNING)
    shutil.rmtree(work, ignore_errors=True)
    media = write_media(work / "media")
    make_tiny_model(work / "model", "phi3")
    paths = {"model_name_or_path": work / "model", "meta_path": write_registry(work, media, mixed=mixed_rows())}
    whole = (work / "model" / "model.safetensors").stat().st_size
    print(f"model: {whole:,} bytes")  # noqa: T201
    print("learns      plan       processes   checkpoint   of it weights   losses gone on   weights")  # noqa: T201
    for name, learning in LEARNING.items():
        for stage in (0, 1, 2, 3):
            plan = {} if stage == 0 else {"deepspeed": ROOT / f"configs/deepspeed/zero{stage}.json"}
            for processes in (1, 2):
                keys = RUN | learning | plan | paths
                folder = work / f"{name}_{stage}_{processes}"
                train(folder, processes, **keys)
                total, weights = size(folder / "checkpoint-2")
                found = [gone_on(folder, step, processes, **keys) for step in (2, 4)]
                losses, far = (max(values) for values in zip(*found, strict=True))
                print(  # noqa: T201
                    f"{name:<10}  {f'ZeRO-{stage}' if stage else 'none':<9}  {processes:>9}  {total:>11,}"
                    f"  {weights:>14,}  {losses:>15}  {far:>8}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
