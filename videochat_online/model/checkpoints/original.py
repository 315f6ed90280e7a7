"""The published checkpoint layout (InternVL2, VideoChat-Online) against ours: configuration and tensor names.

Pure functions on dictionaries: `strict_loading.py` loads and `checkpoint.py` saves with them; none reads a file.
The published layout: `vision_model.*` (fused `attn.qkv`), `mlp1.{0,1,3}`, `language_model.*`; LoRA-wrapped
parts hold `base_layer`, `lora_A.default`, `lora_B.default` in place of a weight.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedConfig

from videochat_online.errors import CheckpointError
from videochat_online.model.checkpoints.hf_layout import (
    HF_MODEL_TYPE,
    TILING_KEYS,
    VISION_MODEL_TYPE,
    check_vision_type,
    renamed,
    reverse,
    translate_hf,
)

ORIGINAL_MODEL_TYPES = ("internvl_chat", HF_MODEL_TYPE)
ORIGINAL_VISION_TYPE = "intern_vit_6b"
LORA_SCALING = 2.0
"""The reference trains adapters with alpha = 2 r, so a merged weight is W + 2 B A whatever the rank."""

_LLM_ARCHITECTURES = {
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "LlamaForCausalLM": "llama",
    "InternLM2ForCausalLM": "llama",
}
# Called the same in both layouts.
_SAME_KEYS = ("downsample_ratio", "ps_version", "select_layer", "template", "system_message", *TILING_KEYS)
# Keys that steer code we do not run: remote classes, attention kernels, libraries of the time.
_DROPPED_KEYS = {"auto_map", "architectures", "attn_implementation", "use_flash_attn", "_name_or_path"}
_DROPPED_KEYS |= {"transformers_version", "torch_dtype", "model_type", "use_bfloat16"}

# Of a vision tower: (published, ours, what InternViT's own code takes where a file does not say; None has to be said).
_VISION_FIELDS = (
    ("hidden_size", "hidden_size", None),
    ("num_hidden_layers", "num_hidden_layers", None),
    ("num_attention_heads", "num_attention_heads", None),
    ("intermediate_size", "intermediate_size", None),
    ("hidden_act", "hidden_act", "gelu"),
    ("qkv_bias", "attention_bias", False),
    ("qk_normalization", "use_qk_norm", False),
    ("dropout", "hidden_dropout_prob", 0.0),
    ("attention_dropout", "attention_dropout", 0.0),
    ("initializer_range", "initializer_range", 0.02),
    ("initializer_factor", "layer_scale_init_value", 0.1),
    ("norm_type", "norm_type", "layer_norm"),
    ("layer_norm_eps", "layer_norm_eps", 1e-6),
    ("image_size", "image_size", 448),
    ("patch_size", "patch_size", 14),
    ("num_channels", "num_channels", 3),
)
# What the code of a published checkpoint reads, apart from what every configuration has.
_VISION_KEYS = {theirs for theirs, _, _ in _VISION_FIELDS} | {"drop_path_rate"}
# Written by some releases, and read where `use_moe` is set.
_EXPERTS = {"capacity_factor", "eval_capacity_factor", "laux_allreduce", "num_experts", "num_routed_experts"}
_EXPERTS |= {"num_shared_experts", "moe_coeff_ratio", "moe_intermediate_size", "moe_output_scale", "noisy_gate_policy"}
_EXPERTS |= {"shared_expert_intermediate_size", "use_residual", "use_rts", "use_weighted_residual"}
# Of a language model beside the fields of its class, which looks some of them up all the same.
_LLM_KEYS = {"bias", "rope_theta", "rope_scaling", "partial_rotary_factor", "head_dim", "pretraining_tp"}
_EVERYWHERE = {*GenerationConfig().to_dict(), *(field.name for field in fields(PreTrainedConfig))}
_EVERYWHERE |= {"max_length", "min_length", "return_dict", "use_cache", "tokenizer_class"}


def _check_keys(part: str, config: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse what switches something on that we do not compute; a key that is off may stand there."""
    ignored = {*known, *_DROPPED_KEYS, *_EVERYWHERE}
    found = sorted(key for key, value in config.items() if value and key not in ignored and not key.startswith("_"))
    if found:
        raise CheckpointError(
            f"config.json: {part}: {', '.join(found)}: nothing here is computed by it; remove it if it changes nothing"
        )


