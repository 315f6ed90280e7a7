"""Weights on disk: strict loading of every known layout, and saving in the published one.

Layouts: our own, the published one of InternVL2 / VideoChat-Online (LoRA-wrapped too), and transformers' `-hf`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, ConversionOps, WeightConverter, WeightRenaming
from transformers.modeling_utils import set_zero3_state

from videochat_online.errors import CheckpointError
from videochat_online.model.configuration import VideoChatOnlineConfig
from videochat_online.model.modeling import VideoChatOnlineForConditionalGeneration
from videochat_online.model.original import (
    PREFIXES,
    VISION_PARTS,
    has_lora,
    merge_lora,
    original_config,
    original_key,
    to_original_state,
)


class SplitGroupedQKV(ConversionOps):
    """InternLM2's fused projection, grouped by key head: w.view(kv, g + 2, d, ...) holds g queries, k, v."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
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

    @property
    def reverse_op(self) -> ConversionOps:
        """Not used: we save in our own layout, and export through `to_original_state`."""
        raise NotImplementedError("InternLM2's fused projection is not written back; export keeps the Llama layout")


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
# transformers' InternVL, as it saved before and since its version 5.
_HF_NAMES = (
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "projector."),
    ("multi_modal_projector.", "projector."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)


def _conversions() -> list[WeightRenaming | WeightConverter]:
    # One list serves every layout: no name of one is a name of another, so a pattern that does not apply
    # leaves a key alone. transformers applies all renamings in order, then at most one converter.
    # Patterns say themselves where a name ends: only newer versions of transformers add that.
    def renaming(theirs: str, ours: str, anchor: str = "") -> WeightRenaming:
        end = "" if theirs.endswith(".") else r"(?!\w)"
        return WeightRenaming(anchor + re.escape(theirs) + end, ours)

    renames = [renaming(*names, anchor="^") for names in (*_HF_NAMES, *PREFIXES)]
    renames += [renaming(*names) for names in (*VISION_PARTS, *_INTERNLM2_NAMES)]
    vision = [f".attention.{x}_proj." for x in "qkv"]
    internlm2 = [f".self_attn.{x}_proj." for x in "qkv"]
    return [
        *renames,
        WeightConverter(r"\.attn\.qkv\.", vision, operations=[Chunk(dim=0)]),
        WeightConverter(r"\.attention\.wqkv\.", internlm2, operations=[SplitGroupedQKV()]),
    ]


def load_network(
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
        directory: holds `config.json` and weights.
        dtype: of the weights; "auto" is the checkpoint's.
        device: where the weights go; None leaves them on the CPU (and under ZeRO-3 to DeepSpeed).
        attn_implementation: of transformers ("sdpa", "flash_attention_2", "eager"), or one per sub-config.
        **kwargs: more arguments of `from_pretrained` (`quantization_config`, `config`, ...).

    Raises:
        CheckpointError: something is missing, unexpected, of another shape, or unreadable.
    """
    directory = Path(directory)
    names = tensor_names(directory)
    name = VideoChatOnlineForConditionalGeneration.__name__
    # Lookup is by class name; registering again under the same name is how transformers replaces a mapping.
    register_checkpoint_conversion_mapping(name, _conversions(), overwrite=True)
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": attn_implementation or "sdpa",
        **kwargs,
    }
    if device is not None:
        arguments["device_map"] = {"": device}
    source: Path | None = directory
    if has_lora(names):
        arguments.setdefault("config", _read_config(directory))
        arguments["state_dict"] = merge_lora(_read_state(directory))
        source = None
    _check_size(directory, arguments.get("config") or _read_config(directory))
    try:
        network, report = VideoChatOnlineForConditionalGeneration.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
        )
    except torch.OutOfMemoryError:
        raise
    # What a value of config.json that no layer knows raises on the way: KeyError of an activation, and so on.
    except (SafetensorError, OSError, KeyError, ValueError, AttributeError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{directory}: cannot be loaded: {_first_line(error)}") from error
    _check_tied_head(directory, network, names)
    _raise_on_difference(directory, report, original=any(key.startswith("vision_model.") for key in names))
    return network


def _check_tied_head(directory: Path, network: VideoChatOnlineForConditionalGeneration, names: set[str]) -> None:
    """A tied head is the embedding; one of its own in the file would be dropped without a word."""
    heads = [name for name in names if name.endswith(("lm_head.weight", "language_model.output.weight"))]
    if not network.config.tie_word_embeddings or not heads:
        return
    ours = network.get_input_embeddings().get_parameter("weight")
    head = _read_state(directory, only=set(heads))[heads[0]]
    if ours.is_meta or ours.shape != head.shape or not torch.equal(head.to(ours), ours):
        raise CheckpointError(
            f"{directory}: config.json ties {heads[0]} to the embeddings, but they differ in the file"
        )


def _raise_on_difference(directory: Path, report: Mapping[str, Any], original: bool) -> None:
    def shown(keys: Iterable[Any]) -> str:
        # Names as the user finds them in the file, not as we call them.
        listed = sorted({original_key(str(key)) if original else str(key) for key in keys})
        return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")

    problems = []
    if report["missing_keys"]:
        problems.append(f"missing {shown(report['missing_keys'])}")
    if report["unexpected_keys"]:
        problems.append(f"unexpected {shown(report['unexpected_keys'])}")
    for key, found, expected in sorted(report["mismatched_keys"])[:4]:
        problems.append(f"{shown([key])} has shape {tuple(found)}, expected {tuple(expected)}")
    if problems:
        raise CheckpointError(f"{directory}: the weights do not fit config.json: {'; '.join(problems)}")


def blank_network(config: VideoChatOnlineConfig) -> VideoChatOnlineForConditionalGeneration:
    """The network of a configuration without storage for its weights.

    Raises:
        CheckpointError: no network has such sizes.
    """
    try:
        # Told that it is spread already, under ZeRO-3 the language model is not: there would be nothing to spread.
        with set_zero3_state(), torch.device("meta"):
            return VideoChatOnlineForConditionalGeneration(config)
    except Exception as error:  # whatever a layer raises for a size that it cannot have
        raise CheckpointError(f"config.json: cannot be built: {_first_line(error)}") from error


def _check_size(directory: Path, config: VideoChatOnlineConfig) -> None:
    """A slip in `config.json` can ask for terabytes, which are taken before the shapes in the files are looked at."""
    try:
        asked = sum(parameter.numel() for parameter in blank_network(config).parameters())
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    stored = sum(file.stat().st_size for file in weight_files(directory))
    if asked > 2 * stored:  # a number has a byte at least; twice, as a tied head is none of its own
        raise CheckpointError(
            f"{directory}: config.json asks for {asked:,} numbers, more than files of {stored:,} bytes can hold"
        )


def _read_config(directory: Path) -> VideoChatOnlineConfig:
    try:
        return VideoChatOnlineConfig.from_pretrained(directory)
    except Exception as error:  # transformers raises whatever the odd value trips over, its own types included
        raise CheckpointError(f"{directory}/config.json: {' '.join(str(error).split())}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a checkpoint's tensors, one or several shards.

    Raises:
        CheckpointError: no directory, no `config.json`, no weights, or a shard that the index names is missing.
    """
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory}: expected a model directory, found {'a file' if directory.exists() else 'nothing'}"
        )
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory}: expected a model directory with config.json, found none")
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = directory / f"{stem}.{suffix}.index.json"
        if index.is_file():
            shards = _shards(index)
            absent = [shard for shard in shards if not (directory / shard).is_file()]
            if absent:
                raise CheckpointError(
                    f"{directory}: {index.name} names {len(shards)} shards, missing {', '.join(absent)}"
                )
            return [directory / shard for shard in shards]
        if (directory / f"{stem}.{suffix}").is_file():
            return [directory / f"{stem}.{suffix}"]
    raise CheckpointError(f"{directory}: expected model.safetensors (or shards with an index), found no weights")


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: expected JSON with a weight_map: {_first_line(error)}") from error


