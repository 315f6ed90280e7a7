"""A model ready to use: network, tokenizer, chat template and pixel transform of one checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from videochat_online.errors import CheckpointError, InputError
from videochat_online.extras import require
from videochat_online.model.checkpoints.checkpoint import read_network
from videochat_online.model.checkpoints.saved_adapters import (
    ADAPTER_FILES,
    BASE_FILE,
    Base,
    check_adapter,
    check_base,
    holds_learned,
    merged_state,
    numbers_digest,
    read_adapter,
    read_learned,
)
from videochat_online.model.checkpoints.strict_loading import read_model_config
from videochat_online.model.checkpoints.weight_files import check_model_directory, first_line, is_hub_name
from videochat_online.model.compiling import PARTS, check_compiler, compile_steps, compile_tower
from videochat_online.model.configuration import VideoChatOnlineConfig
from videochat_online.model.device_and_dtype import choose_attention, choose_device, choose_dtype, quantization_config
from videochat_online.model.modeling import VideoChatOnlineForConditionalGeneration
from videochat_online.model.quantizing import quantize_weights
from videochat_online.model.vocabulary_fit import fit_vocabulary
from videochat_online.text import (
    ChatTemplate,
    encode_text,
    get_template,
    load_tokenizer,
    stop_token_ids,
    stored_template,
    visual_token_id,
)
from videochat_online.video.transforms import FrameTransform

logger = logging.getLogger(__name__)

CACHES = ("dynamic", "static")
TEXT_FILES = ("*.json", "*.model", "*.txt")
"""Configuration and tokenizer of a checkpoint on the Hub."""


@dataclass(frozen=True)
class VideoChatModel:
    """One checkpoint, ready to answer. Holds no video and no dialogue: sessions do.

    Attributes:
        network: the weights.
        tokenizer: tokenizer of the checkpoint.
        template: chat template by which a dialogue is written for it.
        transform: uint8 frames to the pixels that the vision tower expects.
        compiled_encode: compiled form of `network.encode`; None where there is none.
    """

    network: VideoChatOnlineForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    transform: FrameTransform
    compiled_encode: Callable[[Tensor], Tensor] | None = None

    @property
    def config(self) -> VideoChatOnlineConfig:
        """Configuration of the network."""
        return self.network.config

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the vision tower's weights (the language model may be quantised)."""
        return self.network.projector.linear_1.weight.dtype

    @property
    def system_message(self) -> str:
        """The checkpoint's own, else the template's."""
        own = self.config.system_message
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
        """Visual tokens of frames or tiles, before pooling and projector.

        Args:
            pixels_THWC: RGB frames of any size, uint8 [T, H, W, 3].

        Returns:
            [T, C, H, W] on the model's device.
        """
        pixels_TCSS = self.transform(pixels_THWC, self.device)
        encode = self.compiled_encode or self.network.encode
        return encode(pixels_TCSS.to(self.dtype))

    @torch.inference_mode()
    def project(self, tokens_CHW: Tensor) -> Tensor:
        """Tokens of one remembered frame in the language model's space: [C, H, W] -> [H W, D]."""
        tokens_LC = tokens_CHW.flatten(1).T.to(self.device, self.dtype)
        return self.network.project(tokens_LC)

    @torch.inference_mode()
    def embed_text(self, text: str) -> Tensor:
        """A text in the language model's space: the mean [D] of its tokens' input embeddings, in fp32.

        Zeros where the text has no token.

        Raises:
            InputError: half of a surrogate pair in the text.
        """
        ids = encode_text(self.tokenizer, text)
        embeds_LD = self.network.get_input_embeddings()(torch.tensor(ids, dtype=torch.int64, device=self.device))
        return embeds_LD.float().sum(0) / max(1, len(ids))

    def save_pretrained(self, directory: str | Path) -> None:
        """Save network and tokenizer in our own layout."""
        self.network.save_pretrained(directory)
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
) -> VideoChatModel:
    """Load a checkpoint of any known layout, from a directory or from the Hugging Face Hub.

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
    config = load_config(directory, adapters)
    weights_dtype = choose_dtype(dtype, chosen_device, config)
    loaded_tokenizer = load_tokenizer(tokenizer or directory)
    chat_template = template_for(config, loaded_tokenizer, template)
    network = load_network(
        directory,
        adapter=adapters,
        dtype=weights_dtype,
        device=chosen_device,
        attn_implementation=choose_attention(attn_implementation, chosen_device, weights_dtype, config),
        **({"quantization_config": quantization_config(quantization, chosen_device)} if quantization else {}),
    ).eval()
    network.config.template = chat_template.to_config()
    fit_vocabulary(network, loaded_tokenizer, grows=False)
    if config.image_size != config.vision_config.image_size[0]:
        network.resize_position_embeddings(config.image_size)
    encode = _speed_up(network, int8, cache, compile)
    transform = FrameTransform(size=config.image_size, pad_square=config.pad2square)
    return VideoChatModel(network, loaded_tokenizer, chat_template, transform, encode)


def template_for(
    config: VideoChatOnlineConfig, tokenizer: PreTrainedTokenizerBase, given: str | ChatTemplate | None = None
) -> ChatTemplate:
    """The chat template that is given, else the checkpoint's; errors as of `get_template` and `stored_template`."""
    return stored_template(config.template, tokenizer) if given is None else get_template(given, tokenizer)


