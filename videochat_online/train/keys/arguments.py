"""The keys of a training run: names, defaults, and which values each can have.

All of transformers' `TrainingArguments` are keys too. Knows nothing of what a key does; `parsing.py` reads them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

import torch
from pydantic import Field
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from videochat_online.documents import validated
from videochat_online.errors import InputError
from videochat_online.model.configuration import MAX_IMAGE_SIZE

# More than any machine has room for is a slip, and would be noticed only when memory is gone.
Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""Frames, tiles, samples or tokens."""
CountOrNone = Annotated[int, Field(ge=0, le=1_000_000)]
"""Likewise, or 0."""
Rank = Annotated[int, Field(ge=0, le=8192)]
"""Rank of adapters; 0 has none."""
Pixels = Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]
AboveZero = Annotated[float, Field(gt=0)]
AtLeast0 = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
DroppedShare = Annotated[float, Field(ge=0, lt=1)]
"""Part that is left out, which is never all."""
Decay = Annotated[float, Field(gt=0, le=1)]

OF_TRANSFORMERS: dict[str, Any] = {
    "per_device_train_batch_size": Count,
    "gradient_accumulation_steps": Count,
    "eval_steps": AtLeast0 | None,
    "eval_delay": AtLeast0,
    "dataloader_num_workers": Annotated[int, Field(ge=0, le=1024)],
    "seed": Annotated[int, Field(ge=0, lt=2**32)],
    "learning_rate": AtLeast0,
    "train_sampling_strategy": Literal["random", "sequential", "group_by_length"],
}
"""Bounds of keys that transformers takes as they are."""


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def kinds_of(arguments: type[Any]) -> dict[str, Any]:
    """Types of keys with their bounds: of those that a class of arguments declares, and of transformers' own."""
    hints = get_type_hints(arguments, include_extras=True)
    others = OF_TRANSFORMERS if issubclass(arguments, TrainingArguments) else {}
    return {key: hints[key] for key in arguments.__annotations__} | others


def _check(arguments: Any) -> None:
    """Check each key against its type and bounds."""
    for key, kind in kinds_of(type(arguments)).items():
        validated(kind, getattr(arguments, key), key)


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """Which model, and which of its parts learn."""

    _argument_group_name = "model"

    model_name_or_path: str | None = _option(
        None, "Model to start from: directory of any known layout, or owner/name on the Hub."
    )
    conv_style: str | None = _option(
        None, "Chat template: a name, as `--template` takes it; the checkpoint's by default."
    )
    model_dtype: Literal["auto", "float32", "bfloat16"] = _option(
        "auto", "Of the weights: float32, bfloat16 or auto (bfloat16 where DeepSpeed keeps fp32 masters)."
    )
    attn_implementation: Literal["auto", "sdpa", "flash_attention_2", "eager"] = _option(
        "auto", "auto, sdpa, flash_attention_2 or eager."
    )
    freeze_backbone: bool = _option(False, "Keep the vision tower as it is.")
    freeze_mlp: bool = _option(False, "Keep the projector as it is.")
    freeze_llm: bool = _option(False, "Keep the language model as it is, its head included.")
    unfreeze_vit_layers: int = _option(0, "With freeze_backbone: train the last N layers of the vision tower.")
    unfreeze_lm_head: bool = _option(False, "With freeze_llm: train the head.")
    use_backbone_lora: Rank = _option(0, "Rank of adapters in the vision tower; 0 has none. Merged at the end.")
    use_llm_lora: Rank = _option(0, "Rank of adapters in the language model; 0 has none. Merged at the end.")
    lora_alpha: AboveZero | None = _option(None, "Adapters count alpha / rank times; twice the rank by default.")
    use_rslora: bool = _option(False, "Adapters count alpha / sqrt(rank) times.")
    lora_dropout: DroppedShare = _option(0.05, "Part of what goes into an adapter that is left out in training.")
    lora_target_modules: list[str] | None = _option(
        None,
        "Layers with adapters, in each part that has some: names, ends of names, or regular expressions of whole names;"
        " all linear layers but the head by default.",
    )
    adapter_name_or_path: str | None = _option(
        None, "LoRA adapters of PEFT for the model to start from: learning goes on with them."
    )
    drop_path_rate: DroppedShare | None = _option(
        None, "Stochastic depth of the vision tower; the checkpoint's by default."
    )
    force_image_size: Pixels | None = _option(None, "Pixels a side of a frame; the checkpoint's by default.")
    vit_learning_rate: AboveZero | None = _option(None, "Learning rate of the vision tower, instead of the run's.")
    mlp_learning_rate: AboveZero | None = _option(None, "Learning rate of the projector, instead of the run's.")
    vit_layer_decay: Decay = _option(1.0, "Each layer of the vision tower has so much of the rate of the one above.")
    llm_layer_decay: Decay = _option(1.0, "Each layer of the language model has so much of the rate of the one above.")

    def __post_init__(self) -> None:
        _check(self)
        ranks = [key for key in ("use_backbone_lora", "use_llm_lora") if getattr(self, key)]
        shapes = ("lora_alpha", "use_rslora", "lora_target_modules")
        given = [key for key in shapes if getattr(self, key) not in (None, False)]
        if self.adapter_name_or_path and (ranks or given):
            raise InputError(
                f"{(ranks + given)[0]}: expected none with adapter_name_or_path, which has its own; for new ones:"
                " merge those first, videochat-online convert MODEL DST --format native --adapter DIR"
            )
        if self.lora_dropout != type(self).lora_dropout and not self.adapter_name_or_path:
            given.append("lora_dropout")
        if given and not ranks and not self.adapter_name_or_path:
            raise InputError(f"{given[0]}: expected use_llm_lora or use_backbone_lora with it, the rank, found neither")


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """Which samples, and what a prompt is made of."""

    _argument_group_name = "data"

    meta_path: str | None = _option(None, "Registry of training sets; several with commas between them.")
    eval_meta_path: str | None = _option(
        None, "Registry of held-out sets for eval_strategy; several with commas between them."
    )
    sampling_method: str = _option("fps1", "Frames of a video: fpsN (one every 1/N s), rand or middle (of segments).")
    max_num_frame: Count = _option(64, "Most frames of a video.")
    reverse_memory_sample_ratio: list[int] | None = _option(
        None, "Intervals of the token schedule, largest frames first; the checkpoint's by default."
    )
    dynamic_image_size: bool | None = _option(None, "Cut still images into tiles; the checkpoint's by default.")
    min_dynamic_patch: Count | None = _option(None, "Fewest tiles of a still image; the checkpoint's by default.")
    max_dynamic_patch: Count | None = _option(None, "Most tiles of a still image; the checkpoint's by default.")
    use_thumbnail: bool | None = _option(None, "Add the whole image to its tiles; the checkpoint's by default.")
    pad2square: bool | None = _option(None, "Pad frames to squares, not squeeze them; the checkpoint's by default.")
    max_seq_length: Count = _option(32768, "Longest prompt in tokens.")
    max_overrun_s: AtLeast0 = _option(1.0, "How many seconds the times of a row may lie beyond its video.")
    packing_tokens: Annotated[int, Field(ge=0)] = _option(
        0,
        "Put samples together into sequences of about so many tokens, each of which counts as one sample; 0 does not.",
    )
    max_bad_fraction: Share = _option(0.01, "Stop when more than this part of the rows cannot be used.")
    cache_frames_mb: AtLeast0 = _option(0.0, "Keep so many MB of decoded frames in each process for the next epochs.")
    video_backend: Literal["auto", "pyav", "decord", "torchcodec"] = _option(
        "auto", "auto, pyav, decord or torchcodec."
    )

    def __post_init__(self) -> None:
        _check(self)


