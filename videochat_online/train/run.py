"""A training run from its arguments to a saved model; reads from top to bottom."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from videochat_online.constants import IGNORE_INDEX
from videochat_online.data import (
    Collator,
    Example,
    HeldOutRows,
    PackedDataset,
    SampleEncoder,
    SkippedSample,
    TrainingDataset,
    load_registries,
)
from videochat_online.data.batches.registry import RegistryEntry
from videochat_online.data.samples.sample_lengths import EstimatedSample
from videochat_online.errors import InputError
from videochat_online.runs.files import file_digest
from videochat_online.text import visual_token_id
from videochat_online.train.distributed import check_alike, fail_together, gathered, join, quiet_but_first
from videochat_online.train.estimate.device_memory import remarks
from videochat_online.train.estimate.run_estimate import corrected, estimate_run, estimate_together, planned_network
from videochat_online.train.folder.checkpoints import is_as_long, last_checkpoint
from videochat_online.train.folder.disk import DiskError, disk_estimate, writing
from videochat_online.train.folder.final_model import save_result
from videochat_online.train.folder.learned_weights import check_start, is_little_learned
from videochat_online.train.folder.training_folder import REPORT_FILE, TrainingFolder, resolved_keys, shared_keys
from videochat_online.train.folder.training_report import TrainReport, make_report, read_report, write_run_card
from videochat_online.train.keys.arguments import Arguments, RunArguments
from videochat_online.train.loop.lean_trainer import reading
from videochat_online.train.loop.learning_rates import learning_rate_scales
from videochat_online.train.loop.preemption import STOP, Requests
from videochat_online.train.loop.trainer import OnlineTrainer
from videochat_online.train.loop.validation import (
    Validation,
    begin_validation,
    estimate_validation,
    has_stopped_early,
    load_held_out,
    warn_of_leak,
)
from videochat_online.train.setup.lora import ADAPTER_FOLDER
from videochat_online.train.setup.model_setup import TrainingModel, load_texts, load_training_model, make_encoder

logger = logging.getLogger(__name__)

ROWS_TRIED = 8
"""Rows of each set in a dry run, from all over it; `doctor --registry` reads every row."""


def train(arguments: Arguments) -> TrainReport:
    """Train a model, or go on where a run that was interrupted has stopped.

    The folder `output_dir` gets `run.json`, `config.yaml`, checkpoints, `report.json`, and at the end the model:
    `load_model(output_dir)` reads it. A finished run is left as it is. One that was told to stop before its last step
    is not finished: its report says so, and the next call goes on.

    Args:
        arguments: result of `parse_arguments`. Under DeepSpeed it must have been made in this process.

    Raises:
        InputError: something given is wrong: a registry, the model, an output folder that holds another run, or more
            rows that cannot be used than `max_bad_fraction` allows.
    """
    training = arguments.training
    _check(arguments)
    join(training)
    folder = TrainingFolder(str(training.output_dir), resolved_keys(arguments))
    with (
        quiet_but_first(speaks=training.should_log),
        closing(folder),
        Requests(folder.path, rank=training.process_index, save_minutes=training.save_minutes) as requests,
    ):
        return _train(arguments, folder, requests)


def _train(arguments: Arguments, folder: TrainingFolder, requests: Requests) -> TrainReport:
    training = arguments.training
    with fail_together():
        entries, held_out = load_registries(str(arguments.data.meta_path)), load_held_out(arguments)
        sets = _facts(arguments, entries, held_out)
    every = sets | {f"eval_meta_path: {name}": facts for name, facts in set_facts(held_out).items()}
    check_alike(shared_keys(folder.keys) | {f"set {name}": facts for name, facts in every.items()})
    finished = None
    with fail_together():
        if training.process_index == 0:
            folder.check(sets)
            finished = folder.finished_report()
    finished = gathered(finished)[0]  # other nodes may see the folder later
    if finished is not None:
        logger.warning("%s: this run is finished; nothing to do", folder.path)
        return read_report(finished, folder.path / REPORT_FILE)
    set_seed(training.seed)
    with fail_together():
        model = load_training_model(arguments)
        encoder = make_encoder(model.network.config, model.tokenizer, model.template, arguments.data)
        dataset = TrainingDataset(entries, encoder, seed=training.seed)
        collator = make_collator(encoder, model.tokenizer)
        validation = begin_validation(held_out, dataset, collator, training, last_checkpoint(folder.path) is not None)
    checkpoint = _open(folder, dataset, sets, training.process_index == 0)
    with fail_together():
        check_start(checkpoint, model.start)
    training.eval_on_start = training.eval_on_start and checkpoint is None
    requests.forget_earlier()
    trainer = _make_trainer(arguments, model, dataset, collator, requests, validation)
    if training.process_index == 0:
        rows = training.per_device_train_batch_size
        for remark in remarks(model.network, arguments, arguments.data.packing_tokens, rows):
            logger.warning("%s", remark)
    metrics, is_over, result_step = _go_through(trainer, requests, checkpoint)
    report = make_report(trainer, dataset, metrics, is_over, result_step)
    if training.process_index == 0:
        folder.write_json(REPORT_FILE, report.to_json())
        if report.finished:
            write_run_card(folder.path, arguments, report, sets, encoder.schedule.intervals)
        else:
            saved, last_step = last_checkpoint(folder.path), f"{report.steps} of {trainer.state.max_steps or 'all'}"
            goes_on = "from the start" if saved is None else f"after {saved.name}"
            logger.warning("%s: ended early, at step %s; the same command goes on %s", folder.path, last_step, goes_on)
    return report


def _go_through(
    trainer: OnlineTrainer, requests: Requests, checkpoint: Path | None
) -> tuple[dict[str, float], bool, int | None]:
    """Train to the end, or until it is asked to stop, and write the result of a run that is over.

    Returns:
        Metrics of this launch, whether the run is over, and the step that its result is of.
    """
    training = trainer.args
    last = None
    if checkpoint is not None:
        with reading(checkpoint):
            last = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if checkpoint is not None and last is not None and _is_over(checkpoint, last, training):
        logger.warning("%s: %s was the last step; only the result is missing", trainer.folder, checkpoint.name)
        trainer.state = last
        return {}, True, _write_result(trainer, requests, checkpoint)
    if requests.agreed(training.device) == STOP:  # while everything was loaded
        trainer.state = TrainerState() if last is None else last
        trainer.state.max_steps = max(training.max_steps, 0)
        return {}, False, None
    if checkpoint is not None:
        logger.warning("%s: going on after %s", trainer.folder, checkpoint.name)
    metrics = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint)).metrics
    is_over = trainer.is_finished
    return metrics, is_over, _write_result(trainer, requests) if is_over else None


def _open(folder: TrainingFolder, dataset: TrainingDataset, sets: dict[str, Any], is_first: bool) -> Path | None:
    """Open the run's folder, which is one for all processes; gives the checkpoint to go on from."""
    launch = checkpoint = None
    with fail_together():
        if is_first:
            checkpoint = last_checkpoint(folder.path)
            folder.open({name: asdict(count) for name, count in dataset.counts().items()}, sets, checkpoint)
            launch = folder.launch_id()
    launch, checkpoint = gathered((launch, checkpoint))[0]
    with fail_together():
        folder.wait_for(launch, checkpoint)
    return None if checkpoint is None else folder.path / checkpoint.name


