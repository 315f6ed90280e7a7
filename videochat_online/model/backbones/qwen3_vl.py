"""Qwen3-VL: entries of two frames, DeepStack, and a rope that turns by time, row and column.

Positions are as the checkpoints were trained (and as transformers counts them for this family): each entry is a block
of its own, what comes after it begins one position behind its larger side.

Shapes: as in `base`; `P` patches of an entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from videochat_online.errors import InputError
from videochat_online.model.backbones.base import FrameLayout, VisualTokens
from videochat_online.model.backbones.native import NativeBackbone
from videochat_online.text import Wording
from videochat_online.types import FrameUse, Mark, Segment, Visual
from videochat_online.video.transforms import FrameTransform, to_rgb

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
FRAME_SIZE = (448, 448)
"""Height and width of frames where nobody says: 196 tokens for two."""
IMAGE_PIXELS = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
"""Budget of a still image where a checkpoint says none: that of the published ones."""

OPENS, CLOSES = "<|vision_start|>", "<|vision_end|>"


@dataclass(frozen=True)
class QwenWording(Wording):
    """Each entry after its time, and another pair of marks around all of them.

    Since 5.10 transformers leaves that pair, which before stood for the entries; which of it the weights saw is not
    published. It is written as the installed processor does.
    """

    opens: str = OPENS
    token: str = "<|video_pad|>"
    closes: str = CLOSES

    def frames(self, frames: Iterable[FrameUse], *, with_times: bool) -> tuple[Segment, ...]:
        """As `Wording.frames`; the time of an entry is the mean of its frames'."""
        segments: list[Segment] = []
        for frame in frames:
            segments += [f"<{frame.time_s:.1f} seconds>"] if with_times else []
            segments.append(Visual(frame.num_tokens))
        return (Mark(OPENS), *segments, Mark(CLOSES)) if segments else ()

    def turn(self, frames: Iterable[FrameUse], text: str, *, with_times: bool) -> tuple[Segment, ...]:
        """As `Wording.turn`."""
        return (*self.frames(frames, with_times=with_times), text)

    def images(self, counts: Sequence[int]) -> tuple[Segment, ...]:
        """As `Wording.images`."""
        return tuple(map(Visual, counts))


