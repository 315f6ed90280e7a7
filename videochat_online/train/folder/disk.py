"""Room on the disk that a run writes to: what its checkpoints take, and what is said where there is too little.

Knows nothing of what is in a file.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.filesize import decimal
from torch import nn

from videochat_online.errors import InputError, one_line
from videochat_online.model.checkpoints.weight_files import is_failed_write
from videochat_online.runs.files import existing_folder
from videochat_online.train.distributed import num_elements
from videochat_online.train.keys.arguments import RunArguments

GIB = 2**30
FULL_PRECISION, HALF_PRECISION, MOMENTS = 4, 2, 8
"""Bytes of a number, and of AdamW's two moments of it."""


class DiskError(InputError):
    """Something could not be written to its end; half of it may be there."""


def checkpoint_bytes(numbers: Mapping[str, int], training: RunArguments, *, is_whole: bool) -> int:
    """What a checkpoint takes that a run with AdamW can go on from, without tokenizer and the like.

    The weights, and the moments of those that learn. DeepSpeed writes the weights a second time, into a file of its
    own, and what learns once more in full precision.

    Args:
        numbers: `all` and `learning` of the model.
        training: arguments of the run.
        is_whole: whether the weights are those of the model, not of what learns alone.
    """
    is_half = bool(training.bf16 and training.deepspeed)
    weights = numbers["all" if is_whole else "learning"] * (HALF_PRECISION if is_half else FULL_PRECISION)
    state = numbers["learning"] * (MOMENTS + (FULL_PRECISION if training.deepspeed else 0))
    return weights * (2 if training.deepspeed else 1) + state


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Elements of `all` parameters of a module, and of those `learning`."""
    sizes = [(num_elements(parameter), parameter.requires_grad) for parameter in network.parameters()]
    return {"all": sum(size for size, _ in sizes), "learning": sum(size for size, learns in sizes if learns)}


def disk_estimate(
    numbers: Mapping[str, int], training: RunArguments, num_steps: int, steps_an_epoch: int, *, is_whole: bool
) -> dict[str, float]:
    """GiB that a run takes on the disk of its folder: one checkpoint, the most at any moment, and what is free now.

    The oldest checkpoint goes when the newest is complete, so there is one more than are kept for a while. The best one
    is kept beside the newest. A run that is told to end saves where nothing else is saved, too.

    Args:
        numbers: `all` and `learning` of the model.
        training: arguments of the run.
        num_steps: steps of the run.
        steps_an_epoch: steps in one epoch.
        is_whole: whether the weights are those of the model, as in `checkpoint_bytes`.
    """
    one = checkpoint_bytes(numbers, training, is_whole=is_whole)
    result = numbers["all"] * (HALF_PRECISION if training.bf16 and training.deepspeed else FULL_PRECISION)
    length = (num_steps, steps_an_epoch)
    saved, evaluated = (
        steps_of(training.save_strategy, training.save_steps, *length),
        steps_of(training.eval_strategy, training.eval_steps or 1, *length),
    )
    if training.save_strategy == "best" or training.load_best_model_at_end:
        saved |= evaluated  # each may be the best so far
    saved = saved or {num_steps}
    limit, has_best = training.save_total_limit, training.metric_for_best_model is not None
    kept = len(saved) if limit is None else min(len(saved), max(limit, 1 + has_best))
    peak = max(min(len(saved), kept + 1) * one, kept * one + result)
    free = shutil.disk_usage(existing_folder(Path(str(training.output_dir)))).free
    found = {"checkpoint": one, "at_most": peak, "free_now": free}
    return {name: round(number / GIB, 2) for name, number in found.items()}


def steps_of(strategy: str, every: float, num_steps: int, steps_an_epoch: int) -> set[int]:
    """After which steps of a run something happens, such as saving or evaluating; after the last in any case."""
    if strategy not in ("steps", "epoch"):
        return set()
    span = steps_an_epoch if strategy == "epoch" else math.ceil(every * num_steps) if every < 1 else int(every)
    return {*range(span, num_steps + 1, span), num_steps}


def folder_bytes(folder: Path) -> int:
    """Of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def check_room(folder: Path, needed: int, last: Path | None) -> None:
    """Before something is written: whether it can fit at all.

    Args:
        folder: folder to be written.
        needed: bytes that it takes at least.
        last: checkpoint that stays.

    Raises:
        InputError: less free space than `needed`.
    """
    free = shutil.disk_usage(existing_folder(folder)).free
    if free < needed:
        raise InputError(f"{folder}: expected room for {decimal(needed)}, found {decimal(free)} free; {_kept(last)}")


@contextmanager
def writing(folder: Path, needed: int, last: Path | None) -> Iterator[None]:
    """DiskError in place of what libraries raise when a disk is full, a quota used up or a disk broken.

    torch and safetensors say neither which folder it was nor what the system said.

    Args:
        folder: folder that is written.
        needed: bytes that it takes, about.
        last: checkpoint that stays.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if not is_failed_write(error) and not isinstance(error, RuntimeError):  # which torch raises
            raise
        with_room = existing_folder(folder)
        free = shutil.disk_usage(with_room).free
        found = f"{type(error).__name__}: {one_line(error, 200)}"
        raise DiskError(
            f"{folder}: could not be written ({found}); it takes about {decimal(needed)}, {decimal(free)} are free;"
            f" {_kept(last)}"
        ) from error


def flush(folder: Path) -> None:
    """Wait until the files of a folder are on the disk; only then is a mark on them worth something.

    Raises:
        OSError: a write of the system that failed, which is often said only here.
    """
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _kept(last: Path | None) -> str:
    where = "from the start" if last is None else f"after {last.name}, which is kept"
    return f"with more room the same command goes on {where}"
