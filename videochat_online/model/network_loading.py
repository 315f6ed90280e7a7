"""A network of InternVL's kind from a folder or the Hub: a whole checkpoint, or one of what was learned on its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers.integrations import is_deepspeed_zero3_enabled

from videochat_online.errors import CheckpointError, InputError
from videochat_online.model.checkpoints.checkpoint import read_network
from videochat_online.model.checkpoints.saved_adapters import (
    ADAPTER_FILES,
    BASE_FILE,
    Base,
    check_adapter,
    check_base,
    holds_learned,
    merged_state,
    numbers_digest,
    read_adapter,
    read_learned,
)
from videochat_online.model.checkpoints.strict_loading import read_model_config
from videochat_online.model.checkpoints.weight_files import check_model_directory, first_line, is_hub_name
from videochat_online.model.configuration import VideoChatOnlineConfig
from videochat_online.model.modeling import VideoChatOnlineForConditionalGeneration

TEXT_FILES = ("*.json", "*.model", "*.txt")
"""Configuration and tokenizer of a checkpoint on the Hub."""


def load_network(
    directory: str | Path, *, adapter: Path | None = None, dtype: torch.dtype | str = "auto", **kwargs: Any
) -> VideoChatOnlineForConditionalGeneration:
    """Load a network, strictly: a whole checkpoint, or one of what was learned, on top of the base that it names.

    Args:
        directory: holds `config.json`, and weights of any known layout or a checkpoint of what was learned.
        adapter: a folder of PEFT's adapters, which are merged into the weights.
        dtype: dtype of the weights; "auto" is the checkpoint's.
        **kwargs: arguments of `checkpoint.read_network`.

    Raises:
        CheckpointError: errors of `read_network`; a base that is gone or has other weights, or adapters that do not
            fit.
        InputError: something other than a whole checkpoint under ZeRO-3.
    """
    directory = Path(directory)
    source = adapter or directory
    if adapter is None and not holds_learned(directory):
        return read_network(directory, dtype=dtype, **kwargs)
    if is_deepspeed_zero3_enabled():
        raise InputError(f"{source}: under ZeRO-3 expected a whole model: `convert` writes one")
    if adapter is not None:
        check_adapter(adapter)
    base = Base.read(source) if (source / BASE_FILE).is_file() else None
    below = directory if adapter is not None or base is None else _base_of(directory, base)
    # In the type in which it was added to: sums in another are others.
    network = load_network(below, dtype=dtype if base is None else getattr(torch, base.dtype))
    if base is not None:
        check_base(source, base, numbers_digest(network.named_parameters()), below)
    learned = read_learned(source) if adapter is None else read_adapter(source, network)
    kwargs.setdefault("config", load_config(directory, adapter))
    state = merged_state(network, learned)
    del network, learned
    return read_network(source, dtype=dtype, state_dict=state, **kwargs)


def _base_of(checkpoint: Path, base: Base) -> Path:
    directory = resolve_checkpoint(base.name_or_path)
    if not directory.is_dir() or directory.resolve() == checkpoint.resolve():
        raise CheckpointError(
            f"{checkpoint}: holds what was learned on top of {base.name_or_path}, and there is no such model; if it has"
            f" moved, say where in {BASE_FILE}"
        )
    return directory


def resolve_checkpoint(name_or_path: str | Path, *, with_weights: bool = True) -> Path:
    """Directory of a checkpoint; what is "owner/name" and no directory is downloaded from the Hub, once.

    Args:
        name_or_path: a directory, or "owner/name" on the Hub.
        with_weights: whether weights are wanted; else only what plans and prompts need is downloaded.

    Raises:
        CheckpointError: the Hub does not give it.
    """
    if not is_hub_name(name_or_path):
        return Path(name_or_path).expanduser()  # what is wrong with it, if anything, is said where it is read
    try:
        wanted = None if with_weights else list(TEXT_FILES)
        return Path(snapshot_download(str(name_or_path), allow_patterns=wanted))
    except (HFValidationError, OSError) as error:  # of the Hub's own, those of its answers and of no connection
        raise CheckpointError(
            f"{name_or_path}: no such directory, and the Hugging Face Hub did not give it: {first_line(error)}"
        ) from error


def load_config(directory: Path, adapter: Path | None = None) -> VideoChatOnlineConfig:
    """Configuration of a checkpoint in a directory; that of a run, if its adapters are to be added.

    Raises:
        CheckpointError: there is none, or none that can be read.
    """
    return read_model_config(configured(directory, adapter))


def configured(directory: Path, adapter: Path | None) -> Path:
    """The folder whose `config.json` counts."""
    is_adapter = any((directory / name).is_file() for name in ADAPTER_FILES)
    if is_adapter and not [*directory.glob("model*.safetensors"), *directory.glob("pytorch_model*.bin")]:
        raise CheckpointError(
            f"{directory}: expected a model, found adapters alone: give the model they are for, and them as adapter"
        )
    if adapter is not None and (adapter / BASE_FILE).is_file():  # PEFT may leave one of another kind
        directory = adapter
    check_model_directory(directory)
    return directory
