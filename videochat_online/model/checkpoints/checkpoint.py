"""A network from a directory and back, in our own layout or the published one; what is read how: `strict_loading`."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import save_torch_state_dict
from transformers import PreTrainedModel

from videochat_online.model.checkpoints.original import original_config, to_original_state
from videochat_online.model.configuration import VideoChatOnlineConfig
from videochat_online.model.device_and_dtype import fitting_attention
from videochat_online.model.modeling import VideoChatOnlineForConditionalGeneration


def read_network(
    directory: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    attn_implementation: str | dict[str, str] | None = None,
    **kwargs: Any,
) -> VideoChatOnlineForConditionalGeneration:
    """Load a network from a directory of any known layout, strictly.

    Adapters of a LoRA-wrapped checkpoint are merged into the weights.

    Args:
        directory: directory that holds `config.json` and weights.
        dtype: dtype of the weights; "auto" is the checkpoint's.
        device: device that the weights go to; None leaves them on the CPU (and under ZeRO-3 to DeepSpeed).
        attn_implementation: name of transformers' ("sdpa", "flash_attention_2", "eager"), or one per sub-config.
        **kwargs: more arguments of `from_pretrained` (`quantization_config`, `config`, ...).

    Raises:
        CheckpointError: something is missing, unexpected, of another shape, or unreadable.
    """
    if attn_implementation is None:
        attn_implementation = "sdpa"
        with suppress(Exception):  # said below, with all else that is wrong with a directory
            config = kwargs.get("config") or VideoChatOnlineConfig.from_pretrained(Path(directory))
            attn_implementation = fitting_attention("sdpa", config)
    arguments = {"dtype": dtype, "attn_implementation": attn_implementation, **kwargs}
    if device is not None:
        arguments["device_map"] = {"": device}
    network = VideoChatOnlineForConditionalGeneration.from_pretrained(Path(directory), **arguments)
    return cast(VideoChatOnlineForConditionalGeneration, network)


def export_original(network: PreTrainedModel, directory: str | Path, max_shard_size: str = "5GB") -> None:
    """Write config and weights in the published layout (a language model of InternLM2 stays in Llama's).

    Args:
        network: network with plain weights (merge adapters first).
        directory: folder, which is created; nothing in it is removed.
        max_shard_size: largest size of a file; a larger checkpoint is written as shards with an index.
    """
    write_state(to_original_state(plain_state(network)), original_config(network.config), directory, max_shard_size)


def plain_state(network: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Our tensors by name, those that are others of them left out."""
    tied = set(getattr(network, "all_tied_weights_keys", {}))
    return {key: tensor for key, tensor in network.state_dict().items() if key not in tied}


def write_state(
    state: dict[str, torch.Tensor], config: dict[str, Any], directory: str | Path, max_shard_size: str = "5GB"
) -> None:
    """Write tensors and a `config.json` of whatever layout."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    contiguous = {key: tensor.detach().contiguous() for key, tensor in state.items()}
    save_torch_state_dict(contiguous, directory, max_shard_size=max_shard_size)
    text = json.dumps(config, indent=2, ensure_ascii=False, default=str)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")
