"""Validation during training: loss and token accuracy of held-out rows, by set and over all, and which step was best.

Owns the figures, their names, and what evaluating must not touch. Every row counts once, by its supervised tokens, on
any number of processes; sums are of rows in their order, so that the numbers are the same on one process and on eight.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerState

from videochat_online.data import (
    BATCH_REPORT,
    Collator,
    Example,
    HeldOutRows,
    RegistryEntry,
    SkippedSample,
    TrainingDataset,
    load_registries,
)
from videochat_online.data.batches.held_out import leaked_rows
from videochat_online.data.samples.sample_lengths import EstimatedSample
from videochat_online.errors import InputError
from videochat_online.model import VideoChatOnlineForConditionalGeneration
from videochat_online.train.estimate.run_estimate import work_of_samples
from videochat_online.train.folder.checkpoints import checkpoint_of, is_complete
from videochat_online.train.folder.disk import steps_of
from videochat_online.train.folder.training_folder import HELD_OUT_SKIPPED_PREFIX
from videochat_online.train.keys.arguments import Arguments, RunArguments
from videochat_online.train.loop.batches_ahead import SharedCollator
from videochat_online.train.loop.preemption import ignore_signals_to_all
from videochat_online.train.loop.skipped_rows import SkippedLog
from videochat_online.train.loop.throughput import FlopModel

logger = logging.getLogger(__name__)

FIGURES = ("loss", "token_accuracy")
"""Figures of each set and over all: mean cross-entropy of a supervised token, and the part of them that were the
likeliest given what stands before them. Over all, every token counts alike, whatever set it is of."""

_NUMBERS = "numbers"


def load_held_out(arguments: Arguments) -> tuple[RegistryEntry, ...]:
    """The held-out sets of a run; none where it is not validated.

    Raises:
        InputError: keys that do not fit together, a registry that cannot be read, or a metric that does not exist.
    """
    training, meta_path = arguments.training, arguments.data.eval_meta_path
    asked = {
        "eval_meta_path": meta_path,
        "eval_on_start": training.eval_on_start,
        "save_strategy best": training.save_strategy == "best",
        "load_best_model_at_end": training.load_best_model_at_end,
        "early_stopping_patience": training.early_stopping_patience,
        "metric_for_best_model": training.metric_for_best_model,
    }
    if training.eval_strategy == "no":
        for key, is_asked in asked.items():
            if is_asked:
                raise InputError(f"{key}: expected eval_strategy steps or epoch beside it, found no")
        return ()
    if not meta_path:
        raise InputError("eval_meta_path: expected the path of a registry of held-out sets, found none")
    if training.early_stopping_patience is not None and not training.load_best_model_at_end:
        raise InputError("early_stopping_patience: expected load_best_model_at_end beside it")
    entries = load_registries(meta_path, key="eval_meta_path")
    # What the best step can be chosen by: of all sets together, and of each.
    prefixes = ("eval", *(f"eval_{entry.name}" for entry in entries))
    metric, names = training.metric_for_best_model, [f"{prefix}_{one}" for prefix in prefixes for one in FIGURES]
    if metric is not None and f"eval_{metric.removeprefix('eval_')}" not in names and metric not in names:
        raise InputError(f"metric_for_best_model: expected one of {', '.join(names)}, found {metric!r}")
    return entries


class Validation:
    """Evaluates the model of a run on held-out rows.

    Args:
        rows: rows of all held-out sets.
        collator: collator of the run; rows are padded here, whether they are packed in training or not.
        training: arguments of the run: rows in a forward pass, number of processes, and which of them this is.

    Attributes:
        seconds: seconds that evaluating took so far, in this launch.
    """

    def __init__(self, rows: HeldOutRows, collator: Collator, training: RunArguments) -> None:
        self.rows, self._collator, self._training = rows, collator, training
        size, lengths = training.per_device_eval_batch_size, rows.estimate_lengths()
        # The longest first, as what does not fit into memory should fail at once; their like beside them.
        order = sorted(range(len(rows)), key=lambda number: -lengths[number])
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        world = training.world_size
        self._batches = batches[training.process_index :: world]
        # All processes run the model equally often: where its parts are spread they wait for each other.
        self._batches += [[]] * (-(-len(batches) // world) - len(self._batches))
        self._skipped = SkippedLog(
            Path(str(training.output_dir)), training.process_index, len(rows), 1.0, HELD_OUT_SKIPPED_PREFIX
        )
        # wandb and tensorboard put names with slashes into one group for each set; everywhere else, only `_` divides.
        self.curves = {
            f"eval_{name}_{figure}": f"eval_{name}/{figure}" for name in rows.sets for figure in (*FIGURES, "tokens")
        }
        self.seconds = 0.0

    def evaluate(
        self, model: nn.Module, prepare: Callable[[dict[str, Any]], dict[str, Any]], reduce: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        """Figures of all sets by their names. Every process has to call.

        Args:
            model: model as it is trained, wrapped as it may be.
            prepare: function that moves a batch to where the model is.
            reduce: function that sums a tensor over all processes.
        """
        device = self._training.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what is still computed is of the step before
        start = time.perf_counter()
        sums_N3 = torch.zeros(len(self.rows), 3, dtype=torch.float64, device=device)
        errors: list[Exception] = []
        with _undisturbed(model, device), torch.no_grad():
            for batch in self._batches_or_none(errors):
                numbers = batch.pop(_NUMBERS)
                scores = model(**prepare(batch), score=True)
                found_B3 = torch.stack(
                    [part.double() for part in (scores.loss_sum, scores.num_right, scores.num_tokens)], dim=1
                )
                sums_N3[numbers] = found_B3[: len(numbers)]
        num_failed = int(reduce(torch.tensor(len(errors))))
        if errors:
            raise errors[0]
        if num_failed:
            raise InputError(f"{num_failed} other processes could not load held-out rows; each of them says why")
        # Each row is of one process, so that nothing is rounded here.
        sums_N3 = reduce(sums_N3).cpu()
        seconds = time.perf_counter() - start
        self.seconds += seconds
        return self._figures(sums_N3) | {
            "eval_runtime": round(seconds, 4),
            "eval_samples_per_second": round(len(self.rows) / seconds, 3),
        }

    def _batches_or_none(self, errors: list[Exception]) -> Iterator[dict[str, Any]]:
        """The batches of this process; after an error, which is added to those, as many without rows.

        The others would wait for a process that left out its passes.
        """
        loader: Iterator[Any] = iter(())
        for number in range(len(self._batches)):
            if not errors:
                try:
                    loader = loader if number else iter(self._loader())
                    batch = next(loader)
                    self._skipped.add(batch.pop(BATCH_REPORT))
                except Exception as error:
                    errors.append(error)
            if errors:
                batch = self._collate([])
                batch.pop(BATCH_REPORT)
            yield batch

    def _figures(self, sums_N3: Tensor) -> dict[str, float]:
        parts = {"eval": slice(None)} | {f"eval_{name}": part for name, part in self.rows.slices().items()}
        figures: dict[str, float] = {}
        for prefix, part in parts.items():
            loss, num_right, num_tokens = sums_N3[part].sum(dim=0).tolist()
            means = [total / num_tokens if num_tokens else math.nan for total in (loss, num_right)]
            figures |= {f"{prefix}_{figure}": mean for figure, mean in zip(FIGURES, means, strict=True)}
            figures[f"{prefix}_tokens"] = int(num_tokens)
        num_unusable = int((sums_N3[:, 2] == 0).sum())
        return figures | ({"eval_rows_skipped": num_unusable} if num_unusable else {})

    def _loader(self) -> DataLoader[Any]:
        training = self._training
        return DataLoader(
            self.rows,
            batch_sampler=self._batches,
            collate_fn=SharedCollator(self._collate),
            num_workers=training.dataloader_num_workers,
            worker_init_fn=partial(ignore_signals_to_all, None),
            pin_memory=training.dataloader_pin_memory and training.device.type == "cuda",
        )

    def _collate(self, items: Sequence[tuple[int, Example | SkippedSample]]) -> dict[str, Any]:
        batch = self._collator([item for _, item in items])
        batch[_NUMBERS] = [number for number, item in items if isinstance(item, Example)]
        # Each row is as long as it is itself: a long one beside it would change the rope of Phi-3.
        batch["position_ids"] = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        return batch


def warn_of_leak(rows: HeldOutRows, dataset: TrainingDataset) -> None:
    """Say how many held-out rows are trained on as well."""
    leaked = leaked_rows(rows, dataset)
    if leaked:
        logger.warning(
            "eval_meta_path: %d of %d held-out rows are also in the training sets, with the same media and dialogue,"
            " the first of them %s row %d",
            *(len(leaked), len(rows), *leaked[0]),
        )


def estimate_validation(
    training: RunArguments,
    network: VideoChatOnlineForConditionalGeneration,
    sizes: Sequence[EstimatedSample],
    estimate: Mapping[str, Any],
) -> dict[str, Any]:
    """What evaluating costs, as a part of what training costs.

    Args:
        training: arguments of the run, which say when.
        network: network without storage for its weights; afterwards nothing of it learns.
        sizes: sizes of all held-out rows.
        estimate: result of `estimate_run`.
    """
    steps = int(estimate["steps"])
    steps_an_epoch = int(estimate["steps_an_epoch"])
    evaluated = steps_of(training.eval_strategy, training.eval_steps or 1, steps, steps_an_epoch)
    delay = int(training.eval_delay) * (1 if training.eval_strategy == "steps" else steps_an_epoch)
    num = len(evaluated - set(range(delay))) + bool(training.eval_on_start)
    flops = FlopModel(network.requires_grad_(False))(work_of_samples(sizes))
    return {
        "rows": len(sizes),
        "tokens": sum(size.tokens for size in sizes),
        "evaluations": num,
        "operations_of_one": float(f"{flops:.3g}"),
        "part_of_training": float(f"{flops * num / max(1.0, float(estimate['operations'])):.3g}"),
    }


def begin_validation(
    entries: Sequence[RegistryEntry],
    dataset: TrainingDataset,
    collator: Collator,
    training: RunArguments,
    is_resumed: bool,
) -> Validation | None:
    """Validation of a launch, its rows looked at; None without held-out sets.

    Args:
        entries: result of `load_held_out`.
        dataset: dataset that the run trains on.
        collator: collator of the run.
        training: arguments of the run.
        is_resumed: whether the run goes on: what its rows are was said when it began.

    Raises:
        InputError: a set of which no row can be used.
    """
    if not entries:
        return None
    rows = HeldOutRows(entries, dataset.encoder)
    rows.check_usable()
    if not is_resumed and training.process_index == 0:
        warn_of_leak(rows, dataset)
    return Validation(rows, collator, training)


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model without dropout and drop path, and everything random afterwards as it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # a loader draws a seed
            yield
    finally:
        model.train(was_training)


def best_checkpoint(state: TrainerState, folder: Path) -> Path | None:
    """Of the step with the best metric so far, where it is complete."""
    if state.best_global_step is None:
        return None
    path = checkpoint_of(folder, state.best_global_step)
    return path if is_complete(path) else None


def has_stopped_early(state: TrainerState, training: RunArguments) -> bool:
    """Whether the evaluation after the last step found nothing better for as long as `early_stopping_patience` says.

    A run that goes on beyond such a step has not stopped until the next evaluation.
    """
    patience, entries = training.early_stopping_patience, [entry for entry in state.log_history if "eval_loss" in entry]
    is_evaluated = bool(entries) and entries[-1]["step"] == state.global_step
    num_since_best = sum(entry["step"] > (state.best_global_step or 0) for entry in entries)
    return patience is not None and is_evaluated and num_since_best >= patience
