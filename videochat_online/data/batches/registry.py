"""Registries: JSON files that name the training sets, where their annotations and media lie, and their weight.

Owns the format of a registry and its validation. Knows nothing of rows, frames or tokens.

    {"coin_sl": {"annotation": "${ANNO_ROOT}/online/coin_sl.json", "data_root": "${DATA_ROOT}/coin", "repeat_time": 2}}
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PlainValidator

from videochat_online.data.rows.field_types import Fps
from videochat_online.data.rows.row_formats import RowParser
from videochat_online.data.rows.storage import Location, exists, location, read_bytes
from videochat_online.data.samples.sample_reader import SetOptions
from videochat_online.data.samples.simulated_memory import SimulatedMemory
from videochat_online.documents import Document, validated
from videochat_online.errors import InputError, shown

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryEntry(SetOptions):
    """One training set, with the options of `SetOptions`.

    Attributes:
        name: name that is unique among all registries of a run.
        annotation: JSON array, JSON lines, CSV or parquet; gzip allowed.
        data_root: folder that the paths in its rows are relative to.
        repeat_time: number of times that each row counts in an epoch. 0.5 takes a random half, 1.5 all rows and a
            random half of them again.
        weight: instead of `repeat_time`: the set's part of an epoch, against those of the other sets.
        row_format: reader of its rows, by a format that the registry names, or that is recognised by the keys of a row.
    """

    name: str
    annotation: Location
    data_root: Location
    repeat_time: float = 1.0
    weight: float | None = None
    row_format: RowParser = field(default_factory=RowParser)


def _part(kind: Callable[[str, Any], Any]) -> PlainValidator:
    """What makes a memory or a row format of its name, or of an object with its name and options."""

    def made(written: Any) -> Any:
        options = {"name": written} if isinstance(written, str) else written
        if not isinstance(options, dict) or not isinstance(options.get("name"), str):
            raise InputError(f"expected a name, or an object with a name and options, found {shown(written)}")
        return kind(options["name"], {key: value for key, value in options.items() if key != "name"})

    return PlainValidator(made)


_Share = Annotated[float, Field(ge=1e-6, le=1e6)]


class _Fields(Document):
    """An entry as it is written; `RegistryEntry` says what each field means. Only what was written is taken from it."""

    annotation: Annotated[str, Field(min_length=1)]
    data_root: str
    data_augment: bool = False
    repeat_time: _Share = 1.0
    weight: _Share = 1.0
    max_dynamic_patch: Annotated[int, Field(ge=1)] = 1
    fps: Fps = 1.0
    memory: Annotated[Any, _part(SimulatedMemory)] = None
    row_format: Annotated[Any, _part(RowParser)] = None


def load_registries(meta_path: str, *, check: bool = True, key: str = "meta_path") -> tuple[RegistryEntry, ...]:
    """Read one or several registries.

    Args:
        meta_path: path of a registry, or several with commas between them.
        check: look whether annotations and media are there (`check_places`).
        key: key of a run that gives these paths, for errors.

    Raises:
        InputError: names the registry, the entry and the key that is wrong.
    """
    paths = [_expanded(part.strip()) for part in meta_path.split(",") if part.strip()]
    if not paths:
        raise InputError(f"{key}: expected the path of a registry, found {meta_path!r}")
    entries: dict[str, RegistryEntry] = {}
    for path in paths:
        for entry in load_registry(path, check=check):
            if entry.name in entries:
                raise InputError(f"{path}: entry {entry.name!r} is also in another registry of {meta_path!r}")
            entries[entry.name] = entry
    without = [name for name, entry in entries.items() if entry.weight is None]
    if 0 < len(without) < len(entries):
        raise InputError(f"{meta_path}: entry {without[0]!r}: expected weight, as other entries have, found none")
    return tuple(entries.values())


def load_registry(path: Location, *, check: bool = True) -> tuple[RegistryEntry, ...]:
    """Read one registry; paths in it are relative to its folder.

    Raises:
        InputError: errors of `load_registries`, about this registry.
    """
    content = read_bytes(path, "a registry")
    try:  # not by `read_json`: it may lie on a remote disk, and no entry may be there twice
        raw = json.loads(content, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a registry in JSON: {error}") from error
    if not isinstance(raw, dict) or not raw:
        raise InputError(f"{path}: expected a JSON object with one entry a set, found {_kind(raw)}")
    entries = tuple(_entry(path, name, fields) for name, fields in raw.items())
    for entry in entries if check else ():
        try:
            check_places(entry)
        except InputError as error:
            raise InputError(f"{path}: entry {entry.name!r}: {error}") from error
    return entries


def check_places(entry: RegistryEntry) -> None:
    """Fail where a set has no annotations or no folder of media.

    Raises:
        InputError: says where they were expected.
    """
    if not exists(entry.annotation):
        raise InputError(f"annotation: expected a file, found none at {entry.annotation}")
    if not exists(entry.data_root, folder=True):
        raise InputError(f"data_root: expected a folder, found none at {entry.data_root}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{twice[0]!r} appears twice")
    return dict(pairs)


def _entry(path: Location, name: str, fields: Any) -> RegistryEntry:
    where = f"{path}: entry {name!r}"
    if not isinstance(fields, dict):
        raise InputError(f"{where}: expected an object with annotation and data_root, found {_kind(fields)}")
    fields = {key: value for key, value in fields.items() if key not in _IGNORED}
    for key in (key for key in fields if key not in _Fields.model_fields):
        near = get_close_matches(key, _Fields.model_fields, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(_Fields.model_fields)}"
        raise InputError(f"{where}: unknown key {key!r}{hint}")
    checked = validated(_Fields, fields, where)
    values = {key: getattr(checked, key) for key in checked.model_fields_set}
    if "weight" in fields and "repeat_time" in fields:
        raise InputError(f"{where}: expected repeat_time or weight, found both")
    for key in ("annotation", "data_root"):
        values[key] = _resolve(path, f"{where}: {key}", values[key])
    return RegistryEntry(name=name, **values)


def _resolve(registry: Location, where: str, value: str) -> Location:
    def expand(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise InputError(f"{where}: {value!r} needs the environment variable {match[1]}, which is not set")
        return found

    return _expanded(_VARIABLE.sub(expand, value), registry.parent)


def _expanded(value: str, base: Location = Path()) -> Location:
    return location(str(Path(value).expanduser()) if value.startswith("~") else value, base)


def _kind(value: Any) -> str:
    return f"an empty {type(value).__name__}" if value in ({}, [], "") else type(value).__name__


# Written in the published registries: the row count, which is counted here, and how to read a video, which the
# files themselves tell.
_IGNORED = ("length", "video_read_type")
