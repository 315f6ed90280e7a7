"""LLaVA-OneVision: SigLIP frames, pooled 2 x 2 after the projector, one newline at the end of each video.

Shapes: as in `base`; `P` patches of a frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from videochat_online.errors import InputError
from videochat_online.model.backbones.base import FrameLayout, VisualTokens
from videochat_online.model.backbones.native import NativeBackbone
from videochat_online.text import Wording
from videochat_online.types import FrameUse, Mark, Segment, Visual
from videochat_online.video.transforms import FrameTransform, to_rgb

SIGLIP = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class OnevisionWording(Wording):
    """All frames as one run of tokens, without words or times, then the token that is a newline among them.

    Attributes:
        newline: whether there is such a newline.
    """

    opens: str = ""
    token: str = "<video>"
    closes: str = ""
    newline: bool = True

    def frames(self, frames: Iterable[FrameUse], *, with_times: bool) -> tuple[Segment, ...]:
        """As `Wording.frames`; the family has no way to write times."""
        visuals = [Visual(frame.num_tokens) for frame in frames]
        end = [Mark(self.token)] if self.newline else []
        return (*visuals, *end, "\n") if visuals else ()

    def turn(self, frames: Iterable[FrameUse], text: str, *, with_times: bool) -> tuple[Segment, ...]:
        """As `Wording.turn`."""
        return (*self.frames(frames, with_times=with_times), text)

    def images(self, counts: Sequence[int]) -> tuple[Segment, ...]:
        """As `Wording.images`; newlines within an image are its own tokens."""
        return tuple(segment for count in counts for segment in (Visual(count), "\n"))


class LlavaOnevision(NativeBackbone):
    """See the module's docstring."""

    family = "llava_onevision"
    model_types = ("llava_onevision",)
    template = "chatml"
    wording = OnevisionWording()
    image_wording = OnevisionWording(token="<image>")
    writes_times = False

    def parts(self) -> dict[str, nn.Module]:
        """As `Backbone.parts`."""
        model = self.network.model
        return {
            "vision_tower": model.vision_tower,
            "projector": model.multi_modal_projector,
            "language_model": self.language_model,
        }

    @classmethod
    def layout_of(cls, config: Any, frame_size: tuple[int, int] | None = None) -> FrameLayout:
        """As `Backbone.layout_of`: squares of the tower's size."""
        side = config.vision_config.image_size
        if frame_size not in (None, (side, side)):
            raise InputError(f"frame size: the vision tower takes {side} x {side} pixels, found {frame_size}")
        num_tokens = cls.pooled_side(config, side // config.vision_config.patch_size)
        return FrameLayout(
            shape=(side, side), grid=(num_tokens, num_tokens), feature_dim=config.text_config.hidden_size
        )

    @classmethod
    def pooled_side(cls, config: Any, num_patches: int) -> int:
        """Tokens a side of so many patches: of 27 there are 14."""
        return math.ceil(num_patches / 2)

    def transform(self, layout: FrameLayout) -> FrameTransform:
        """As `Backbone.transform`: squeezed, as the processor of videos does."""
        normalization = self.statistics(*SIGLIP, is_fused=True)
        return FrameTransform(size=layout.shape[0], normalization=normalization, resize="torch")

    def image(self, image: Image.Image) -> VisualTokens:
        """As `Backbone.image`: the whole and its tiles, with newlines, as the native class puts them together."""
        config, side = self.network.config, self.network.config.vision_config.image_size
        processor = self.image_processor(
            LlavaOnevisionImageProcessorPil,
            size={"height": side, "width": side},
            image_grid_pinpoints=config.image_grid_pinpoints,
            image_mean=SIGLIP[0],
            image_std=SIGLIP[1],
        )
        made = processor(to_rgb(image), return_tensors="pt")
        tokens_ND = self.network.model.get_image_features(
            made["pixel_values"].to(self.network.device, self.network.model.vision_tower.dtype),
            made["image_sizes"],
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            vision_aspect_ratio=config.vision_aspect_ratio,
        ).pooler_output[0]
        return VisualTokens(tokens_ND[None], (1, len(tokens_ND)))

    def encode(self, pixels_TCHW: Tensor) -> Tensor:
        """As `Backbone.encode`."""
        features_TDHW = self.features(pixels_TCHW)
        side = self.pooled_side(self.network.config, features_TDHW.shape[2])
        return functional.interpolate(features_TDHW, size=(side, side), mode="bilinear")

    def features(self, pixels_TCHW: Tensor) -> Tensor:
        """Projected patches [T, D, H, W], before they are pooled."""
        config, model = self.network.config, self.network.model
        out = model.vision_tower(pixels_TCHW.to(model.vision_tower.dtype), output_hidden_states=True)
        chosen_TPV = out.hidden_states[config.vision_feature_layer]
        if config.vision_feature_select_strategy == "default":
            chosen_TPV = chosen_TPV[:, 1:]  # the class token
        side = config.vision_config.image_size // config.vision_config.patch_size
        features_TPD: Tensor = model.multi_modal_projector(chosen_TPV)
        return features_TPD.unflatten(1, (side, side)).permute(0, 3, 1, 2).contiguous()

    def embed(self, ids_L: Tensor) -> Tensor:
        """As `Backbone.embed`; the token of a video outside of its frames is the newline at their end."""
        is_newline_L = ids_L == self.network.config.video_token_id
        embeds_LD = super().embed(ids_L.masked_fill(is_newline_L, 0))
        return torch.where(is_newline_L[:, None], self.network.model.image_newline.to(embeds_LD.dtype), embeds_LD)
