"""Checkpoints that hold what a run learns, and say what it started from, in place of a whole model.

That is so where there are adapters, or where less than half of the numbers learn. Kept is what learns, and what is not
as it was in the model that the run started from: embeddings of new tokens, for example.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from videochat_online.errors import CheckpointError
from videochat_online.model import VideoChatOnlineForConditionalGeneration
from videochat_online.model.checkpoints.original import merge_lora
from videochat_online.model.checkpoints.saved_adapters import (
    LEARNED_FILE,
    Base,
    check_base,
    holds_learned,
    numbers_digest,
    read_learned,
    shape_of,
)
from videochat_online.model.checkpoints.weight_files import read_state
from videochat_online.train.distributed import assembled, num_elements, whole_parameters
from videochat_online.train.folder.disk import count_parameters
from videochat_online.train.setup.frozen_matrices import is_halved, unrounded
from videochat_online.train.setup.lora import scalings_of


@dataclass(frozen=True)
class StartingModel:
    """The model that a run starts from.

    Attributes:
        name_or_path: absolute path of its folder, or its name on the Hub.
        digest: digest of its weights, by `numbers_digest`.
        shapes: shapes of its parameters, by name.
        replaced: names of parameters that given adapters brought along.
    """

    name_or_path: str
    digest: str
    shapes: Mapping[str, tuple[int, ...]]
    replaced: frozenset[str] = frozenset()

    @classmethod
    def of(cls, network: nn.Module, name_or_path: str) -> StartingModel:
        """Of a network as it was loaded; every process has to call."""
        path = Path(name_or_path).expanduser()
        shapes = {name: shape_of(parameter) for name, parameter in network.named_parameters()}
        digest = numbers_digest(whole_parameters(network.named_parameters()))
        return cls(str(path.absolute()) if path.exists() else name_or_path, digest, shapes)

    def check(self, source: str | Path, base: Base | None) -> None:
        """Refuse what was learned on top of other weights.

        Raises:
            CheckpointError: the record is of another base.
        """
        if base is not None:
            check_base(source, base, self.digest, self.name_or_path)

    def write_record(self, folder: Path, network: nn.Module, num_tensors: int) -> None:
        """Write beside so many learned tensors which model they were learned on top of."""
        dtype = str(frozen_dtype(network)).removeprefix("torch.")
        facts: dict[str, Any] = {"name_or_path": self.name_or_path, "digest": self.digest, "dtype": dtype}
        Base(**facts, num_tensors=num_tensors, scalings=scalings_of(network)).write(folder)

    def changed_shapes(self, network: nn.Module) -> list[str]:
        """Names of parameters that are not as large as they were."""
        named = {_plain(name): shape_of(p) for name, p in network.named_parameters() if ".lora_" not in name}
        return [name for name, shape in named.items() if self.shapes[name] != shape]


def is_little_learned(network: nn.Module) -> bool:
    """Whether a checkpoint is one of what learns: there are adapters, or less than half of the numbers learn."""
    numbers = count_parameters(network)
    return bool(scalings_of(network)) or 2 * numbers["learning"] < numbers["all"]


def kept_names(network: nn.Module, start: StartingModel) -> set[str] | None:
    """Names of the parameters that a checkpoint keeps; None where it keeps all of them."""
    if not is_little_learned(network):
        return None
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    changed = {*start.changed_shapes(network), *start.replaced}
    dtype = frozen_dtype(network)
    return learning | {
        name
        for name, parameter in network.named_parameters()
        if _plain(name) in changed or (not parameter.requires_grad and _saved_dtype(network, name, parameter) != dtype)
    }


def write_learned(
    folder: Path,
    network: VideoChatOnlineForConditionalGeneration,
    start: StartingModel,
    names: set[str],
    *,
    is_writer: bool,
) -> None:
    """Write a checkpoint of what was learned; every process has to call.

    Args:
        folder: folder, which the writer makes.
        network: network of the run.
        start: model that the run started from.
        names: names of the parameters that are kept, by `kept_names`.
        is_writer: whether this process writes.
    """
    state = collected(network, names, is_writer)
    if is_writer:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / LEARNED_FILE, {"format": "pt"})
        network.config.dtype = frozen_dtype(network)
        network.config.save_pretrained(folder)
        start.write_record(folder, network, len(state))


def collected(network: nn.Module, names: Iterable[str] | None, is_writer: bool) -> dict[str, Tensor]:
    """Parameters of these names, or all, on the CPU of the process that writes; every process has to call."""
    named = [(name, p) for name, p in network.named_parameters() if names is None or name in names]
    state = {}
    for name, tensor in whole_parameters(named):
        if is_writer:
            # What ZeRO-3 has put together is gone a moment later.
            is_lent = hasattr(network.get_parameter(name), "ds_id")
            state[name] = unrounded(network, name, tensor).to("cpu", copy=is_lent).contiguous()
    return state


def merged(network: nn.Module, *, is_writer: bool) -> dict[str, Tensor]:
    """All weights, adapters merged, in the process that writes. Every process has to call."""
    state = collected(network, None, is_writer)
    with torch.no_grad():
        return merge_lora(state, scalings_of(network))


def put_weights(network: nn.Module, checkpoint: Path) -> None:
    """Put what a checkpoint holds into the network of its run; every process has to call.

    Raises:
        CheckpointError: it cannot be read, or is not of this run: tensors are missing, or do not fit.
    """
    tensors = read_learned(checkpoint).tensors if holds_learned(checkpoint) else read_state(checkpoint)
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    if missing := sorted(learning - tensors.keys()):
        raise CheckpointError(f"{checkpoint}: expected {missing[0]}, which learns, found {len(tensors)} other tensors")
    put_tensors(network, tensors, str(checkpoint))


def put_tensors(network: nn.Module, tensors: Mapping[str, Tensor], source: str = "adapters") -> None:
    """Copy tensors into the parameters of their names; every process has to call.

    Raises:
        CheckpointError: a tensor that the network has not, or of another shape.
    """
    # A tied weight has two names, and DeepSpeed's checkpoints hold it under both.
    named = dict(network.named_parameters(remove_duplicate=False))
    for name, tensor in tensors.items():
        parameter = named.get(name, named.get(".base_layer.".join(name.rsplit(".", 1))))
        if parameter is None or shape_of(parameter) != tuple(tensor.shape):
            found = "none" if parameter is None else shape_of(parameter)
            raise CheckpointError(f"{source}: {name}: expected {tuple(tensor.shape)} in the model, found {found}")
    with torch.no_grad():
        for name, parameter in named.items():  # in an order that all processes share
            found = name if name in tensors else _plain(name)
            if found in tensors:
                with assembled(parameter, writes=True):
                    if parameter.numel():
                        parameter.copy_(tensors[found])


def check_start(checkpoint: Path | None, start: StartingModel) -> None:
    """Before a run goes on: is the model that it started from still the same?

    Raises:
        CheckpointError: it is not.
    """
    if checkpoint is not None and holds_learned(checkpoint):
        start.check(checkpoint, Base.read(checkpoint))


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _saved_dtype(network: nn.Module, name: str, parameter: Tensor) -> torch.dtype:
    return torch.float32 if is_halved(network, name) else parameter.dtype


def frozen_dtype(network: nn.Module) -> torch.dtype:
    """That in which most numbers that stay as they are are saved."""
    sizes: Counter[torch.dtype] = Counter()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            sizes[_saved_dtype(network, name, parameter)] += num_elements(parameter)
    return sizes.most_common(1)[0][0]
