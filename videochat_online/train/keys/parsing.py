"""From a config file and the command line to the keys of a training run.

Owns precedence: the defaults of `arguments.py`, then the YAML file, then the command line.
"""

from __future__ import annotations

import dataclasses
import json
from argparse import Action, ArgumentTypeError
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_origin

import yaml
from transformers import HfArgumentParser

from videochat_online.documents import validated
from videochat_online.errors import InputError, one_line, shown
from videochat_online.train.keys.arguments import Arguments, DataArguments, ModelArguments, RunArguments, kinds_of
from videochat_online.train.keys.deepspeed_plan import read_plan

GONE = {
    "warmup_ratio": "warmup_steps takes a number below 1 as a fraction of all steps: warmup_steps 0.03",
    "group_by_length": "train_sampling_strategy group_by_length",
    "evaluation_strategy": "eval_strategy",
    "overwrite_output_dir": "nothing: a run resumes by itself in its own output_dir, and no other run's is touched",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "save_safetensors": "nothing: safetensors are always written",
    "grad_checkpoint": "activation_checkpointing",
    "do_train": "nothing: this command trains",
    "down_sample_ratio": "nothing: the checkpoint's downsample_ratio",
    "avg_pooling_down_sample_ratio": "nothing: sizes of frames follow reverse_memory_sample_ratio",
    "ps_version": "nothing: the checkpoint's ps_version",
    "vision_select_layer": "nothing: the checkpoint's select_layer",
    "resume_from_checkpoint": "nothing: a run resumes by itself from the last complete checkpoint in output_dir",
}
"""Keys that were dropped, or that would contradict how runs are resumed here, and what to write instead."""

COMMAND_FLAGS = ("config", "config_root", "dry_run", "keys")
"""Flags of `videochat-online train` itself, and no keys: what a flag that does not exist may have been meant for."""

PATHS = ("model_name_or_path", "adapter_name_or_path", "meta_path", "eval_meta_path", "output_dir", "deepspeed")
"""Keys whose values are paths, or may be."""

NEEDED = {
    "output_dir": "the folder of the run",
    "model_name_or_path": "the model to start from",
    "meta_path": "registries of training sets",
}
"""Keys without which there is no run, and what they are."""

LISTS = frozenset(f.name for f in dataclasses.fields(RunArguments) if "list[" in str(f.type))
"""Keys that take one text or several, such as `report_to`; a run's own `config.yaml` has several, or none."""


KINDS = kinds_of(ModelArguments) | kinds_of(DataArguments) | kinds_of(RunArguments)
"""Types and bounds of those keys that have some, `kinds_of` all arguments."""


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def make_parser() -> HfArgumentParser:
    """A parser of every key; its errors are `InputError`."""
    parser = _Parser(
        [ModelArguments, DataArguments, RunArguments],
        allow_abbrev=False,
        add_help=False,
        prog="videochat-online train",
    )
    for key, action in _actions(parser).items():
        if get_origin(action.type) is dict:  # which takes no text
            action.type = _object
        if key in KINDS:
            action.choices = None  # said by `validated`, as bounds are
    return parser


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


def parse_arguments(
    config: str | Path | None, overrides: Sequence[str] = (), config_root: str | Path | None = None
) -> Arguments:
    """Read a config file and the command line.

    Args:
        config: YAML with one key a line; None for the defaults.
        overrides: `--key value`, with `-` or `_` in the key.
        config_root: folder that relative paths in the config file are in; the current one by default, as for the
            command line.

    Raises:
        InputError: a key that does not exist (with the nearest one), that is gone, or a value of another type.
    """
    parser = make_parser()
    actions = _actions(parser)
    from_file = {} if config is None else read_config(Path(config), actions)
    if config_root is not None:
        from_file |= {key: below(Path(config_root), key, from_file[key]) for key in PATHS if from_file.get(key)}
    for argument in overrides:
        if argument.startswith("--"):
            _check_key(argument[2:].partition("=")[0].replace("-", "_"), actions, "command line")
    unset = {key for key, action in actions.items() if action.default is None}
    parser.set_defaults(**from_file)
    known, stray = parser.parse_known_args(overrides)
    if stray:
        raise InputError(f"command line: expected --key value, or --config FILE, found {shown(stray[0])}")
    values = vars(known)
    # `--deepspeed ""` takes back what the file says.
    values |= {key: None for key in unset if values[key] == ""}
    for key, what in NEEDED.items():
        if not values[key]:
            raise InputError(f"{key}: expected {what}, found none: give --{key}, or a --config FILE that has it")
    read_plan(values["deepspeed"])  # before anything is loaded: whether it can be
    parts = [
        _build(kind, {f.name: values[f.name] for f in dataclasses.fields(kind) if f.init and f.name in values})
        for kind in (ModelArguments, DataArguments, RunArguments)
    ]
    return Arguments(*parts)


