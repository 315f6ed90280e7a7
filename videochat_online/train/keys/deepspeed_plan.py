"""DeepSpeed plans as they take effect: what "auto" stands for, and which keys decide what a run computes.

Knows nothing of how much memory a plan takes; `device_memory.py` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from transformers import TrainingArguments

from videochat_online.documents import fault_of
from videochat_online.errors import InputError, shown
from videochat_online.extras import require
from videochat_online.runs.files import read_object

if TYPE_CHECKING:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

LOST = "0.4% at 8 micro-batches, 0.6% at 32, 1.1% at 128"
"""Relative error of gradients that are summed in bfloat16: scripts/experiments/gradient_accumulation.py."""

# Keys that change how things are sent about or told, not what a run computes nor what its checkpoints hold.
_INCIDENTAL = (
    "allgather_partitions",
    "contiguous_gradients",
    "overlap_comm",
    "pin_memory",
    "reduce_scatter",
    "round_robin_gradients",
    "stage3_gather_16bit_weights_on_model_save",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_param_persistence_threshold",
    "steps_per_print",
    "wall_clock_breakdown",
)
_INCIDENTAL_SUFFIX = "bucket_size"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSpeedPlan:
    """A plan for one run, nothing left to "auto".

    Attributes:
        zero: DeepSpeed's own configuration of ZeRO.
        weights: bytes of each number while computing.
        accumulation: bytes of each number that gradients are summed in.
        communication: bytes of each number that is sent.
    """

    zero: DeepSpeedZeroConfig
    weights: int
    accumulation: int
    communication: int

    @property
    def sums_whole(self) -> bool:
        """Whether every process holds the summed gradients of all that learns, in fp32.

        DeepSpeed takes another optimizer class for it (`BF16_Optimizer`).
        """
        in_float32 = self.weights == 2 and self.accumulation == 4
        return self.zero.stage == 1 and in_float32 and not self.offloads("optimizer")

    def offloads(self, what: str) -> bool:
        """Whether the state of the "optimizer", gradients with it, or each "param" is in the machine's memory."""
        target = getattr(self.zero, f"offload_{what}")
        return target is not None and target.device != "none"


def read_plan(deepspeed: Any) -> dict[str, Any]:
    """What a `deepspeed` key holds: the path of a JSON file, a JSON object as a text, or a mapping; {} for none.

    Raises:
        InputError: no such file, or no JSON object.
    """
    if not deepspeed:
        return {}
    require("a plan of DeepSpeed", "deepspeed")
    if isinstance(deepspeed, Mapping):
        return dict(deepspeed)
    text = str(deepspeed)
    if not text.lstrip().startswith("{"):
        if not Path(deepspeed).is_file():
            raise InputError(f"deepspeed: expected a JSON file, found none at {deepspeed}")
        return read_object(Path(deepspeed), "a JSON object, the plan of DeepSpeed")
    try:
        return dict(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise InputError(f"deepspeed: expected a JSON object, found {shown(deepspeed)}: {error}") from error


def resolve_plan(training: TrainingArguments, hidden_size: int) -> DeepSpeedPlan | None:
    """The plan of a run, as transformers and DeepSpeed fill in what it leaves out; None without one.

    Args:
        training: arguments of the run.
        hidden_size: width of the language model, which "auto" buckets follow.

    Raises:
        InputError: a value for ZeRO that DeepSpeed does not take.
    """
    content = read_plan(training.deepspeed)
    if not content:
        return None
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = content.get("zero_optimization") or {}
    zero = zero if isinstance(zero, Mapping) else {"stage": 1}  # true, as old plans have it
    # As transformers fills them in; what else is "auto" has no say here.
    auto = {"reduce_bucket_size": hidden_size**2, "stage3_prefetch_bucket_size": int(0.9 * hidden_size**2)}
    given = {key: auto.get(key) if value == "auto" else value for key, value in zero.items()}
    try:
        config = DeepSpeedZeroConfig(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        raise InputError(fault_of(error, given, "deepspeed: zero_optimization", DeepSpeedZeroConfig)) from error
    weights = 2 if any(_is_enabled(content, name, getattr(training, name)) for name in ("bf16", "fp16")) else 4
    accumulation = (content.get("data_types") or {}).get("grad_accum_dtype")
    communication = content.get("communication_data_type")
    return DeepSpeedPlan(
        zero=config,
        weights=weights,
        accumulation=weights if accumulation is None else _bytes(str(accumulation)),
        communication=weights if communication is None else _bytes(str(communication)),
    )


def deciding_keys(deepspeed: Any) -> dict[str, Any]:
    """Those keys of a plan that must stay while a run goes on: `deepspeed.zero_optimization.stage` and so on.

    Args:
        deepspeed: value of the key `deepspeed`, as `read_plan` takes it.
    """
    found: dict[str, Any] = {}

    def collect(content: Mapping[str, Any], prefix: str) -> None:
        for key, value in content.items():
            if isinstance(value, Mapping):
                collect(value, f"{prefix}.{key}")
            elif key not in _INCIDENTAL and not key.endswith(_INCIDENTAL_SUFFIX):
                found[f"{prefix}.{key}"] = value

    collect(read_plan(deepspeed), "deepspeed")
    return found


def lossy_sums(training: TrainingArguments, hidden_size: int, model_dtype: str) -> str | None:
    """What is lost where the gradients of several micro-batches are summed in half precision; None where they are not.

    Args:
        training: arguments of the run.
        hidden_size: width of the language model.
        model_dtype: the key of that name.
    """
    plan, num = resolve_plan(training, hidden_size), training.gradient_accumulation_steps
    in_half = model_dtype == "bfloat16" if plan is None else plan.accumulation == 2
    if num == 1 or not in_half:
        return None
    in_plan = '{"data_types": {"grad_accum_dtype": "fp32"}} in the plan'
    remedy = "model_dtype float32 with bf16 true" if plan is None else in_plan
    return (
        f"gradients of the {num} micro-batches of a step are summed in half precision, whose relative error is about"
        f" {LOST}; {remedy} sums them in float32"
    )


def _is_enabled(content: Mapping[str, Any], name: str, as_argument: bool) -> bool:
    enabled = (content.get(name) or {}).get("enabled", "auto")
    return bool(as_argument) if enabled == "auto" else bool(enabled)


def _bytes(name: str) -> int:
    return 4 if name.lower() in ("fp32", "float32", "float") else 2
