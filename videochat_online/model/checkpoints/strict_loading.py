"""Loading that loses nothing: every known layout by its names, and an error for whatever does not fit.

Layouts: our own, the published one of InternVL2 / VideoChat-Online (LoRA-wrapped too), and transformers' `-hf`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, ConversionOps, WeightConverter, WeightRenaming
from transformers.modeling_utils import set_zero3_state

from videochat_online.errors import CheckpointError, InputError, one_line
from videochat_online.model.checkpoints.hf_layout import HF_MODEL_TYPE, HF_NAMES, hf_key
from videochat_online.model.checkpoints.original import PREFIXES, VISION_PARTS, has_lora, merge_lora, original_key
from videochat_online.model.checkpoints.weight_files import (
    first_line,
    is_hub_name,
    read_state,
    tensor_names,
    weight_files,
)
from videochat_online.model.configuration import VideoChatOnlineConfig

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=PreTrainedModel)


class SplitGroupedQKV(ConversionOps):
    """InternLM2's fused projection, grouped by key head: w.view(kv, g + 2, d, ...) holds g queries, k, v."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        """Split one fused tensor (weight or bias) into q, k and v."""
        tensors = next(iter(input_dict.values()))
        fused = tensors[0] if isinstance(tensors, list) else tensors
        config = kwargs["config"].get_text_config()
        num_groups = config.num_attention_heads // config.num_key_value_heads
        grouped = fused.reshape(config.num_key_value_heads, num_groups + 2, -1, *fused.shape[1:])
        parts = (grouped[:, :num_groups], grouped[:, num_groups], grouped[:, num_groups + 1])
        return {
            target: part.reshape(-1, *fused.shape[1:]).contiguous()
            for target, part in zip(target_patterns, parts, strict=True)
        }


# Names that only InternLM2 has; its other tensors are called as in Llama.
_INTERNLM2_NAMES = (
    ("language_model.output.", "language_model.lm_head."),
    ("model.tok_embeddings.", "model.embed_tokens."),
    (".attention_norm.", ".input_layernorm."),
    (".ffn_norm.", ".post_attention_layernorm."),
    (".attention.wo.", ".self_attn.o_proj."),
    (".feed_forward.w1.", ".mlp.gate_proj."),
    (".feed_forward.w3.", ".mlp.up_proj."),
    (".feed_forward.w2.", ".mlp.down_proj."),
)


def conversions() -> list[WeightRenaming | WeightConverter]:
    """What turns the names of every known layout into ours, and splits what we keep apart."""

    # One list serves every layout: no name of one is a name of another, so a pattern that does not apply
    # leaves a key alone. transformers applies all renamings in order, then at most one converter.
    # Patterns say themselves where a name ends: only newer versions of transformers add that.
    def renaming(theirs: str, ours: str, anchor: str = "") -> WeightRenaming:
        end = "" if theirs.endswith(".") else r"(?!\w)"
        return WeightRenaming(anchor + re.escape(theirs) + end, ours)

    renames = [renaming(*names, anchor="^") for names in (*HF_NAMES, *PREFIXES)]
    renames += [renaming(*names) for names in (*VISION_PARTS, *_INTERNLM2_NAMES)]
    vision = [f".attention.{x}_proj." for x in "qkv"]
    internlm2 = [f".self_attn.{x}_proj." for x in "qkv"]
    return [
        *renames,
        WeightConverter(r"\.attn\.qkv\.", vision, operations=[Chunk(dim=0)]),
        WeightConverter(r"\.attention\.wqkv\.", internlm2, operations=[SplitGroupedQKV()]),
    ]


