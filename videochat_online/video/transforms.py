"""Pixels as a checkpoint expects them: RGB, of one size, normalised; and the tiles of a large still image.

Owns resizing, padding, normalising and dynamic tiling (InternVL 1.5, arXiv 2404.16821, section 3.2). Knows
nothing about where pixels come from nor which model reads them. Needs PIL and torch, not torchvision.

Resizing is PIL's bicubic, frame by frame: InternVL's weights were trained with it, and the recorded numbers made with
it. `resize="torch"` is what processors of videos in transformers do, and several times faster on a CPU: for InternVL it
is inexact, and its numbers are its own.

Shape legend: `T` frames, `H` `W` rows and columns as they come, `S` side of the square, `C` = 3 colours.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from videochat_online.errors import InputError, VideoError
from videochat_online.video.reader import Pixels

TORCH_RESIZE_BATCH = 8
"""Frames per call of the torch resize: its intermediate tensors hold several times the input."""


@dataclass(frozen=True, slots=True)
class Normalization:
    """Mean and standard deviation of each colour, on the scale 0 to 1.

    Attributes:
        mean: mean of red, green and blue.
        std: standard deviation of each.
        is_fused: whether it is (value - 255 mean) / (255 std), as in transformers' processors of videos; else a value
            is first divided by 255. The two differ in the last digit.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    is_fused: bool = False

    @property
    def mean_color(self) -> tuple[int, int, int]:
        """The mean as an 8-bit colour, rounded down; padding with it normalises to nearly 0."""
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue


