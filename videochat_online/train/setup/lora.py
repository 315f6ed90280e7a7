"""LoRA adapters of a run: into which layers they go, how they are counted, and PEFT's files of them.

They go into the network in place: its class, its other parameters and its saving stay the same.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from videochat_online.errors import InputError
from videochat_online.model import VideoChatOnlineForConditionalGeneration
from videochat_online.model.checkpoints.saved_adapters import ADAPTER_FILES, Learned, read_adapter
from videochat_online.model.network_loading import resolve_checkpoint
from videochat_online.train.keys.arguments import ModelArguments

logger = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"
ADAPTER = "default"
_PARTS = {"language_model": ("use_llm_lora", "freeze_llm"), "vision_tower": ("use_backbone_lora", "freeze_backbone")}


def add_adapters(
    network: VideoChatOnlineForConditionalGeneration, options: ModelArguments, unused: tuple[str, ...] = ()
) -> Learned | None:
    """Put LoRA adapters into the network, in place: new ones, or with the shape of given ones.

    Args:
        network: network with its parts frozen as they are in the run; it may be without storage.
        options: options of the run.
        unused: beginnings of the names of what takes no part in a forward pass: DDP would wait for its gradients.

    Returns:
        The given adapters, whose numbers are not in the network yet; None where there are none.

    Raises:
        InputError: adapters in a part that learns anyway, or for layers that are not there.
        CheckpointError: given adapters that do not fit the network.
    """
    if options.adapter_name_or_path:
        given = read_adapter(resolve_checkpoint(options.adapter_name_or_path), network)
        ranks = {name: given.tensors[f"{name}.lora_A.{ADAPTER}.weight"].shape[0] for name in given.scalings}
        for part, (_, frozen) in _PARTS.items():
            if not getattr(options, frozen) and any(name.startswith(f"{part}.") for name in ranks):
                raise InputError(f"adapter_name_or_path: adapters go into a frozen part: set {frozen}")
        _inject(network, ranks, {name: given.scalings[name] * rank for name, rank in ranks.items()}, options)
        return given
    by_part = {}
    for part, (key, frozen) in _PARTS.items():
        if rank := getattr(options, key):
            if not getattr(options, frozen):
                raise InputError(f"{key}: adapters go into a frozen part: set {frozen}")
            by_part[part] = rank
    ranks = _chosen(network, by_part, options.lora_target_modules, unused)
    alphas = {name: 2.0 * rank if options.lora_alpha is None else options.lora_alpha for name, rank in ranks.items()}
    _inject(network, ranks, alphas, options)
    return None


def scalings_of(network: nn.Module) -> dict[str, float]:
    """How much the adapters of each layer count: W + scaling B A."""
    return {name: float(m.scaling[ADAPTER]) for name, m in network.named_modules() if isinstance(m, LoraLayer)}


def _chosen(
    network: VideoChatOnlineForConditionalGeneration,
    by_part: Mapping[str, int],
    wanted: list[str] | None,
    unused: tuple[str, ...],
) -> dict[str, int]:
    """The layers that get adapters, and their rank. A tied head gets none: the embedding is the same weight."""
    tied = {name.rpartition(".")[0] for name in getattr(network, "all_tied_weights_keys", {})}
    head = network.get_output_embeddings()
    linear = {
        name: by_part[name.partition(".")[0]]
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
        and name.partition(".")[0] in by_part
        and name not in tied
        and not f"{name}.".startswith(unused)
        and not module.weight.requires_grad
    }
    names = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "none"
    if wanted is None or wanted == ["all-linear"]:
        found = {name: rank for name, rank in linear.items() if network.get_submodule(name) is not head}
    else:
        hits = {pattern: [name for name in linear if _is_meant(name, pattern)] for pattern in wanted}
        for pattern, layers in hits.items():
            if not layers:
                raise InputError(f"lora_target_modules: expected frozen linear layers ({names}), found {pattern!r}")
        found = {name: rank for name, rank in linear.items() if any(name in layers for layers in hits.values())}
    for part in by_part:
        if not any(name.startswith(f"{part}.") for name in found):
            raise InputError(f"lora_target_modules: {part}: expected frozen linear layers ({names}), found none")
    return found


def _is_meant(name: str, pattern: str) -> bool:
    if name == pattern or name.endswith(f".{pattern}"):
        return True
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False


def _inject(network: nn.Module, ranks: Mapping[str, int], alphas: Mapping[str, float], options: ModelArguments) -> None:
    if not ranks:
        return
    learning = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    alphas = {name: int(alpha) if alpha == int(alpha) else alpha for name, alpha in alphas.items()}
    first = next(iter(ranks))
    config = LoraConfig(
        r=ranks[first],
        lora_alpha=alphas[first],
        rank_pattern={re.escape(name): rank for name, rank in ranks.items() if rank != ranks[first]},
        alpha_pattern={re.escape(name): alpha for name, alpha in alphas.items() if alpha != alphas[first]},
        use_rslora=options.use_rslora,
        lora_dropout=options.lora_dropout,
        target_modules=sorted(ranks),
    )
    LoraModel(network, config, ADAPTER)
    for name, parameter in network.named_parameters():
        # Adding adapters freezes everything else.
        if name in learning or name.replace(".base_layer.", ".") in learning:
            parameter.requires_grad_(True)


def whole_modules(names: Iterable[str]) -> list[str]:
    """The modules that PEFT has to keep whole (`modules_to_save`), so that parameters of these names are kept."""
    owners = {name.rpartition(".")[0] for name in names}
    return sorted(name for name in owners if not any(name.startswith(f"{other}.") for other in owners))


def write_adapter(
    folder: Path, network: nn.Module, base_name: str, tensors: Mapping[str, Tensor], whole: list[str]
) -> None:
    """Write what PEFT reads: `PeftModel.from_pretrained(base, folder)`.

    Args:
        folder: folder, which is made.
        network: network with adapters.
        base_name: name of the model that they are for.
        tensors: tensors by the network's names: adapters, and what lies in `whole`.
        whole: result of `whole_modules`.
    """
    folder.mkdir(exist_ok=True)
    config: LoraConfig = copy.copy(vars(network)["peft_config"][ADAPTER])
    config.base_model_name_or_path = base_name
    config.modules_to_save = whole or None
    config.inference_mode = True
    config.save_pretrained(str(folder))
    named = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": tensor.contiguous() for name, tensor in tensors.items()
    }
    save_file(named, folder / ADAPTER_FILES[0], {"format": "pt"})
