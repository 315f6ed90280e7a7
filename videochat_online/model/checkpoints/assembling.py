"""A new checkpoint from a language model's folder and a vision tower's, with a projector that has to be trained.

The language model is any causal one of transformers, or a GGUF file; the vision tower is that of a checkpoint of a
known layout, or an InternViT by itself. No code of either is run.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector, InternVLVisionModel

from videochat_online.errors import CheckpointError, InputError, one_line
from videochat_online.extras import require
from videochat_online.model.checkpoints.checkpoint import read_network
from videochat_online.model.checkpoints.hf_layout import TILING_KEYS, VISION_MODEL_TYPE
from videochat_online.model.checkpoints.original import ORIGINAL_VISION_TYPE, to_our_tower, translate_vision
from videochat_online.model.checkpoints.strict_loading import raise_on_difference
from videochat_online.model.checkpoints.weight_files import first_line, read_state
from videochat_online.model.configuration import VideoChatOnlineConfig
from videochat_online.model.modeling import VideoChatOnlineForConditionalGeneration
from videochat_online.model.rope import use_explicit_regime
from videochat_online.model.vocabulary_fit import fit_vocabulary
from videochat_online.runs.files import read_object
from videochat_online.text import ChatTemplate, end_token_id, get_template, load_tokenizer
from videochat_online.text.templates import OWN

_OF_TOWER = ("downsample_ratio", "ps_version", "select_layer", "image_size", *TILING_KEYS)
"""Settings of a checkpoint that its vision tower was trained with."""


def assemble(
    language_model: str | Path,
    vision_tower: str | Path,
    *,
    template: str | ChatTemplate = OWN,
    system_message: str | None = None,
    image_size: int | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> tuple[VideoChatOnlineForConditionalGeneration, PreTrainedTokenizerBase]:
    """Join a language model and a vision tower; the projector between them is random.

    Args:
        language_model: directory of a causal language model of transformers, or a GGUF file.
        vision_tower: directory of a checkpoint of any layout that `load_network` reads, or of an InternViT.
        template: chat template, as `get_template` takes it; "own" is that of the language model's tokenizer.
        system_message: system message where a dialogue gives none; None takes the template's.
        image_size: pixels a side of a frame; None takes the vision tower's.
        dtype: dtype of all weights; None takes the language model's.
        seed: seed of the projector.

    Returns:
        The network, and the tokenizer with the tokens of pictures.

    Raises:
        CheckpointError: a folder does not hold what it should, or a chat template that cannot be written.
        InputError: a template of another family of models.
    """
    vision_config, settings, tower = _load_tower(Path(vision_tower).expanduser())
    step_pixels = 2 * vision_config.patch_size[0]  # a token stands for two patches a side
    if image_size is not None and (image_size < step_pixels or image_size % step_pixels):
        raise InputError(f"image_size: expected a multiple of {step_pixels} pixels, two patches, found {image_size}")
    text_network, tokenizer = _load_language_model(Path(language_model).expanduser())
    dtype = dtype or text_network.dtype
    chosen = _with_all_ends(get_template(template, tokenizer), tokenizer, text_network)
    if system_message and not chosen.takes_system:
        raise InputError(f"system message: expected none, as the chat template has no place, found {system_message!r}")
    changes = {"image_size": image_size, "system_message": system_message}
    settings |= {key: value for key, value in changes.items() if value is not None}
    text_config = text_network.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):  # a GGUF file's weights are plain by now
        text_config.pop(key, None)
    config = VideoChatOnlineConfig(
        vision_config=vision_config,
        text_config=text_config,
        template=chosen.to_config(),
        tie_word_embeddings=text_network.config.tie_word_embeddings,
        dtype=dtype,
        **settings,
    )
    network = VideoChatOnlineForConditionalGeneration.blank(config)
    network.language_model, network.vision_tower = text_network, tower
    use_explicit_regime(text_network)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.projector = InternVLMultiModalProjector(config)
    network.generation_config = text_network.generation_config
    fit_vocabulary(network, tokenizer)
    return network.to(dtype), tokenizer


def _with_all_ends(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel
) -> ChatTemplate:
    """A template with all tokens at which the language model alone stops."""
    end, ends = end_token_id(tokenizer, template), network.generation_config.eos_token_id
    others = [index for index in ([ends] if isinstance(ends, int) else ends or ()) if index != end]
    tokens = [token for token in tokenizer.convert_ids_to_tokens(others) if token]
    return replace(template, more_ends=tuple(tokens))


def _load_language_model(source: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    is_gguf = source.suffix == ".gguf"
    if not (source.is_file() if is_gguf else (source / "config.json").is_file()):
        found = "nothing" if not source.exists() else "a file" if source.is_file() else "a directory without one"
        raise CheckpointError(
            f"{source}: expected a language model's directory with config.json, or a .gguf file, found {found}"
        )
    if is_gguf:
        require(f"{source}", "gguf")
    folder, options = (source.parent, {"gguf_file": source.name}) if is_gguf else (source, {})
    try:
        network, report = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, output_loading_info=True, dtype="auto", **options
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **options) if is_gguf else load_tokenizer(folder)
    except ImportError as error:
        raise InputError(f"{source}: reading it needs a package: {one_line(error, 200)}") from error
    except CheckpointError:
        raise
    except Exception as error:  # whatever the odd value of a configuration trips over
        found = f"{type(error).__name__}: {first_line(error)}"
        raise CheckpointError(f"{source}: expected a causal language model of transformers, found {found}") from error
    kind = network.config.model_type
    if network._is_stateful:
        raise CheckpointError(
            f"{source}: expected a language model whose layers all attend, found recurrent ones: {kind}"
        )
    if not isinstance(getattr(network.config, "max_position_embeddings", None), int):
        raise CheckpointError(
            f"{source}/config.json: expected max_position_embeddings, its context, found none: {kind}"
        )
    raise_on_difference(f"{source}: the weights do not fit config.json", report)
    return network, tokenizer


def _load_tower(folder: Path) -> tuple[Any, dict[str, Any], InternVLVisionModel]:
    """The configuration of a vision tower, the settings it was trained with, and the tower."""
    alone = _config_alone(folder)
    if alone is None:
        network = read_network(folder)
        return (
            network.config.vision_config,
            {key: getattr(network.config, key) for key in _OF_TOWER},
            network.vision_tower,
        )
    try:
        config = InternVLVisionConfig(**alone)
        with torch.device("meta"):
            tower = InternVLVisionModel(config)
    except Exception as error:  # whatever a layer raises for a size that it cannot have
        raise CheckpointError(f"{folder}/config.json: cannot be built: {first_line(error)}") from error
    state = read_state(folder)
    if any(key.startswith("encoder.layers.") for key in state):
        state = to_our_tower(state)
    expected = tower.state_dict()
    expected.pop("embeddings.mask_token", None)
    both = expected.keys() & state.keys()
    shapes = [(name, state[name].shape, expected[name].shape) for name in both]
    report = {
        "missing_keys": expected.keys() - both,
        "unexpected_keys": state.keys() - both,
        "mismatched_keys": [each for each in shapes if each[1] != each[2]],
    }
    raise_on_difference(f"{folder}: the weights do not fit config.json", report)
    tower.load_state_dict(state, strict=False, assign=True)
    return config, {"image_size": config.image_size[0]}, tower


def _config_alone(folder: Path) -> dict[str, Any] | None:
    """The configuration of an InternViT that stands by itself; None for anything else."""
    config: dict[str, Any] = {}
    with suppress(InputError):  # said by who reads it next
        config = read_object(folder / "config.json")
    kind = config.get("model_type")
    if kind == ORIGINAL_VISION_TYPE:
        return translate_vision(config)
    return config if kind == VISION_MODEL_TYPE else None