def translate_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a published or an `-hf` `config.json` into arguments of `VideoChatOnlineConfig`.

    Raises:
        CheckpointError: the language model's architecture is not one we know.
    """
    if "llm_config" in config:
        return _translate_original(config)
    if config.get("model_type") == HF_MODEL_TYPE:
        return translate_hf(config)
    return dict(config)


def _translate_original(config: Mapping[str, Any]) -> dict[str, Any]:
    vision = dict(config["vision_config"])
    renamed = {
        "vision_config": translate_vision(vision),
        "text_config": _translate_text(dict(config["llm_config"])),
        "drop_path_rate": vision.get("drop_path_rate", 0.0),
        "image_size": config.get("force_image_size") or vision.get("image_size", 448),
        "dtype": config.get("torch_dtype"),
    }
    if "reverse_memory_sample_ratio" in config:
        renamed["memory_intervals"] = list(config["reverse_memory_sample_ratio"])
    return renamed | {key: config[key] for key in _SAME_KEYS if config.get(key) is not None}


def translate_vision(vision: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `InternVLVisionConfig` for the configuration of a published InternViT."""
    check_vision_type(vision, (ORIGINAL_VISION_TYPE, VISION_MODEL_TYPE))
    architecture = (vision.get("architectures") or ["InternVisionModel"])[0]
    if architecture != "InternVisionModel":
        raise CheckpointError(
            f"config.json: vision_config.architectures[0]: expected InternVisionModel, got {architecture!r}"
        )
    _check_keys("vision_config", vision, _VISION_KEYS if vision.get("use_moe") else _VISION_KEYS | _EXPERTS)
    silent = sorted(theirs for theirs, _, default in _VISION_FIELDS if default is None and theirs not in vision)
    if silent:
        raise CheckpointError(f"config.json: vision_config: expected {', '.join(silent)}, found none")
    values = {ours: vision.get(theirs, default) for theirs, ours, default in _VISION_FIELDS}
    # Mean pooling makes the final norm an identity: InternViT has none.
    return {"model_type": VISION_MODEL_TYPE, "use_mean_pooling": True, **values}


def _translate_text(llm: Mapping[str, Any]) -> dict[str, Any]:
    architecture = (llm.get("architectures") or ["missing"])[0]
    if architecture not in _LLM_ARCHITECTURES:
        known = ", ".join(sorted(_LLM_ARCHITECTURES))
        raise CheckpointError(f"config.json: llm_config.architectures[0] is {architecture!r}; expected one of {known}")
    fields_known = {field.name for field in fields(CONFIG_MAPPING[_LLM_ARCHITECTURES[architecture]])}
    _check_keys("llm_config", llm, fields_known | _LLM_KEYS)
    text = {key: value for key, value in llm.items() if key not in _DROPPED_KEYS}
    text["model_type"] = _LLM_ARCHITECTURES[architecture]
    if architecture == "InternLM2ForCausalLM":
        text["attention_bias"] = text.pop("bias", False)
    scaling = text.pop("rope_scaling", None)
    if scaling:
        text["rope_parameters"] = _translate_rope(scaling, text)
        text.pop("rope_theta", None)
    if text["model_type"] == "phi3":
        window = text.get("sliding_window")
        # A window no shorter than the context never cuts anything, but would make the KV cache a sliding one.
        if window is not None and window >= text.get("max_position_embeddings", 4096):
            text["sliding_window"] = None
    return text


