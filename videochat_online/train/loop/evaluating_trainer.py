"""transformers' trainer with validation: held-out sets are evaluated, and the best step is found and kept.

Only named hooks are overridden. What an evaluation computes is `Validation`'s.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerControl

from videochat_online.train.folder.checkpoints import checkpoint_of
from videochat_online.train.loop.lean_trainer import LeanTrainer
from videochat_online.train.loop.validation import Validation, best_checkpoint, has_stopped_early

logger = logging.getLogger(__name__)


class EvaluatingTrainer(LeanTrainer):
    """Evaluates as `eval_strategy` says, without training noticing.

    Args:
        validation: validation on the held-out sets; None where there are none.
        **kwargs: arguments of `LeanTrainer`.
    """

    control: TrainerControl

    def __init__(self, *, validation: Validation | None, **kwargs: Any) -> None:
        rows = None if validation is None else validation.rows  # transformers asks for them
        super().__init__(**kwargs, eval_dataset=rows)
        self.validation = validation

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(str(self.args.output_dir))

    @property
    def is_finished(self) -> bool:
        """Whether the last step is done, or no more are worth it; a run can be told to stop before."""
        return 0 < self.state.max_steps <= self.state.global_step or has_stopped_early(self.state, self.args)

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, on the device of this one; each of them has to call."""
        return self.accelerator.reduce(tensor.to(self.args.device))

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Loss and token accuracy of all held-out rows, logged; training does not notice."""
        if self.validation is None:
            raise ValueError("expected held-out sets, found none")
        metrics = self.validation.evaluate(self.model_wrapped, self._prepare_inputs, self.reduce)
        curves = self.validation.curves
        self.log({curves.get(name, name): value for name, value in metrics.items()})
        names = {curve: name for name, curve in curves.items()}
        entry = self.state.log_history[-1]
        self.state.log_history[-1] = {names.get(curve, curve): value for curve, value in entry.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As transformers does; a new best that is to become the result is saved at once, whatever `save_steps` says.

        Without that its weights are gone where fewer steps are saved than evaluated. What this gives decides with
        `save_strategy` best whether to save: what was asked for before the evaluation is saved in any case.
        """
        is_asked = self.control.should_save
        if self.args.load_best_model_at_end and self.state.best_global_step and self.best() is None:
            logger.warning("%s: the checkpoint of step %d, the best, is gone", self.folder, self.state.best_global_step)
            self.state.best_metric = self.state.best_global_step = None
        is_best = super()._determine_best_metric(metrics, trial)
        if self.state.best_metric is not None and not math.isfinite(self.state.best_metric):
            self.state.best_metric = None  # there was no finite one yet
        if is_best and self.args.load_best_model_at_end:
            self.control.should_save = True
        if self.is_finished:
            self.control.should_training_stop = True
        return is_best or is_asked

    def best(self) -> Path | None:
        """The checkpoint with the best metric so far, as the first process finds it. Every process has to call."""
        path = best_checkpoint(self.state, self.folder)
        is_there = torch.tensor(int(path is not None and self.args.process_index == 0))
        if not self.reduce(is_there):
            return None
        return checkpoint_of(self.folder, self.state.best_global_step)

    def without_validation(self, logs: dict[str, float]) -> dict[str, float]:
        """Seconds and rates of a launch, without the time that went into validation."""
        seconds = 0.0 if self.validation is None else self.validation.seconds
        runtime = logs["train_runtime"]
        rates = {key: logs[key] * runtime / (runtime - seconds) for key in logs if key.endswith("_per_second")}
        return rates | {"train_runtime": runtime - seconds} | ({"eval_seconds": seconds} if seconds else {})

    def _load_best_model(self) -> None:
        """Not at all: the result is copied from its checkpoint, under any plan and after a resume alike."""

    def _finalize_training(self, *arguments: Any, **options: Any) -> Any:
        """As transformers does, but with `save_total_limit` 1 the last checkpoint stays beside the best one."""
        with self.keeping_checkpoints():
            return super()._finalize_training(*arguments, **options)

    @contextmanager
    def keeping_checkpoints(self) -> Iterator[None]:
        """Transformers removes none."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = limit
