"""Reading a checkpoint into a native class of transformers, strictly: an error for whatever does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from videochat_online.errors import CheckpointError
from videochat_online.model.checkpoints.strict_loading import raise_on_difference
from videochat_online.model.checkpoints.weight_files import first_line, tensor_names, weight_files


def read_native(
    directory: Path,
    config: PreTrainedConfig,
    *,
    key_mapping: Mapping[str, str] | None = None,
    tower: str = "vision_tower.",
    **kwargs: Any,
) -> PreTrainedModel:
    """The native model of a configuration, with the weights of a directory.

    Args:
        directory: checkpoint.
        config: configuration of the native class.
        key_mapping: names of its weights, as patterns, and those of the native class, where transformers knows none.
        tower: part of the name of every weight of the vision tower, in any layout.
        **kwargs: arguments of `from_pretrained`.

    Raises:
        CheckpointError: something is missing, unexpected, of another shape, or unreadable.
    """
    names = tensor_names(directory)
    if not any(tower in name for name in names):
        raise CheckpointError(
            f"{directory}: expected weights of a vision tower, found none: a checkpoint of what was learned alone needs"
            " those of the model that it was made from"
        )
    _check_size(directory, config)
    options = {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True, **kwargs}
    if key_mapping is not None:
        options["key_mapping"] = dict(key_mapping)
    try:
        loaded = AutoModelForImageTextToText.from_pretrained(directory, trust_remote_code=False, **options)
    except torch.OutOfMemoryError:
        raise
    # What a value of config.json that no layer knows raises on the way.
    except (SafetensorError, OSError, KeyError, ValueError, AttributeError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{directory}: cannot be loaded: {first_line(error)}") from error
    network, report = cast("tuple[PreTrainedModel, Mapping[str, Any]]", loaded)
    raise_on_difference(f"{directory}: the weights do not fit config.json", report)
    return network.eval()


def _check_size(directory: Path, config: PreTrainedConfig) -> None:
    """A slip in `config.json` can ask for terabytes, which are taken before shapes in the files are looked at."""
    try:
        with torch.device("meta"):
            asked = sum(each.numel() for each in AutoModelForImageTextToText.from_config(config).parameters())
    except Exception as error:  # whatever a layer raises for a size that it cannot have
        raise CheckpointError(f"{directory}/config.json: cannot be built: {first_line(error)}") from error
    stored = sum(file.stat().st_size for file in weight_files(directory))
    if asked > 2 * stored:  # a number has a byte at least; twice, as a tied head is none of its own
        raise CheckpointError(
            f"{directory}: config.json asks for {asked:,} numbers, more than files of {stored:,} bytes can hold"
        )
