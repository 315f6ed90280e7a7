"""The files of a checkpoint that hold tensors: which they are, the names in them, the tensors themselves.

Knows nothing of layouts or models.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from videochat_online.errors import CheckpointError


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_failed_write(error: BaseException) -> bool:
    """Whether an error of writing weights or a tokenizer is the disk's; tokenizers raises a bare Exception."""
    return isinstance(error, (OSError, SafetensorError)) or type(error) is Exception


def is_hub_name(name_or_path: object) -> bool:
    """Whether "owner/name" is meant, on the Hugging Face Hub, and no directory here."""
    name = str(name_or_path)
    return not Path(name).expanduser().exists() and name.count("/") == 1 and not name.startswith((".", "/", "~"))


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
        raise CheckpointError(f"{index}: expected JSON with a weight_map: {first_line(error)}") from error


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
        found = f"{type(error).__name__}: {first_line(error)}"
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
            raise CheckpointError(f"{file}: expected tensors, found an unreadable file: {first_line(error)}") from error
    return names


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        CheckpointError: a file that is not there, that cannot be read, or with integers.
    """
    try:
        if file.suffix != ".safetensors":
            return _load_pickle(file, "cpu")
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            _refuse_integers(file, {name: opened.get_slice(name).get_dtype() for name in names})
            return {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{file}: expected tensors, found an unreadable file: {first_line(error)}") from error


def read_state(directory: Path, only: set[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, all or some of them, on the CPU."""
    state: dict[str, Tensor] = {}
    for file in weight_files(directory):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                keys = opened.keys() if only is None else only.intersection(opened.keys())
                state.update({key: opened.get_tensor(key) for key in keys})
        else:
            state.update(_load_pickle(file, "cpu"))
    return state


_DIGESTED = 2**20


def weights_digest(name_or_path: str | Path) -> str | None:
    """What tells the weights of a directory from others at the same place; None for a name on the Hub, or no weights.

    Of each file its size, beginning and end count: a whole one takes minutes to read.
    """
    directory = Path(name_or_path).expanduser()
    if not name_or_path or not directory.is_dir():
        return None
    digest = hashlib.sha256()
    decides = (".safetensors", ".bin"), ("base.json", "adapter_config.json")
    for file in sorted(path for path in directory.iterdir() if path.suffix in decides[0] or path.name in decides[1]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_DIGESTED))
            opened.seek(max(0, size - _DIGESTED))
            digest.update(opened.read())
    return digest.hexdigest()[:16]
