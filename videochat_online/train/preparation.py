"""The network of a run: loaded, fitted to its tokenizer, and with the parts frozen that are not to learn."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, LoraModel
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_flash_attn_2_available

from videochat_online.data import FrameSampling, PixelReader, SampleEncoder, Tiling
from videochat_online.data.reading import SampleReader
from videochat_online.errors import InputError
from videochat_online.memory import TokenSchedule
from videochat_online.model import VideoChatOnlineConfig, VideoChatOnlineForConditionalGeneration, load_network
from videochat_online.model.loading import load_config, resolve_checkpoint
from videochat_online.model.original import LORA_SCALING
from videochat_online.model.vocabulary import fit_vocabulary
from videochat_online.text import (
    ChatTemplate,
    end_token_id,
    get_template,
    load_tokenizer,
)
from videochat_online.train.arguments import Arguments, DataArguments, ModelArguments
from videochat_online.train.frozen import halve_frozen, keeps_frozen_in_half
from videochat_online.video import FrameTransform

LORA_DROPOUT = 0.05
_LLM_LINEAR = "qkv_proj|q_proj|k_proj|v_proj|o_proj|gate_up_proj|gate_proj|up_proj|down_proj"
_VIT_LINEAR = "q_proj|k_proj|v_proj|projection_layer|fc1|fc2"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Student:
    """What is trained, and how dialogues are written for it."""

    network: VideoChatOnlineForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate


def load_texts(arguments: Arguments) -> tuple[VideoChatOnlineConfig, PreTrainedTokenizerBase, ChatTemplate]:
    """Everything of the model but its weights.

    Raises:
        CheckpointError: no configuration or no tokenizer that can be read.
        InputError: options that do not fit together.
    """
    directory = resolve_checkpoint(arguments.model.model_name_or_path or "", with_weights=False)
    config = _configuration(directory, arguments.model, arguments.data)
    template = get_template(config.template)
    tokenizer = load_tokenizer(directory)
    end_token_id(tokenizer, template)
    return config, tokenizer, template


def load_student(arguments: Arguments) -> Student:
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
        attn_implementation=attention_of(arguments),
    )
    if config.image_size != network.config.vision_config.image_size[0]:
        if is_deepspeed_zero3_enabled():
            raise InputError("force_image_size: expected the checkpoint's own size under ZeRO-3")
        network.resize_position_embeddings(config.image_size)
    fit_vocabulary(network, tokenizer)
    choose_trainable(network, arguments.model)
    if keeps_frozen_in_half(arguments):
        halve_frozen(network, saves=bool(arguments.training.should_save))
    if arguments.training.use_liger_kernel:
        _use_liger(network, arguments.training.liger_kernel_config)
    return Student(network, tokenizer, template)


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


def choose_trainable(network: VideoChatOnlineForConditionalGeneration, options: ModelArguments) -> None:
    """Freeze parts, open single layers of frozen parts again, and add adapters.

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
    for flag, rank, frozen in (
        ("use_llm_lora", options.use_llm_lora, options.freeze_llm),
        ("use_backbone_lora", options.use_backbone_lora, options.freeze_backbone),
    ):
        if rank and not frozen:
            part = "freeze_llm" if flag == "use_llm_lora" else "freeze_backbone"
            raise InputError(f"{flag}: adapters go into a frozen part: set {part}")
    _freeze_unused(network)
    add_adapters(network, options.use_llm_lora, options.use_backbone_lora)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError("nothing would learn: every part is frozen")


def _freeze_unused(network: VideoChatOnlineForConditionalGeneration) -> None:
    """What takes no part in a forward pass: DDP would wait for its gradients.

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


def add_adapters(network: nn.Module, llm_rank: int, backbone_rank: int) -> None:
    """Put LoRA adapters into the network, in place: its class, its other parameters and its saving stay the same.

    A checkpoint with adapters is merged when it is loaded, so each saved one is a complete model.
    """
    learning = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    ranks: dict[str, int] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            leaf = name.rpartition(".")[2]
            if llm_rank and name.startswith("language_model.") and leaf in _LLM_LINEAR.split("|"):
                ranks[name] = llm_rank
            if backbone_rank and name.startswith("vision_tower.") and leaf in _VIT_LINEAR.split("|"):
                ranks[name] = backbone_rank
    if not ranks:
        if llm_rank or backbone_rank:
            raise InputError("adapters: found no linear layer to put them into")
        return
    config = LoraConfig(
        r=llm_rank or backbone_rank,
        lora_alpha=int(LORA_SCALING * (llm_rank or backbone_rank)),
        rank_pattern=ranks,
        alpha_pattern={name: int(LORA_SCALING * rank) for name, rank in ranks.items()},
        lora_dropout=LORA_DROPOUT,
        target_modules=sorted(ranks),
    )
    LoraModel(network, config, "default")
    for name, parameter in network.named_parameters():
        # Adding adapters freezes everything else.
        if name in learning:
            parameter.requires_grad_(True)


def _configuration(directory: Path, options: ModelArguments, data: DataArguments) -> VideoChatOnlineConfig:
    """The checkpoint's configuration with what the run changes; it is saved with the result."""
    config = load_config(directory)
    changes: dict[str, Any] = {
        "template": options.conv_style,
        "drop_path_rate": options.drop_path_rate,
        "image_size": options.force_image_size,
        "memory_intervals": data.reverse_memory_sample_ratio and tuple(data.reverse_memory_sample_ratio),
        "dynamic_image_size": data.dynamic_image_size,
        "min_dynamic_patch": data.min_dynamic_patch,
        "max_dynamic_patch": data.max_dynamic_patch,
        "use_thumbnail": data.use_thumbnail,
        "pad2square": data.pad2square,
    }
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
    if name not in _DTYPES:
        raise InputError(f"model_dtype: expected auto, {' or '.join(_DTYPES)}, found {name!r}")
    return _DTYPES[name]


def attention_of(arguments: Arguments) -> str:
    """The attention of a run on this machine: sdpa, flash_attention_2 or eager.

    Raises:
        InputError: one that does not exist, or that cannot be had here.
    """
    name = arguments.model.attn_implementation
    can_flash = torch.cuda.is_available() and not arguments.training.use_cpu and is_flash_attn_2_available()
    if name == "auto":
        return "flash_attention_2" if can_flash and arguments.training.bf16 else "sdpa"
    if name not in ("sdpa", "eager", "flash_attention_2"):
        raise InputError(f"attn_implementation: expected auto, sdpa, flash_attention_2 or eager, found {name!r}")
    if name == "flash_attention_2" and not can_flash:
        raise InputError("attn_implementation: flash_attention_2 needs CUDA and the package flash-attn")
    return name


def _use_liger(network: VideoChatOnlineForConditionalGeneration, options: dict[str, bool] | None) -> None:
    """By hand: transformers chooses kernels by the kind of model, and ours is none that it knows."""
    try:
        apply_liger_kernel(network.language_model, options)
    except ImportError as error:
        raise InputError("use_liger_kernel: expected the package liger-kernel, found none") from error
