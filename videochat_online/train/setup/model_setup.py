"""The network of a run: loaded, fitted to its tokenizer, and with the parts frozen that are not to learn."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_flash_attn_2_available

from videochat_online.data import FrameSampling, PixelReader, SampleEncoder, Tiling
from videochat_online.data.samples.sample_reader import SampleReader
from videochat_online.errors import InputError
from videochat_online.memory import TokenSchedule
from videochat_online.model import VideoChatOnlineConfig, VideoChatOnlineForConditionalGeneration, load_network
from videochat_online.model.checkpoints.saved_adapters import Learned
from videochat_online.model.device_and_dtype import fitting_attention
from videochat_online.model.loading import template_for
from videochat_online.model.network_loading import load_config, resolve_checkpoint
from videochat_online.model.vocabulary_fit import fit_vocabulary
from videochat_online.text import (
    ChatTemplate,
    end_token_id,
    load_tokenizer,
)
from videochat_online.train.folder.learned_weights import StartingModel, put_tensors
from videochat_online.train.keys.arguments import Arguments, DataArguments, ModelArguments
from videochat_online.train.setup.frozen_matrices import halve_frozen, keeps_frozen_in_half
from videochat_online.train.setup.lora import add_adapters
from videochat_online.video import FrameTransform


@dataclass(frozen=True)
class TrainingModel:
    """What is trained, what it is trained from, and how dialogues are written for it."""

    network: VideoChatOnlineForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    start: StartingModel


def load_texts(arguments: Arguments) -> tuple[VideoChatOnlineConfig, PreTrainedTokenizerBase, ChatTemplate]:
    """Everything of the model but its weights.

    Raises:
        CheckpointError: no configuration or no tokenizer that can be read.
        InputError: options that do not fit together.
    """
    directory = resolve_checkpoint(arguments.model.model_name_or_path or "", with_weights=False)
    config = _configuration(directory, arguments.model, arguments.data)
    tokenizer = load_tokenizer(directory)
    template = template_for(config, tokenizer, arguments.model.conv_style)
    config.template = template.to_config()
    end_token_id(tokenizer, template)
    return config, tokenizer, template


def load_training_model(arguments: Arguments) -> TrainingModel:
    """Load the model to start from and set it up as the arguments say.

    Under ZeRO-3 the training arguments must exist before: the weights are then spread while they are loaded.

    Raises:
        CheckpointError: the directory does not hold what its configuration promises.
        InputError: options that do not fit together.
    """
    config, tokenizer, template = load_texts(arguments)
    network = load_network(
        resolve_checkpoint(arguments.model.model_name_or_path or ""),
        config=config,
        dtype=_dtype(arguments),
        attn_implementation=_attention(arguments, config),
    )
    start = StartingModel.of(network, str(arguments.model.model_name_or_path))
    if config.image_size != network.config.vision_config.image_size[0]:
        if is_deepspeed_zero3_enabled():
            raise InputError("force_image_size: expected the checkpoint's own size under ZeRO-3")
        network.resize_position_embeddings(config.image_size)
    fit_vocabulary(network, tokenizer)
    adapters = choose_trainable(network, arguments.model)
    if adapters is not None:
        start.check(str(arguments.model.adapter_name_or_path), adapters.base)
        put_tensors(network, adapters.tensors)
        start = replace(start, replaced=adapters.replaced)
    if keeps_frozen_in_half(arguments):
        halve_frozen(network, saves=bool(arguments.training.should_save))
    if arguments.training.use_liger_kernel:
        _use_liger(network, arguments.training.liger_kernel_config)
    return TrainingModel(network, tokenizer, template, start)


def make_reader(config: VideoChatOnlineConfig, options: DataArguments) -> SampleReader:
    """What reads rows and their media as this model is shown them."""
    return SampleReader(
        reader=PixelReader(
            FrameTransform(size=config.image_size, pad_square=config.pad2square),
            backend=options.video_backend,
            cache_mb=options.cache_frames_mb,
        ),
        full_grid=config.grid,
        schedule=TokenSchedule(tuple(config.memory_intervals)),
        sampling=FrameSampling(method=options.sampling_method, max_num_frames=options.max_num_frame),
        tiling=Tiling(
            dynamic=config.dynamic_image_size,
            min_tiles=config.min_dynamic_patch,
            max_tiles=config.max_dynamic_patch,
            thumbnail=config.use_thumbnail,
        ),
        max_overrun_s=options.max_overrun_s,
    )


def make_encoder(
    config: VideoChatOnlineConfig, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, options: DataArguments
) -> SampleEncoder:
    """What turns rows into examples for this model."""
    reader = make_reader(config, options)
    return SampleEncoder(
        **{field.name: getattr(reader, field.name) for field in fields(reader)},
        tokenizer=tokenizer,
        template=template,
        system_message=config.system_message,
        max_length=options.max_seq_length,
    )


def choose_trainable(network: VideoChatOnlineForConditionalGeneration, options: ModelArguments) -> Learned | None:
    """Freeze parts, open single layers of frozen parts again, and add adapters.

    Returns:
        What `add_adapters` does.

    Raises:
        InputError: nothing would learn, more layers than there are, or adapters in a part that learns anyway.
    """
    tower, language_model = network.vision_tower, network.language_model
    tower.requires_grad_(not options.freeze_backbone)
    network.projector.requires_grad_(not options.freeze_mlp)
    language_model.requires_grad_(not options.freeze_llm)
    layers = list(tower.encoder.layer)
    if not 0 <= options.unfreeze_vit_layers <= len(layers):
        raise InputError(
            f"unfreeze_vit_layers: expected 0 to {len(layers)}, the layers of the vision tower, found"
            f" {options.unfreeze_vit_layers}"
        )
    for layer in layers[len(layers) - options.unfreeze_vit_layers :]:
        layer.requires_grad_(True)
    if options.unfreeze_lm_head:
        network.get_output_embeddings().requires_grad_(True)
    given = add_adapters(network, options, _freeze_unused(network))
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError("nothing would learn: every part is frozen")
    return given


def _freeze_unused(network: VideoChatOnlineForConditionalGeneration) -> tuple[str, ...]:
    """Beginnings of the names of what takes no part in a forward pass: DDP would wait for its gradients.

    Those are the vision layers after the chosen one, and the stand-in for masked patches.
    """
    if network.vision_tower.embeddings.mask_token is not None:
        network.vision_tower.embeddings.mask_token.requires_grad_(False)
    layers = list(network.vision_tower.encoder.layer)
    select = network.config.select_layer
    depth = select + (len(layers) + 1 if select < 0 else 0)
    for layer in layers[depth:]:
        layer.requires_grad_(False)
    if depth < len(layers):
        network.vision_tower.layernorm.requires_grad_(False)
    return tuple(f"vision_tower.encoder.layer.{number}." for number in range(depth, len(layers)))


def _configuration(directory: Path, options: ModelArguments, data: DataArguments) -> VideoChatOnlineConfig:
    """The checkpoint's configuration with what the run changes; it is saved with the result."""
    config = load_config(directory)
    changes: dict[str, Any] = {
        "drop_path_rate": options.drop_path_rate,
        "image_size": options.force_image_size,
        "memory_intervals": data.reverse_memory_sample_ratio and tuple(data.reverse_memory_sample_ratio),
    }
    names = ("dynamic_image_size", "min_dynamic_patch", "max_dynamic_patch", "use_thumbnail", "pad2square")
    changes |= {name: getattr(data, name) for name in names}
    for key, value in changes.items():
        if value is not None:
            setattr(config, key, value)
    if config.image_size % (2 * config.vision_config.patch_size[0]):
        raise InputError(
            f"force_image_size: expected a multiple of {2 * config.vision_config.patch_size[0]} pixels, two patches,"
            f" found {config.image_size}"
        )
    return config