class StrictLoading(PreTrainedModel):
    """`from_pretrained`, and so that of the Auto classes, that reads every layout and raises on a difference."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a directory of any known layout, or a name on the Hub; adapters of a LoRA-wrapped one are merged.

        Args:
            pretrained_model_name_or_path: the directory, or "owner/name".
            *model_args: arguments of transformers' `from_pretrained`.
            **kwargs: keyword arguments of transformers' `from_pretrained`.

        Raises:
            CheckpointError: something is missing, unexpected, of another shape, or unreadable.
        """
        directory = _local(pretrained_model_name_or_path, kwargs)
        with_report = kwargs.pop("output_loading_info", False)
        state, config = kwargs.get("state_dict"), kwargs.get("config")
        names = tensor_names(directory) if state is None else set(state)
        # Lookup is by class name; registering again under the same name is how transformers replaces a mapping.
        register_checkpoint_conversion_mapping(cls.__name__, conversions(), overwrite=True)
        if state is None and has_lora(names):
            state = merge_lora(read_state(directory))
        if not isinstance(config, VideoChatOnlineConfig):
            config = read_model_config(directory)
        if state is None:
            source, stored = directory, sum(file.stat().st_size for file in weight_files(directory))
        else:
            source, stored = None, sum(tensor.nbytes for tensor in state.values())
            kwargs |= {"state_dict": state, "config": kwargs.get("config") or config}
        cls._check_size(directory, config, stored)
        try:
            # Told to go on over other shapes, so that all that does not fit is said at once.
            network, report = super().from_pretrained(
                source, *model_args, **kwargs | {"output_loading_info": True, "ignore_mismatched_sizes": True}
            )
        except torch.OutOfMemoryError:
            raise
        # What a value of config.json that no layer knows raises on the way: KeyError of an activation, and so on.
        except (SafetensorError, OSError, KeyError, ValueError, AttributeError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{directory}: cannot be loaded: {first_line(error)}") from error
        _check_tied_head(directory, network, names)
        # Names as the user finds them in the file, not as we call them.
        namings = (("vision_model.", original_key), ("model.vision_tower.", hf_key))
        named = next((naming for mark, naming in namings if any(name.startswith(mark) for name in names)), str)
        raise_on_difference(f"{directory}: the weights do not fit config.json", report, named)
        return (network, report) if with_report else network

    @classmethod
    def blank(cls: type[Network], config: VideoChatOnlineConfig) -> Network:
        """The network of a configuration without storage for its weights.

        Raises:
            CheckpointError: no network has such sizes.
        """
        try:
            # Told that it is spread already, under ZeRO-3 the language model is not: there would be nothing to spread.
            with set_zero3_state(), torch.device("meta"):
                return cls(config)
        except Exception as error:  # whatever a layer raises for a size that it cannot have
            raise CheckpointError(f"config.json: cannot be built: {first_line(error)}") from error

    @classmethod
    def _check_size(cls, directory: Path, config: VideoChatOnlineConfig, stored: int) -> None:
        """A slip in `config.json` can ask for terabytes, which are taken before shapes in the files are looked at."""
        try:
            asked = sum(parameter.numel() for parameter in cls.blank(config).parameters())
        except CheckpointError as error:
            raise CheckpointError(f"{directory}: {error}") from error
        if asked > 2 * stored:  # a number has a byte at least; twice, as a tied head is none of its own
            raise CheckpointError(
                f"{directory}: config.json asks for {asked:,} numbers, more than files of {stored:,} bytes can hold"
            )


def _local(name_or_path: Any, kwargs: Mapping[str, Any]) -> Path:
    """The directory itself, or that of the Hub's cache."""
    if not is_hub_name(name_or_path):
        return Path(name_or_path)
    hub = ("revision", "token", "cache_dir", "local_files_only", "force_download")
    return Path(snapshot_download(str(name_or_path), **{key: kwargs[key] for key in hub if kwargs.get(key)}))


def _check_tied_head(directory: Path, network: PreTrainedModel, names: set[str]) -> None:
    """A tied head is the embedding; one of its own in the file would be dropped without a word."""
    heads = [name for name in names if name.endswith(("lm_head.weight", "language_model.output.weight"))]
    if not network.config.tie_word_embeddings or not heads:
        return
    ours = network.get_input_embeddings().get_parameter("weight")
    head = read_state(directory, only=set(heads))[heads[0]]
    if not ours.is_meta and ours.shape == head.shape and torch.equal(head.to(ours), ours):
        return
    if json.loads((directory / "config.json").read_text(encoding="utf-8")).get("model_type") != HF_MODEL_TYPE:
        raise CheckpointError(
            f"{directory}: config.json ties {heads[0]} to the embeddings, but they differ in the file"
        )
    # transformers' own class ties unless told otherwise, and older ones did not write that they were: it keeps a head
    # that differs, and so do we.
    logger.warning("%s: %s is none of the embeddings, and kept apart, whatever config.json says", directory, heads[0])
    network.config.tie_word_embeddings = network.config.text_config.tie_word_embeddings = False


def raise_on_difference(what: str, report: Mapping[str, Any], named: Callable[[str], str] = str) -> None:
    """Fail where transformers reports that weights and network do not fit each other.

    Args:
        what: words for what is wrong, in front of the names.
        report: `missing_keys`, `unexpected_keys`, and `mismatched_keys` with the shapes found and expected.
        named: a tensor's name as the reader of the error knows it.

    Raises:
        CheckpointError: names up to four tensors of each kind.
    """

    def listed(keys: Iterable[Any]) -> str:
        names = sorted({named(str(key)) for key in keys})
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    kinds = [kind for kind in ("missing", "unexpected") if report[f"{kind}_keys"]]
    problems = [f"{kind} {listed(report[f'{kind}_keys'])}" for kind in kinds]
    for key, found, expected in sorted(report["mismatched_keys"])[:4]:
        problems.append(f"{named(key)} has shape {tuple(found)}, expected {tuple(expected)}")
    if problems:
        raise CheckpointError(f"{what}: {'; '.join(problems)}")


def read_model_config(directory: Path) -> VideoChatOnlineConfig:
    """Configuration of a checkpoint of any known layout; whatever is odd about it is a CheckpointError."""
    try:
        return VideoChatOnlineConfig.from_pretrained(directory)
    except InputError as error:
        raise CheckpointError(f"{directory}/config.json: {error}") from error
    except Exception as error:  # transformers raises whatever the odd value trips over, its own types included
        raise CheckpointError(f"{directory}/config.json: not a configuration we can read: {one_line(error)}") from error