def _refuse_integers(file: Path, dtypes: Mapping[str, str]) -> None:
    """Weights are floating-point; integers would load, cast, and answer nonsense."""
    for key, dtype in dtypes.items():
        if not dtype.startswith(("F", "BF")):
            raise CheckpointError(f"{file}: {key}: expected a floating-point tensor, found {dtype}")


def _load_pickle(file: Path, device: str) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{file}: expected tensors and nothing that runs code") from error
    except Exception as error:  # a broken pickle is a program, and fails like one
        found = f"{type(error).__name__}: {_first_line(error)}"
        raise CheckpointError(f"{file}: expected tensors, found an unreadable file: {found}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{file}: expected a dictionary of tensors, found {type(state).__name__}")
    return state


def tensor_names(directory: Path) -> set[str]:
    """Names of all tensors of a checkpoint, without reading the tensors.

    Raises:
        CheckpointError: as `weight_files`, or a file that cannot be read.
    """
    names: set[str] = set()
    for file in weight_files(directory):
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as opened:
                    names.update(opened.keys())
                    _refuse_integers(file, {key: opened.get_slice(key).get_dtype() for key in opened.keys()})  # noqa: SIM118
            else:
                names.update(_load_pickle(file, "meta"))
        except (SafetensorError, OSError, RuntimeError, EOFError) as error:
            raise CheckpointError(
                f"{file}: expected tensors, found an unreadable file: {_first_line(error)}"
            ) from error
    return names


def _read_state(directory: Path, only: set[str] | None = None) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in weight_files(directory):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                keys = opened.keys() if only is None else only.intersection(opened.keys())
                state.update({key: opened.get_tensor(key) for key in keys})
        else:
            state.update(_load_pickle(file, "cpu"))
    return state


def export_original(network: PreTrainedModel, directory: str | Path, max_shard_size: str = "5GB") -> None:
    """Write config and weights in the published layout (a language model of InternLM2 stays in Llama's).

    Args:
        network: with plain weights (merge adapters first).
        directory: created; nothing in it is removed.
        max_shard_size: larger checkpoints are written as shards with an index.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tied = set(getattr(network, "all_tied_weights_keys", {}))
    state = {key: tensor for key, tensor in network.state_dict().items() if key not in tied}
    contiguous = {key: tensor.detach().contiguous() for key, tensor in to_original_state(state).items()}
    save_torch_state_dict(contiguous, directory, max_shard_size=max_shard_size)
    text = json.dumps(original_config(network.config), indent=2, ensure_ascii=False, default=str)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")


_DIGESTED = 2**20


def weights_digest(name_or_path: str | Path) -> str | None:
    """What tells the weights of a directory from others at the same place; None for a name on the Hub, or no weights.

    Of each file its size, beginning and end count: a whole one takes minutes to read.
    """
    directory = Path(name_or_path).expanduser()
    if not name_or_path or not directory.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(path for path in directory.iterdir() if path.suffix in (".safetensors", ".bin")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_DIGESTED))
            opened.seek(max(0, size - _DIGESTED))
            digest.update(opened.read())
    return digest.hexdigest()[:16]
