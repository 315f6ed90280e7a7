"""Joining the processes of a launch, and leaving them."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.distributed
from torch import nn
from transformers import TrainingArguments

from videochat_online.errors import InputError
from videochat_online.isolation import kill_with_parent
from videochat_online.runs.run_folder import differences, in_one_line

logger = logging.getLogger(__name__)

_SHARED_MEMORY_OP = "deepspeed_shm_comm"


def join(training: TrainingArguments) -> None:
    """Connect this process with the others that torchrun has started, before the model is loaded.

    ZeRO-3 spreads weights while they are loaded. On a CPU transformers tells DeepSpeed of the other processes
    only later, so it is done here.

    Raises:
        InputError: one process for several GPUs, or a precision that is for GPUs alone.
    """
    _end_with_launcher()
    if training.use_cpu:
        _check_address()
    device = training.device  # what joins is its first use
    if training.n_gpu > 1:
        raise InputError(
            f"one process sees {training.n_gpu} GPUs: start one for each (torchrun, or a script in shell/), or name one"
            " in CUDA_VISIBLE_DEVICES"
        )
    if training.fp16 and device.type == "cpu":  # accelerate would compute in float32, and not say so
        raise InputError("fp16: expected a GPU, found a CPU, which has bf16")
    if training.deepspeed and device.type == "cpu":
        import deepspeed

        # Optional, for summing on one machine, and compiled at its first use: that needs a C++ compiler, and a
        # process that is killed meanwhile leaves a lock for which every later launch waits without end.
        deepspeed.ops.__compatible_ops__[_SHARED_MEMORY_OP] = False
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)


def _end_with_launcher() -> None:
    """The system ends this process as soon as torchrun, which has started it, is gone.

    It may be in a sum that another node, which is gone, never joins: it would heed no other signal, and keep the run's
    folder and its GPU from the next launch until the backend's timeout.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        kill_with_parent()


def _check_address() -> None:
    """gloo, which connects processes without GPUs, takes the address that a machine's own name stands for."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return  # once for a node
    is_alone = os.environ.get("WORLD_SIZE", "1") == os.environ.get("LOCAL_WORLD_SIZE", "1")
    if is_alone or os.environ.get("GLOO_SOCKET_IFNAME"):
        return
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError as error:
        address = str(error)
    if address.startswith("127.") or not address[:1].isdigit():
        logger.warning(
            "%s: the name of this node stands for %s, where other nodes do not reach it: name its network interface in"
            " GLOO_SOCKET_IFNAME (`ip -brief address` lists them)",
            socket.gethostname(),
            address,
        )


@contextmanager
def quiet_but_first(*, speaks: bool) -> Iterator[None]:
    """Log what is no error in one process only, as all of them find the same.

    Args:
        speaks: whether this process is the one.
    """
    ours = logging.getLogger(__package__.partition(".")[0])
    level = ours.level
    if not speaks:
        ours.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ours.setLevel(level)


def is_joined() -> bool:
    """Whether there are other processes to talk to."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def node_name() -> str:
    """Of this machine, as its users know it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks; each of them has to call."""
    if not is_joined():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


@contextmanager
def fail_together() -> Iterator[None]:
    """Raise in all processes where the block fails in one, so that none waits for another for ever.

    Raises:
        InputError: another process has failed; names it, its node, and its error.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as found:
        error = found
    message = None if error is None else str(error) if isinstance(error, InputError) else repr(error)
    reports = gathered(None if message is None else (node_name(), message))
    if error is not None:
        raise error
    for rank, report in enumerate(reports):
        if report is not None:
            raise InputError(f"process {rank} on {report[0]}: {report[1]}")


def check_alike(facts: Mapping[str, Any]) -> None:
    """Processes that were started with different keys or data would train something that nobody asked for.

    Raises:
        InputError: a process differs from the first one; names it, its node, and what differs.
    """
    everyone = gathered((node_name(), dict(facts)))
    first_node, first = everyone[0]
    for rank, (node, other) in enumerate(everyone):
        if found := differences(first, other):
            told = in_one_line(found, lambda one: f"{one.name}: {one.now}, there {one.was}")
            raise InputError(f"process {rank} on {node} was started otherwise than process 0 on {first_node}: {told}")


def num_elements(parameter: torch.Tensor) -> int:
    """Elements of a whole parameter; under ZeRO-3 its own size is that of this process's part."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


@contextmanager
def assembled(parameter: nn.Parameter, *, writes: bool = False) -> Iterator[None]:
    """Where ZeRO-3 has spread a parameter, the whole of it; every process has to enter.

    Args:
        parameter: parameter of the network.
        writes: whether what the first process writes meanwhile is spread again.
    """
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if writes else None):
        yield


def whole_parameters(named: Iterable[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and numbers of parameters, one whole one after the other; every process has to go through them."""
    for name, parameter in named:
        with assembled(parameter):
            yield name, parameter.detach()


def leave(status: int = 0) -> None:
    """End a process of torchrun that has done its work; does nothing where processes were not joined.

    gloo can abort while the interpreter shuts down, about once in six launches under load; torchrun would then
    report a finished run as failed. A process that is not torchrun's may have other things to do.
    """
    if not is_joined():
        return
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    if not torch.distributed.is_torchelastic_launched():
        return
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