@dataclass
class RunArguments(TrainingArguments):
    """transformers' own keys, with defaults that fit."""

    _argument_group_name = "training"

    remove_unused_columns: bool = _option(False, "Must stay off: the model's inputs are not columns.")
    logging_steps: float = _option(1, "Log the loss every so many optimizer steps.")
    logging_nan_inf_filter: bool = _option(False, "Log the running mean in place of a loss that is not finite.")
    num_train_epochs: float = _option(1, "Passes over the mixture.")
    dataloader_pin_memory: bool = _option(False, "Pin all batches of two steps, not only the one that is moved.")
    global_batch_size: Count | None = _option(
        None, "Samples of an optimizer step over all processes; sets gradient_accumulation_steps."
    )
    log_on_each_node: bool = _option(False, "Log on the first process of every node, not of the first alone.")
    save_minutes: AtLeast0 = _option(0.0, "Save a checkpoint when there was none for so many minutes; 0 does not.")
    extend: bool = _option(False, "Go on with a run for more steps or epochs than it was begun with.")
    enable_jit_checkpoint: bool = _option(False, "No effect: SIGTERM always saves and ends a run.")
    per_device_eval_batch_size: CountOrNone = _option(
        0, "Held-out rows of a forward pass on each device; 0 takes as many as in training."
    )
    early_stopping_patience: Count | None = _option(
        None, "With load_best_model_at_end: end after so many evaluations in a row without a better one."
    )

    def __post_init__(self) -> None:
        self.has_no_gpu = False
        _check(self)
        self.per_device_eval_batch_size = self.per_device_eval_batch_size or self.per_device_train_batch_size
        if self.save_strategy == "best":
            self.metric_for_best_model: str | None = self.metric_for_best_model or "loss"
        self.enable_jit_checkpoint = False  # transformers' own does not agree over processes, and ends in the step
        if not (self.num_train_epochs > 0 or self.max_steps > 0):
            raise InputError(f"num_train_epochs: expected a number above 0, found {self.num_train_epochs}")
        if self.global_batch_size is not None:
            # From the environment: DeepSpeed reads the accumulation while the base class is being set up.
            at_once = self.per_device_train_batch_size * num_processes()
            if self.global_batch_size % at_once:
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
        there = get_available_reporting_integrations()
        for name in self.report_to or ():
            if name not in (*there, "flyte"):  # which that list leaves out
                raise InputError(f"report_to: expected one that is installed ({', '.join(there)}), found {name}")


@dataclass(frozen=True, slots=True)
class Arguments:
    """All keys of a run."""

    model: ModelArguments
    data: DataArguments
    training: RunArguments


def num_processes() -> int:
    """Of this launch, as torchrun says; a dry run is one process that stands for those of launch.sh."""
    return int(os.environ.get("PLANNED_PROCESSES") or os.environ.get("WORLD_SIZE", "1"))


def _be_the_only_process() -> None:
    """What torchrun would say to a single process: DeepSpeed asks for it."""
    # Port 0: the store takes one that is free; a number looked up before could be taken until then.
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
