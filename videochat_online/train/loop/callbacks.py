"""What has to happen at certain moments of transformers' training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from videochat_online.data import EpochSampler
from videochat_online.train.loop.batches_ahead import BatchesAhead


class TellEpoch(TrainerCallback):
    """Tells the sampler which epoch begins; transformers does not reach it through a resumed, sharded loader."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Epochs count from 0; in the middle of one, `state.epoch` has a fraction."""
        self.sampler.set_epoch(int((state.epoch or 0.0) + 1e-6))


class CloseEpoch(TrainerCallback):
    """Ends the fetching of an epoch's batches with the epoch, or where it is broken off."""

    def __init__(self, batches: BatchesAhead) -> None:
        self.batches = batches

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the next epoch is told to the loader, which a thread may not read then."""
        self.batches.close()


class KeepFrozenPartsOutOfTheGraph(TrainerCallback):
    """Takes back that activation checkpointing makes the inputs of every part require gradients.

    Only torch's reentrant checkpointing needs that. Here it would make a frozen vision tower keep its graph, and
    run twice in every step.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Comes after the base class has set up checkpointing."""
        kwargs["model"].disable_input_require_grads()


class GoOnWithTheMean(TrainerCallback):
    """Resumes in the middle of a log entry: losses between the entry before and the checkpoint are part of it.

    Args:
        restore: called when training begins.
    """

    def __init__(self, restore: Callable[[], None]) -> None:
        self._restore = restore

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A resumed state also has the intervals of the launch before; those of this one count."""
        state.compute_steps(args, state.max_steps)
        self._restore()
