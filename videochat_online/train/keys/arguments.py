"""The keys of a training run: names, defaults, and which values each can have.

All of transformers' `TrainingArguments` are keys too. Knows nothing of what a key does; `parsing.py` reads them.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from videochat_online.errors import InputError, cut
from videochat_online.model.configuration import MAX_IMAGE_SIZE
from videochat_online.video import BACKENDS

MAX_COUNT, MAX_WORKERS, MAX_RANK = 1_000_000, 1024, 8192
"""Largest numbers of frames, tiles, samples or tokens; of processes that load; and rank of adapters."""


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
    conv_style: str | None = _option(
        None, "Chat template: a name, as `--template` takes it; the checkpoint's by default."
    )
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
    lora_alpha: float | None = _option(None, "Adapters count alpha / rank times; twice the rank by default.")
    use_rslora: bool = _option(False, "Adapters count alpha / sqrt(rank) times.")
    lora_dropout: float = _option(0.05, "Part of what goes into an adapter that is left out in training.")
    lora_target_modules: list[str] | None = _option(
        None,
        "Layers with adapters, in each part that has some: names, ends of names, or regular expressions of whole names;"
        " all linear layers but the head by default.",
    )
    adapter_name_or_path: str | None = _option(
        None, "LoRA adapters of PEFT for the model to start from: learning goes on with them."
    )
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
        if self.lora_alpha is not None and not 0 < self.lora_alpha < math.inf:
            raise InputError(f"lora_alpha: expected a number above 0, found {self.lora_alpha}")
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"lora_dropout: expected a part from 0 to below 1, found {self.lora_dropout}")
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
        for key in ("vit_layer_decay", "llm_layer_decay"):
            if not 0 < getattr(self, key) <= 1:
                raise InputError(f"{key}: expected a part above 0 and up to 1, found {getattr(self, key)}")


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """Which samples, and what a prompt is made of."""

    _argument_group_name = "data"

    meta_path: str | None = _option(None, "Registry of training sets; several with commas between them.")
    eval_meta_path: str | None = _option(
        None, "Registry of held-out sets for eval_strategy; several with commas between them."
    )
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
    dataloader_pin_memory: bool = _option(False, "Pin all batches of two steps, not only the one that is moved.")
    global_batch_size: int | None = _option(
        None, "Samples of an optimizer step over all processes; sets gradient_accumulation_steps."
    )
    log_on_each_node: bool = _option(False, "Log on the first process of every node, not of the first alone.")
    save_minutes: float = _option(0.0, "Save a checkpoint when there was none for so many minutes; 0 does not.")
    extend: bool = _option(False, "Go on with a run for more steps or epochs than it was begun with.")
    enable_jit_checkpoint: bool = _option(False, "No effect: SIGTERM always saves and ends a run.")
    per_device_eval_batch_size: int = _option(
        0, "Held-out rows of a forward pass on each device; 0 takes as many as in training."
    )
    early_stopping_patience: int | None = _option(
        None, "With load_best_model_at_end: end after so many evaluations in a row without a better one."
    )

    def __post_init__(self) -> None:
        self.has_no_gpu = False
        for key in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            _check_count(key, getattr(self, key), 1)
        _check_count("per_device_eval_batch_size", self.per_device_eval_batch_size, 0)
        self.per_device_eval_batch_size = self.per_device_eval_batch_size or self.per_device_train_batch_size
        _check_count("early_stopping_patience", self.early_stopping_patience, 1)
        for key in ("eval_steps", "eval_delay"):
            if not 0 <= (getattr(self, key) or 0) < math.inf:
                raise InputError(f"{key}: expected a number of at least 0, found {getattr(self, key)}")
        if self.save_strategy == "best":
            self.metric_for_best_model: str | None = self.metric_for_best_model or "loss"
        _check_count("dataloader_num_workers", self.dataloader_num_workers, 0, MAX_WORKERS)
        _check_count("seed", self.seed, 0, 2**32 - 1)
        if not 0 <= self.save_minutes < math.inf:
            raise InputError(f"save_minutes: expected a number of at least 0, found {self.save_minutes}")
        self.enable_jit_checkpoint = False  # transformers' own does not agree over processes, and ends in the step
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
