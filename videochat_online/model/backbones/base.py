"""What a family of models has of its own: from pixels to entries of a memory, and from those to a prompt.

A family wraps a network and calls its parts. Of a native class of transformers it never calls the forward pass, which
counts positions by state that it keeps on the module, and looks for placeholders.

Shapes: `T` frames, `H` `W` pixels or tokens of a grid, `E` entries (of one or two frames), `S` vectors of a visual
token (the embedding, and what DeepStack adds), `D` width of the language model, `C` channels of an entry,
`N` visual tokens of an entry or image, `L` tokens of a prompt, `R` rows of positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from videochat_online.errors import InputError
from videochat_online.model.tokens import TokenKey, Tokens
from videochat_online.text import ChatTemplate, PromptLayout, Wording
from videochat_online.types import FrameTokens
from videochat_online.video.transforms import FrameTransform

MEMORY_INTERVALS = (8, 4, 1)
"""Intervals of the tiers where a checkpoint says none: those of VideoChat-Online."""


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


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """How a model takes frames, and what a memory has to fit.

    Attributes:
        shape: Height and width of a frame, in pixels.
        grid: Rows and columns of the tokens of an entry.
        feature_dim: Channels of an entry.
        frames_per_entry: Frames that the vision tower takes together.
        memory_intervals: Intervals of the tiers, in entries: one goes to the first tier whose interval divides its
            index.
    """

    shape: tuple[int, int]
    grid: tuple[int, int]
    feature_dim: int
    frames_per_entry: int = 1
    memory_intervals: tuple[int, ...] = MEMORY_INTERVALS


class Backbone(ABC):
    """One family's way with frames and prompts. Holds weights and nothing of a stream.

    Args:
        network: network of the family, in evaluation mode.
        directory: checkpoint, whose files say how images are prepared; None for the family's own way.
    """

    family: ClassVar[str]
    """Name of the family."""
    model_types: ClassVar[tuple[str, ...]]
    """`model_type` of the `config.json` of its checkpoints."""
    template: ClassVar[str]
    """Chat template where a checkpoint says none."""
    wording: Wording
    """How frames are written into a prompt."""
    image_wording: Wording
    """How still images are."""
    num_levels: int = 1
    """Vectors of a visual token."""
    writes_times: ClassVar[bool] = True
    """Whether the wording has a place for the time of a frame."""

    def __init__(self, network: PreTrainedModel, directory: Path | None = None) -> None:
        self.network, self.directory = network, directory

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this `config.json` is one of the family's."""
        return config.get("model_type") in cls.model_types

    @classmethod
    @abstractmethod
    def read_config(cls, directory: Path) -> Any:
        """Configuration of the network, whatever the layout of the checkpoint; CheckpointError where it is none."""

    @classmethod
    @abstractmethod
    def load(cls, directory: Path, **options: Any) -> Backbone:
        """The family with the weights of a checkpoint, read strictly.

        Args:
            directory: checkpoint.
            **options: `dtype`, `device`, `attn_implementation`.
        """

    @classmethod
    @abstractmethod
    def layout_of(cls, config: Any, frame_size: tuple[int, int] | None = None) -> FrameLayout:
        """How a network of this configuration takes frames.

        Args:
            config: as `read_config` gives it.
            frame_size: height and width in pixels; None for the family's own.

        Raises:
            InputError: frames of that size are not taken.
        """

    @classmethod
    def wording_of(cls, config: Any) -> Wording:
        """How frames are written into a prompt of a network of this configuration."""
        return cls.wording

    @property
    @abstractmethod
    def language_model(self) -> PreTrainedModel:
        """Language model with its head: `inputs_embeds` and `position_ids` in, logits out."""

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """Vision tower, projector and language model, by these names."""

    def facts(self) -> dict[str, Any]:
        """What else the family says of a checkpoint."""
        return {}

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the vision tower's weights."""
        return self.network.dtype

    @abstractmethod
    def transform(self, layout: FrameLayout) -> FrameTransform:
        """From frames as they are shown to what `encode` takes."""

    @abstractmethod
    def encode(self, pixels_TCHW: Tensor) -> Tensor:
        """Normalised pixels -> features [E, C, H, W], as a memory keeps and pools them."""

    @abstractmethod
    def project(self, entry_CHW: Tensor) -> VisualTokens:
        """Tokens of one remembered entry, whatever the grid that a memory has pooled it to."""

    @abstractmethod
    def image(self, image: Image.Image) -> VisualTokens:
        """Tokens of a still image."""

    def num_tokens(self, frame: FrameTokens) -> int:
        """Tokens that a remembered entry costs in a prompt."""
        return frame.num_tokens

    @abstractmethod
    def fit(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make the tokenizer and the network agree on the tokens of pictures; CheckpointError where they cannot."""

    def settle(self, template: ChatTemplate) -> None:  # noqa: B027
        """Make the network what is asked for, where the checkpoint says otherwise; it is saved so."""

    def save_pretrained(self, directory: Path) -> None:
        """Write weights and configuration."""
        self.network.save_pretrained(directory)

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
            content_ids: content id of each; None numbers them. They begin again with a reset, so what was computed
                before one is to be dropped.

        Raises:
            InputError: a span of another length than its visual: frames and text would be misaligned.
        """
        keys: list[TokenKey] = list(layout.input_ids)
        ids_L = torch.tensor(layout.input_ids)
        for start, stop in layout.visual_spans:
            ids_L[start:stop] = 0  # a stand-in need not have an embedding
        embeds_LD = self.embed(ids_L.to(self.network.device)).clone()
        deeper_SLD = embeds_LD.new_zeros(self.num_levels - 1, *embeds_LD.shape)
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