def _is_over(checkpoint: Path, last: TrainerState, training: RunArguments) -> bool:
    is_through = last.global_step >= last.max_steps or has_stopped_early(last, training)
    return is_through and is_as_long(checkpoint, training)


def _write_result(trainer: OnlineTrainer, requests: Requests, checkpoint: Path | None = None) -> int | None:
    """The model of a run that is over, and which step it is of.

    Args:
        trainer: trainer with the run's state.
        requests: requests, which wait meanwhile.
        checkpoint: holds the last weights; None where the trainer does.
    """
    is_best_wanted, state = trainer.args.load_best_model_at_end, trainer.state
    best = trainer.best() if is_best_wanted else None
    if is_best_wanted and checkpoint is not None and best is None and state.best_global_step:
        raise InputError(f"{trainer.folder}: expected checkpoint-{state.best_global_step}, the best, found none")
    step = state.global_step if best is None else state.best_global_step
    if is_best_wanted:
        which = "the last: none was best" if best is None else f"{step}, the best"
        logger.warning("%s: the result is step %s", trainer.folder, which)
    with _writing_result(trainer, requests):
        save_result(trainer, checkpoint if best is None else best)
    return step


@contextmanager
def _writing_result(trainer: OnlineTrainer, requests: Requests) -> Iterator[None]:
    """Half a model is not left where a whole one is looked for."""
    folder = trainer.folder
    needed = sum(parameter.nbytes for parameter in trainer.model.parameters())
    try:
        with requests.writing(), writing(folder, needed, last_checkpoint(folder)):
            yield
    except DiskError:
        if trainer.args.should_save:
            for file in (*folder.glob("*.safetensors"), *(folder / ADAPTER_FOLDER).glob("*.safetensors")):
                file.unlink()
        raise


