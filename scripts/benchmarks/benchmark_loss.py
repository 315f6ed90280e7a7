r"""Peak memory of the loss and its backward pass: logits of all tokens against the chunks that training takes.

    python scripts/benchmarks/benchmark_loss.py [--tokens 32768] [--learned 1.0] [--words 32064] [--width 64] \
        [--num_chunks 8 16]

Each measurement is a process of its own: the peak of its resident set (Linux) beyond what it held before. The plain
way is transformers' loss on the logits of a quarter of the tokens, times four, as few machines could hold it.
`expected` is the largest chunk's logits three times over: themselves, their softmax, their gradient, in fp32. Last,
loss and gradients of both ways are compared on a sixteenth of the tokens, in fp32.

Sample (2 shared cores of an x86-64 server, many other jobs running, 1 thread; torch 2.13.0+cpu, fp32):
way                     tokens  peak GiB  expected  plain / it
plain                     8192     2.937
plain, extrapolated      32768    11.748
8 chunks                 32768     1.492     1.468         7.9
16 chunks (default)      32768     0.759     0.734        15.5
64 chunks                32768     0.209     0.183        56.2
{"ratios": {"8": 7.9, "16": 15.5, "64": 56.2},
 "fp32_differences": {"loss": 1.81e-07, "head": 2.05e-07, "hidden": 0.0},
 "torch": "2.13.0+cpu", "machine": "x86_64, 2 CPUs, 1 thread"}
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from videochat_online.model.loss import NUM_CHUNKS, chunked_loss

PLAIN_PART = 4
FP32_TENSORS = 3
"""Logits, softmax and gradient."""


def resident_gib(name: str) -> float:
    """VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 2**20


def make_input(options: argparse.Namespace, num_tokens: int) -> tuple[nn.Linear, Tensor, Tensor]:
    """A head, hidden states [1, L, D] and labels [1, L] of which a part is learned."""
    torch.manual_seed(0)
    head = nn.Linear(options.width, options.words, bias=False, dtype=getattr(torch, options.dtype))
    hidden = torch.randn(1, num_tokens, options.width, dtype=head.weight.dtype, requires_grad=True)
    labels = torch.randint(options.words, (1, num_tokens)).masked_fill(
        torch.rand(1, num_tokens) >= options.learned, -100
    )
    return head, hidden, labels


def loss_of(head: nn.Linear, hidden: Tensor, labels: Tensor, num_chunks: int) -> Tensor:
    """The loss in chunks; 0 of them is the plain way."""
    if num_chunks:
        return chunked_loss(head, hidden, labels, num_chunks=num_chunks)
    return ForCausalLMLoss(head(hidden), labels, head.out_features)


def measure(options: argparse.Namespace) -> float:
    """GiB at the peak beyond the start."""
    head, hidden, labels = make_input(options, options.tokens)
    loss_of(head, hidden[:, :64], labels[:, :64], options.num_chunks[0]).backward()  # libraries make themselves at home
    start = resident_gib("VmRSS")
    loss_of(head, hidden, labels, options.num_chunks[0]).backward()
    return resident_gib("VmHWM") - start


def in_process(options: argparse.Namespace, num_tokens: int, num_chunks: int) -> float:
    """The same in a new process, whose malloc gives memory back at once."""
    keys = ("learned", "words", "width", "dtype", "threads")
    flags = [str(part) for key in keys for part in (f"--{key}", getattr(options, key))]
    command = [
        sys.executable,
        __file__,
        "--child",
        "--tokens",
        str(num_tokens),
        "--num_chunks",
        str(num_chunks),
        *flags,
    ]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)


def differences(options: argparse.Namespace) -> dict[str, float]:
    """Relative differences of both ways in fp32: loss, gradients of head and hidden states (L2)."""
    options = argparse.Namespace(**{**vars(options), "dtype": "float32"})
    head, hidden, labels = make_input(options, max(1, options.tokens // 16))
    values = []
    for num_chunks in (0, NUM_CHUNKS):
        loss = loss_of(head, hidden, labels, num_chunks)
        values.append((loss.detach(), *torch.autograd.grad(loss, (head.weight, hidden))))
    return {
        name: float((one - other).norm() / one.norm())
        for name, one, other in zip(("loss", "head", "hidden"), *values, strict=True)
    }


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--learned", type=float, default=1.0, help="part of the tokens that is supervised")
    parser.add_argument("--words", type=int, default=32_064)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--num_chunks", type=int, nargs="+", default=[NUM_CHUNKS])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(measure(options))
        return 0
    few = options.tokens // PLAIN_PART
    plain = in_process(options, few, 0)
    print(f"{'way':<22} {'tokens':>7} {'peak GiB':>9} {'expected':>9} {'plain / it':>11}")
    print(f"{'plain':<22} {few:>7} {plain:>9.3f}")
    print(f"{'plain, extrapolated':<22} {options.tokens:>7} {plain * PLAIN_PART:>9.3f}")
    ratios = {}
    for num_chunks in options.num_chunks:
        peak = in_process(options, options.tokens, num_chunks)
        expected = math.ceil(options.tokens * options.learned / num_chunks) * options.words * 4 * FP32_TENSORS / 2**30
        ratios[num_chunks] = round(plain * PLAIN_PART / peak, 1)
        name = f"{num_chunks} chunks" + (" (default)" if num_chunks == NUM_CHUNKS else "")
        print(f"{name:<22} {options.tokens:>7} {peak:>9.3f} {expected:>9.3f} {ratios[num_chunks]:>11.1f}")
    record = {"ratios": ratios, "fp32_differences": differences(options), "torch": torch.__version__}
    print(json.dumps(record | {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {options.threads} thread"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
