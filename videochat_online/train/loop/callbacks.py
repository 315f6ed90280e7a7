"""What has to happen at certain moments of transformers' training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from videochat_online.data import EpochSampler
from videochat_online.train.loop.batches_ahead import BatchesAhead


class LoopCallback(TrainerCallback):
    """Keeps sampler, batches and the running mean with the epochs and launches of a run.

    Args:
        sampler: sampler that is told of the epoch that begins; transformers does not reach it through a resumed,
            sharded loader.
        batches: batches that are no longer fetched when an epoch ends, or where it is broken off.
        restore: function that is called when training begins, for what belongs to the log entry that a checkpoint was
            made within.
    """

    def __init__(self, sampler: EpochSampler, batches: BatchesAhead, restore: Callable[[], None]) -> None:
        self._sampler, self._batches, self._restore = sampler, batches, restore

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Comes after the base class has set up checkpointing of activations and loaded the state."""
        # That made the inputs of every part require gradients, as only torch's reentrant checkpointing needs it. Here
        # a frozen vision tower would keep its graph, and run twice in every step.
        kwargs["model"].disable_input_require_grads()
        # A resumed state has the intervals of the launch before; those of this one count.
        state.compute_steps(args, state.max_steps)
        self._restore()

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Epochs count from 0; in the middle of one, `state.epoch` has a fraction."""
        self._sampler.set_epoch(int((state.epoch or 0.0) + 1e-6))

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Before the next epoch is told to the loader, which a thread may not read then."""
        self._batches.close()
