"""Families whose network is a class of transformers, as it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, cast

import torch
from pydantic import Strict
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.image_processing_base import ImageProcessingMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from videochat_online.documents import validated
from videochat_online.errors import CheckpointError, one_line
from videochat_online.model.backbones.base import Backbone, VisualTokens
from videochat_online.model.backbones.native_checkpoint import read_native
from videochat_online.model.device_and_dtype import silence_accelerator_notice
from videochat_online.runs.files import read_object
from videochat_online.text import visual_token_id
from videochat_online.video.transforms import Normalization

logger = logging.getLogger(__name__)

Processor = TypeVar("Processor", bound=ImageProcessingMixin)

_OfColours = Annotated[tuple[float, float, float], Strict(False)]

PREPROCESSOR = "preprocessor_config.json"
"""File that says how a checkpoint's images are prepared."""


class NativeBackbone(Backbone):
    """What the native families share."""

    key_mapping: ClassVar[Mapping[str, str] | None] = None
    """Names of published weights, as patterns, and those of the native class, where transformers knows none."""
    tower: ClassVar[str] = "vision_tower."
    """Part of the name of each weight of the vision tower, in every layout."""

    @classmethod
    def read_config(cls, directory: Path) -> PreTrainedConfig:
        """As `Backbone.read_config`: that of the native class."""
        try:
            return cast(PreTrainedConfig, AutoConfig.from_pretrained(directory, trust_remote_code=False))
        except Exception as error:  # whatever an odd value trips over
            reason = one_line(error)
            raise CheckpointError(f"{directory}/config.json: not a configuration we can read: {reason}") from error

    @classmethod
    def load(cls, directory: Path, **options: Any) -> Backbone:
        """As `Backbone.load`; errors as of `read_native`."""
        config = cls.read_config(directory)
        if (device := options.pop("device", None)) is not None:
            options["device_map"] = {"": device}
        network = read_native(directory, config, key_mapping=cls.key_mapping, tower=cls.tower, **options)
        return cls(network, directory)

    def save_pretrained(self, directory: Path) -> None:
        """Write weights and configuration, under the native class's names: `Trainer` would look for no others."""
        silence_accelerator_notice()
        self.network.save_pretrained(directory, save_original_format=False)

    def statistics(self, mean: Sequence[float], std: Sequence[float], *, is_fused: bool) -> Normalization:
        """Mean and deviation of each colour, as the checkpoint says, else those that are given; the log says which."""
        said: Mapping[str, Any] = {}
        if self.directory is not None:
            file = self.directory / PREPROCESSOR
            if file.is_file():
                said = read_object(file)
            else:
                logger.warning("%s: no %s; the family's own is taken: mean %s", self.directory, PREPROCESSOR, mean)
        where = f"{self.directory}/{PREPROCESSOR}"
        given: dict[str, Any] = {"image_mean": mean, "image_std": std}
        given |= {name: said[name] for name in given if name in said}
        found = {name: validated(_OfColours, value, f"{where}: {name}") for name, value in given.items()}
        return Normalization(found["image_mean"], found["image_std"], is_fused)

    def image_processor(self, kind: type[Processor], **otherwise: Any) -> Processor:
        """The processor of still images that a checkpoint's file sets up, else one with the settings that are given."""
        if self.directory is not None and (self.directory / PREPROCESSOR).is_file():
            return cast(Processor, kind.from_pretrained(self.directory))
        return kind(**otherwise)

    @cached_property
    def language_model(self) -> PreTrainedModel:
        """As `Backbone.language_model`."""
        return cast(PreTrainedModel, TextModelWithHead(self.network))

    def fit(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """As `Backbone.fit`: the tokens are the tokenizer's already."""
        for wording in (self.wording, self.image_wording):
            visual_token_id(tokenizer, wording)
        vocab_size, largest = self.network.config.text_config.vocab_size, max(tokenizer.get_vocab().values())
        if largest >= vocab_size:
            raise CheckpointError(
                f"tokenizer {tokenizer.name_or_path!r}: it has ids up to {largest}, the language model embeds only"
                f" {vocab_size}"
            )

    def project(self, entry_CHW: Tensor) -> VisualTokens:
        """As `Backbone.project`: entries are kept as projected, level by level."""
        levels_SDHW = entry_CHW.unflatten(0, (self.num_levels, -1))
        return VisualTokens(levels_SDHW.flatten(2).transpose(1, 2), (entry_CHW.shape[1], entry_CHW.shape[2]))


class TextModelWithHead(nn.Module):
    """Text model and head of a native class, called as a causal language model is.

    The modules are the network's own: nothing is held twice.

    Args:
        network: native model.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.lm_head = network.model.language_model, network.lm_head
        self.config, self.generation_config = self.model.config, network.generation_config

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the text model's weights."""
        return cast(torch.dtype, self.model.dtype)

    @property
    def device(self) -> torch.device:
        """Device of the text model's weights."""
        return cast(torch.device, self.model.device)

    def get_input_embeddings(self) -> nn.Module:
        """The text model's table of embeddings."""
        return cast(nn.Module, self.model.get_input_embeddings())

    def forward(self, logits_to_keep: int = 0, **inputs: Any) -> CausalLMOutputWithPast:
        """Logits [B, L, V] of the last `logits_to_keep` tokens, of all where that is 0.

        Args:
            logits_to_keep: tokens at the end whose logits are wanted.
            **inputs: passed to the text model.
        """
        out = self.model(**inputs)
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=out.past_key_values)