def _make_trainer(
    arguments: Arguments,
    model: TrainingModel,
    dataset: TrainingDataset,
    collator: Collator,
    requests: Requests,
    validation: Validation | None,
) -> OnlineTrainer:
    training, packing_tokens = arguments.training, arguments.data.packing_tokens
    is_grouped = training.train_sampling_strategy == "group_by_length"
    lengths = estimate_together(dataset, training) if packing_tokens or is_grouped else None
    items: TrainingDataset | PackedDataset = dataset
    if packing_tokens and lengths is not None:
        is_shuffled = training.train_sampling_strategy == "random"
        seed = training.seed if training.data_seed is None else training.data_seed
        items = PackedDataset(dataset, lengths, packing_tokens, is_shuffled, seed, collator.num_blank_tokens)
    return OnlineTrainer(
        model=model.network,
        args=training,
        train_dataset=items,
        data_collator=collator.pack if packing_tokens else collator,
        tokenizer=model.tokenizer,
        max_bad_fraction=arguments.data.max_bad_fraction,
        lengths=lengths.tolist() if is_grouped and lengths is not None else None,
        requests=requests,
        validation=validation,
        scales=learning_rate_scales(model.network, arguments.model, training.learning_rate),
        start=model.start,
    )


def dry_run(arguments: Arguments) -> dict[str, Any]:
    """Check everything that can be checked without weights, and encode some rows of each set. Writes nothing.

    Returns:
        For each set its rows, items, what its first row becomes, and which of the tried rows cannot be used; the same
        of held-out sets; what `estimate_validation` and `estimate_run` find.

    Raises:
        InputError: errors of `train`.
    """
    _check(arguments)
    entries, held_out = load_registries(str(arguments.data.meta_path)), load_held_out(arguments)
    TrainingFolder(str(arguments.training.output_dir), resolved_keys(arguments)).check(
        _facts(arguments, entries, held_out)
    )
    config, tokenizer, template = load_texts(arguments)
    encoder = make_encoder(config, tokenizer, template, arguments.data)
    network = planned_network(config, arguments.model)
    dataset = TrainingDataset(entries, encoder, seed=arguments.training.seed)
    sets, encoded, learned_share = _try_rows(dataset)
    found: dict[str, Any] = {"output_dir": str(arguments.training.output_dir), "sets": sets}
    estimate = found["estimate"] = estimate_run(arguments, network, dataset, encoded, learned_share)
    for remark in estimate["remarks"]:
        logger.warning("%s", remark)
    numbers = estimate["parameters"]["together"]
    length = (estimate["steps"], estimate["steps_an_epoch"])
    is_whole = not is_little_learned(network)
    estimate["disk_gib"] = disk_estimate(numbers, arguments.training, *length, is_whole=is_whole)
    if held_out:
        rows = HeldOutRows(held_out, encoder)
        warn_of_leak(rows, dataset)
        tried = {name: _try_rows(part) for name, part in rows.sets.items()}
        found["held_out"] = {name: described for one, *_ in tried.values() for name, described in one.items()}
        sizes = [
            size
            for part, (_, of_part, _) in zip(rows.sets.values(), tried.values(), strict=True)
            for size in corrected(part, dict(enumerate(part.estimates())), of_part)
        ]
        found["validation"] = estimate_validation(arguments.training, network, sizes, estimate)
    return found


