"""The result of a run: a complete model in our layout, adapters merged, and beside it PEFT's files of them."""

from __future__ import annotations

import logging
from pathlib import Path

from videochat_online.runs.files import share_files
from videochat_online.train.folder.learned_weights import collected, put_weights
from videochat_online.train.loop.lean_trainer import reading
from videochat_online.train.loop.trainer import OnlineTrainer
from videochat_online.train.setup.lora import ADAPTER_FOLDER, scalings_of, whole_modules, write_adapter

logger = logging.getLogger(__name__)


def save_result(trainer: OnlineTrainer, checkpoint: Path | None = None) -> Path:
    """Write weights, configuration and tokenizer into the run's folder, so that `load_model` reads it.

    Every process must call it: under ZeRO-3 each holds a part of the weights.

    Args:
        trainer: trainer of the run.
        checkpoint: checkpoint that has the weights, of the best step or of a run that was ended while its result was
            written; None where the trainer has them.

    Raises:
        InputError: the run has diverged, or the checkpoint cannot be read; nothing is written.
    """
    if checkpoint is None:
        trainer.finite.check_end(trainer.reduce)
        trainer.finite.check_weights(trainer.reduce)
    else:
        with reading(checkpoint):
            put_weights(trainer.model, checkpoint)
    folder = trainer.folder
    trainer.save_model(str(folder))
    _write_adapter(trainer, folder / ADAPTER_FOLDER)
    if trainer.args.should_save:
        trainer.tokenizer.save_pretrained(folder)
        share_files(folder)
    trainer.accelerator.wait_for_everyone()
    return folder


def _write_adapter(trainer: OnlineTrainer, folder: Path) -> None:
    """What PEFT puts on top of the model that the run started from; nothing where that would be another model."""
    network, start, scalings = trainer.model, trainer.start, scalings_of(trainer.model)
    if not scalings or start is None:
        return
    every = dict(network.named_parameters(remove_duplicate=False))
    halves = {name for name in every if ".lora_" in name}
    learned = {name for name, parameter in every.items() if parameter.requires_grad} - halves
    whole = whole_modules(learned | start.replaced)
    beside = tuple(f"{module}." for module in whole)
    changed = start.changed_shapes(network)
    if changed or any(f"{module}.".startswith(beside) for module in scalings):
        why = f"{changed[0]} has another shape than before" if changed else "layers with adapters learn themselves"
        logger.warning("%s: not written, PEFT cannot say it: %s; the model beside it has everything", folder, why)
        return
    names = halves | {name for name in every if name.startswith(beside)}
    single = {id(parameter): name for name, parameter in network.named_parameters()}
    state = collected(network, {single[id(every[name])] for name in names}, bool(trainer.args.should_save))
    if trainer.args.should_save:
        # A tied weight has two names, and PEFT two copies of it.
        tensors = {name: state[single[id(every[name])]].clone() for name in names}
        write_adapter(folder, network, start.name_or_path, tensors, whole)
        network.config.save_pretrained(folder)
        start.write_record(folder, network, len(tensors))
