"""Configuration of the composite model: vision tower, projector, language model, and how frames are laid out."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from videochat_online.errors import CheckpointError
from videochat_online.model.checkpoints.hf_layout import check_vision_type
from videochat_online.model.checkpoints.original import ORIGINAL_MODEL_TYPES, translate_config

MAX_LAYERS = 10_000
MAX_IMAGE_SIZE = 16_384
"""Most layers of a part, and most pixels of a frame's side: more is a slip, and would take all time or memory."""


class VideoChatOnlineConfig(PreTrainedConfig):
    """Everything about a checkpoint that is not a weight.

    `from_pretrained` reads our own `config.json`, the published one of InternVL2 / VideoChat-Online, and the
    `-hf` one of transformers' InternVL.

    Attributes:
        vision_config: InternViT.
        text_config: the language model (any causal one of transformers; named so that caches and DeepSpeed
            find it).
        image_size: side of the square that frames are resized to, in pixels; where it is not the vision tower's own,
            the position embeddings are interpolated.
        downsample_ratio: side of the token grid over side of the patch grid (pixel shuffle).
        ps_version: "v2", or "v1", which leaves the grid transposed.
        select_layer: hidden state of the vision tower that is used, by its number (-1: the last).
        drop_path_rate: stochastic depth of the vision tower in training, growing linearly with depth.
        template: the chat template that the checkpoint was trained with: its name, or its strings.
        system_message: system message in place of the template's own.
        memory_intervals: intervals of the tiers: a frame goes to the first tier whose interval divides its index.
        image_token_id: id of <IMG_CONTEXT> in the tokenizer, set when a model is loaded with one.
    """

    model_type = "videochat_online"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(AutoConfig, model_type="phi3"),
        "vision_config": SubConfigSpec(InternVLVisionConfig),
    }

    vision_config: Any = None
    text_config: Any = None
    image_size: int = 448
    downsample_ratio: float = 0.5
    ps_version: str = "v2"
    select_layer: int = -1
    drop_path_rate: float = 0.0
    projector_hidden_act: str = "gelu"
    template: str | dict[str, Any] = "phi3-chat"
    system_message: str | None = None
    dynamic_image_size: bool = True
    use_thumbnail: bool = True
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 12
    pad2square: bool = False
    memory_intervals: list[int] | tuple[int, ...] = (8, 4, 1)
    image_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        check_vision_type(self.vision_config)
        super().__post_init__(**kwargs)
        if self.ps_version not in ("v1", "v2"):
            raise CheckpointError(f"ps_version: expected 'v1' or 'v2', got {self.ps_version!r}")
        if not isinstance(self.system_message, str | None):
            raise CheckpointError(f"system_message: expected a text or null, got {self.system_message!r}")
        for part in (self.vision_config, self.text_config):
            if not 0 < part.num_hidden_layers <= MAX_LAYERS:
                raise CheckpointError(
                    f"num_hidden_layers: expected 1 to {MAX_LAYERS:,} layers, got {part.num_hidden_layers}"
                )
        if not 0 < self.image_size <= MAX_IMAGE_SIZE:
            raise CheckpointError(f"image_size: expected 1 to {MAX_IMAGE_SIZE:,} pixels, got {self.image_size}")
        num_layers = self.vision_config.num_hidden_layers
        if not -num_layers - 1 <= self.select_layer <= num_layers:
            raise CheckpointError(f"select_layer: a vision tower of {num_layers} layers has none {self.select_layer}")
        if self.downsample_ratio <= 0 or (1 / self.downsample_ratio) % 1:
            raise CheckpointError(f"downsample_ratio: expected 1, 1/2, 1/3 ..., got {self.downsample_ratio}")
        if self.patches_per_side < 1 or (self.patches_per_side * self.downsample_ratio) % 1:
            raise CheckpointError(
                f"image_size {self.image_size}: {self.patches_per_side} patches a side cannot be merged by "
                f"downsample_ratio {self.downsample_ratio}"
            )
        self.memory_intervals = tuple(self.memory_intervals)
        self.tie_word_embeddings = bool(self.tie_word_embeddings or self.text_config.tie_word_embeddings)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `config.json` and translate the published layouts into ours."""
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        known = (*ORIGINAL_MODEL_TYPES, cls.model_type)
        if config.get("model_type") not in known:
            raise CheckpointError(f"config.json: model_type is {config.get('model_type')!r}; expected one of {known}")
        translated = translate_config(config)
        translated["model_type"] = cls.model_type
        return translated, kwargs

    @property
    def patches_per_side(self) -> int:
        """Side of the patch grid of one frame or tile."""
        return int(self.image_size) // int(self.vision_config.patch_size[0])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens of one full-size frame or tile."""
        side = int(self.patches_per_side * self.downsample_ratio)
        return (side, side)

    @property
    def feature_dim(self) -> int:
        """Channels of a visual token before the projector."""
        return int(self.vision_config.hidden_size * round(1 / self.downsample_ratio) ** 2)
