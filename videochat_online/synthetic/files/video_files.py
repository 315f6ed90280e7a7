"""Streams as files: h264 video, video of variable frame rate, folder of JPEG frames.

The same scene gives the same bytes: one encoder thread, no clock, no random names. A file is written aside and
renamed when it is complete, so what has its name is whole.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from videochat_online.runs.files import written_whole
from videochat_online.synthetic.scene.even_draws import random_of
from videochat_online.synthetic.scene.render import Key, Pixels, Renderer

CRF = 18
FRAMES_PER_KEYFRAME = 32
KEPT_SHARE = 0.3
"""Part that a video of variable frame rate keeps, of the frames that repeat the one before."""
FIRST_FRAME_NUMBER = 8
"""Frames are img8.jpg, img9.jpg, img10.jpg: in the order of the alphabet they would be wrong."""
JPEG_QUALITY = 95


def write_video(path: Path, renderer: Renderer, seconds: float, fps: int, *, seed: str, is_variable: bool) -> None:
    """An mp4 whose frame i starts at i / fps; with `is_variable`, most frames that repeat the last are left out."""
    buffer = io.BytesIO()
    reformatter = VideoReformatter()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height = renderer.size_px, renderer.size_px
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        stream.codec_context.gop_size = FRAMES_PER_KEYFRAME
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "veryfast", "crf": str(CRF), "x264-params": "threads=1:scenecut=0:bframes=0"}
        for number, pixels_HWC in _frames(renderer, seconds, fps, seed if is_variable else None):
            if pixels_HWC is not None:
                frame = reformatter.reformat(av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24"), format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    write_bytes(path, buffer.getvalue())


def write_folder(path: Path, renderer: Renderer, seconds: float, fps: int) -> None:
    """A folder whose image i, in natural order, starts at i / fps."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for number in range(round(seconds * fps)):
        write_jpeg(partial / f"img{number + FIRST_FRAME_NUMBER}.jpg", renderer.frame(number / fps))
    partial.replace(path)


def write_jpeg(path: Path, pixels_HWC: Pixels) -> None:
    """One image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    write_bytes(path, buffer.getvalue())


def write_bytes(path: Path, content: bytes) -> None:
    """A file that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_bytes(content)


def _frames(renderer: Renderer, seconds: float, fps: int, seed: str | None) -> Iterator[tuple[int, Pixels | None]]:
    """(number, pixels) of every frame to write; None for pixels that repeat the frame before."""
    random = None if seed is None else random_of("frames", seed)
    last: Key | None = None
    num_frames = round(seconds * fps)
    for number in range(num_frames):
        key = renderer.key(number / fps)
        is_repeat = key == last
        # The last frame stays: it tells how long the video is.
        if is_repeat and random is not None and number < num_frames - 1 and random.random() > KEPT_SHARE:
            continue
        last = key
        yield number, None if is_repeat else np.ascontiguousarray(renderer.frame(number / fps))
