"""transformers' trainer with checkpoints of what learns alone, where that is little; only named hooks are overridden.

What is in them, and when they are such, is said by `learned_weights`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DeepSpeedSchedulerWrapper
from transformers import Trainer
from transformers.integrations import deepspeed_load_checkpoint
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from videochat_online.errors import InputError, one_line
from videochat_online.model.checkpoints.saved_adapters import holds_learned
from videochat_online.train.folder.learned_weights import StartingModel, kept_names, merged, put_weights, write_learned


@contextmanager
def reading(checkpoint: Path | str | None) -> Iterator[None]:
    """InputError in place of what a broken file of a checkpoint raises: a pickle is a program, and fails like one."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {one_line(error, 200)}"
        raise InputError(
            f"{checkpoint}: expected a checkpoint that can be read, found {found}; without it the run goes on from the"
            " one before"
        ) from error


class LeanTrainer(Trainer):
    """Saves and goes on from checkpoints of either kind.

    Args:
        start: the model that the run starts from; without it checkpoints are whole.
        **kwargs: arguments of `Trainer`.
    """

    def __init__(self, *, start: StartingModel | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start = start
        self._kept = None if start is None else kept_names(kwargs["model"], start)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The result with its adapters merged; a checkpoint, of what learns alone where that is little."""
        folder = Path(str(output_dir or self.args.output_dir))
        is_checkpoint = folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")
        is_writer = bool(self.args.should_save)
        if is_checkpoint and self.start is not None and self._kept is not None:
            write_learned(folder, self.model, self.start, self._kept, is_writer=is_writer)
        elif is_checkpoint:
            super().save_model(str(folder), _internal_call)
        else:
            self._save(str(folder), state_dict=merged(self.model, is_writer=is_writer))
            if self.args.push_to_hub and not _internal_call:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As transformers does, which leaves the frozen parts out of DeepSpeed's files for PEFT's own class only."""
        if self._kept is None or not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save and not isinstance(self.lr_scheduler, DeepSpeedSchedulerWrapper):
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """As transformers does, which wants all weights from DeepSpeed's files, but for PEFT's own class."""
        checkpoint = resume_from_checkpoint
        if checkpoint is None or not self.is_deepspeed_enabled or not holds_learned(checkpoint):
            return super()._prepare_for_training(max_steps, train_dataloader, checkpoint)
        with reading(checkpoint):  # what is kept and frozen is not in DeepSpeed's files
            put_weights(self.model, Path(checkpoint))
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        with reading(checkpoint):
            deepspeed_load_checkpoint(self.model_wrapped, checkpoint, load_module_strict=False)
            self._load_optimizer_and_scheduler(checkpoint)
            self._load_scaler(checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *arguments: Any, **options: Any) -> None:
        with reading(resume_from_checkpoint):
            if holds_learned(resume_from_checkpoint):
                put_weights(self.model, Path(resume_from_checkpoint))
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, *arguments, **options)
