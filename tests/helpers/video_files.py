"""Small video files whose frames say their own number, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from videochat_online.video import read_video

NUM_BITS = 8
BLOCK = 16
WIDTH, HEIGHT = NUM_BITS * BLOCK, 64


def draw_number(number: int, scale: int = 1) -> np.ndarray:
    """uint8 [64, 128, 3] (times `scale`): the number in binary, as black and white bars, lowest bit left."""
    bits = [(number >> bit) & 1 for bit in range(NUM_BITS)]
    row = np.repeat(np.array(bits, dtype=np.uint8) * 255, BLOCK * scale)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (HEIGHT * scale, WIDTH * scale, 3)))


def read_number(pixels_HWC: np.ndarray, scale: int = 1) -> int:
    """The number that a (compressed) frame shows; an error where a bar is neither black nor white."""
    step = BLOCK * scale
    middles = pixels_HWC[pixels_HWC.shape[0] // 2, step // 2 :: step].mean(axis=-1)
    assert ((middles < 60) | (middles > 195)).all(), middles
    return sum(1 << bit for bit, value in enumerate(middles) if value > 128)


def read_numbers(chunks) -> list[int]:
    return [read_number(frame) for chunk in chunks for frame in chunk.pixels_THWC]


def read_all(source, **options):
    """Every frame of a source, and its time."""
    chunks = list(read_video(source, **options))
    times_s = [time_s for chunk in chunks for time_s in chunk.times_s]
    return [frame for chunk in chunks for frame in chunk.pixels_THWC], times_s


def pairs(times_s):
    """A stream of tiny frames; frame i holds the value i."""
    return [(time_s, np.full((1, 1, 3), i % 256, np.uint8)) for i, time_s in enumerate(times_s)]


def values(chunks):
    return [int(value) for chunk in chunks for value in chunk.pixels_THWC[:, 0, 0, 0]]


def write_video(
    path: Path,
    ticks: Sequence[int],
    *,
    rate: int | Fraction = 10,
    codec: str = "libx264",
    keyframe_every: int = 12,
    b_frames: int = 0,
    scale: int = 1,
    rotation: int = 0,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Frame i shows number i and starts at ticks[i] / rate seconds."""
    pixel_format = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH * scale, HEIGHT * scale, pixel_format
        stream.codec_context.time_base = Fraction(1, rate)
        stream.codec_context.gop_size = keyframe_every
        if codec == "libx264":
            options = {"preset": "veryfast", "bf": str(b_frames), "crf": "18", "x264-params": "scenecut=0"}
            if b_frames:
                options["x264-params"] = f"scenecut=0:b-adapt=0:bframes={b_frames}"
            stream.options = options
        if rotation:
            stream.set_display_rotation(rotation)
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(draw_number(number % 256, scale), format="rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = tick, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_cut(source: Path, target: Path, start_s: float) -> Path:
    """Cut without re-encoding, between keyframes: times before the cut become negative, an edit list hides them."""
    with av.open(str(source)) as whole, av.open(str(target), "w") as part:
        stream = whole.streams.video[0]
        copy = part.add_stream_from_template(stream)
        shift = round(start_s / stream.time_base)
        packets = [packet for packet in whole.demux(stream) if packet.size]
        first = max(i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= shift)
        for packet in packets[first:]:
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = copy
            part.mux(packet)
    return target


def write_song(path: Path) -> Path:
    """Half a second of silence with a cover picture, which is stored as a video stream."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(draw_number(1)).reformat(format="yuvj420p")
        picture.pts = 0
        container.mux([*cover.encode(picture), *cover.encode(None)])
        for i in range(20):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.rate, samples.pts = 44100, i * 1024
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    return path


def packet_spans(path: Path) -> list[tuple[int, int]]:
    """Position and size in the file of each video packet."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def write_folder(folder: Path, names: Sequence[str]) -> Path:
    """Image i of the given order shows number i."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(draw_number(number)).save(folder / name)
    return folder
