"""Joining the processes of a launch, and leaving them."""

from __future__ import annotations

import logging
import os
import sys

import torch.distributed
from transformers import TrainingArguments

from videochat_online.errors import InputError

_SHARED_MEMORY_OP = "deepspeed_shm_comm"


def join(training: TrainingArguments) -> None:
    """Connect this process with the others that torchrun has started, before the model is loaded.

    ZeRO-3 spreads weights while they are loaded. On a CPU transformers tells DeepSpeed of the other processes
    only later, so it is done here.

    Raises:
        InputError: one process for several GPUs.
    """
    device = training.device  # what joins is its first use
    if training.n_gpu > 1:
        raise InputError(
            f"one process sees {training.n_gpu} GPUs: start one for each (torchrun, or a script in shell/), or name one"
            " in CUDA_VISIBLE_DEVICES"
        )
    if training.deepspeed and device.type == "cpu":
        import deepspeed

        # Optional, for summing on one machine, and compiled at its first use: that needs a C++ compiler, and a
        # process that is killed meanwhile leaves a lock for which every later launch waits without end.
        deepspeed.ops.__compatible_ops__[_SHARED_MEMORY_OP] = False
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)


def leave(status: int = 0) -> None:
    """End a process of torchrun that has done its work; does nothing where processes were not joined.

    gloo can abort while the interpreter shuts down, about once in six launches under load; torchrun would then
    report a finished run as failed. A process that is not torchrun's may have other things to do.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    if not torch.distributed.is_torchelastic_launched():
        return
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