def _speed_up(
    network: VideoChatOnlineForConditionalGeneration, int8: str | None, cache: str, compile: str | None
) -> Callable[[Tensor], Tensor] | None:
    if int8:
        quantize_weights(network, int8)
    if cache == "static":
        network.language_model.generation_config.cache_implementation = cache
    if compile in ("language", "both"):
        compile_steps(network)
    return compile_tower(network) if compile in ("vision", "both") else None


def load_network(
    directory: str | Path, *, adapter: Path | None = None, dtype: torch.dtype | str = "auto", **kwargs: Any
) -> VideoChatOnlineForConditionalGeneration:
    """Load a network, strictly: a whole checkpoint, or one of what was learned, on top of the base that it names.

    Args:
        directory: holds `config.json`, and weights of any known layout or a checkpoint of what was learned.
        adapter: a folder of PEFT's adapters, which are merged into the weights.
        dtype: dtype of the weights; "auto" is the checkpoint's.
        **kwargs: arguments of `checkpoint.read_network`.

    Raises:
        CheckpointError: errors of `read_network`; a base that is gone or has other weights, or adapters that do not
            fit.
        InputError: something other than a whole checkpoint under ZeRO-3.
    """
    directory = Path(directory)
    source = adapter or directory
    if adapter is None and not holds_learned(directory):
        return read_network(directory, dtype=dtype, **kwargs)
    if is_deepspeed_zero3_enabled():
        raise InputError(f"{source}: under ZeRO-3 expected a whole model: `convert` writes one")
    if adapter is not None:
        check_adapter(adapter)
    base = Base.read(source) if (source / BASE_FILE).is_file() else None
    below = directory if adapter is not None or base is None else _base_of(directory, base)
    # In the type in which it was added to: sums in another are others.
    network = load_network(below, dtype=dtype if base is None else getattr(torch, base.dtype))
    if base is not None:
        check_base(source, base, numbers_digest(network.named_parameters()), below)
    learned = read_learned(source) if adapter is None else read_adapter(source, network)
    kwargs.setdefault("config", load_config(directory, adapter))
    state = merged_state(network, learned)
    del network, learned
    return read_network(source, dtype=dtype, state_dict=state, **kwargs)


def _base_of(checkpoint: Path, base: Base) -> Path:
    directory = resolve_checkpoint(base.name_or_path)
    if not directory.is_dir() or directory.resolve() == checkpoint.resolve():
        raise CheckpointError(
            f"{checkpoint}: holds what was learned on top of {base.name_or_path}, and there is no such model; if it has"
            f" moved, say where in {BASE_FILE}"
        )
    return directory


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


def resolve_checkpoint(name_or_path: str | Path, *, with_weights: bool = True) -> Path:
    """Directory of a checkpoint; what is "owner/name" and no directory is downloaded from the Hub, once.

    Args:
        name_or_path: a directory, or "owner/name" on the Hub.
        with_weights: whether weights are wanted; else only what plans and prompts need is downloaded.

    Raises:
        CheckpointError: the Hub does not give it.
    """
    if not is_hub_name(name_or_path):
        return Path(name_or_path).expanduser()  # what is wrong with it, if anything, is said where it is read
    try:
        wanted = None if with_weights else list(TEXT_FILES)
        return Path(snapshot_download(str(name_or_path), allow_patterns=wanted))
    except (HFValidationError, OSError) as error:  # of the Hub's own, those of its answers and of no connection
        raise CheckpointError(
            f"{name_or_path}: no such directory, and the Hugging Face Hub did not give it: {first_line(error)}"
        ) from error


def load_config(directory: Path, adapter: Path | None = None) -> VideoChatOnlineConfig:
    """Configuration of a checkpoint in a directory; that of a run, if its adapters are to be added.

    Raises:
        CheckpointError: there is none, or none that can be read.
    """
    is_adapter = any((directory / name).is_file() for name in ADAPTER_FILES)
    if is_adapter and not [*directory.glob("model*.safetensors"), *directory.glob("pytorch_model*.bin")]:
        raise CheckpointError(
            f"{directory}: expected a model, found adapters alone: give the model they are for, and them as adapter"
        )
    if adapter is not None and (adapter / BASE_FILE).is_file():  # PEFT may leave one of another kind
        directory = adapter
    check_model_directory(directory)
    return read_model_config(directory)