NORMALIZATIONS: dict[str, Normalization] = {
    "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # InternVL's figures, cut to seven digits (blue lost one on the way): its CLIP-type weights saw these.
    "clip": Normalization((0.4814546, 0.4578275, 0.40821073), (0.2686295, 0.2613025, 0.2757711)),
    "siglip": Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def find_normalization(name: str | Normalization) -> Normalization:
    """The named statistics, or those that are given; an unknown name is an InputError that lists the valid ones."""
    if isinstance(name, Normalization):
        return name
    if name not in NORMALIZATIONS:
        raise InputError(f"normalization: expected one of {', '.join(NORMALIZATIONS)}, got {name!r}")
    return NORMALIZATIONS[name]


DEEP_MODES = {
    "I": "16-bit images, whose numbers are divided by 257",
    "F": "images of fractions from 0 to 1, which are multiplied by 255",
}
"""Pillow's modes (before a ";") with more than 8 bits, and what `to_rgb` does to their numbers."""


def to_rgb(image: Image.Image, *, is_16_bit: bool = False) -> Image.Image:
    """RGB of any mode (grey, palette, CMYK, alpha ...).

    Alpha is dropped, not blended with a background: that is what training did. Grey of 16 bits is divided by 257, so
    that the largest number stays white; fractions are multiplied by 255 where all lie between 0 and 1.

    Args:
        image: decoded.
        is_16_bit: Pillow holds the numbers in 32 bits, but they go from 0 to 65535.

    Raises:
        VideoError: whole numbers of 32 bits, or fractions beyond 0 to 1: nobody says which of them is white.
    """
    kind = image.mode.partition(";")[0]
    if kind not in DEEP_MODES:
        return image if image.mode == "RGB" else image.convert("RGB")
    values_HW = np.asarray(image)
    lowest, highest = values_HW.min(), values_HW.max()
    if kind == "F":
        if not (lowest >= 0 and highest <= 1):
            found = f"fractions from {lowest:g} to {highest:g}"
            raise VideoError(
                f"expected an image of fractions from 0 to 1, found {found}: scale them, or save 8 or 16 bits"
            )
        grey_HW = np.rint(values_HW * 255)
    elif is_16_bit or image.mode != "I":
        grey_HW = np.rint(values_HW / 257)
    else:
        found = f"one of 32 bits with values from {lowest} to {highest}"
        raise VideoError(f"expected an image of 8 or 16 bits, found {found}: nothing says which of them is white")
    return Image.fromarray(grey_HW.astype(np.uint8)).convert("RGB")


def normalize(
    pixels_THWC: Pixels | Tensor, normalization: str | Normalization = "imagenet", device: torch.device | None = None
) -> Tensor:
    """uint8 [T,H,W,3] -> float32 [T,3,H,W]: (value / 255 - mean) / std.

    Args:
        pixels_THWC: pixels, usually in the machine's memory.
        normalization: a name in `NORMALIZATIONS`, or one.
        device: device to compute on, the CPU by default. A GPU is sent the bytes, a quarter of the floats.
    """
    device = device or torch.device("cpu")
    if not isinstance(pixels_THWC, Tensor):
        pixels_THWC = torch.from_numpy(np.ascontiguousarray(pixels_THWC))
    if device.type == "cuda" and not pixels_THWC.is_cuda:  # pinned, so that the copy need not be waited for
        pixels_THWC = pixels_THWC.pin_memory()
    pixels_TCHW = pixels_THWC.to(device, non_blocking=True).permute(0, 3, 1, 2)
    full, mean_C11, std_C11 = _statistics(normalization, device)
    scaled_TCHW = pixels_TCHW.to(torch.float32, memory_format=torch.contiguous_format)
    if full is not None:
        scaled_TCHW = scaled_TCHW.div_(full)
    return scaled_TCHW.sub_(mean_C11).div_(std_C11)


@functools.cache
def _statistics(normalization: str | Normalization, device: torch.device) -> tuple[Tensor | None, Tensor, Tensor]:
    """255 (None where it is in the others), mean and deviation.

    Tensors of the device, all three: CUDA would multiply by 1 / 255, which rounds.
    """
    statistics = find_normalization(normalization)
    with torch.inference_mode(False):  # or they could not be used in training after
        full = torch.tensor(255.0, device=device)
        mean_C11 = torch.tensor(statistics.mean, device=device).view(3, 1, 1)
        std_C11 = torch.tensor(statistics.std, device=device).view(3, 1, 1)
        return (None, mean_C11 * full, std_C11 * full) if statistics.is_fused else (full, mean_C11, std_C11)


def resize_image(image: Image.Image, width: int, height: int) -> Image.Image:
    """PIL bicubic whose result does not depend on the version of PIL.

    PIL resizes in one direction, rounds to 8 bits, then resizes in the other. Up to version 12 rows came first;
    from 13 on columns do where the height shrinks by more than twice as many pixels as the width. On tall
    pictures with hard edges the two differ visibly, so the order of 13 is spelled out here.
    """
    is_column_first = height < image.height and image.height - height > 2 * (image.width - width)
    between = (image.width, height) if is_column_first else (width, image.height)
    return image.resize(between, Image.Resampling.BICUBIC).resize((width, height), Image.Resampling.BICUBIC)


def resize_exact(pixels_THWC: Pixels, height: int, width: int) -> Pixels:
    """PIL bicubic, as InternVL was trained: uint8 [T,H,W,3] -> uint8 [T,height,width,3]."""
    resized_THWC = np.empty((len(pixels_THWC), height, width, 3), dtype=np.uint8)
    for frame_HWC, target_HWC in zip(pixels_THWC, resized_THWC, strict=True):
        image = Image.fromarray(np.ascontiguousarray(frame_HWC))
        target_HWC[:] = np.asarray(resize_image(image, width, height))
    return resized_THWC


def resize_with_torch(pixels_THWC: Pixels, height: int, width: int) -> Pixels:
    """Antialiased bicubic of torch, as transformers' processors of videos: uint8 [T,H,W,3] -> [T,height,width,3]."""
    resized_THWC = np.empty((len(pixels_THWC), height, width, 3), dtype=np.uint8)
    for start in range(0, len(pixels_THWC), TORCH_RESIZE_BATCH):
        part = slice(start, start + TORCH_RESIZE_BATCH)
        pixels_TCHW = torch.from_numpy(np.ascontiguousarray(pixels_THWC[part])).permute(0, 3, 1, 2)
        resized_TCHW = functional.interpolate(pixels_TCHW, (height, width), mode="bicubic", antialias=True)
        resized_THWC[part] = resized_TCHW.permute(0, 2, 3, 1).numpy()
    return resized_THWC


RESIZERS: dict[str, Callable[[Pixels, int, int], Pixels]] = {"pil": resize_exact, "torch": resize_with_torch}


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameTransform:
    """Frames as they are shown -> input of the vision tower.

    Attributes:
        size: side of the square, in pixels; of a rectangle the height.
        width: width of a rectangle; None for a square.
        normalization: a name in `NORMALIZATIONS`, or one.
        pad_square: keep the aspect ratio on a square of the mean colour instead of squeezing.
        center_crop: keep the aspect ratio and take the middle, as CLIP's processor does.
        resize: a name in `RESIZERS`: what the weights were trained with. "torch" is the faster one.
    """

    size: int = 448
    width: int | None = None
    normalization: str | Normalization = "imagenet"
    pad_square: bool = False
    center_crop: bool = False
    resize: str = "pil"

    def __post_init__(self) -> None:
        find_normalization(self.normalization)
        if self.resize not in RESIZERS:
            raise InputError(f"resize: expected one of {', '.join(RESIZERS)}, got {self.resize!r}")
        if min(self.shape) < 1:
            raise InputError(f"size: expected at least 1 pixel, got {min(self.shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a frame as the vision tower takes it, in pixels."""
        return self.size, self.size if self.width is None else self.width

    def __call__(self, pixels_THWC: Pixels, device: torch.device | None = None) -> Tensor:
        """uint8 [T,H,W,3] -> float32 [T,3,height,width], on the CPU or `device`; InputError for another array."""
        return normalize(self.resized(pixels_THWC), self.normalization, device)

    def resized(self, pixels_THWC: Pixels) -> Pixels:
        """The first half of it: uint8 [T,H,W,3] -> [T,height,width,3]. Frames of that size stay as they are."""
        check_pixels(pixels_THWC)
        if self.pad_square:
            pixels_THWC = pad_to_square(pixels_THWC, find_normalization(self.normalization).mean_color)
        if self.center_crop:
            pixels_THWC = self._cropped(pixels_THWC)
        if pixels_THWC.shape[1:3] != self.shape:
            pixels_THWC = RESIZERS[self.resize](pixels_THWC, *self.shape)
        return pixels_THWC

    def _cropped(self, pixels_THWC: Pixels) -> Pixels:
        """The middle square, after the shorter side has been made as long as it."""
        height, width = pixels_THWC.shape[1:3]
        shorter = min(height, width)
        rows, columns = (int(self.size * side / shorter) for side in (height, width))
        if (rows, columns) != (height, width):
            pixels_THWC = RESIZERS[self.resize](pixels_THWC, rows, columns)
        top, left = (rows - self.size) // 2, (columns - self.size) // 2
        return pixels_THWC[:, top : top + self.size, left : left + self.size]

    def image(self, image: Image.Image) -> Tensor:
        """One image of any mode -> float32 [1,3,height,width]."""
        return self(np.asarray(to_rgb(image), dtype=np.uint8)[None])


def check_pixels(pixels_THWC: Pixels) -> None:
    """InputError unless the array is uint8 [T,H,W,3] with H and W above 0."""
    array = np.asarray(pixels_THWC)
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape[1:]:
        raise InputError(f"frames: expected uint8 [T,H,W,3], got {array.dtype} {list(array.shape)}")


def pad_to_square(pixels_THWC: Pixels, color: tuple[int, int, int]) -> Pixels:
    """Centre frames on squares of `color` as large as their longer side: uint8 [T,H,W,3] -> uint8 [T,S,S,3]."""
    num_frames, height, width, _ = pixels_THWC.shape
    if height == width:
        return pixels_THWC
    side = max(height, width)
    square_TSSC = np.empty((num_frames, side, side, 3), dtype=np.uint8)
    square_TSSC[:] = color
    top, left = (side - height) // 2, (side - width) // 2
    square_TSSC[:, top : top + height, left : left + width] = pixels_THWC
    return square_TSSC


def choose_tile_grid(
    width: int, height: int, *, min_tiles: int = 1, max_tiles: int = 12, size: int = 448
) -> tuple[int, int]:
    """Columns and rows of tiles whose aspect ratio is nearest to the image's.

    All grids of `min_tiles` to `max_tiles` tiles compete, those with fewer tiles first. Of two that are equally
    near, the larger one wins if the image has more than half its pixels.

    Raises:
        InputError: no pixels, or not 1 <= min_tiles <= max_tiles.
    """
    if width < 1 or height < 1:
        raise InputError(f"image: expected at least 1 x 1 pixels, got {width} x {height}")
    if not 1 <= min_tiles <= max_tiles:
        raise InputError(f"tiles: expected 1 <= min <= max, got min {min_tiles}, max {max_tiles}")
    grids = [(columns, rows) for columns in range(1, max_tiles + 1) for rows in range(1, max_tiles // columns + 1)]
    grids = sorted((grid for grid in grids if math.prod(grid) >= min_tiles), key=math.prod)
    gaps = [abs(width / height - columns / rows) for columns, rows in grids]
    smallest = min(gaps)
    nearest = [grid for grid, gap in zip(grids, gaps, strict=True) if gap == smallest]
    # Of several, the largest that the image fills by half.
    filled = [grid for grid in nearest if width * height > 0.5 * size * size * math.prod(grid)]
    return filled[-1] if filled else nearest[0]


def tile_image(
    image: Image.Image, *, min_tiles: int = 1, max_tiles: int = 12, size: int = 448, thumbnail: bool = True
) -> list[Image.Image]:
    """Cut a still image into square tiles, row by row, and add the whole image, small, as the last.

    The image is first resized to the chosen grid (PIL bicubic). A single tile gets no thumbnail.

    Returns:
        RGB images of `size` x `size` pixels, at most `max_tiles` and the thumbnail.
    """
    image = to_rgb(image)
    columns, rows = choose_tile_grid(*image.size, min_tiles=min_tiles, max_tiles=max_tiles, size=size)
    resized = resize_image(image, columns * size, rows * size)
    tiles = [
        resized.crop((column * size, row * size, (column + 1) * size, (row + 1) * size))
        for row in range(rows)
        for column in range(columns)
    ]
    if thumbnail and len(tiles) > 1:
        tiles.append(resize_image(image, size, size))
    return tiles


def stack_images(images: list[Image.Image]) -> Pixels:
    """Images of one size -> uint8 [T,H,W,3]; InputError where sizes differ or there is none."""
    sizes = sorted({image.size for image in images})
    if len(sizes) != 1:
        raise InputError(f"images: expected one common size, got {len(images)} images of sizes {sizes}")
    return np.stack([np.asarray(to_rgb(image), dtype=np.uint8) for image in images])
