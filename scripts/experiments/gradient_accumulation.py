#!/usr/bin/env python
"""How far the gradients of a step are from the sum of its micro-batches' gradients, by DeepSpeed plan.

    python scripts/experiments/gradient_accumulation.py [--micro_batches 8 32 128]

Shows what `data_types.grad_accum_dtype: fp32` is for. A small network in bfloat16 is trained by the shipped plans, and
by the same without the key; the gradient that the optimizer is about to use is compared with the fp32 sum of the very
bfloat16 gradients that it was made of. One process, CPU, half a minute.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PLANS = Path(__file__).resolve().parents[2] / "configs" / "deepspeed"
NAMES = ("zero1", "zero2", "zero2_one_gpu", "zero3")
WIDTH = 64


def without_accumulation(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan as DeepSpeed has it where nothing is said of how gradients are summed."""
    return {key: value for key, value in plan.items() if key not in ("data_types", "communication_data_type")}


def accumulation_error(plan: dict[str, Any], num_micro_batches: int) -> float:
    """Relative error of a step's gradient against the fp32 sum of the same micro-batches' gradients.

    Args:
        plan: plan as a file in configs/deepspeed holds it.
        num_micro_batches: micro-batches in the step.
    """
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)).bfloat16()
    sums: dict[str, Tensor] = {}

    def added(name: str) -> Any:
        def hook(gradient: Tensor) -> None:
            sums[name] = sums.get(name, torch.zeros(())) + gradient.float()

        return hook

    settings = {
        "train_batch_size": num_micro_batches,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": num_micro_batches,
        "gradient_clipping": 0.0,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
    }
    auto = {key: WIDTH**2 for key, value in plan["zero_optimization"].items() if value == "auto"}
    zero = plan["zero_optimization"] | auto
    zero |= {key: min(zero[key], 10**6) for key in ("reduce_bucket_size", "allgather_bucket_size") if key in zero}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    engine, *_ = deepspeed.initialize(
        model=network, optimizer=optimizer, config=plan | settings | {"zero_optimization": zero}
    )
    for name, parameter in engine.module.named_parameters():
        parameter.register_hook(added(name))
    for number in range(num_micro_batches):
        engine.set_gradient_accumulation_boundary(number == num_micro_batches - 1)
        loss = engine(torch.randn(4, WIDTH).bfloat16()).float().square().mean()
        # As the trainer does: the loss is a tensor of its own, not the one that the engine returned.
        engine.backward(loss, scale_wrt_gas=False)
    found = {name: safe_get_full_grad(parameter).float() for name, parameter in engine.module.named_parameters()}
    engine.destroy()
    missed = sum(float((found[name] - total).square().sum()) for name, total in sums.items())
    return (missed / sum(float(total.square().sum()) for total in sums.values())) ** 0.5


def main() -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro_batches", type=int, nargs="+", default=[8, 32, 128])
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    print("| plan | " + " | ".join(f"{num} micro-batches" for num in options.micro_batches) + " |")
    print("|---|" + "---:|" * len(options.micro_batches))
    for name in NAMES:
        plan = json.loads((PLANS / f"{name}.json").read_text(encoding="utf-8"))
        for label, chosen in ((name, plan), (f"{name}, nothing said", without_accumulation(plan))):
            errors = [accumulation_error(chosen, num) for num in options.micro_batches]
            print(f"| {label} | " + " | ".join(f"{error:.1e}" for error in errors) + " |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
