"""The keys of a training run: what exists, and how a config file and the command line set them.

Owns names, defaults and precedence: defaults here, then the YAML file, then the command line. All of
transformers' `TrainingArguments` are keys too. Knows nothing of what a key does.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from argparse import Action, ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_origin

import torch
from transformers import HfArgumentParser, TrainingArguments

from videochat_online.data.values import cut, shown
from videochat_online.errors import InputError
from videochat_online.model.configuration import MAX_IMAGE_SIZE
from videochat_online.train.config_file import below, check_plan, load_yaml
from videochat_online.video import BACKENDS

GONE = {
    "warmup_ratio": "warmup_steps takes a number below 1 as a fraction of all steps: warmup_steps 0.03",
    "group_by_length": "train_sampling_strategy group_by_length",
    "evaluation_strategy": "eval_strategy",
    "overwrite_output_dir": "nothing: a run resumes by itself in its own output_dir, and no other run's is touched",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "save_safetensors": "nothing: safetensors are always written",
    "grad_checkpoint": "activation_checkpointing",
    "do_train": "nothing: this command trains",
    "resume_from_checkpoint": "nothing: a run resumes by itself from the last complete checkpoint in output_dir",
}
"""Keys that were dropped, or that would contradict how runs are resumed here, and what to write instead."""


MAX_COUNT, MAX_WORKERS, MAX_RANK = 1_000_000, 1024, 8192
"""Of frames, tiles, samples or tokens; of processes that load; of adapters."""
PATHS = ("model_name_or_path", "meta_path", "output_dir", "deepspeed")
"""Keys whose values are paths, or may be."""


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _check_count(key: str, value: int | None, lowest: int, highest: int = MAX_COUNT) -> None:
    """More than any machine has room for is a slip, and would be noticed only when memory is gone."""
    if value is not None and not lowest <= value <= highest:
        bound = f"at least {lowest}" if value < lowest else f"at most {highest:,}"
        raise InputError(f"{key}: expected {bound}, found {cut(str(value))}")


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """Which model, and which of its parts learn."""

    _argument_group_name = "model"

    model_name_or_path: str | None = _option(
        None, "Model to start from: directory of any known layout, or owner/name on the Hub."
    )
    conv_style: str | None = _option(None, "Chat template; the checkpoint's own by default.")
    model_dtype: str = _option(
        "auto", "Of the weights: float32, bfloat16 or auto (bfloat16 where DeepSpeed keeps fp32 masters)."
    )
    attn_implementation: str = _option("auto", "auto, sdpa, flash_attention_2 or eager.")
    freeze_backbone: bool = _option(False, "Keep the vision tower as it is.")
    freeze_mlp: bool = _option(False, "Keep the projector as it is.")
    freeze_llm: bool = _option(False, "Keep the language model as it is, its head included.")
    unfreeze_vit_layers: int = _option(0, "With freeze_backbone: train the last N layers of the vision tower.")
    unfreeze_lm_head: bool = _option(False, "With freeze_llm: train the head.")
    use_backbone_lora: int = _option(0, "Rank of adapters in the vision tower; 0 has none. Merged at the end.")
    use_llm_lora: int = _option(0, "Rank of adapters in the language model; 0 has none. Merged at the end.")
    drop_path_rate: float | None = _option(None, "Stochastic depth of the vision tower; the checkpoint's by default.")
    force_image_size: int | None = _option(None, "Pixels a side of a frame; the checkpoint's by default.")
    vit_learning_rate: float | None = _option(None, "Learning rate of the vision tower, instead of the run's.")
    mlp_learning_rate: float | None = _option(None, "Learning rate of the projector, instead of the run's.")
    vit_layer_decay: float = _option(1.0, "Each layer of the vision tower has so much of the rate of the one above.")
    llm_layer_decay: float = _option(1.0, "Each layer of the language model has so much of the rate of the one above.")

    def __post_init__(self) -> None:
        for key in ("vit_learning_rate", "mlp_learning_rate"):
            rate = getattr(self, key)
            if rate is not None and not 0 < rate < math.inf:
                raise InputError(f"{key}: expected a number above 0, found {rate}")
        if self.drop_path_rate is not None and not 0 <= self.drop_path_rate < 1:
            raise InputError(f"drop_path_rate: expected a part from 0 to below 1, found {self.drop_path_rate}")
        if self.force_image_size is not None and self.force_image_size < 1:
            raise InputError(f"force_image_size: expected pixels above 0, found {self.force_image_size}")
        _check_count("force_image_size", self.force_image_size, 1, MAX_IMAGE_SIZE)
        for key in ("use_backbone_lora", "use_llm_lora"):
            _check_count(key, getattr(self, key), 0, MAX_RANK)
        for key in ("vit_layer_decay", "llm_layer_decay"):
            if not 0 < getattr(self, key) <= 1:
                raise InputError(f"{key}: expected a part above 0 and up to 1, found {getattr(self, key)}")


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """Which samples, and what a prompt is made of."""

    _argument_group_name = "data"

    meta_path: str | None = _option(None, "Registry of training sets; several with commas between them.")
    sampling_method: str = _option("fps1", "Frames of a video: fpsN (one every 1/N s), rand or middle (of segments).")
    max_num_frame: int = _option(64, "Most frames of a video.")
    reverse_memory_sample_ratio: list[int] | None = _option(
        None, "Intervals of the token schedule, largest frames first; the checkpoint's by default."
    )
    dynamic_image_size: bool | None = _option(None, "Cut still images into tiles; the checkpoint's by default.")
    min_dynamic_patch: int | None = _option(None, "Fewest tiles of a still image; the checkpoint's by default.")
    max_dynamic_patch: int | None = _option(None, "Most tiles of a still image; the checkpoint's by default.")
    use_thumbnail: bool | None = _option(None, "Add the whole image to its tiles; the checkpoint's by default.")
    pad2square: bool | None = _option(None, "Pad frames to squares, not squeeze them; the checkpoint's by default.")
    max_seq_length: int = _option(32768, "Longest prompt in tokens.")
    max_overrun_s: float = _option(1.0, "How many seconds the times of a row may lie beyond its video.")
    packing_tokens: int = _option(
        0,
        "Put samples together into sequences of about so many tokens, each of which counts as one sample; 0 does not.",
    )
    max_bad_fraction: float = _option(0.01, "Stop when more than this part of the rows cannot be used.")
    cache_frames_mb: float = _option(0.0, "Keep so many MB of decoded frames for the next epochs, in each process.")
    video_backend: str = _option("auto", "auto, pyav, decord or torchcodec.")

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_fraction <= 1:
            raise InputError(f"max_bad_fraction: expected a part between 0 and 1, found {self.max_bad_fraction}")
        for key in ("min_dynamic_patch", "max_dynamic_patch", "max_seq_length", "max_num_frame"):
            _check_count(key, getattr(self, key), 1)
        for key in ("max_overrun_s", "cache_frames_mb"):
            if not 0 <= getattr(self, key) < math.inf:
                raise InputError(f"{key}: expected a number of at least 0, found {getattr(self, key)}")
        if self.video_backend != "auto" and self.video_backend not in BACKENDS:
            raise InputError(
                f"video_backend: expected one of auto, {', '.join(BACKENDS)}, found {self.video_backend!r}"
            )
        if self.packing_tokens < 0:
            raise InputError(f"packing_tokens: expected a number of tokens, or 0, found {self.packing_tokens}")


@dataclass
class RunArguments(TrainingArguments):
    """transformers' own keys, with defaults that fit."""

    _argument_group_name = "training"

    remove_unused_columns: bool = _option(False, "Must stay off: the model's inputs are not columns.")
    logging_steps: float = _option(1, "Log the loss every so many optimizer steps.")
    logging_nan_inf_filter: bool = _option(False, "Log the running mean in place of a loss that is not finite.")
    num_train_epochs: float = _option(1, "Passes over the mixture.")
    global_batch_size: int | None = _option(
        None, "Samples of an optimizer step over all processes; sets gradient_accumulation_steps."
    )

    def __post_init__(self) -> None:
        self.has_no_gpu = False
        for key in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            _check_count(key, getattr(self, key), 1)
        _check_count("dataloader_num_workers", self.dataloader_num_workers, 0, MAX_WORKERS)
        _check_count("seed", self.seed, 0, 2**32 - 1)
        if not 0 <= self.learning_rate < math.inf:
            raise InputError(f"learning_rate: expected a number of at least 0, found {self.learning_rate}")
        if not (self.num_train_epochs > 0 or self.max_steps > 0):
            raise InputError(f"num_train_epochs: expected a number above 0, found {self.num_train_epochs}")
        if self.global_batch_size is not None:
            # From the environment: DeepSpeed reads the accumulation while the base class is being set up.
            at_once = self.per_device_train_batch_size * num_processes()
            if self.global_batch_size < 1 or self.global_batch_size % at_once:
                raise InputError(
                    f"global_batch_size: expected a multiple of {at_once}, {self.per_device_train_batch_size} on each"
                    f" of {num_processes()} processes, found {self.global_batch_size}"
                )
            self.gradient_accumulation_steps = self.global_batch_size // at_once
        if not torch.cuda.is_available():
            self.has_no_gpu = not vars(self)["use_cpu"]
            self.use_cpu = True
        if self.deepspeed and "RANK" not in os.environ:
            _be_the_only_process()
        super().__post_init__()


