"""transformers' trainer with our order of samples, an account of skipped ones, and a mark on complete checkpoints.

Only named hooks are overridden.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.scheduler import AcceleratedScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_pt_utils import LabelSmoother

from videochat_online.constants import IGNORE_INDEX
from videochat_online.data import BATCH_REPORT, EpochSampler, PackedDataset, TrainingDataset
from videochat_online.errors import InputError, one_line
from videochat_online.runs.files import share_files, write_json
from videochat_online.train.distributed import fail_together, gathered
from videochat_online.train.folder.checkpoints import (
    COMPLETE_MARK,
    checkpoint_of,
    is_as_long,
    last_checkpoint,
    mark_of,
    rotate,
    run_length,
)
from videochat_online.train.folder.disk import (
    HALF_PRECISION,
    DiskError,
    check_room,
    checkpoint_bytes,
    count_parameters,
    flush,
    folder_bytes,
    writing,
)
from videochat_online.train.loop.batches_ahead import BatchesAhead, SharedCollator
from videochat_online.train.loop.evaluating_trainer import EvaluatingTrainer
from videochat_online.train.loop.lean_trainer import reading
from videochat_online.train.loop.learning_rates import follow, scale_groups
from videochat_online.train.loop.nonfinite_guard import FiniteLosses, StepAccount
from videochat_online.train.loop.preemption import Requests, SaveWhenAsked, ignore_signals_to_all
from videochat_online.train.loop.skipped_rows import SkippedLog
from videochat_online.train.loop.throughput import Throughput
from videochat_online.train.loop.validation import best_checkpoint
from videochat_online.video import normalize


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """InputError for a value that cannot be had: its package is not there, or an option that it needs."""
    try:
        yield
    except (ImportError, ValueError, TypeError) as error:
        raise InputError(f"{key}: cannot be set up: {one_line(error)}") from error


class OnlineTrainer(EvaluatingTrainer):
    """Trains on a `TrainingDataset`, or on packs of its items.

    Args:
        tokenizer: tokenizer that is saved beside each checkpoint's weights. (Trainer's own `processing_class` would
            change the model's special ids.)
        max_bad_fraction: largest part of the seen rows that may be bad; more of them end the run.
        scales: factor of the learning rate for each parameter that learns, by its name.
        lengths: tokens of each item of the training set, where those of one length are to come together.
        requests: requests to save, and to end.
        **kwargs: arguments of `EvaluatingTrainer`; `train_dataset` must be a `TrainingDataset`, or packs of one.
    """

    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerBase,
        max_bad_fraction: float,
        scales: Mapping[str, float],
        requests: Requests,
        lengths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        collator = SharedCollator(kwargs["data_collator"])
        super().__init__(**kwargs | {"data_collator": collator})
        if self.args.label_smoothing_factor:
            # Transformers decides by the name of the model's class whether a position foresees the token after it.
            smoother = LabelSmoother(epsilon=self.args.label_smoothing_factor)
            self.label_smoother: Any = partial(smoother, shift_labels=True)
        self.requests = requests
        self._scales = scales
        self.tokenizer = tokenizer
        dataset = self.train_dataset
        if not isinstance(dataset, (TrainingDataset, PackedDataset)):
            raise TypeError(f"train_dataset: expected a TrainingDataset or packs of it, got {type(dataset).__name__}")
        single = dataset.dataset if isinstance(dataset, PackedDataset) else dataset
        self._sampler = EpochSampler(
            len(dataset),
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            lengths=lengths,
            group_size=self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            shuffle=self.args.train_sampling_strategy != "sequential",
        )
        self._normalization = single.encoder.reader.transform.normalization
        self.skipped = SkippedLog(self.folder, self.args.process_index, len(single), max_bad_fraction)
        self._throughput = Throughput(kwargs["model"], self.args.device)
        self.finite = FiniteLosses(kwargs["model"])
        self.steps = StepAccount()
        self._ahead = BatchesAhead()
        self._saved_at = (0, 0)
        if not self.args.should_log:  # transformers has the first process of each node print
            self.remove_callback(PrinterCallback)
            self.remove_callback(ProgressCallback)
        self.add_callback(LoopCallback(self._sampler, self._ahead, self.restore_unlogged))
        self.add_callback(SaveWhenAsked(requests))

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        return self._sampler

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        """The batches of one optimizer step and their supervised tokens; skipped samples are counted here.

        A thread fetches those of the next step meanwhile. A step in which nothing is learned divides a sum of zero by
        one, not by zero.

        Raises:
            InputError: too many samples are skipped, or another process could not load its own.
        """
        error, batches = None, []
        try:
            waited_s = self._ahead.waited_s
            ahead = self._ahead.of(epoch_iterator, self.args.gradient_accumulation_steps)
            batches = list(islice(ahead, num_batches))
            self._throughput.wait(ahead.waited_s - waited_s)
            for batch in batches:
                report = batch.pop(BATCH_REPORT, None)
                if report is not None:
                    self.skipped.add(report)
                self._throughput.add(batch)
        except Exception as found:  # the others would wait for this process
            error = found
        counts = torch.tensor([self.skipped.num_seen, self.skipped.num_bad, int(error is not None)])
        num_seen, num_bad, num_failed = self.reduce(counts).tolist()
        if error is not None:
            raise error
        if num_failed:
            raise InputError(f"{num_failed} other processes could not load their batches; each of them says why")
        self.skipped.check(num_seen, num_bad)
        batches, num_items = super().get_batch_samples(iter(batches), len(batches), device)
        if batches:
            self.steps.begin()
            self.finite.begin_step()
        if isinstance(num_items, torch.Tensor):
            num_items = num_items.clamp(min=1)
        return batches, num_items

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """As transformers does, one batch at a time; pixels get there as bytes, a quarter of the floats.

        They are normalised in float32 before DeepSpeed gives them its type, and gone from the batch given: the host
        needs them no longer.
        """
        pixels_TCSS = normalize(inputs.pop("pixel_values"), self._normalization, self.args.device)
        return super()._prepare_inputs(inputs | {"pixel_values": pixels_TCSS})

    def train(self, *arguments: Any, **options: Any) -> Any:
        """As transformers does; no thread and no loader process outlives it, however it ends."""
        with self._ahead:
            return super().train(*arguments, **options)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As transformers makes it, but that batches stay on the host: all of a step are fetched before its first.

        Signals to all processes of a job do not end those that load.
        """
        loader: Any = super().get_train_dataloader()
        loader.device = None  # of accelerate's loader; skip_first_batches keeps it
        inner = getattr(loader, "base_dataloader", loader)  # in accelerate's own, which starts the processes
        inner.worker_init_fn = partial(ignore_signals_to_all, inner.worker_init_fn)
        return loader

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """As transformers does; numbers that are not finite are kept out of the gradients.

        Before the last backward pass of a step the processes agree whether any of its batches is learned from. If not,
        the optimizer is told, as for any batch but the last of a step, not to move: even with gradients of zero its
        momentum and weight decay would.
        """
        learns = (inputs["labels"][..., 1:] != IGNORE_INDEX).any()  # label smoothing takes the labels away
        loss = super().compute_loss(model, inputs, *arguments, **options)
        loss = loss.clone()  # some of DeepSpeed's optimizers divide the very tensor that the engine gave once too often
        self.finite.see(loss, learns)
        if self.accelerator.sync_gradients and not self.finite.has_learned(self.reduce):
            self.steps.empty()
            self.accelerator.sync_gradients = False
        return loss

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """As transformers does; a loss that is not finite counts as zero, as its gradients do."""
        loss: torch.Tensor = super().training_step(*arguments, **options)
        return torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """As transformers does; for an empty step DeepSpeed would say what the step before had."""
        return None if self.steps.is_empty else super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Likewise."""
        return None if self.steps.is_empty else super()._get_grad_norm(model, grad_norm)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As transformers does; then parts and layers get their own learning rates."""
        is_new = self.optimizer is None
        with _naming("optim"):
            optimizer = super().create_optimizer(model)
        if is_new and any(scale != 1.0 for scale in self._scales.values()):
            scale_groups(optimizer, self.model if model is None else model, self._scales)
        return optimizer

    def create_scheduler(self, *arguments: Any, **options: Any) -> LRScheduler:
        """As transformers does; it goes on with the optimizer only, which an empty step keeps still."""
        with _naming("lr_scheduler_type"):
            schedule = super().create_scheduler(*arguments, **options)
        if isinstance(schedule, LambdaLR):  # all of them that go on by themselves
            schedule = self.lr_scheduler = AcceleratedScheduler(schedule, [], split_batches=True)
        return schedule

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With tokens a second, padding and the like, over all processes since the last entry.

        Means are over the steps that learned something. Where none did the loss is none: null in the files, NaN for
        those who draw curves.
        """
        if "loss" in logs:
            reduce = self.reduce
            logs |= self._throughput.take(reduce)
            counts = torch.tensor([self.skipped.num_skipped, self.skipped.num_reduced])
            num_skipped, num_reduced = reduce(counts).tolist()
            logs["loss"], num_empty = self.steps.take(logs["loss"])
            counted = {
                "samples_skipped": num_skipped,
                "samples_reduced": num_reduced,
                "empty_steps": num_empty,
                "nonfinite_batches": self.finite.take(reduce),
            }
            logs |= {name: number for name, number in counted.items() if number}
        if "train_loss" in logs:
            logs["train_loss"] = self.steps.of_launch(logs["train_loss"])
            logs |= self.without_validation(logs)
        super().log(logs, start_time)
        entry = self.state.log_history[-1]
        entry |= {key: None for key, value in entry.items() if isinstance(value, float) and not math.isfinite(value)}

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """As always; its time is none of training's."""
        metrics = super().evaluate(*arguments, **options)
        self._throughput.pause(metrics["eval_runtime"])
        return metrics

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        if checkpoint is not None and isinstance(schedule, LambdaLR) and not is_as_long(Path(checkpoint), self.args):
            follow(schedule)  # of a run that has become longer

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            super()._load_rng_state(checkpoint)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As transformers does, with the tokenizer; older checkpoints go only when this one is complete.

        Nothing is done where that of this step is there and nothing was logged since, as at the end of an epoch whose
        last step was the best.

        Raises:
            InputError: weights that are not finite, or a disk without room; the older checkpoints are left.
        """
        moment = (self.state.global_step, len(self.state.log_history))
        if moment == self._saved_at:
            return
        self.finite.check_weights(self.reduce)
        folder = checkpoint_of(self.folder, self.state.global_step)
        last = last_checkpoint(self.folder, before=self.state.global_step)
        numbers = count_parameters(self.model)
        estimate = checkpoint_bytes(numbers, self.args, is_whole=self._kept is None)
        needed = estimate if last is None else folder_bytes(last)
        with fail_together():
            if self.args.should_save:
                (folder / COMPLETE_MARK).unlink(missing_ok=True)
                check_room(folder, numbers["learning"] * HALF_PRECISION if last is None else needed, last)
        try:
            with self.requests.writing(), self.keeping_checkpoints():
                with writing(folder, needed, last):
                    super()._save_checkpoint(model, trial)
                    if self.args.local_process_index == 0:
                        flush(folder)
                unlogged = self._unlogged()  # the others have written their parts, too
                if self.args.should_save:
                    with writing(folder, needed, last):
                        self._complete(folder, unlogged)
            self._saved_at = moment
            if self.args.should_save:
                rotate(self.folder, self.args.save_total_limit, best_checkpoint(self.state, self.folder))
        except DiskError:
            shutil.rmtree(folder, ignore_errors=True)  # the room may be needed to say so
            raise

    def _complete(self, folder: Path, unlogged: dict[str, Any]) -> None:
        self.tokenizer.save_pretrained(folder)
        share_files(folder)
        flush(folder)
        length = {"step": self.state.global_step, "length": run_length(self.args)}
        write_json(folder / COMPLETE_MARK, length | {"processes": self.args.world_size, "unlogged": unlogged})

    def _unlogged(self) -> dict[str, Any]:
        """What the next log entry is made of so far, of each process; every one has to call, as it waits for all."""
        steps, empty = self.steps.unlogged()
        own = {"loss": float(self._tr_loss), "nonfinite": self.finite.unlogged(), "steps": steps, "empty": empty}
        return {"since_step": self._globalstep_last_logged, "of_processes": gathered(own)}

    def restore_unlogged(self) -> None:
        """Go on with it after a resumed checkpoint: the next entry is the mean that it would have been."""
        unlogged = mark_of(checkpoint_of(self.folder, self.state.global_step)).get("unlogged")
        if unlogged is None:
            return  # the first launch
        own = unlogged["of_processes"][self.args.process_index]
        self._tr_loss += own["loss"]
        self._total_loss_scalar -= own["loss"]
        self._globalstep_last_logged = unlogged["since_step"]
        self.finite.restore(own["nonfinite"])
        self.steps.restore(own["steps"], own["empty"])


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
