"""Qwen3-VL: entries of two frames, DeepStack, and a rope that turns by time, row and column.

Positions are as the checkpoints were trained (and as transformers counts them for this family): each entry is a block
of its own, what comes after it begins one position behind its larger side.

Shapes: as in `base`; `P` patches of an entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from videochat_online.model.backbones.base import Backbone, VisualTokens
from videochat_online.text import Wording
from videochat_online.types import FrameUse, Mark, Segment, Visual

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


class Qwen3VL(Backbone):
    """See the module's docstring; the dense models and the mixtures of experts."""

    family = "qwen3_vl"
    frames_per_entry: ClassVar[int] = 2
    model_types = ("qwen3_vl", "qwen3_vl_moe")
    tower = "visual."
    wording = QwenWording()
    image_wording = QwenWording(token="<|image_pad|>")

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__(network)
        self.num_levels = 1 + len(network.config.vision_config.deepstack_visual_indexes)

    def encode(self, pixels_TCHW: Tensor) -> Tensor:
        """As `Backbone.encode`; of an odd number of frames the last one counts twice."""
        config = self.network.config.vision_config
        patches_PC, grid = patches(pixels_TCHW, config.patch_size, config.spatial_merge_size)
        num_entries, rows, columns = grid
        grids = torch.tensor([grid], device=pixels_TCHW.device)
        out = self.network.model.visual(patches_PC.to(self.network.model.visual.dtype), grid_thw=grids)
        levels_SND = torch.stack([out.pooler_output, *out.deepstack_features])
        side = config.spatial_merge_size
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
