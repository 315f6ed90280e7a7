#!/usr/bin/env python
"""What DeepSpeed's plans hold, against what train/estimate/device_memory.py says of them.

    python scripts/experiments/training_plan_memory.py

A stack of matrices (50 million numbers) is trained by each shipped plan for two steps of two micro-batches of one row,
so that next to nothing but weights, gradients, sums, AdamW's state and buckets is there; and by the same plans summing
in bfloat16. Buckets are made small, since memory that nothing is written to is not there on a CPU. One process each,
CPU, half a minute.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
WIDTH, DEPTH, BUCKET = 1024, 48, 5 * 10**6
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Numbers that malloc.h has for them."""


def held_bytes(*fields: str) -> int:
    """Of /proc/self/status, added up."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.split(":")[0] in fields)


def give_back_what_is_free() -> None:
    """Tell the C library to: what a process holds is then what it has in use."""
    allocator = ctypes.CDLL(None)
    allocator.mallopt(_MMAP_THRESHOLD, 65536)
    allocator.mallopt(_TRIM_THRESHOLD, 0)


def small_plan(name: str, without: str | None = None) -> dict[str, Any]:
    """A shipped plan with buckets that a small model fills, and with one of its parts taken out."""
    plan = json.loads((ROOT / f"configs/deepspeed/{name}.json").read_text())
    zero = plan["zero_optimization"]
    zero |= {key: min(zero[key], BUCKET) for key in zero if key.endswith("bucket_size") and zero[key] != "auto"}
    if without:
        plan = {key: value for key, value in plan.items() if key not in (without, "communication_data_type")}
    return dict(plan)


def measure(plan: dict[str, Any]) -> tuple[float, float]:
    """Train by a plan in this process, in bfloat16: MiB at its peak beyond the start, and those estimated."""
    import deepspeed
    import torch

    from videochat_online.train.estimate.device_memory import Sizes, held_by_plan
    from videochat_online.train.keys.deepspeed_plan import resolve_plan

    give_back_what_is_free()
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    zero = {key: WIDTH**2 if value == "auto" else value for key, value in plan["zero_optimization"].items()}
    settings = {"train_batch_size": 2, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2}
    settings |= {"gradient_clipping": 1.0, "bf16": {"enabled": True}, "fp16": {"enabled": False}}
    plan = plan | settings | {"zero_optimization": zero}
    before = held_bytes("RssAnon")
    network = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))).bfloat16()
    # Two groups, as the trainer has them: matrices decay, the rest does not.
    groups = [{"params": [p for p in network.parameters() if (p.ndim > 1) == decays]} for decays in (True, False)]
    engine, *_ = deepspeed.initialize(
        model=network, optimizer=torch.optim.AdamW(groups, lr=1e-4, fused=True), config=plan
    )
    num = WIDTH * (WIDTH + 1) * DEPTH
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
    for number in range(4):
        engine.set_gradient_accumulation_boundary(number % 2 == 1)
        loss = engine(torch.randn(1, WIDTH).bfloat16()).float().square().mean()
        engine.backward(loss.clone(), scale_wrt_gas=False)
        if number % 2 == 1:
            engine.step()
    peak = held_bytes("VmHWM") - held_bytes("RssFile", "RssShmem") - before
    resolved = resolve_plan(Namespace(deepspeed=plan, bf16=True, fp16=False), WIDTH)
    assert resolved is not None
    sizes = Sizes(all=num, learning=num, largest=WIDTH**2, head=0, halved=0, matrices=num)
    return peak / MIB, sum(held_by_plan(resolved, sizes).values()) / MIB


def child() -> int:
    """`measure` of the plan that the command line has as JSON; prints the two numbers."""
    print(*measure(json.loads(sys.argv[1])))
    return 0


def _print_row(label: str, plan: dict[str, Any]) -> None:
    peak, estimated = measure(plan)
    print(f"| {label} | {peak:.0f} | {estimated:.0f} | {estimated / peak:.2f} |", flush=True)


def main() -> int:
    """Print the table as Markdown."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    import deepspeed  # noqa: F401 - so that each process has it

    import videochat_online.train  # noqa: F401 - likewise

    print("| plan | measured MiB | estimated | ratio |\n|---|---:|---:|---:|", flush=True)
    for name in ("zero1", "zero2", "zero2_one_gpu", "zero3"):
        for label, without in ((name, None), (f"{name}, summed in bf16", "data_types")):
            context = multiprocessing.get_context("fork")
            process = context.Process(target=_print_row, args=(label, small_plan(name, without)))
            process.start()
            process.join()
            if process.exitcode:
                return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
