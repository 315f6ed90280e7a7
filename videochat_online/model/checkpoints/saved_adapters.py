"""Weights that were learned on top of another model: checkpoints of them alone, and adapters of PEFT.

Owns both formats, and how they go into the weights of their base. Knows nothing of training.

A checkpoint holds `learned.safetensors` (our names, adapters as in the network) and `base.json`. A folder of adapters
is PEFT's, with `adapter_config.json` and `adapter_model.safetensors`; one of ours has `base.json` and the run's
`config.json`, too.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from videochat_online.documents import Document, validated
from videochat_online.errors import CheckpointError
from videochat_online.extras import require
from videochat_online.model.checkpoints.hf_layout import HF_NAMES, renamed, reverse
from videochat_online.model.checkpoints.original import merge_lora
from videochat_online.model.checkpoints.weight_files import read_entries, read_tensors
from videochat_online.runs.files import read_json, write_json

logger = logging.getLogger(__name__)

BASE_FILE, LEARNED_FILE = "base.json", "learned.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")

# What of PEFT's settings decides the merged weights, and what does not; any other has to be as if it were not there.
_DECIDING = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
_CHOOSING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
_IDLE: tuple[str, ...] = ("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "bias")
_IDLE += ("revision", "inference_mode", "lora_dropout", "init_lora_weights", "loftq_config", "eva_config")
_IDLE += ("corda_config", "megatron_config", "megatron_core", "ensure_weight_tying")
# Others, such as PiSSA's, take something out of the base.
_HARMLESS_STARTS = (True, False, "gaussian", "eva", "orthogonal")

_PREFIX = "base_model.model."
_HALF = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight$")
# What an adapter may have been made on, as prefixes: our network, its language model, that without its head, and
# transformers' InternVL.
_ROOTS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("", ""),),
    (("", "language_model."),),
    (("", "language_model.model."),),
    tuple(names for names in HF_NAMES if not names[0].startswith("multi_modal")),
)
_SAMPLED = 4096


class Base(Document):
    """What something was learned on top of.

    Attributes:
        name_or_path: the model, a directory or a name on the Hub.
        digest: digest of its numbers, by `numbers_digest`.
        dtype: name of the dtype in which its weights stayed.
        num_tensors: number of tensors in the file beside this record.
        scalings: scaling of each layer with adapters, alpha / r: W + scaling B A.
    """

    name_or_path: str
    digest: str
    dtype: Literal["float16", "bfloat16", "float32", "float64"]
    num_tensors: int
    scalings: dict[str, float] = {}

    def write(self, folder: Path) -> None:
        """Put the record into a folder."""
        write_json(folder / BASE_FILE, self.model_dump())

    @classmethod
    def read(cls, folder: Path) -> Base:
        """The record in a folder.

        Raises:
            InputError: there is none that can be read.
        """
        record: Base = validated(cls, read_json(folder / BASE_FILE, "the record of a base"), f"{folder / BASE_FILE}")
        return record


@dataclass(frozen=True)
class Learned:
    """Tensors by our names: halves of adapters, and others in place of the base's.

    Attributes:
        tensors: `MODULE.lora_A.default.weight`, `MODULE.lora_B.default.weight`, or names of the network.
        scalings: scaling of each layer with adapters.
        base: recorded base; None where nothing says.
    """

    tensors: dict[str, Tensor]
    scalings: dict[str, float]
    base: Base | None

    @property
    def replaced(self) -> frozenset[str]:
        """Names of the tensors that are no halves of adapters."""
        return frozenset(name for name in self.tensors if not _HALF.match(name))


def holds_learned(folder: str | Path) -> bool:
    """Whether a folder is a checkpoint of what was learned alone."""
    return (Path(folder) / BASE_FILE).is_file() and not (Path(folder) / ADAPTER_CONFIG).is_file()


def numbers_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """What tells one model from another, however its files are laid out: some thousand numbers of each tensor.

    In bfloat16, so that a rounded copy counts as the same.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        numbers = tensor.detach().flatten()
        drawn = numbers[:: max(1, numbers.numel() // _SAMPLED)].to("cpu", torch.bfloat16)
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(drawn.contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def read_learned(folder: Path) -> Learned:
    """What a checkpoint of it holds.

    Raises:
        CheckpointError: half of it, or nothing that can be read.
    """
    base = Base.read(folder)
    tensors = read_tensors(folder / LEARNED_FILE)
    if len(tensors) != base.num_tensors:
        raise CheckpointError(f"{folder}: expected {base.num_tensors} tensors that were learned, found {len(tensors)}")
    return Learned(tensors, base.scalings, base)


def read_adapter(folder: Path, network: nn.Module) -> Learned:
    """Adapters of PEFT, with names of a network that they fit.

    They may have been made on our network, on its language model alone, or on transformers' InternVL.

    Args:
        folder: folder with `adapter_config.json`.
        network: network that they fit; its weights need not be there.

    Raises:
        CheckpointError: no LoRA adapters, kinds of them that are not merged as W + scaling B A, or adapters that do
            not fit the network.
    """
    settings = check_adapter(folder)
    file = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder}: expected {ADAPTER_FILES[0]} beside {ADAPTER_CONFIG}, found none")
    halves: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in read_tensors(file).items():
        name = key.removeprefix(_PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        match = _HALF.match(name)
        if match:
            halves.setdefault(match["module"], {})[match["side"]] = tensor
        elif name == key or ".lora_" in name:
            raise CheckpointError(f"{file}: {key}: expected lora_A, lora_B and whole tensors of PEFT, found another")
        else:
            others[name] = tensor
    root = _root_of(file, [*(f"{module}.weight" for module in halves), *others], network)
    _check_complete(file, settings, halves, root, network)
    tensors = {renamed(name, root): tensor for name, tensor in others.items()}
    _drop_tied(file, tensors, network)
    scalings = {}
    for module, sides in halves.items():
        ours = renamed(module, root)
        scalings[ours] = _scaling(file, settings, module, sides["A"].shape[0])
        tensors |= {f"{ours}.lora_{side}.default.weight": sides[side] for side in "AB"}
    _check_shapes(file, tensors, network)
    if (folder / BASE_FILE).is_file():
        return Learned(tensors, scalings, Base.read(folder))
    said, found = str(settings.get("base_model_name_or_path") or ""), str(getattr(network, "name_or_path", ""))
    are_paths = Path(said).is_absolute() and Path(found).is_absolute()
    if said and found and (said != found if are_paths else Path(said).name != Path(found).name):
        logger.warning("%s: made for %s; whether %s has the same weights is not known", folder, said, found)
    return Learned(tensors, scalings, None)


def merged_state(network: nn.Module, learned: Learned) -> dict[str, Tensor]:
    """The weights of a base with what was learned on top of it.

    Raises:
        CheckpointError: an adapter whose layer is not there, or of another shape.
    """
    state = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return merge_lora(state | learned.tensors, learned.scalings)


def check_base(source: str | Path, base: Base, digest: str, name: str | Path) -> None:
    """Refuse what was learned on top of other weights.

    Args:
        source: checkpoint or adapter that the record was read from.
        base: record of the model that it was learned on top of.
        digest: digest of the weights that were loaded, in the record's dtype.
        name: name of their model.

    Raises:
        CheckpointError: digests that differ.
    """
    if digest != base.digest:
        raise CheckpointError(
            f"{source}: was learned on top of {base.name_or_path} (weights {base.digest}), but {name} holds others"
            f" ({digest})"
        )


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """Shape of a whole parameter, where ZeRO-3 has spread it, too."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def check_adapter(folder: Path) -> dict[str, Any]:
    """The settings of a folder of adapters.

    Raises:
        CheckpointError: none, or of adapters that are not merged as W + scaling B A.
    """
    require("adapters", "peft")  # imported where it is used: it takes a second, and few models have adapters
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        found = "none in it" if folder.is_dir() else "a file" if folder.exists() else "nothing"
        raise CheckpointError(f"{folder}: expected a folder of adapters with {ADAPTER_CONFIG}, found {found}")
    settings = read_entries(file, "PEFT's settings")
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{file}: peft_type: expected LORA, found {settings.get('peft_type')!r}")
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    for key, value in settings.items():
        if key not in (*_DECIDING, *_CHOOSING, *_IDLE) and value and value != usual.get(key):
            raise CheckpointError(f"{file}: {key}: expected {usual.get(key)!r}, found {value!r}: not supported")
    if settings.get("init_lora_weights", True) not in _HARMLESS_STARTS:
        found = f"{settings['init_lora_weights']!r}"
        raise CheckpointError(f"{file}: init_lora_weights: {found} changes the base, which is then another")
    return {key: value for key, value in settings.items() if value is not None}


def _root_of(file: Path, names: list[str], network: nn.Module) -> tuple[tuple[str, str], ...]:
    """Which of the known prefixes makes all names those of the network."""
    ours = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    if not names:
        raise CheckpointError(f"{file}: expected adapters, found no tensor")
    fits = [root for root in _ROOTS if all(renamed(name, root) in ours for name in names)]
    if not fits:
        best = max(_ROOTS, key=lambda root: sum(renamed(name, root) in ours for name in names))
        odd = next(name for name in names if renamed(name, best) not in ours)
        raise CheckpointError(f"{file}: {odd}: expected a tensor of the model, which has none of that name")
    return fits[0]


def _check_complete(
    file: Path,
    settings: Mapping[str, Any],
    halves: Mapping[str, Mapping[str, Tensor]],
    root: tuple[tuple[str, str], ...],
    network: nn.Module,
) -> None:
    """Both halves of every adapter, and adapters in every layer that the settings name."""
    for module, sides in halves.items():
        if len(sides) != 2:
            raise CheckpointError(f"{file}: {module}: expected lora_A and lora_B, found lora_{next(iter(sides))} alone")
    if "target_modules" not in settings:
        return
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    try:
        config = LoraConfig(**{key: settings[key] for key in _CHOOSING if key in settings})
        linear = [name for name, module in network.named_modules() if isinstance(_plain(module), nn.Linear)]
        theirs = reverse(root)
        for name in (renamed(name, theirs) for name in linear if any(name.startswith(ours) for ours, _ in theirs)):
            if name not in halves and check_target_module_exists(config, name):
                raise CheckpointError(f"{file}: {name}: expected adapters, as {ADAPTER_CONFIG} says, found none")
    except CheckpointError:
        raise
    except (ValueError, TypeError, re.error) as error:
        raise CheckpointError(f"{file.parent / ADAPTER_CONFIG}: expected PEFT's settings, found {error}") from error


def _plain(module: nn.Module) -> nn.Module:
    """A layer without its adapters."""
    base = getattr(module, "base_layer", module)
    return base if isinstance(base, nn.Module) else module


def _scaling(file: Path, settings: Mapping[str, Any], module: str, rank: int) -> float:
    """The scaling of a layer's adapters as PEFT has it: alpha / r, or alpha / sqrt(r)."""
    from peft.utils.other import get_pattern_key

    ranks, alphas = settings.get("rank_pattern", {}), settings.get("alpha_pattern", {})
    try:
        expected = ranks.get(get_pattern_key(ranks.keys(), module), settings["r"])
        alpha = float(alphas.get(get_pattern_key(alphas.keys(), module), settings["lora_alpha"]))
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise CheckpointError(f"{file.parent / ADAPTER_CONFIG}: expected r and lora_alpha, found {error!r}") from error
    if expected != rank:
        raise CheckpointError(f"{file}: {module}: expected rank {expected}, as {ADAPTER_CONFIG} says, found {rank}")
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _drop_tied(file: Path, tensors: dict[str, Tensor], network: nn.Module) -> None:
    """A tied head is the embedding: one of its own would be dropped without a word."""
    tied = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    tied -= {name for name, _ in network.named_parameters()}
    by_id = {id(parameter): name for name, parameter in network.named_parameters()}
    for name in tied & tensors.keys():
        other = by_id[id(network.get_parameter(name))]
        if other not in tensors or not torch.equal(tensors[name], tensors[other]):
            raise CheckpointError(f"{file}: {name} is tied to {other} in the model, but is not the same here")
        del tensors[name]


def _check_shapes(file: Path, tensors: Mapping[str, Tensor], network: nn.Module) -> None:
    shapes = {name: shape_of(parameter) for name, parameter in network.named_parameters()}
    for name, tensor in tensors.items():
        match = _HALF.match(name)
        expected = shapes.get(f"{match['module']}.weight" if match else name)
        if expected is None:
            raise CheckpointError(f"{file}: {name}: tied to another tensor of the model, which has to stay as it is")
        if match:
            other = tensors[f"{match['module']}.lora_{'B' if match['side'] == 'A' else 'A'}.default.weight"]
            rank = other.shape[0 if match["side"] == "B" else -1]
            expected = (rank, expected[-1]) if match["side"] == "A" else (expected[0], rank)
        if tuple(tensor.shape) != expected:
            raise CheckpointError(f"{file}: {name} has shape {tuple(tensor.shape)}, the model's layer needs {expected}")
