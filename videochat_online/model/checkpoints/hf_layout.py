"""transformers' own InternVL (`-hf` checkpoints) against ours: configuration and tensor names.

Pure functions on dictionaries. The layout: `model.vision_tower.*`, `model.multi_modal_projector.*`,
`model.language_model.*`, `lm_head.*`; before transformers 5 without `model.`. It has no word for some of what a
checkpoint of ours says: what it would compute otherwise is refused, the rest stands under a key of our own, which
transformers keeps and does not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import InternVLConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from videochat_online.errors import CheckpointError

HF_MODEL_TYPE = "internvl"
VISION_MODEL_TYPE = "internvl_vision"
HF_ARCHITECTURE = "InternVLForConditionalGeneration"
OWN_KEY = "videochat_online"
"""Key of a `-hf` config.json under which stands what its own keys cannot say."""

TILING_KEYS = ("pad2square", "dynamic_image_size", "use_thumbnail", "min_dynamic_patch", "max_dynamic_patch")
"""Keys of every layout but `-hf` that say how a still image is cut."""

OWN_FACTS = ("image_size", "drop_path_rate", "template", "system_message", "memory_intervals", *TILING_KEYS)

# (theirs, ours): as transformers saves since its version 5, and as it did before.
HF_NAMES = (
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "projector."),
    ("multi_modal_projector.", "projector."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)


def renamed(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    """A tensor's name with the first of the prefixes (old, new) that it begins with replaced; without any as it is."""
    old, new = next((pair for pair in prefixes if name.startswith(pair[0])), ("", ""))
    return new + name.removeprefix(old)


def reverse(prefixes: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Prefixes in the other direction: (old, new) as (new, old)."""
    return [(new, old) for old, new in prefixes]


def check_vision_type(vision: Any, known: Sequence[str] = (VISION_MODEL_TYPE,)) -> None:
    """A vision tower of another family would be built as InternViT, if its sizes happened to fit.

    Args:
        vision: the `vision_config` of a config.json, or a configuration of transformers.
        known: `model_type` of InternViT in that layout; none at all is what the layout takes for granted.

    Raises:
        CheckpointError: it is another one.
    """
    found = vision.get("model_type") if isinstance(vision, Mapping) else getattr(vision, "model_type", None)
    if found is not None and found not in known:
        raise CheckpointError(f"vision_config.model_type: expected {' or '.join(known)}, got {found!r}")


def translate_hf(config: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a `-hf` `config.json` into arguments of `VideoChatOnlineConfig`.

    What it does not say is what transformers' class says: above all whether the head is tied, which the language
    model's own entry does not decide.

    Raises:
        CheckpointError: it asks for features of several layers, or for the class token among them.
    """
    own = dict(config.get(OWN_KEY) or {})
    unknown = sorted(set(own) - set(OWN_FACTS))
    if unknown:
        raise CheckpointError(f"config.json: {OWN_KEY}: unknown keys {', '.join(unknown)}")
    check_vision_type(config.get("vision_config"))
    read = InternVLConfig.from_dict({key: value for key, value in config.items() if key != OWN_KEY})
    if not isinstance(read.vision_feature_layer, int):
        raise CheckpointError(f"config.json: vision_feature_layer: expected one, got {read.vision_feature_layer}")
    if read.vision_feature_select_strategy != "default":
        raise CheckpointError(
            "config.json: vision_feature_select_strategy: expected 'default' (patches without the class token),"
            f" got {read.vision_feature_select_strategy!r}"
        )
    text = {"model_type": read.text_config.model_type, **(config.get("text_config") or {})}
    text["tie_word_embeddings"] = read.tie_word_embeddings
    text.pop("architectures", None)
    return {
        "vision_config": dict(config.get("vision_config") or {}),
        "text_config": text,
        "downsample_ratio": read.downsample_ratio,
        "projector_hidden_act": read.projector_hidden_act,
        "select_layer": read.vision_feature_layer,
        "image_token_id": read.image_token_id,
        "image_size": read.vision_config.image_size[0],
        "template": "internvl2_5",
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "tie_word_embeddings": read.tie_word_embeddings,
        **own,
    }


def hf_config(config: Any, image_token_id: int) -> dict[str, Any]:
    """The `-hf` `config.json` for a `VideoChatOnlineConfig`.

    Raises:
        CheckpointError: transformers' class would compute something else, or its processor show other pixels.
    """
    refused = {
        "ps_version": config.ps_version == "v1",
        "pad2square": config.pad2square,
        "use_thumbnail": config.dynamic_image_size and config.max_dynamic_patch > 1 and not config.use_thumbnail,
    }
    for key in (key for key, is_refused in refused.items() if is_refused):
        raise CheckpointError(f"{key} {getattr(config, key)!r}: transformers' InternVL knows no such thing")
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    for part in (text, vision):
        part.pop("transformers_version", None)
    # vLLM looks up the class of the language model by its name.
    class_name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.text_config.model_type)
    text["architectures"] = [class_name if isinstance(class_name, str) else class_name[0]]
    return {
        "architectures": [HF_ARCHITECTURE],
        "model_type": HF_MODEL_TYPE,
        "dtype": str(config.dtype or "float32").removeprefix("torch."),
        "vision_config": vision,
        "text_config": text | {"tie_word_embeddings": config.tie_word_embeddings},
        "image_token_id": image_token_id,
        "image_seq_length": config.grid[0] * config.grid[1],
        "downsample_ratio": config.downsample_ratio,
        "projector_hidden_act": config.projector_hidden_act,
        "vision_feature_layer": config.select_layer,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": config.tie_word_embeddings,
        OWN_KEY: {key: getattr(config, key) for key in OWN_FACTS},
    }


def hf_key(key: str) -> str:
    """Our tensor name in transformers 5; one that it does not have stays as it is."""
    return renamed(key, reverse(HF_NAMES))


def to_hf_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the names of transformers 5; values are not copied.

    Raises:
        CheckpointError: the language model has tensors beside `model.` and `lm_head.`.
    """
    result = {hf_key(key): tensor for key, tensor in state.items()}
    strange = sorted(result.keys() & state.keys())
    if strange:
        raise CheckpointError(
            f"{strange[0]}: transformers' InternVL has a language model of model.* and lm_head.* only"
        )
    return result
