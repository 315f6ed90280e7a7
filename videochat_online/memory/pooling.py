"""Bringing a frame's features to a smaller token grid.

Owns the two resamplings of the reference: adaptive average pooling for a frame that arrives, bilinear for a
remembered frame that moves to a smaller tier. Both act on features before the projector.

Shapes: `T` frames, `C` channels, `H` `W` rows and columns of the token grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from videochat_online.errors import InputError
from videochat_online.memory.schedule import Grid


def pool_to_grid(tokens: Tensor, grid: Grid) -> Tensor:
    """Pool an arriving frame, or a batch of them, to `grid` by adaptive averaging.

    Args:
        tokens: [C, H, W] or [T, C, H, W].
        grid: rows and columns wanted.

    Returns:
        [..., *grid]; `tokens` itself where it already has this grid.

    Raises:
        InputError: the frame has fewer rows or columns than the grid: pooling cannot invent tokens.
    """
    rows, columns = tokens.shape[-2:]
    if (rows, columns) == tuple(grid):
        return tokens
    if rows < grid[0] or columns < grid[1]:
        raise InputError(f"a frame of {rows}x{columns} tokens is too small: its grid is {grid[0]}x{grid[1]}")
    return functional.adaptive_avg_pool2d(tokens, (grid[0], grid[1]))


def demote_to_grid(tokens_CHW: Tensor, grid: Grid) -> Tensor:
    """Resize a remembered frame to the grid of the next tier, bilinearly, as the reference does.

    Without antialiasing: a step of exactly one half averages 2x2 tokens, a larger step skips tokens.

    Returns:
        [C, *grid]; `tokens_CHW` itself where it already has this grid.
    """
    if tuple(tokens_CHW.shape[-2:]) == tuple(grid):
        return tokens_CHW
    return functional.interpolate(tokens_CHW[None], size=list(grid), mode="bilinear", align_corners=False)[0]


def pool_by_ratio(features_TCHW: Tensor, ratios: Sequence[int]) -> Tensor:
    """Pool full-size frames, each by its own ratio: one pooling per ratio, whatever the frame count.

    With the ratios of a `TokenSchedule` it gives the tokens of a memory bank that is fed the frames one after
    another and evicts none; keeps the graph, so training runs gradients through it.

    Args:
        features_TCHW: features of T frames, all on the full grid; frames of several samples may be mixed.
        ratios: T factors by which the frames' grids are divided in each direction (1 keeps a grid).

    Returns:
        [L, C]: the tokens of each frame, row by row of its pooled grid, one frame after another.

    Raises:
        InputError: counts of frames and ratios differ.
    """
    if len(ratios) != features_TCHW.shape[0]:
        raise InputError(f"{features_TCHW.shape[0]} frames of features but {len(ratios)} ratios")
    rows, columns = features_TCHW.shape[-2:]
    stops = torch.tensor([(rows // ratio) * (columns // ratio) for ratio in ratios]).cumsum(0)
    groups, positions = [], []
    for ratio in sorted(set(ratios)):
        members = [number for number, other in enumerate(ratios) if other == ratio]
        tokens_NCHW = pool_to_grid(features_TCHW[members], (rows // ratio, columns // ratio))
        tokens_NLC = tokens_NCHW.flatten(2).transpose(1, 2)
        groups.append(tokens_NLC.flatten(0, 1))
        positions.append((stops[members, None] - torch.arange(tokens_NLC.shape[1], 0, -1)).flatten())
    return torch.cat(groups)[torch.cat(positions).argsort()]