def read_config(path: Path, actions: Mapping[str, Action] | None = None) -> dict[str, Any]:
    """Keys and values of a config file, each value of its key's type.

    PyYAML takes `1e-4` for a text; what counts is the type of the key.

    Raises:
        InputError: a key or value that `parse_arguments` refuses; the file is named.
    """
    actions = _actions(make_parser()) if actions is None else actions
    raw = load_yaml(path)
    values: dict[str, Any] = {}
    for written, value in raw.items():
        key = str(written).replace("-", "_")
        _check_key(key, actions, str(path))
        if key in values:
            raise InputError(f"{path}: {key}: given twice")
        is_list = isinstance(value, list) and key in LISTS and all(isinstance(item, str) for item in value)
        values[key] = value if is_list else _coerced(actions[key], value, f"{path}: {key}")
        if key in KINDS:
            validated(KINDS[key], values[key], f"{path}: {key}")
    return values


def _coerced(action: Action, value: Any, where: str) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        if action.nargs != "+":
            raise InputError(f"{where}: expected one value, found the list {shown(value)}")
        return [_coerced_one(action, item, where) for item in value]
    return [_coerced_one(action, value, where)] if action.nargs == "+" else _coerced_one(action, value, where)


def _coerced_one(action: Action, value: Any, where: str) -> Any:
    convert = action.type if callable(action.type) else str
    try:
        if isinstance(value, dict):
            value = json.dumps(value)
        converted = convert(str(value))
    except (ValueError, TypeError, ArgumentTypeError) as error:
        expected = getattr(action.type, "__name__", "a value")
        expected = {"string_to_bool": "true or false", "_object": "a JSON object"}.get(expected, expected)
        raise InputError(f"{where}: expected {expected}, found {shown(value)}") from error
    if action.choices and converted not in action.choices:
        raise InputError(f"{where}: expected one of {', '.join(map(str, action.choices))}, found {shown(value)}")
    return converted


def _actions(parser: HfArgumentParser) -> dict[str, Action]:
    names = [f.name for kind in parser.dataclass_types for f in dataclasses.fields(kind) if f.init]
    options = parser._option_string_actions  # argparse has no public way from a name to its action
    return {name: options[f"--{name}"] for name in names}


def _check_key(key: str, actions: Mapping[str, Action], where: str) -> None:
    if key in GONE:
        raise InputError(f"{where}: {key} does not exist any more: write {GONE[key]}")
    name = key.removeprefix("no_")
    if key in actions or (name in actions and actions[name].default is True):
        return
    flags = COMMAND_FLAGS if where == "command line" else ()
    near = get_close_matches(key, [*flags, *actions, *GONE], n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"{where}: unknown key {key}{hint} (videochat-online train --keys lists all)")


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    try:
        return kind(**values)
    except InputError:
        raise
    except (ValueError, ImportError, RecursionError) as error:
        raise InputError(f"training arguments: {one_line(error)}") from error


def describe_keys() -> str:
    """Every key with its default and what it means, by group: our own, then transformers'."""
    actions = _actions(make_parser())
    lines = []
    for kind in (ModelArguments, DataArguments, RunArguments):
        lines.append(f"[{kind._argument_group_name}]")
        for f in dataclasses.fields(kind):
            if f.init and f.name not in GONE:
                text = " ".join(str(f.metadata.get("help", "")).split())
                lines.append(f"{f.name}: {json.dumps(actions[f.name].default, default=str)}  # {text}")
    return "\n".join(lines)


MAX_DEPTH = 20


def load_yaml(path: Path) -> dict[Any, Any]:
    """Keys and values of a file.

    Raises:
        InputError: no such file, or something else than keys and plain values.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
        _check_yaml(content)
        raw = yaml.safe_load(content)
    except OSError as error:
        raise InputError(f"{path}: expected a config file, found no readable file ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: expected YAML: {one_line(error)}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected `key: value` lines, found {type(raw).__name__}")
    return raw


def _check_yaml(content: str) -> None:
    """A few lines of YAML can unfold to more than memory holds, or nest deeper than Python goes."""
    depth = 0
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"found more than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"found an alias, expected values as they are{event.start_mark}")


def below(root: Path, key: str, value: str) -> str:
    """The value of a key with its relative paths in a folder; a name on the Hub, a URL and a JSON object are none."""

    def in_root(part: str) -> str:
        is_path = "://" not in part and not part.startswith(("{", "~"))
        return str(root / part) if is_path and (not key.endswith("name_or_path") or (root / part).exists()) else part

    parts = value.split(",") if key.endswith("meta_path") else [value]
    return ",".join(in_root(part.strip()) for part in parts)
