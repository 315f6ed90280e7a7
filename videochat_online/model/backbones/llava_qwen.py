"""Checkpoints in the layout of LLaVA-NeXT (LongVA, LLaVA-Video): read into transformers' LLaVA-OneVision.

Their `config.json` is Qwen2's with keys of their own beside it. What the native class has no place for is done here:
how frames are pooled after the projector, and where a newline stands.

Source: LLaVA-NeXT's and LongVA's public code for the meaning of the keys; the released checkpoints for the towers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import (
    CLIPVisionConfig,
    LlavaOnevisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from videochat_online.errors import CheckpointError, one_line
from videochat_online.model.backbones.base import FrameLayout, VisualTokens
from videochat_online.model.backbones.llava_onevision import SIGLIP, LlavaOnevision, OnevisionWording
from videochat_online.runs.files import read_object
from videochat_online.types import FrameTokens
from videochat_online.video.transforms import FrameTransform, to_rgb

KEY_MAPPING = {
    r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.(?=layers\.|embed_tokens\.|norm\.)": "model.language_model.",
}
"""Names of the published weights, as patterns, and those of the native class."""

TOWERS: dict[str, PreTrainedConfig] = {
    # Their code drops the last of 27 layers, and takes what comes out then, whatever mm_vision_select_layer says.
    "siglip-so400m-patch14-384": SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=26,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
        vision_use_head=False,
    ),
    "clip-vit-large-patch14-336": CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    ),
}
"""Configuration of the towers that such a checkpoint only names, by the last part of the name."""

KEPT = {
    "mm_patch_merge_type": "flat",
    "mm_spatial_pool_stride": 2,
    "mm_spatial_pool_mode": "bilinear",
    "mm_newline_position": "one_token",
}
"""Settings that the native class has no names for, which are kept in its configuration, and what holds without them."""

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

NEWLINES = ("one_token", "grid", "frame", "no_token")
POOLING_MODES = ("average", "max", "bilinear")


def translated(config: Mapping[str, Any]) -> LlavaOnevisionConfig:
    """A published `config.json` as the native class has it.

    Raises:
        CheckpointError: a tower that is not known, or a setting that has no counterpart here.
    """
    name = str(config.get("mm_vision_tower", "")).rstrip("/").rpartition("/")[2]
    if name not in TOWERS:
        raise CheckpointError(f"mm_vision_tower: expected one of {', '.join(TOWERS)}, found {name!r}")
    if config.get("mm_projector_type") != "mlp2x_gelu":
        raise CheckpointError(f"mm_projector_type: expected 'mlp2x_gelu', found {config.get('mm_projector_type')!r}")
    if config.get("add_faster_video"):
        raise CheckpointError("add_faster_video: expected false, found true")
    text = {key: value for key, value in config.items() if not key.startswith(("mm_", "architectures", "model_type"))}
    tower = TOWERS[name]
    is_clip = isinstance(tower, CLIPVisionConfig)
    vocab_size = int(config["vocab_size"])
    return LlavaOnevisionConfig(
        text_config=Qwen2Config(**text),
        vision_config=tower,
        vision_feature_layer=int(config.get("mm_vision_select_layer", -2)) if is_clip else -1,
        vision_feature_select_strategy="default" if is_clip else "full",
        image_grid_pinpoints=config.get("image_grid_pinpoints"),
        # Ids behind the vocabulary: they have no embeddings, and are never looked up.
        image_token_index=vocab_size,
        video_token_index=vocab_size + 1,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        **{key: config.get(key) or default for key, default in KEPT.items()},
    )


class LlavaQwen(LlavaOnevision):
    """See the module's docstring.

    Args:
        network: native model, whose configuration has the settings in `KEPT`.

    Raises:
        CheckpointError: pooling or newlines of another kind.
    """

    family = "llava_qwen"
    model_types = ("llava_qwen",)
    template = "qwen"
    key_mapping = KEY_MAPPING

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        """As `Backbone.reads`; ours are LLaVA-OneVision's with the settings in `KEPT`."""
        named = config.get("architectures") or []
        return super().reads(config) or "LlavaQwenForCausalLM" in named or config.keys() >= KEPT.keys()

    @classmethod
    def read_config(cls, directory: Path) -> PreTrainedConfig:
        """As `Backbone.read_config`."""
        written = read_object(directory / "config.json")
        if written.get("model_type") == LlavaOnevisionConfig.model_type:
            return super().read_config(directory)
        try:
            return translated(written)
        except CheckpointError as error:
            raise CheckpointError(f"{directory}/config.json: {error}") from error
        except Exception as error:  # whatever an odd value trips over
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise CheckpointError(f"{directory}/config.json: not a configuration we can read: {reason}") from error

    def __init__(self, network: PreTrainedModel, directory: Path | None = None) -> None:
        super().__init__(network, directory)
        said = network.config
        self._stride, self._mode = said.mm_spatial_pool_stride, said.mm_spatial_pool_mode
        self._newline, self.wording = self._newline_of(said), self.wording_of(said)
        for key, value, known in (
            ("mm_spatial_pool_mode", self._mode, POOLING_MODES),
            ("mm_newline_position", self._newline, NEWLINES),
        ):
            if value not in known:
                raise CheckpointError(f"{key}: expected one of {', '.join(known)}, found {value!r}")

    @classmethod
    def _newline_of(cls, config: Any) -> str:
        """Where newlines stand. In LongVA's way frames and tiles are alike, and nothing stands between them."""
        return "no_token" if config.mm_patch_merge_type == "unires" else str(config.mm_newline_position)

    @classmethod
    def wording_of(cls, config: Any) -> OnevisionWording:
        """As `Backbone.wording_of`."""
        return OnevisionWording(newline=cls._newline_of(config) == "one_token")

    def encode(self, pixels_TCHW: Tensor) -> Tensor:
        """As `Backbone.encode`."""
        features_TDHW = self.features(pixels_TCHW)
        if self._mode == "average":
            return functional.avg_pool2d(features_TDHW, self._stride)
        if self._mode == "max":
            return functional.max_pool2d(features_TDHW, self._stride)
        side = self.pooled_side(self.network.config, features_TDHW.shape[2])
        return functional.interpolate(features_TDHW, size=(side, side), mode="bilinear")

    @classmethod
    def pooled_side(cls, config: Any, num_patches: int) -> int:
        """As `LlavaOnevision.pooled_side`: what does not fill a window is left out, unless the mode is bilinear."""
        stride = config.mm_spatial_pool_stride
        return math.ceil(num_patches / stride) if config.mm_spatial_pool_mode == "bilinear" else num_patches // stride

    def transform(self, layout: FrameLayout) -> FrameTransform:
        """As `Backbone.transform`: as the processors of the towers do, CLIP's by cutting the middle out."""
        is_clip = isinstance(self.network.config.vision_config, CLIPVisionConfig)
        normalization = self.statistics(*(CLIP if is_clip else SIGLIP), is_fused=False)
        return FrameTransform(size=layout.shape[0], normalization=normalization, center_crop=is_clip)

    def fit(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """As `Backbone.fit`: the published tokenizers have no tokens of pictures, which are never embedded."""
        tokens = [self.image_wording.token, self.wording.token]
        tokenizer.add_tokens(tokens, special_tokens=True)
        config = self.network.config
        config.image_token_id, config.video_token_id = tokenizer.convert_tokens_to_ids(tokens)

    def num_tokens(self, frame: FrameTokens) -> int:
        """As `Backbone.num_tokens`, with the newlines of the frame."""
        newlines = {"grid": int(frame.tokens_CHW.shape[1]), "frame": 1}
        return frame.num_tokens + newlines.get(self._newline, 0)

    def image(self, image: Image.Image) -> VisualTokens:
        """As `Backbone.image`; in LongVA's way the tiles without the whole, each pooled as a frame is."""
        if self.network.config.mm_patch_merge_type != "unires":
            return super().image(image)
        side = self.network.config.vision_config.image_size
        processor = self.image_processor(
            LlavaOnevisionImageProcessorPil,
            size={"height": side, "width": side},
            image_grid_pinpoints=self.network.config.image_grid_pinpoints,
            image_mean=CLIP[0],
            image_std=CLIP[1],
        )
        tiles_TCHW = processor(to_rgb(image), return_tensors="pt")["pixel_values"][0]
        shown_TCHW = tiles_TCHW[1:] if len(tiles_TCHW) > 1 else tiles_TCHW
        pooled_TDHW = functional.avg_pool2d(self.features(shown_TCHW.to(self.network.device)), 2)
        tokens_ND = pooled_TDHW.flatten(2).transpose(1, 2).flatten(0, 1)
        return VisualTokens(tokens_ND[None], (1, len(tokens_ND)))

    def project(self, entry_CHW: Tensor) -> VisualTokens:
        """As `Backbone.project`; newlines after each row, or after the frame, are tokens of the frame."""
        rows, columns = entry_CHW.shape[1:]
        newline_D = self.network.model.image_newline.to(entry_CHW.dtype)
        if self._newline == "grid":
            entry_CHW = torch.cat((entry_CHW, newline_D[:, None, None].expand(-1, rows, 1)), dim=2)
        tokens = super().project(entry_CHW)
        if self._newline != "frame":
            return tokens
        levels_SND = torch.cat((tokens.levels_SND, newline_D[None, None]), dim=1)
        return VisualTokens(levels_SND, (rows, columns))