class Qwen3VL(NativeBackbone):
    """See the module's docstring; the dense models and the mixtures of experts."""

    family = "qwen3_vl"
    model_types = ("qwen3_vl", "qwen3_vl_moe")
    template = "chatml"
    tower = "visual."
    wording = QwenWording()
    image_wording = QwenWording(token="<|image_pad|>")

    def __init__(self, network: PreTrainedModel, directory: Path | None = None) -> None:
        super().__init__(network, directory)
        self.num_levels = 1 + len(network.config.vision_config.deepstack_visual_indexes)

    def parts(self) -> dict[str, nn.Module]:
        """As `Backbone.parts`; the mergers are the projector."""
        visual = self.network.model.visual
        projector = nn.ModuleList([visual.merger, *visual.deepstack_merger_list])
        tower = nn.ModuleList([part for name, part in visual.named_children() if "merger" not in name])
        return {"vision_tower": tower, "projector": projector, "language_model": self.language_model}

    @classmethod
    def layout_of(cls, config: Any, frame_size: tuple[int, int] | None = None) -> FrameLayout:
        """As `Backbone.layout_of`.

        A video of a published processor has one budget of pixels for all of its frames; a stream has no such number.
        """
        vision, shape = config.vision_config, frame_size or FRAME_SIZE
        factor = vision.patch_size * vision.spatial_merge_size
        if any(side < factor or side % factor for side in shape):
            raise InputError(f"frame size: expected multiples of {factor} pixels, found {shape[0]} x {shape[1]}")
        num_levels = 1 + len(vision.deepstack_visual_indexes)
        return FrameLayout(
            shape=shape,
            grid=(shape[0] // factor, shape[1] // factor),
            feature_dim=num_levels * config.text_config.hidden_size,
            frames_per_entry=vision.temporal_patch_size,
        )

    def transform(self, layout: FrameLayout) -> FrameTransform:
        """As `Backbone.transform`."""
        statistics = self.statistics(*HALF, is_fused=True)
        return FrameTransform(size=layout.shape[0], width=layout.shape[1], normalization=statistics, resize="torch")

    def image(self, image: Image.Image) -> VisualTokens:
        """As `Backbone.image`: of its own size, within the checkpoint's budget of pixels."""
        vision = self.network.config.vision_config
        processor = self.image_processor(
            Qwen2VLImageProcessorPil,
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            image_mean=HALF[0],
            image_std=HALF[1],
            size=IMAGE_PIXELS,
        )
        made = processor(to_rgb(image), return_tensors="pt")
        (grid,) = made["image_grid_thw"].tolist()
        return self.project(self._encode(made["pixel_values"].to(self.network.device), grid)[0])

    def encode(self, pixels_TCHW: Tensor) -> Tensor:
        """As `Backbone.encode`; of an odd number of frames the last one counts twice."""
        config = self.network.config.vision_config
        return self._encode(*patches(pixels_TCHW, config.patch_size, config.spatial_merge_size))

    def _encode(self, patches_PC: Tensor, grid: Sequence[int]) -> Tensor:
        """Features [E, C, H, W] of patches; `grid` is entries, rows and columns of patches."""
        (num_entries, rows, columns), visual = grid, self.network.model.visual
        out = visual(patches_PC.to(visual.dtype), grid_thw=torch.tensor([grid], device=patches_PC.device))
        levels_SND = torch.stack([out.pooler_output, *out.deepstack_features])
        side = self.network.config.vision_config.spatial_merge_size
        levels_SEHWD = levels_SND.unflatten(1, (num_entries, rows // side, columns // side))
        return levels_SEHWD.permute(1, 0, 4, 2, 3).flatten(1, 2)

    def positions(self, num_tokens: int, visuals: Sequence[tuple[int, VisualTokens]]) -> Tensor:
        """As `Backbone.positions`: rows of time, row and column."""
        blocks, done, next_position = list[Tensor](), 0, 0
        for start, visual in visuals:
            blocks.append(_text(next_position, start - done))
            next_position += start - done
            rows, columns = visual.grid
            grid = torch.meshgrid(torch.arange(1), torch.arange(rows), torch.arange(columns), indexing="ij")
            blocks.append(torch.stack(grid).reshape(3, -1) + next_position)
            next_position += max(rows, columns)
            done = start + len(visual)
        return torch.cat([*blocks, _text(next_position, num_tokens - done)], dim=1)


def _text(first: int, num_tokens: int) -> Tensor:
    """Positions of text: the same in all rows."""
    return torch.arange(first, first + num_tokens).expand(3, -1)


def patches(pixels_TCHW: Tensor, size: int, merge: int, frames: int = 2) -> tuple[Tensor, tuple[int, int, int]]:
    """Pixels cut as the vision towers of Qwen-VL take them.

    Args:
        pixels_TCHW: normalised, with sides that are multiples of `size * merge`; the last frame is repeated until there
            are whole entries.
        size: side of a patch in pixels.
        merge: patches a side that become one token, and stand together.
        frames: frames of an entry.

    Returns:
        Patches [P of all entries, 3 frames size^2], and entries, rows and columns of them.
    """
    lacking = -len(pixels_TCHW) % frames
    whole = torch.cat((pixels_TCHW, pixels_TCHW[-1:].expand(lacking, -1, -1, -1)))
    num_entries = len(whole) // frames
    rows, columns = (length // size for length in whole.shape[2:])
    cut = whole.reshape(num_entries, frames, 3, rows // merge, merge, size, columns // merge, merge, size)
    # Entry, row and column of tokens, row and column in a token; colour, frame, row and column of pixels.
    ordered = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return ordered.reshape(num_entries * rows * columns, -1), (num_entries, rows, columns)
