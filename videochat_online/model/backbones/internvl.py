"""InternVL2, VideoChat-Online and what is built as they are: InternViT, pooling, projector, any language model.

Shapes: as in `base`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from videochat_online.errors import InputError
from videochat_online.model.backbones.base import Backbone, FrameLayout, VisualTokens
from videochat_online.model.checkpoints.original import ORIGINAL_MODEL_TYPES
from videochat_online.model.checkpoints.strict_loading import read_model_config
from videochat_online.model.configuration import VideoChatOnlineConfig
from videochat_online.model.modeling import VideoChatOnlineForConditionalGeneration
from videochat_online.model.network_loading import load_network
from videochat_online.model.vocabulary_fit import fit_vocabulary
from videochat_online.text import INTERNVL, ChatTemplate
from videochat_online.video.transforms import FrameTransform, stack_images, tile_image


class InternVL(Backbone):
    """See the module's docstring. Features are kept as they are before the projector."""

    family = "internvl"
    model_types = (*ORIGINAL_MODEL_TYPES, VideoChatOnlineConfig.model_type)
    template = "phi3-chat"
    wording = image_wording = INTERNVL
    network: VideoChatOnlineForConditionalGeneration

    @classmethod
    def read_config(cls, directory: Path) -> VideoChatOnlineConfig:
        """As `Backbone.read_config`."""
        return read_model_config(directory)

    @classmethod
    def load(cls, directory: Path, **options: Any) -> Backbone:
        """As `Backbone.load`, of every layout; errors and more arguments as of `load_network`."""
        return cls(load_network(directory, **options).eval(), directory)

    @classmethod
    def layout_of(cls, config: Any, frame_size: tuple[int, int] | None = None) -> FrameLayout:
        """As `Backbone.layout_of`: squares of the checkpoint's size."""
        shape = (config.image_size, config.image_size)
        if frame_size not in (None, shape):
            raise InputError(f"frame size: the checkpoint takes {shape[0]} x {shape[1]} pixels, found {frame_size}")
        return FrameLayout(
            shape=shape,
            grid=config.grid,
            feature_dim=config.feature_dim,
            memory_intervals=tuple(config.memory_intervals),
        )

    @property
    def language_model(self) -> PreTrainedModel:
        """As `Backbone.language_model`."""
        return cast(PreTrainedModel, self.network.language_model)

    def parts(self) -> dict[str, nn.Module]:
        """As `Backbone.parts`."""
        return {name: self.network.get_submodule(name) for name in ("vision_tower", "projector", "language_model")}

    def facts(self) -> dict[str, Any]:
        """As `Backbone.facts`."""
        config = self.network.config
        return {"select_layer": config.select_layer, "pixel_shuffle": config.ps_version}

    @property
    def dtype(self) -> torch.dtype:
        """As `Backbone.dtype`: the language model may be quantised."""
        return self.network.projector.linear_1.weight.dtype

    def transform(self, layout: FrameLayout) -> FrameTransform:
        """As `Backbone.transform`."""
        return FrameTransform(size=layout.shape[0], pad_square=self.network.config.pad2square)

    def encode(self, pixels_TCHW: Tensor) -> Tensor:
        """As `Backbone.encode`."""
        return self.network.encode(pixels_TCHW)

    def project(self, entry_CHW: Tensor) -> VisualTokens:
        """As `Backbone.project`."""
        tokens_ND = self.network.project(entry_CHW.flatten(1).T)
        return VisualTokens(tokens_ND[None], (entry_CHW.shape[1], entry_CHW.shape[2]))

    def fit(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """As `Backbone.fit`."""
        fit_vocabulary(self.network, tokenizer, grows=False)

    def settle(self, template: ChatTemplate) -> None:
        """As `Backbone.settle`: the template, and position embeddings for frames of the checkpoint's size."""
        config = self.network.config
        config.template = template.to_config()
        if config.image_size != config.vision_config.image_size[0]:
            self.network.resize_position_embeddings(config.image_size)

    def image(self, image: Image.Image) -> VisualTokens:
        """As `Backbone.image`: tiles and the whole, as in training."""
        config, tiles = self.network.config, [image]
        if config.dynamic_image_size:
            tiles = tile_image(
                image,
                size=config.image_size,
                min_tiles=config.min_dynamic_patch,
                max_tiles=config.max_dynamic_patch,
                thumbnail=config.use_thumbnail,
            )
        pixels_TCHW = self.transform(self.layout_of(config))(stack_images(tiles), self.network.device)
        features = self.encode(pixels_TCHW.to(self.dtype))
        levels = [self.project(features_CHW).levels_SND for features_CHW in features]
        tokens_SND = torch.cat(levels, dim=1)
        return VisualTokens(tokens_SND, (1, tokens_SND.shape[1]))
