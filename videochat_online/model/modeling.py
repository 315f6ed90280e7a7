"""The composite model: InternViT, pooling between, projector, and a causal language model.

Holds weights and nothing else: no video, no dialogue, no cache.

Shape legend: `T` frames (or image tiles), `S` pixels a side, `P` patches, `V` vision width, `C` channels of a
visual token before the projector (4 V), `H` `W` token grid, `L` tokens, `D` width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector, InternVLVisionModel

from videochat_online.errors import InputError
from videochat_online.memory import pool_by_ratio
from videochat_online.model.checkpoints.strict_loading import StrictLoading
from videochat_online.model.configuration import VideoChatOnlineConfig
from videochat_online.model.device_and_dtype import silence_accelerator_notice
from videochat_online.model.loss import HeadFinder, TokenScores, chunked_loss, score_tokens
from videochat_online.model.rope import use_explicit_regime

LOSS_ARGUMENTS = {"num_items_in_batch", "use_cache"}
"""Arguments of a forward pass with labels that ask for no more than a loss."""


def pixel_shuffle(grid_THWC: Tensor, ratio: float = 0.5, version: str = "v2") -> Tensor:
    """Trade resolution for channels: [T, H, W, C] -> [T, H r, W r, C / r^2].

    Args:
        grid_THWC: patch features.
        ratio: 0.5 merges 2 x 2 neighbours.
        version: "v1" leaves rows and columns swapped, as the first InternVL checkpoints were trained with.
    """
    T, H, W, C = grid_THWC.shape
    grid = grid_THWC.reshape(T, H, int(W * ratio), int(C / ratio))  # neighbours in a row
    grid = grid.permute(0, 2, 1, 3)  # [T, W r, H, C / r]
    grid = grid.reshape(T, int(W * ratio), int(H * ratio), int(C / ratio**2))  # neighbours in a column
    return grid if version == "v1" else grid.permute(0, 2, 1, 3)


class DropPath:
    """Forward hook: stochastic depth of one residual branch, a whole sample at a time.

    InternVLVisionLayer has none; dropping the branch's module output is the same as dropping the branch,
    since LayerScale and the residual come after it.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Scale or zero the output of `module` per sample; an attention module returns a tuple."""
        if not module.training or self.rate == 0.0:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        keep = 1.0 - self.rate
        mask = hidden.new_empty((hidden.shape[0],) + (1,) * (hidden.ndim - 1)).bernoulli_(keep).div_(keep)
        return (hidden * mask, *output[1:]) if isinstance(output, tuple) else hidden * mask


class VideoChatOnlineForConditionalGeneration(StrictLoading, GenerationMixin):
    """Vision tower, projector and language model of an online video LLM.

    `from_pretrained` reads our layout, the published one and `-hf`.
    """

    config_class = VideoChatOnlineConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["InternVLVisionLayer"]
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(self, config: VideoChatOnlineConfig) -> None:
        super().__init__(config)
        self.vision_tower = InternVLVisionModel(config.vision_config)
        self.projector = InternVLMultiModalProjector(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        use_explicit_regime(self.language_model)
        self._heads = HeadFinder()
        self.add_drop_path(config.drop_path_rate)
        self.post_init()

    def add_drop_path(self, rate: float) -> None:
        """Drop samples on residual paths in training, at rates that grow linearly with depth up to `rate`."""
        layers = self.vision_tower.encoder.layer
        for layer, layer_rate in zip(layers, torch.linspace(0, rate, len(layers), device="cpu").tolist(), strict=True):
            if layer_rate > 0:
                layer.attention.register_forward_hook(DropPath(layer_rate))
                layer.mlp.register_forward_hook(DropPath(layer_rate))

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's head."""
        self.language_model.set_output_embeddings(value)

    def encode(self, pixels_TCSS: Tensor) -> Tensor:
        """Visual tokens of frames or tiles, before pooling and projector.

        Args:
            pixels_TCSS: normalised pixels [T, 3, S, S] (a rectangle of whole patches will do).

        Returns:
            [T, C, H, W], on the model's device and in its dtype.
        """
        # A frozen tower keeps no graph: with checkpointing, transformers makes its inputs ask for gradients.
        is_trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.vision_tower.parameters())
        with torch.set_grad_enabled(is_trained):
            return self._encode(pixels_TCSS)

    def _encode(self, pixels_TCSS: Tensor) -> Tensor:
        tower, config = self.vision_tower, self.config
        num_layers = len(tower.encoder.layer)
        depth = config.select_layer + (num_layers + 1 if config.select_layer < 0 else 0)
        hidden = tower.embeddings(pixels_TCSS)  # [T, 1 + P, V]
        for layer in tower.encoder.layer[:depth]:  # layers past the chosen one are never needed
            hidden = layer(hidden)
        if depth == num_layers:
            hidden = tower.layernorm(hidden)
        rows, columns = (n // p for n, p in zip(pixels_TCSS.shape[-2:], config.vision_config.patch_size, strict=True))
        grid = hidden[:, 1:].unflatten(1, (rows, columns))  # [T, rows, columns, V], the class token dropped
        grid = pixel_shuffle(grid, config.downsample_ratio, config.ps_version)  # [T, H, W, C]
        return grid.permute(0, 3, 1, 2)

    def project(self, tokens_LC: Tensor) -> Tensor:
        """Visual tokens in the language model's space: [L, C] -> [L, D]."""
        return self.projector(tokens_LC)

    def fuse(self, input_ids: Tensor | None, visual_LD: Tensor | None) -> Tensor:
        """Embed token ids and put the visual tokens where their placeholders stand, in order.

        Args:
            input_ids: [B, L] with `config.image_token_id` where a visual token stands.
            visual_LD: projected tokens of the whole batch, or None where there are none.

        Returns:
            [B, L, D].

        Raises:
            ValueError: no ids, or the numbers of placeholders and of visual tokens differ.
        """
        if input_ids is None:
            raise ValueError("expected input_ids or inputs_embeds, got neither")
        embeds = self.get_input_embeddings()(input_ids)
        if visual_LD is None:
            return embeds
        if self.config.image_token_id is None:
            raise ValueError("config.image_token_id: expected the id of <IMG_CONTEXT> in the tokenizer, found none")
        is_visual_BL = input_ids == self.config.image_token_id
        num_places = int(is_visual_BL.sum())
        if num_places != visual_LD.shape[0]:
            raise ValueError(
                f"the prompt has {num_places} places for visual tokens, but {visual_LD.shape[0]} tokens were given: "
                "frames and text would be misaligned"
            )
        return embeds.masked_scatter(is_visual_BL[..., None], visual_LD.to(embeds.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pool_ratios: Sequence[int] | None = None,
        labels: Tensor | None = None,
        score: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | TokenScores:
        """Run the language model on text and visual tokens.

        Args:
            input_ids: [B, L].
            attention_mask: [B, L].
            position_ids: [B, L]; without `attention_mask` and with `labels` (or `use_cache=False`) a row may hold
                several sequences, each counted from 0.
            past_key_values: cache of the language model.
            inputs_embeds: [B, L, D], instead of `input_ids` and `pixel_values`.
            pixel_values: normalised frames and tiles of the whole batch, in order of appearance [T, 3, S, S].
            pool_ratios: T factors by which the token grids are pooled (1, 2, 4); default 1.
            labels: [B, L] with -100 where there is no loss.
            score: whether `score` is called instead, within what wraps a forward pass: autocast, ZeRO-3's gathering.
            **kwargs: passed to the language model (`use_cache`, `logits_to_keep`, `num_items_in_batch`, ...).

        Returns:
            With `labels` in training a loss and no logits, unless an argument of transformers asks for more than a
            loss, or the language model has a loss of its own.
        """
        inputs = {"attention_mask": attention_mask, "position_ids": position_ids}
        if score and labels is not None:
            return self.score(
                labels=labels, input_ids=input_ids, pixel_values=pixel_values, pool_ratios=pool_ratios, **inputs
            )
        if inputs_embeds is None:
            inputs_embeds = self._embed(input_ids, pixel_values, pool_ratios)
        inputs["inputs_embeds"] = inputs_embeds
        if labels is not None or self.training:
            kwargs.setdefault("use_cache", False)  # with a cache transformers would not see that a row is packed
        if labels is not None and self.training and past_key_values is None and kwargs.keys() <= LOSS_ARGUMENTS:
            head = self._heads.find(self.language_model)
            if head is not None:
                num_items = kwargs.pop("num_items_in_batch", None)
                hidden_BLD = self.language_model.base_model(**inputs, **kwargs).last_hidden_state
                return CausalLMOutputWithPast(loss=chunked_loss(head, hidden_BLD, labels, num_items))
        return self.language_model(**inputs, past_key_values=past_key_values, labels=labels, **kwargs)

    @torch.no_grad()
    def score(
        self,
        *,
        labels: Tensor,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pool_ratios: Sequence[int] | None = None,
        **inputs: Any,
    ) -> TokenScores:
        """Loss and hits of the supervised tokens of each row, without the logits of whole rows.

        Dropout is as the modules' mode says, precision as the caller's autocast.

        Args:
            labels: [B, L] with -100 where nothing is scored.
            input_ids: token ids [B, L].
            pixel_values: normalised frames and tiles of the whole batch [T, 3, S, S].
            pool_ratios: T factors by which the token grids are pooled; default 1.
            **inputs: `attention_mask`, or `position_ids` of packed rows.
        """
        inputs |= {"inputs_embeds": self._embed(input_ids, pixel_values, pool_ratios), "use_cache": False}
        head = self._heads.find(self.language_model)
        if head is None:
            return score_tokens(lambda logits: logits, self.language_model(**inputs).logits, labels)
        return score_tokens(head, self.language_model.base_model(**inputs).last_hidden_state, labels)

    def _embed(self, input_ids: Tensor | None, pixels_TCSS: Tensor | None, pool_ratios: Sequence[int] | None) -> Tensor:
        visual = None if pixels_TCSS is None else self.embed_frames(pixels_TCSS, pool_ratios)
        return self.fuse(input_ids, visual)

    def embed_frames(self, pixels_TCSS: Tensor, pool_ratios: Sequence[int] | None = None) -> Tensor:
        """Encode, pool each frame as scheduled, and project, all frames in one pass.

        Args:
            pixels_TCSS: [T, 3, S, S].
            pool_ratios: pooling of each frame's grid; None keeps every token.

        Returns:
            [L, D]: the tokens of all frames, one frame after another.
        """
        features_TCHW = self.encode(pixels_TCSS)
        ratios = [1] * len(features_TCHW) if pool_ratios is None else pool_ratios
        return self.project(pool_by_ratio(features_TCHW, ratios))

    def resize_position_embeddings(self, image_size: int) -> None:
        """Interpolate the vision tower's position embeddings to frames of `image_size` pixels, for good.

        Without it they are interpolated in each forward pass; the result is the same.
        """
        embeddings, patch = self.vision_tower.embeddings, self.config.vision_config.patch_size[0]
        side = image_size // patch
        weight = embeddings.position_embeddings.data.float()
        old = round((weight.shape[1] - 1) ** 0.5)
        grid = weight[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
        grid = nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
        resized = torch.cat((weight[:, :1], grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)), dim=1)
        embeddings.position_embeddings = nn.Parameter(resized.to(embeddings.position_embeddings.dtype))
        embeddings.image_size = embeddings.patch_embeddings.image_size = (image_size, image_size)
        embeddings.patch_embeddings.num_patches = side * side
        embeddings.patch_embeddings.patch_shape = (side, side)
        self.config.vision_config.image_size = (image_size, image_size)
        self.config.image_size = image_size

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save in our own layout.

        transformers would save in the layout the model was loaded from, which `Trainer` then resumes from
        with the vision tower and the projector silently missing. `export_original` writes the published one.

        Raises:
            InputError: `int8` has changed the weights.
        """
        if any(type(parameter).__module__.startswith("torchao") for parameter in self.parameters()):
            raise InputError("weights in 8 bits cannot be saved: load the model without `int8`")
        kwargs.setdefault("save_original_format", False)
        silence_accelerator_notice()
        super().save_pretrained(save_directory, **kwargs)
