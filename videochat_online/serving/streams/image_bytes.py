"""Single pictures: what is one, and how it goes over the wire. Imported by clients too, which have no torch."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from videochat_online.errors import InputError

THUMBNAIL_PX, VIEW_PX = 160, 960
"""Longest side of pictures of remembered frames, and of the frame that is shown."""


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