def _try_rows(dataset: TrainingDataset) -> tuple[dict[str, dict[str, Any]], dict[int, EstimatedSample], float]:
    """What the first row of each set becomes, which of some cannot be used, what others hold, how much is learned."""
    sets: dict[str, dict[str, Any]] = {}
    encoded: dict[int, EstimatedSample] = {}
    image_token_id, first, learned_share = visual_token_id(dataset.encoder.tokenizer), 0, 0.0
    for name, count in dataset.counts().items():
        tried = sorted({first + number * count.items // ROWS_TRIED for number in range(ROWS_TRIED)})
        items = [dataset[index] for index in tried]
        for index, item in zip(tried, items, strict=True):
            if isinstance(item, Example):
                num_visual = item.input_ids.count(image_token_id)
                encoded[index] = EstimatedSample(len(item), num_visual, len(item.pool_ratios))
                learned_share = max(learned_share, num_learned(item) / len(item))
        unusable = [{"row": item.row, "reason": item.reason} for item in items if isinstance(item, SkippedSample)]
        sets[name] = asdict(count) | {"first_row": _described(items[0]), "tried": len(items), "unusable": unusable}
        first += count.items
    for name, keys in dataset.unread_keys().items():
        sets[name]["unread_keys"] = keys
    return sets, encoded, learned_share if encoded else 1.0


def _facts(
    arguments: Arguments, entries: Sequence[RegistryEntry], held_out: Sequence[RegistryEntry]
) -> dict[str, dict[str, Any]]:
    """Facts of the training sets, and of held-out sets where they choose the step that becomes the result."""
    if arguments.training.metric_for_best_model is None:
        return set_facts(entries)
    return set_facts(entries) | {f"eval_meta_path: {name}": facts for name, facts in set_facts(held_out).items()}


def set_facts(entries: Sequence[RegistryEntry]) -> dict[str, dict[str, Any]]:
    """What of each set decides its rows: a run does not go on when it has changed."""
    return {
        entry.name: {
            "annotation_sha256": file_digest(entry.annotation),
            **({"repeat_time": entry.repeat_time} if entry.weight is None else {"weight": entry.weight}),
            "data_augment": entry.data_augment,
            "max_dynamic_patch": entry.max_dynamic_patch,
            "fps": entry.fps,
            "memory": None if entry.memory is None else {"name": entry.memory.name, **entry.memory.options},
            **({} if entry.row_format.name is None else {"row_format": entry.row_format.to_json()}),
        }
        for entry in entries
    }


def _described(item: Example | SkippedSample) -> dict[str, Any]:
    if isinstance(item, SkippedSample):
        return {"problem": item.reason}
    return {"tokens": len(item), "learned": num_learned(item), "frames": len(item.pool_ratios)}


def num_learned(example: Example) -> int:
    """Tokens that count in the loss."""
    return sum(label != IGNORE_INDEX for label in example.labels)


def make_collator(encoder: SampleEncoder, tokenizer: PreTrainedTokenizerBase) -> Collator:
    """The collator for what an encoder makes."""
    smallest = encoder.schedule.num_levels - 1
    rows, columns = encoder.schedule.grids(encoder.full_grid)[smallest]
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return Collator(
        pad_id=next(index for index in pads if index is not None),
        image_token_id=visual_token_id(tokenizer),
        image_size=encoder.reader.transform.size,
        blank_ratio=2**smallest,
        num_blank_tokens=rows * columns,
    )


def _check(arguments: Arguments) -> None:
    """InputError for keys that contradict how runs work here."""
    training = arguments.training
    checkpointing = dict(training.activation_checkpointing_kwargs or {})
    refused = {
        "accelerator_config: expected dispatch_batches false, each process reads its own rows": (
            training.accelerator_config.dispatch_batches
        ),
        "remove_unused_columns: expected False, the model's inputs are no columns of a table": (
            training.remove_unused_columns
        ),
        "activation_checkpointing_kwargs: expected use_reentrant false, frozen parts would keep a graph": (
            checkpointing.get("use_reentrant")
        ),
        "save_only_model: expected False, a run could not go on from such a checkpoint": training.save_only_model,
        "save_on_each_node: expected False, a run has one folder, on a disk that all nodes share": (
            training.save_on_each_node
        ),
        "packing_tokens: expected train_sampling_strategy random or sequential: packs are equally long": (
            arguments.data.packing_tokens and training.train_sampling_strategy == "group_by_length"
        ),
    }
    for error, is_given in refused.items():
        if is_given:
            raise InputError(error)