def _translate_rope(scaling: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    rope = {key: value for key, value in scaling.items() if key != "type"}
    kind = scaling.get("rope_type", scaling.get("type"))
    # transformers calls the scheme of Phi-3 "longrope"; its first configs said "su" or "yarn".
    is_phi3_long = text["model_type"] == "phi3" and kind in ("su", "yarn", "longrope")
    rope["rope_type"] = "longrope" if is_phi3_long else kind
    rope["rope_theta"] = text.get("rope_theta", 10000.0)
    if is_phi3_long:
        original = text.get("original_max_position_embeddings", 4096)
        rope["original_max_position_embeddings"] = original
        rope["factor"] = text.get("max_position_embeddings", original) / original
    return rope


def original_config(config: Any) -> dict[str, Any]:
    """The published `config.json` for a `VideoChatOnlineConfig`, readable by InternVL2 code and by ours."""
    vision, text = config.vision_config, config.text_config
    if config.projector_hidden_act != "gelu" or not vision.use_mean_pooling:
        raise CheckpointError("the published layout knows a GELU projector and no norm after the vision tower only")
    architecture = next(name for name, kind in _LLM_ARCHITECTURES.items() if kind == text.model_type)
    llm = {k: v for k, v in text.to_dict().items() if k not in ("rope_parameters", "transformers_version", "dtype")}
    llm |= {"architectures": [architecture], "torch_dtype": _dtype_name(config)}
    rope = dict(text.rope_parameters or {})
    llm["rope_theta"] = rope.pop("rope_theta", 10000.0)
    kind = rope.pop("rope_type", "default")
    partial = rope.pop("partial_rotary_factor", 1.0)
    if partial != 1.0:
        llm["partial_rotary_factor"] = partial
    if kind == "longrope":
        original = rope.pop("original_max_position_embeddings", text.max_position_embeddings)
        factor = rope.pop("factor", None)
        # The published layout has no factor: it derives it from the two maxima.
        if factor is not None and abs(factor - text.max_position_embeddings / original) > 1e-6:
            raise CheckpointError(f"rope factor {factor}: the published layout can only say maximum / {original}")
    if kind != "default":
        llm["rope_scaling"] = {"type": "su" if kind == "longrope" else kind, **rope}
    return {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "torch_dtype": _dtype_name(config),
        "force_image_size": config.image_size,
        **{key: getattr(config, key) for key in _SAME_KEYS},
        "reverse_memory_sample_ratio": list(config.memory_intervals),
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "vision_config": {
            "model_type": ORIGINAL_VISION_TYPE,
            "architectures": ["InternVisionModel"],
            "drop_path_rate": config.drop_path_rate,
            **{theirs: _one_side(getattr(vision, ours)) for theirs, ours, _ in _VISION_FIELDS},
        },
        "llm_config": llm,
    }


def _one_side(value: Any) -> Any:
    """One side of a size, whose two sides are equal; any other value as it is."""
    return value[0] if isinstance(value, (tuple, list)) else value


def _dtype_name(config: Any) -> str:
    return str(config.dtype or torch.float32).removeprefix("torch.")


# (published, ours). Prefixes first; inside the vision tower, whole path components.
PREFIXES = (
    ("vision_model.encoder.layers.", "vision_tower.encoder.layer."),
    ("vision_model.", "vision_tower."),
    ("mlp1.0.", "projector.layer_norm."),
    ("mlp1.1.", "projector.linear_1."),
    ("mlp1.3.", "projector.linear_2."),
)
VISION_PARTS = (
    ("embeddings.class_embedding", "embeddings.cls_token"),
    ("embeddings.position_embedding", "embeddings.position_embeddings"),
    ("embeddings.patch_embedding.", "embeddings.patch_embeddings.projection."),
    (".attn.proj.", ".attention.projection_layer."),
    (".attn.q_norm.", ".attention.q_norm."),
    (".attn.k_norm.", ".attention.k_norm."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".ls1", ".lambda_1"),
    (".ls2", ".lambda_2"),
)
_QKV = re.compile(r"^(vision_tower\..*\.attention)\.([qkv])_proj\.(weight|bias)$")


def original_key(key: str) -> str:
    """Our tensor name in the published layout (the three attention projections share one name)."""
    match = _QKV.match(key)
    if match:
        key = f"{match[1].replace('.attention', '.attn')}.qkv.{match[3]}"
    if key.startswith("vision_tower."):
        for theirs, ours in VISION_PARTS:
            key = key.replace(ours, theirs)
    return renamed(key, reverse(PREFIXES))


def to_our_tower(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of transformers' vision tower for the tensors of a published InternViT that stands by itself."""
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        for theirs, ours in (("encoder.layers.", "encoder.layer."), *VISION_PARTS):
            key = key.replace(theirs, ours)
        before, fused, after = key.partition(".attn.qkv.")
        if fused:
            parts = tensor.chunk(3)
            result |= {f"{before}.attention.{name}_proj.{after}": part for name, part in zip("qkv", parts, strict=True)}
        else:
            result[key] = tensor
    return result


def to_original_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our tensors to the published layout and fuse the vision tower's q, k, v. Values are not copied."""
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        match = _QKV.match(key)
        if match is None:
            result[original_key(key)] = tensor
        elif match[2] == "q":
            parts = [state[f"{match[1]}.{name}_proj.{match[3]}"] for name in "qkv"]
            result[original_key(key)] = torch.cat(parts)
    return result


_LORA = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])\.default\.weight$")


def merge_lora(state: Mapping[str, Tensor], scaling: float | Mapping[str, float] = LORA_SCALING) -> dict[str, Tensor]:
    """Fold adapters of a LoRA-wrapped checkpoint into plain weights: W + scaling * B A.

    Args:
        state: any layout with PEFT's names (`base_model.model.`, `base_layer`, `lora_A.default`).
        scaling: alpha / r; of each layer, or of all.

    Raises:
        CheckpointError: an adapter without its other half, its base weight or its scaling, or of another shape.
    """
    plain: dict[str, Tensor] = {}
    adapters: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        match = _LORA.match(key)
        if match:
            adapters.setdefault(_unwrapped(match["module"]), {})[match["side"]] = tensor
        else:
            plain[_unwrapped(key)] = tensor
    for module, halves in adapters.items():
        name = f"{module}.weight"
        if len(halves) != 2 or name not in plain:
            found = ", ".join(f"lora_{side}" for side in sorted(halves)) or "nothing"
            raise CheckpointError(f"{module}: expected base_layer.weight, lora_A and lora_B, found {found}")
        base, a, b = plain[name], halves["A"].to(torch.float32), halves["B"].to(torch.float32)
        if (b.shape[0], a.shape[-1], a.shape[0]) != (*base.shape, b.shape[-1]):
            raise CheckpointError(f"{module}: adapters of {tuple(b.shape)} and {tuple(a.shape)} on {tuple(base.shape)}")
        by = scaling if isinstance(scaling, float) else scaling.get(module)
        if by is None:
            raise CheckpointError(f"{module}: expected the scaling of its adapters, found none")
        plain[name] = (base.to(torch.float32) + by * (b @ a)).to(base.dtype)
    return plain


def _unwrapped(key: str) -> str:
    return key.replace("base_model.model.", "").replace(".base_layer.", ".")


def has_lora(keys: Iterable[str]) -> bool:
    """Whether tensors of adapters are among those of a checkpoint."""
    return any(_LORA.match(key) for key in keys)
