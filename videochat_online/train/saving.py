"""The result of a run: a complete model in our layout, adapters merged."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from torch import Tensor

from videochat_online.model.checkpoint import tensor_names, weight_files
from videochat_online.model.original import has_lora, merge_lora
from videochat_online.train.checkpoints import COMPLETE_MARK
from videochat_online.train.trainer import OnlineTrainer
from videochat_online.utils import share_files

_OF_CHECKPOINTS = ("trainer_state.json", COMPLETE_MARK)


def save_result(trainer: OnlineTrainer) -> Path:
    """Write weights, configuration and tokenizer into the run's folder, so that `load_model` reads it.

    Every process must call it: under ZeRO-3 each holds a part of the weights.

    Raises:
        InputError: the run has diverged; nothing is written.
    """
    folder = Path(str(trainer.args.output_dir))
    trainer.finite.check_end(trainer.reduce)
    trainer.finite.check_weights(trainer.reduce)
    trainer.save_model(str(folder))
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        trainer.tokenizer.save_pretrained(folder)
        if has_lora(tensor_names(folder)):
            merge_saved(folder)
        share_files(folder)
    trainer.accelerator.wait_for_everyone()
    return folder


def take_result(trainer: OnlineTrainer, checkpoint: Path) -> Path:
    """The same from a checkpoint after the last step: a run that was ended while its result was written."""
    folder = Path(str(trainer.args.output_dir))
    if trainer.args.should_save:
        for file in checkpoint.iterdir():
            is_text = file.suffix in (".json", ".model", ".txt", ".jinja") and file.name not in _OF_CHECKPOINTS
            if is_text or file in weight_files(checkpoint):
                shutil.copyfile(file, folder / file.name)
        if has_lora(tensor_names(folder)):
            merge_saved(folder)
        share_files(folder)
    trainer.accelerator.wait_for_everyone()
    return folder


def merge_saved(folder: Path) -> None:
    """Fold the adapters of a saved checkpoint into its weights, in place."""
    old_files = weight_files(folder)
    state: dict[str, Tensor] = {}
    for file in old_files:
        with safe_open(file, framework="pt") as opened:
            state.update({key: opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118
    merged = {key: tensor.contiguous() for key, tensor in merge_lora(state).items()}
    temporary = folder / ".merged"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    with torch.no_grad():
        save_torch_state_dict(merged, temporary)
    for file in (*old_files, folder / "model.safetensors.index.json"):
        file.unlink(missing_ok=True)
    for file in temporary.iterdir():
        file.replace(folder / file.name)
    temporary.rmdir()
