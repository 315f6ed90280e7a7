"""A model ready to use: network, tokenizer, chat template and pixel transform of one checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from videochat_online.errors import InputError
from videochat_online.extras import require
from videochat_online.model.backbones import Backbone, FrameLayout, VisualTokens, find_backbone
from videochat_online.model.backbones.internvl import InternVL
from videochat_online.model.compiling import PARTS, check_compiler, compile_steps, compile_tower
from videochat_online.model.device_and_dtype import choose_attention, choose_device, choose_dtype, quantization_config
from videochat_online.model.network_loading import configured, resolve_checkpoint
from videochat_online.model.quantizing import quantize_weights
from videochat_online.text import (
    ChatTemplate,
    encode_text,
    get_template,
    load_tokenizer,
    stop_token_ids,
    stored_template,
)
from videochat_online.video.transforms import FrameTransform

logger = logging.getLogger(__name__)

CACHES = ("dynamic", "static")


@dataclass(frozen=True)
class VideoChatModel:
    """One checkpoint, ready to answer. Holds no video and no dialogue: sessions do.

    Attributes:
        backbone: the weights, and the family's way with frames and prompts.
        tokenizer: tokenizer of the checkpoint.
        template: chat template by which a dialogue is written for it.
        frames: how it takes frames, and what a memory has to fit.
        transform: uint8 frames to the pixels that the vision tower expects.
        compiled_encode: compiled form of `backbone.encode`; None where there is none.
    """

    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    frames: FrameLayout
    transform: FrameTransform
    compiled_encode: Callable[[Tensor], Tensor] | None = None

    @property
    def network(self) -> Any:
        """The family's network."""
        return self.backbone.network

    @property
    def language_model(self) -> PreTrainedModel:
        """Language model with its head."""
        return self.backbone.language_model

    @property
    def config(self) -> Any:
        """Configuration of the network."""
        return self.network.config

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return cast(torch.device, self.network.device)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the vision tower's weights (the language model may be quantised)."""
        return self.backbone.dtype

    @property
    def system_message(self) -> str:
        """The checkpoint's own, else the template's."""
        own: str | None = getattr(self.config, "system_message", None)
        return self.template.default_system_message if own is None else own

    def untrimmed(self) -> VideoChatModel:
        """The same, whose prompts keep the blanks and line breaks that its template trims off the sides of a dialogue.

        Some checkpoints were trained on trimmed sides, and sessions trim as training does; the published scripts did
        not when they asked.
        """
        return replace(self, template=replace(self.template, trims=False)) if self.template.trims else self

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return stop_token_ids(self.tokenizer, self.template)

    @torch.inference_mode()
    def encode(self, pixels_THWC: npt.NDArray[np.uint8]) -> Tensor:
        """Features of frames, as a memory keeps them.

        Args:
            pixels_THWC: RGB frames of any size, uint8 [T, H, W, 3].

        Returns:
            [E, C, H, W] on the model's device: an entry for each frame, or for each two.
        """
        pixels_TCHW = self.transform(pixels_THWC, self.device)
        encode = self.compiled_encode or self.backbone.encode
        return encode(pixels_TCHW.to(self.dtype))

    @torch.inference_mode()
    def project(self, tokens_CHW: Tensor) -> VisualTokens:
        """Tokens of one remembered entry [C, H, W] in the language model's space."""
        return self.backbone.project(tokens_CHW.to(self.device, self.dtype))

    @torch.inference_mode()
    def embed_text(self, text: str) -> Tensor:
        """A text in the language model's space: the mean [D] of its tokens' input embeddings, in fp32.

        Zeros where the text has no token.

        Raises:
            InputError: half of a surrogate pair in the text.
        """
        ids = encode_text(self.tokenizer, text)
        embeds_LD = self.backbone.embed(torch.tensor(ids, dtype=torch.int64, device=self.device))
        return embeds_LD.float().sum(0) / max(1, len(ids))

    def save_pretrained(self, directory: str | Path) -> None:
        """Save network and tokenizer in a layout that `load_model` reads."""
        self.backbone.save_pretrained(Path(directory))
        self.tokenizer.save_pretrained(directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> None:
        """Upload network and tokenizer to the Hugging Face Hub."""
        self.network.push_to_hub(repo_id, **kwargs)
        self.tokenizer.push_to_hub(repo_id, **kwargs)


def load_model(
    name_or_path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str = "auto",
    quantization: str | None = None,
    int8: str | None = None,
    cache: str = "dynamic",
    compile: str | None = None,
    tokenizer: str | Path | None = None,
    template: str | ChatTemplate | None = None,
    adapter: str | Path | None = None,
    frame_size: tuple[int, int] | None = None,
) -> VideoChatModel:
    """Load a checkpoint of any known family and layout, from a directory or from the Hugging Face Hub.

    Args:
        name_or_path: a directory, or "owner/name" on the Hub.
        device: "auto" takes CUDA, else the CPU.
        dtype: "float32", "bfloat16", "float16", or "auto": the checkpoint's on an accelerator, float32 on a CPU.
        attn_implementation: "auto" takes flash_attention_2 where it is installed and can run, else sdpa.
        quantization: "8bit" or "4bit" for the language model (needs bitsandbytes and CUDA).
        int8: "vision", "language" or "both": weights in 8 bits on any device (needs torchao).
        cache: "static" takes memory for keys and values once for a request, and copies none of it.
        compile: "vision", "language" or "both", which then has static caches (needs a C++ compiler, and minutes).
        tokenizer: another directory to take the tokenizer from.
        template: chat template in place of the checkpoint's, as `get_template` takes it; saved with the model.
        adapter: LoRA adapters of PEFT for the checkpoint, a directory or a name as well: merged into its weights.
        frame_size: height and width of frames in pixels, where the family takes several; the same for all frames.

    Raises:
        CheckpointError: the directory does not hold what its configuration promises, or the adapters are another's.
        InputError: an option that does not exist or cannot be met here.
    """
    _check_speed_options(quantization, int8, cache, compile, attn_implementation)
    directory = resolve_checkpoint(name_or_path)
    adapters = None if adapter is None else resolve_checkpoint(adapter)
    chosen_device = choose_device(device)
    if attn_implementation == "auto" and compile in ("language", "both"):
        attn_implementation = "sdpa"  # FlashAttention takes no mask, which hides the positions of tokens to come
    family, config = family_and_config(directory, adapters)
    _check_of_family(family, adapter=adapter, quantization=quantization, int8=int8, compile=compile)
    family.layout_of(config, frame_size)  # before weights are read
    weights_dtype = choose_dtype(dtype, chosen_device, config)
    loaded_tokenizer = load_tokenizer(tokenizer or directory)
    chat_template = template_for(config, loaded_tokenizer, template, family.template)
    attention = choose_attention(attn_implementation, chosen_device, weights_dtype, config)
    options: dict[str, Any] = {"dtype": weights_dtype, "device": chosen_device, "attn_implementation": attention}
    if adapters is not None:
        options["adapter"] = adapters
    if quantization is not None:
        options["quantization_config"] = quantization_config(quantization, chosen_device)
    backbone = family.load(directory, **options)
    backbone.settle(chat_template)
    backbone.fit(loaded_tokenizer)
    encode = _speed_up(backbone, int8, cache, compile)
    return replace(model_of(backbone, loaded_tokenizer, chat_template, frame_size), compiled_encode=encode)


def model_of(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    frame_size: tuple[int, int] | None = None,
) -> VideoChatModel:
    """A model of what is loaded; InputError as of `Backbone.layout_of`."""
    frames = backbone.layout_of(backbone.network.config, frame_size)
    return VideoChatModel(backbone, tokenizer, template, frames, backbone.transform(frames))


def family_and_config(directory: Path, adapter: Path | None = None) -> tuple[type[Backbone], Any]:
    """The family of a checkpoint and its configuration; errors as of `load_config` and `find_backbone`."""
    directory = configured(directory, adapter)
    family = find_backbone(directory)
    return family, family.read_config(directory)


def frame_layout(
    directory: Path, adapter: Path | None = None, frame_size: tuple[int, int] | None = None
) -> FrameLayout:
    """What a memory has to fit, without the weights; errors as of `family_and_config` and `Backbone.layout_of`."""
    family, config = family_and_config(directory, adapter)
    return family.layout_of(config, frame_size)


def _check_of_family(family: type[Backbone], **given: Any) -> None:
    """Refuse options that only InternVL's networks are made for."""
    asked = [name for name, value in given.items() if value is not None]
    if asked and family is not InternVL:
        raise InputError(f"{asked[0]}: expected a model of the family {InternVL.family}, found {family.family}")


def template_for(
    config: Any,
    tokenizer: PreTrainedTokenizerBase,
    given: str | ChatTemplate | None = None,
    of_family: str = InternVL.template,
) -> ChatTemplate:
    """The chat template that is given, else the checkpoint's, else its family's.

    Errors are those of `get_template` and `stored_template`.
    """
    if given is not None:
        return get_template(given, tokenizer)
    return stored_template(getattr(config, "template", of_family), tokenizer)


def _speed_up(
    backbone: Backbone, int8: str | None, cache: str, compile: str | None
) -> Callable[[Tensor], Tensor] | None:
    network: Any = backbone.network
    if int8:
        quantize_weights(network, int8)
    if cache == "static":
        backbone.language_model.generation_config.cache_implementation = cache
    if compile in ("language", "both"):
        compile_steps(network)
    return compile_tower(network) if compile in ("vision", "both") else None


def _check_speed_options(
    quantization: str | None, int8: str | None, cache: str, compile: str | None, attention: str
) -> None:
    for name, value, expected in (("int8", int8, PARTS), ("cache", cache, CACHES), ("compile", compile, PARTS)):
        if value is not None and value not in expected:
            raise InputError(f"{name}: expected one of {', '.join(expected)}, got {value!r}")
    if quantization and int8 in ("language", "both"):
        raise InputError(f"expected quantization or int8 for the language model, got {quantization} and {int8}")
    if compile in ("language", "both") and attention == "flash_attention_2":
        raise InputError(f"compile {compile!r}: expected attn_implementation sdpa or eager, got {attention!r}")
    if compile:
        check_compiler()
    if int8:
        require(f"int8 {int8!r}", "torchao")
