"""LLaVA-OneVision: SigLIP frames, pooled 2 x 2 after the projector, one newline at the end of each video.

Shapes: as in `base`; `P` patches of a frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from videochat_online.model.backbones.base import Backbone
from videochat_online.text import Wording
from videochat_online.types import FrameUse, Mark, Segment, Visual


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


class LlavaOnevision(Backbone):
    """See the module's docstring."""

    family = "llava_onevision"
    model_types = ("llava_onevision",)
    wording = OnevisionWording()
    image_wording = OnevisionWording(token="<image>")

    def encode(self, pixels_TCHW: Tensor) -> Tensor:
        """As `Backbone.encode`."""
        features_TDHW = self.features(pixels_TCHW)
        # The size, not the factor: of 27 x 27 patches there are 14 x 14 tokens.
        size = [math.ceil(side / 2) for side in features_TDHW.shape[2:]]
        return functional.interpolate(features_TDHW, size=size, mode="bilinear")

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
