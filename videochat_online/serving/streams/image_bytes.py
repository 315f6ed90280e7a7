"""Single pictures: what is one, and how it goes over the wire."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from videochat_online.errors import InputError
from videochat_online.video.still_images import decode_image

THUMBNAIL_PX, VIEW_PX = 160, 960
"""Longest side of pictures of remembered frames, and of the frame that is shown."""

RECEIVED_PX = 1920
"""Longest side of a frame from outside that is kept as it came: no model sees more, and frames wait in memory."""

FORMATS = ("JPEG", "PNG", "WEBP")
"""Formats of single frames from outside, as PIL calls them: few decoders, so that few can have holes."""


def read_picture(data: bytes, max_pixels: int) -> npt.NDArray[np.uint8]:
    """A frame that somebody has sent, uint8 [H, W, 3], upright; made smaller where a side exceeds `RECEIVED_PX`.

    Raises:
        InputError: not one of `FORMATS`, broken, or of more than `max_pixels` pixels.
    """
    image = decode_image(io.BytesIO(data), "the frame", formats=FORMATS, max_pixels=max_pixels)
    image.thumbnail((RECEIVED_PX, RECEIVED_PX), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def to_jpeg(pixels_HWC: npt.NDArray[np.uint8], longest_px: int) -> bytes:
    """A picture as JPEG, made smaller where it is larger than that."""
    image = Image.fromarray(pixels_HWC)
    image.thumbnail((longest_px, longest_px), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def check_picture(pixels_HWC: npt.NDArray[np.uint8]) -> None:
    """Raise an `InputError` unless it is a picture, uint8 [H, W, 3]."""
    is_picture = isinstance(pixels_HWC, np.ndarray) and pixels_HWC.ndim == 3 and pixels_HWC.shape[2] == 3
    if not is_picture or pixels_HWC.dtype != np.uint8 or not pixels_HWC.size:
        found = f"{pixels_HWC.dtype} {pixels_HWC.shape}" if isinstance(pixels_HWC, np.ndarray) else type(pixels_HWC)
        raise InputError(f"expected a picture, uint8 [H, W, 3], got {found}")
