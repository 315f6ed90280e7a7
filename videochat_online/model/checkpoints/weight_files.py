"""The files of a checkpoint that hold tensors: which they are, the names in them, the tensors themselves.

Knows nothing of layouts or models.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from videochat_online.errors import CheckpointError, InputError
from videochat_online.runs.files import read_object


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


def check_model_directory(directory: Path) -> None:
    """Fail where there is no directory with a `config.json`.

    Raises:
        CheckpointError: says what is there.
    """
    if not (directory / "config.json").is_file():
        found = "no config.json in it" if directory.is_dir() else "a file" if directory.exists() else "nothing"
        raise CheckpointError(f"{directory}: expected a model directory with config.json, found {found}")


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a checkpoint's tensors, one or several shards.

    Raises:
        CheckpointError: no directory, no `config.json`, no weights, or a shard that the index names is missing.
    """
    check_model_directory(directory)
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


def read_entries(file: Path, expected: str) -> dict[str, Any]:
    """The object in a JSON file of a model; a CheckpointError says that it was `expected`."""
    try:
        return read_object(file, expected)
    except InputError as error:
        raise CheckpointError(str(error)) from error


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(read_entries(index, "JSON with a weight_map")["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: expected JSON with a weight_map: {first_line(error)}") from error


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A safetensors file whose tensors are floating-point: integers would load, cast, and answer nonsense."""
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                dtype = opened.get_slice(name).get_dtype()
                if not dtype.startswith(("F", "BF")):
                    raise CheckpointError(f"{file}: {name}: expected a floating-point tensor, found {dtype}")
            yield opened
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{file}: expected tensors, found an unreadable file: {first_line(error)}") from error


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
        CheckpointError: errors of `weight_files`; or a file that cannot be read, or that holds integers.
    """
    names: set[str] = set()
    for file in weight_files(directory):
        if file.suffix == ".safetensors":
            with _opened(file) as opened:
                names.update(opened.keys())
        else:
            names.update(_load_pickle(file, "meta"))
    return names


def read_tensors(file: Path, only: Set[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU.

    Args:
        file: one of `weight_files`.
        only: names of those that are wanted; None reads all.

    Raises:
        CheckpointError: a file that is not there, that cannot be read, or with integers.
    """
    if file.suffix != ".safetensors":
        state = _load_pickle(file, "cpu")
        return {name: tensor for name, tensor in state.items() if only is None or name in only}
    with _opened(file) as opened:
        return {name: opened.get_tensor(name) for name in opened.keys() if only is None or name in only}  # noqa: SIM118


def read_state(directory: Path, only: Set[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, all or some of them, on the CPU; errors as of `read_tensors`."""
    return {name: t for file in weight_files(directory) for name, t in read_tensors(file, only).items()}


_DIGESTED = 2**20


def weights_digest(name_or_path: str | Path) -> str | None:
    """What tells the weights of a directory from others that have its path; None for a name on the Hub, or no weights.

    Of each file its size, its first and its last MiB count: a whole one takes minutes to read.
    """
    directory = Path(name_or_path).expanduser()
    if not name_or_path or not directory.is_dir():
        return None
    digest = hashlib.sha256()
    suffixes, names = (".safetensors", ".bin"), ("base.json", "adapter_config.json")
    for file in sorted(path for path in directory.iterdir() if path.suffix in suffixes or path.name in names):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_DIGESTED))
            opened.seek(max(0, size - _DIGESTED))
            digest.update(opened.read())
    return digest.hexdigest()[:16]