LISTS = frozenset(f.name for f in dataclasses.fields(RunArguments) if "list[" in str(f.type))
"""Keys that take one text or several, such as `report_to`; a run's own `config.yaml` has several, or none."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """All keys of a run."""

    model: ModelArguments
    data: DataArguments
    training: RunArguments


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def num_processes() -> int:
    """Of this launch, as torchrun says; a dry run is one process that stands for those of launch.sh."""
    return int(os.environ.get("PLANNED_PROCESSES") or os.environ.get("WORLD_SIZE", "1"))


def _be_the_only_process() -> None:
    """What torchrun would say to a single process: DeepSpeed asks for it."""
    # Port 0: the store takes one that is free; a number looked up before could be taken until then.
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")


def make_parser() -> HfArgumentParser:
    """A parser of every key; its errors are `InputError`."""
    parser = _Parser(
        [ModelArguments, DataArguments, RunArguments],
        allow_abbrev=False,
        add_help=False,
        prog="videochat-online train",
    )
    for action in _actions(parser).values():
        if get_origin(action.type) is dict:  # which takes no text
            action.type = _object
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
    overrides = [_normalised(argument) for argument in overrides]
    for argument in overrides:
        if argument.startswith("--"):
            _check_key(argument[2:].partition("=")[0], actions, "command line")
    unset = {key for key, action in actions.items() if action.default is None}
    parser.set_defaults(**from_file)
    values = vars(parser.parse_args(overrides))
    # `--deepspeed ""` takes back what the file says.
    values |= {key: None for key in unset if values[key] == ""}
    if not values["output_dir"]:
        raise InputError("output_dir: expected the folder of the run, found none")
    for key in ("model_name_or_path", "meta_path"):
        if not values[key]:
            raise InputError(f"{key}: expected a path, found none")
    plan = values["deepspeed"]
    if isinstance(plan, str) and not plan.lstrip().startswith("{") and not Path(plan).is_file():
        raise InputError(f"deepspeed: expected a JSON file, found none at {plan}")
    if isinstance(plan, str) and not plan.lstrip().startswith("{"):
        check_plan(Path(plan))
    parts = [
        _build(kind, {f.name: values[f.name] for f in dataclasses.fields(kind) if f.init and f.name in values})
        for kind in (ModelArguments, DataArguments, RunArguments)
    ]
    return Arguments(*parts)


def read_config(path: Path, actions: Mapping[str, Action] | None = None) -> dict[str, Any]:
    """Keys and values of a config file, each value of its key's type.

    PyYAML takes `1e-4` for a text; what counts is the type of the key.

    Raises:
        InputError: as `parse_arguments`; the file is named.
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
    near = get_close_matches(key, [*actions, *GONE], n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"{where}: unknown key {key}{hint} (videochat-online train --keys lists all)")


def _normalised(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    try:
        return kind(**values)
    except InputError:
        raise
    except (ValueError, ImportError, RecursionError) as error:
        raise InputError(f"training arguments: {' '.join(str(error).split())}") from error


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
