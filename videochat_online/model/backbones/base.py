"""What a family of models has of its own: from pixels to entries of a memory, and from those to a prompt.

A family wraps the native class of transformers and calls its parts. It never calls that class's own forward pass, which
counts positions by state that it keeps on the module, and looks for placeholders.

Shapes: `T` frames, `H` `W` pixels or tokens of a grid, `E` entries (of one or two frames), `S` vectors of a visual
token (the embedding, and what DeepStack adds), `D` width of the language model, `C` = S D channels of an entry,
`N` visual tokens of an entry or image, `L` tokens of a prompt, `R` rows of positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from videochat_online.errors import CheckpointError, InputError, one_line
from videochat_online.model.backbones.native_checkpoint import read_native
from videochat_online.model.tokens import TokenKey, Tokens
from videochat_online.text import PromptLayout, Wording


@dataclass(frozen=True, slots=True)
class VisualTokens:
    """An entry or an image in the language model's space.

    Attributes:
        levels_SND: Embeddings, then what is added after the first layers.
        grid: Rows and columns of the tokens.
    """

    levels_SND: Tensor
    grid: tuple[int, int]

    def __len__(self) -> int:
        return self.levels_SND.shape[1]

    @property
    def embeds(self) -> Tensor:
        """Embeddings [N, D] alone: what a question can be compared with."""
        return self.levels_SND[0]


class Backbone(ABC):
    """One family's way with frames and prompts. Holds weights and nothing of a stream.

    Args:
        network: native model of the family, in evaluation mode.
    """

    family: ClassVar[str]
    """Name of the family."""
    frames_per_entry: ClassVar[int] = 1
    """Frames that the vision tower takes together."""
    model_types: ClassVar[tuple[str, ...]]
    """`model_type` of the `config.json` of its checkpoints."""
    key_mapping: ClassVar[Mapping[str, str] | None] = None
    """Names of published weights, as patterns, and those of the native class, where transformers knows none."""
    tower: ClassVar[str] = "vision_tower."
    """Part of the name of each weight of the vision tower, in every layout."""
    wording: Wording
    """How frames are written into a prompt."""
    image_wording: Wording
    """How still images are."""
    num_levels: int = 1
    """Vectors of a visual token."""

    def __init__(self, network: PreTrainedModel) -> None:
        self.network = network
        self.language_model = self._language_model()
        """Language model with its head: `inputs_embeds` and `position_ids` in, logits out."""

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this `config.json` is one of the family's."""
        return config.get("model_type") in cls.model_types

    @classmethod
    def native_config(cls, directory: Path) -> PreTrainedConfig:
        """Configuration of the native class, whatever the layout of the checkpoint.

        Raises:
            CheckpointError: a `config.json` that says what the family cannot do.
        """
        try:
            return AutoConfig.from_pretrained(directory, trust_remote_code=False)
        except Exception as error:  # whatever an odd value trips over
            reason = one_line(error)
            raise CheckpointError(f"{directory}/config.json: not a configuration we can read: {reason}") from error

    @classmethod
    def load(cls, directory: Path, **options: Any) -> Backbone:
        """The family with the weights of a checkpoint, read strictly; arguments and errors as of `read_native`."""
        config = cls.native_config(directory)
        return cls(read_native(directory, config, key_mapping=cls.key_mapping, tower=cls.tower, **options))

    def save_pretrained(self, directory: Path) -> None:
        """Write weights and configuration, under the native class's names: `Trainer` would look for no others."""
        self.network.save_pretrained(directory, save_original_format=False)

    def _language_model(self) -> PreTrainedModel:
        return cast(PreTrainedModel, TextModelWithHead(self.network))

    @abstractmethod
    def encode(self, pixels_TCHW: Tensor) -> Tensor:
        """Normalised pixels -> features [E, C, H, W], as a memory keeps and pools them."""

    def project(self, entry_CHW: Tensor) -> VisualTokens:
        """Tokens of one remembered entry, whatever the grid that a memory has pooled it to."""
        levels_SDHW = entry_CHW.unflatten(0, (self.num_levels, -1))
        return VisualTokens(levels_SDHW.flatten(2).transpose(1, 2), (entry_CHW.shape[1], entry_CHW.shape[2]))

    def embed(self, ids_L: Tensor) -> Tensor:
        """Embeddings [L, D] of token ids."""
        embeds_LD: Tensor = self.language_model.get_input_embeddings()(ids_L)
        return embeds_LD

    def positions(self, num_tokens: int, visuals: Sequence[tuple[int, VisualTokens]]) -> Tensor:
        """Positions [R, L] of a prompt's tokens.

        Args:
            num_tokens: tokens of the prompt.
            visuals: where each visual begins, in order.
        """
        return torch.arange(num_tokens)[None]

    def tokens(
        self, layout: PromptLayout, visuals: Sequence[VisualTokens], content_ids: Sequence[int] | None = None
    ) -> Tokens:
        """A prompt with its visual tokens in place.

        Args:
            layout: tokenised dialogue.
            visuals: the visual of each of its spans, in order.
            content_ids: content id of each; None numbers them.

        Raises:
            InputError: a span of another length than its visual: frames and text would be misaligned.
        """
        embeds_LD = self.embed(torch.tensor(layout.input_ids, device=self.network.device)).clone()
        deeper_SLD = embeds_LD.new_zeros(self.num_levels - 1, *embeds_LD.shape)
        keys: list[TokenKey] = list(layout.input_ids)
        numbers = range(len(visuals)) if content_ids is None else content_ids
        for (start, stop), visual, number in zip(layout.visual_spans, visuals, numbers, strict=True):
            if stop - start != len(visual):
                raise InputError(f"visual of {len(visual)} tokens: expected {stop - start}, as the prompt has places")
            embeds_LD[start:stop] = visual.levels_SND[0]
            deeper_SLD[:, start:stop] = visual.levels_SND[1:]
            keys[start:stop] = [(number, stop - start)] * (stop - start)
        starts = [start for start, _ in layout.visual_spans]
        positions_RL = self.positions(len(keys), list(zip(starts, visuals, strict=True)))
        return Tokens(embeds_LD, positions_RL, tuple(keys), deeper_SLD)


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
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Device of the text model's weights."""
        return self.model.device

    def get_input_embeddings(self) -> nn.Module:
        """The text model's table of embeddings."""
        return self.model.get_input_embeddings()

    def forward(self, logits_to_keep: int = 0, **inputs: Any) -> CausalLMOutputWithPast:
        """Logits [B, L, V] of the last `logits_to_keep` tokens, of all where that is 0.

        Args:
            logits_to_keep: tokens at the end whose logits are wanted.
            **inputs: passed to the text model.
        """
        out = self.model(**inputs)
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=out.past_key_values)
