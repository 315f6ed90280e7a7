"""Pixels of a scene at any time.

Shape legend: `H` `W` rows and columns of pixels. Shapes rest on whole pixels, so that the two sizes of a pattern's
lines (1 and 2 pixels) fall on the same grid everywhere: averaging 2 x 2 pixels leaves nothing of the fine one, 4 x 4
nothing of the coarse one.
"""

from __future__ import annotations

from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from videochat_online.errors import InputError
from videochat_online.synthetic.scene.scene import Scene, Visible
from videochat_online.synthetic.scene.words import RGB

Pixels: TypeAlias = npt.NDArray[np.uint8]
Mask: TypeAlias = npt.NDArray[np.bool_]
Key: TypeAlias = tuple[int, tuple[tuple[int, int, int, int, bool], ...]]
"""Columns that the background has drifted; top, left, size, number of each shape, and whether it flashes."""

GREY = 128
NOISE = 4.0
"""Standard deviation of the still background."""
BUSY_NOISE = 25.0
"""Noise of the drifting background, before it is smoothed."""
DRIFT_PX_PER_S = 9
"""Pixels a second, no divisor of the width: at one frame per second the background comes back after 64 s only."""
WHITE = (255, 255, 255)
PATTERN_PX = 8
PHASES_PER_S = 8
SWING_PX = (-2, 2, 0)
"""Offsets of a shaking or hopping shape in turn. Three in eight steps a second: no two whole seconds in a row look
alike, so that even one frame per second shows it."""
SHRINK_PX = (0, 4, 2)


class Renderer:
    """Draws one scene, `size_px` pixels square."""

    def __init__(self, scene: Scene, size_px: int) -> None:
        if size_px % scene.cells_per_side or size_px // scene.cells_per_side < 16:
            raise InputError(
                f"size: expected at least 16 pixels for each of {scene.cells_per_side} cells, got {size_px} pixels"
            )
        self._scene = scene
        self.size_px = size_px
        self._cell_px = size_px // scene.cells_per_side
        self._background = _background(scene, size_px)

    def key(self, time_s: float) -> Key:
        """All that a frame depends on: equal for two times exactly if the frames are."""
        phase = int(time_s * PHASES_PER_S) % len(SWING_PX)
        drift = int(time_s * DRIFT_PX_PER_S) % self.size_px if self._scene.is_busy else 0
        seen = self._scene.state_at(time_s)
        return drift, tuple((*self._box(one, phase), one.entity, one.is_flashing) for one in seen)

    def frame(self, time_s: float) -> Pixels:
        """uint8 [H, W, 3] at a time."""
        drift, shapes = self.key(time_s)
        frame_HWC: Pixels = np.roll(self._background, drift, axis=1)
        for shape in shapes:
            self._draw(frame_HWC, *shape)
        return frame_HWC

    def _box(self, seen: Visible, phase: int) -> tuple[int, int, int]:
        """Top, left and size of a shape's square."""
        top, left = round(seen.row * self._cell_px), round(seen.column * self._cell_px)
        size_px = self._cell_px
        if seen.action == "shake":
            left += SWING_PX[phase]
        elif seen.action == "hop":
            top += SWING_PX[phase]
        elif seen.action == "pulse":
            size_px -= SHRINK_PX[phase]
            top, left = top + SHRINK_PX[phase] // 2, left + SHRINK_PX[phase] // 2
        return top, left, size_px

    def _draw(self, frame_HWC: Pixels, top: int, left: int, size_px: int, number: int, is_flashing: bool) -> None:
        entity = self._scene.entities[number]
        _paint(frame_HWC, shape_mask(entity.shape, size_px), top, left, RGB[entity.colour])
        if entity.pattern is not None:
            inset = (size_px - PATTERN_PX) // 2
            plate = np.ones((PATTERN_PX, PATTERN_PX), dtype=np.bool_)
            _paint(frame_HWC, plate, top + inset, left + inset, WHITE)
            mask = pattern_mask(entity.pattern, entity.pattern_size or "")
            _paint(frame_HWC, mask, top + inset, left + inset, RGB["black"])
        if is_flashing:
            _paint(frame_HWC, _frame_mask(size_px), top, left, WHITE)


@cache
def pattern_mask(name: str, size: str) -> Mask:
    """Where a pattern is black, [8, 8]: half of every aligned square of 2 x 2 lines.

    Raises:
        InputError: no such pattern or size.
    """
    rows, columns = np.indices((PATTERN_PX, PATTERN_PX)) // (1 if size == "fine" else 2)
    upright, level = columns % 2 == 0, rows % 2 == 0
    masks: dict[str, Mask] = {
        "upright lines": upright,
        "level lines": level,
        "checks": upright == level,
        "weave": np.where((rows // 2 + columns // 2) % 2 == 0, upright, level),
    }
    if name not in masks or size not in ("fine", "coarse"):
        raise InputError(f"pattern: expected fine or coarse {', '.join(masks)}, got {size} {name}")
    return masks[name]


@cache
def shape_mask(name: str, size_px: int) -> Mask:
    """Where a shape is, [size, size].

    Raises:
        InputError: no such shape.
    """
    middle = (size_px - 1) / 2
    rows, columns = np.abs(np.indices((size_px, size_px)) - middle) / size_px
    masks: dict[str, Mask] = {
        "block": (rows < 0.3) & (columns < 0.3),
        "dot": np.hypot(rows, columns) < 0.36,
        "bar": (rows < 0.14) & (columns < 0.44),
        "pole": (rows < 0.44) & (columns < 0.14),
        "square": (rows < 0.44) & (columns < 0.44),
        "circle": np.hypot(rows, columns) < 0.45,
        "diamond": rows + columns < 0.5,
        "cross": ((rows < 0.26) & (columns < 0.47)) | ((rows < 0.47) & (columns < 0.26)),
    }
    if name not in masks:
        raise InputError(f"shape: expected one of {', '.join(masks)}, got {name!r}")
    return masks[name]


@cache
def _frame_mask(size_px: int) -> Mask:
    rows, columns = np.indices((size_px, size_px))
    edge = np.minimum.reduce([rows, columns, size_px - 1 - rows, size_px - 1 - columns])
    mask: Mask = edge < 2
    return mask


def _paint(frame_HWC: Pixels, mask_HW: Mask, top: int, left: int, colour: tuple[int, int, int]) -> None:
    """Colour the pixels under a mask; what lies outside the frame is cut off."""
    height, width = frame_HWC.shape[:2]
    rows, columns = mask_HW.shape
    inside = mask_HW[max(0, -top) : height - top, max(0, -left) : width - left]
    patch = frame_HWC[max(0, top) : top + rows, max(0, left) : left + columns]
    patch[inside] = colour


def _background(scene: Scene, size_px: int) -> Pixels:
    random = np.random.default_rng(scene.background_seed)
    noise = random.standard_normal((size_px, size_px, 3))
    if scene.is_busy:
        # Smooth over 4 pixels, across the edge: it must look the same after it has drifted round.
        noise = np.add.reduce([np.roll(noise, (i, j), (0, 1)) for i in range(4) for j in range(4)]) / 4
    noise *= BUSY_NOISE if scene.is_busy else NOISE
    pixels_HWC: Pixels = np.clip(GREY + np.rint(noise), 0, 255).astype(np.uint8)
    return pixels_HWC
