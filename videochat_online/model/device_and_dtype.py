"""Where weights go, in which type, and how attention is computed: names of options against what is here."""

from __future__ import annotations

import logging
import os
from contextlib import suppress

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, BitsAndBytesConfig
from transformers.utils import is_flash_attn_2_available

from videochat_online.errors import InputError
from videochat_online.extras import require
from videochat_online.model.configuration import VideoChatOnlineConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZATIONS = ("8bit", "4bit")
ATTENTIONS = ("eager", "sdpa", "flash_attention_2")


def choose_device(name: str) -> torch.device:
    """Device of the weights.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device: torch.device | None = None
    with suppress(RuntimeError):
        device = torch.device(name)
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device: {name!r} was asked for, but torch sees no CUDA device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device: {name!r} was asked for, torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def choose_dtype(name: str, device: torch.device, config: VideoChatOnlineConfig) -> torch.dtype:
    """Dtype of the weights.

    Raises:
        InputError: no such type.
    """
    if name == "auto":
        # Half precision decodes several times slower than fp32 on CPUs, and fp16 lacks kernels there.
        return torch.float32 if device.type == "cpu" else (config.dtype or torch.bfloat16)
    if name not in DTYPES:
        raise InputError(f"dtype: expected 'auto' or one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def choose_attention(name: str, device: torch.device, dtype: torch.dtype, config: VideoChatOnlineConfig) -> str:
    """Implementation of attention.

    Raises:
        InputError: no such way, or none that can run here.
    """
    if name not in ("auto", *ATTENTIONS):
        raise InputError(f"attn_implementation: expected 'auto' or one of {', '.join(ATTENTIONS)}, got {name!r}")
    can_flash = device.type == "cuda" and dtype != torch.float32 and is_flash_attn_2_available()
    if name == "flash_attention_2" and not can_flash:
        raise InputError(
            f"attn_implementation 'flash_attention_2' needs CUDA, half precision and the package flash-attn: "
            f"here device {device}, dtype {dtype}, flash-attn {'' if is_flash_attn_2_available() else 'not '}installed"
        )
    if name != "auto":
        return name
    return fitting_attention("flash_attention_2" if can_flash else "sdpa", config)


def fitting_attention(name: str, config: VideoChatOnlineConfig) -> str:
    """How attention is computed where nobody chose: as fast as this language model's class can, `name` at best."""
    family = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config.text_config), None)
    can = {"flash_attention_2": "_supports_flash_attn", "sdpa": "_supports_sdpa"}
    ways = ("flash_attention_2", "sdpa") if name == "flash_attention_2" else ("sdpa",)
    return next((way for way in ways if family is None or getattr(family, can[way], False)), "eager")


def quantization_config(name: str, device: torch.device) -> BitsAndBytesConfig:
    """How transformers quantises the language model.

    Raises:
        InputError: no such one, or none that can run here.
    """
    if device.type != "cuda":
        raise InputError(f"quantization {name!r} needs CUDA, the device is {device}")
    if name not in QUANTIZATIONS:
        raise InputError(f"quantization: expected one of {', '.join(QUANTIZATIONS)}, got {name!r}")
    require(f"quantization {name!r}", "bitsandbytes")
    # Vision tower and projector stay exact: they are 7% of the weights, and every answer goes through them.
    skipped = ["vision_tower", "projector", "lm_head"]
    if name == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=skipped,
    )


def silence_accelerator_notice() -> None:
    """Keep DeepSpeed, where transformers or accelerate import it, from announcing on stdout that it found no GPU."""
    logging.getLogger("DeepSpeed").addFilter(_is_no_notice)


def _is_no_notice(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Setting accelerator to CPU")


def device_of_rank(device: str) -> str:
    """GPU of the own rank under a launcher such as torchrun, where no device was named."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if device == "auto" and rank is not None and torch.cuda.is_available() else device