def _dtype(arguments: Arguments) -> torch.dtype:
    name = arguments.model.model_dtype
    if name == "auto":
        # DeepSpeed keeps its own fp32 copy of bfloat16 weights; nobody else does.
        return torch.bfloat16 if arguments.training.deepspeed and arguments.training.bf16 else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def attention_of(arguments: Arguments) -> str:
    """The attention of a run on this machine: sdpa, flash_attention_2 or eager.

    Raises:
        InputError: an attention that does not exist, or that cannot be had here.
    """
    name = arguments.model.attn_implementation
    can_flash = torch.cuda.is_available() and not arguments.training.use_cpu and is_flash_attn_2_available()
    if name == "auto":
        return "flash_attention_2" if can_flash and arguments.training.bf16 else "sdpa"
    if name == "flash_attention_2" and not can_flash:
        raise InputError("attn_implementation: flash_attention_2 needs CUDA and the package flash-attn")
    return name


def _attention(arguments: Arguments, config: VideoChatOnlineConfig) -> str:
    name = attention_of(arguments)
    return fitting_attention(name, config) if arguments.model.attn_implementation == "auto" else name


def _use_liger(network: VideoChatOnlineForConditionalGeneration, options: dict[str, bool] | None) -> None:
    """By hand: transformers chooses kernels by the kind of model, and ours is none that it knows."""
    try:
        apply_liger_kernel(network.language_model, options)
    except ImportError as error:
        raise InputError("use_liger_kernel: expected the package liger-kernel, found none") from error
