"""Small video files for tests, written with PyAV: a bright square moves one step to the right each frame."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from PIL import Image


def moving_square(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 [T, H, W, 3]."""
    pixels = np.full((num_frames, height, width, 3), 40, dtype=np.uint8)
    for t in range(num_frames):
        left = (2 * t) % (width - 16)
        pixels[t, 16:32, left : left + 16] = (230, 60 + (5 * t) % 100, 20)
    return pixels


def write_clip(path: Path, num_frames: int = 40, fps: int = 10, codec: str = "libx264", start_s: float = 0.0) -> Path:
    """Write `moving_square` to a file; the container follows the suffix."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for t, pixels in enumerate(moving_square(num_frames)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = t + round(start_s * fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_folder(path: Path, num_frames: int = 6) -> Path:
    """Write `moving_square` as PNG files whose names only sort naturally."""
    path.mkdir()
    for t, pixels in enumerate(moving_square(num_frames), start=1):
        Image.fromarray(pixels).save(path / f"frame{t}.png")
    return path
