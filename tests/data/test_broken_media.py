"""Media that are partly broken: a frame that a row needs and that does not decode makes the row unusable."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from video_files import packet_spans, write_folder, write_video
from videochat_online.data import FrameSampling, PixelReader, Tiling
from videochat_online.errors import VideoError
from videochat_online.video import FrameTransform

EACH = FrameSampling(method="middle", max_num_frames=50)


@pytest.fixture
def reader() -> PixelReader:
    return PixelReader(FrameTransform(size=28))


def write_damaged(path: Path, packets: range) -> Path:
    """Five seconds at 10 frames a second with a keyframe each second; some packets are spoilt."""
    write_video(path, range(50), keyframe_every=10)
    content = bytearray(path.read_bytes())
    for place, size in packet_spans(path)[packets.start : packets.stop]:
        content[place : place + size] = b"\xff" * size
    path.write_bytes(content)
    return path


def num_pictures(pixels_TSSC: np.ndarray) -> int:
    return len({picture.tobytes() for picture in pixels_TSSC})


def test_a_folder_with_broken_images(reader, tmp_path):
    folder = write_folder(tmp_path / "frames", [f"{number}.png" for number in range(12)])
    for number in range(1, 12):
        (folder / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(VideoError, match=r"frames: expected 12 frames of it, found 11 of them unreadable; .*1\.png"):
        reader.clip(folder, FrameSampling())
    assert len(reader.clip(folder, FrameSampling(), clip_s=(0.0, 1.0)).pixels_TSSC) == 1  # the others are not needed


@pytest.mark.parametrize(("packets", "count"), [(range(14, 19), 5), (range(3), 10)])
def test_a_video_that_is_damaged(reader, tmp_path, packets, count):
    path = write_damaged(tmp_path / "clip.mp4", packets)
    with pytest.raises(VideoError, match=f"clip.mp4: expected 50 frames of it, found {count} of them unreadable; .*"):
        reader.clip(path, EACH)


def test_damage_between_the_wanted_frames_is_no_fault(reader, tmp_path):
    path = write_damaged(tmp_path / "clip.mp4", range(17, 20))
    clip = reader.clip(path, FrameSampling(method="fps1"))
    assert (len(clip.times_s), num_pictures(clip.pixels_TSSC)) == (5, 5)


def test_a_frame_that_is_rightly_shown_again_is_no_fault(reader, tmp_path):
    """A second of picture, two of a still, a broken frame that nobody asks for."""
    path = write_video(tmp_path / "still.mp4", [*range(10), 30, 31, 32, 33], keyframe_every=1)
    place, size = packet_spans(path)[2]
    content = bytearray(path.read_bytes())
    content[place : place + size] = b"\xff" * size
    path.write_bytes(content)
    sampling = FrameSampling(method="fps1")
    clip = reader.clip(path, sampling)
    assert num_pictures(clip.pixels_TSSC) < len(clip.pixels_TSSC)


def test_a_name_that_is_too_long_is_said_once(reader, tmp_path):
    with pytest.raises(VideoError, match="x: expected a readable image, found File name too long$"):
        reader.tiles(tmp_path / ("x" * 300), Tiling())


def test_what_is_no_regular_file_is_not_waited_for(reader, tmp_path):
    folder = write_folder(tmp_path / "frames", ["0.png", "2.png"])
    os.mkfifo(folder / "1.png")
    with pytest.raises(VideoError, match=r"1\.png: expected an image, found no regular file"):
        reader.tiles(folder / "1.png", Tiling())
    with pytest.raises(VideoError, match=r"expected 3 frames of it, found 1 of them unreadable; .*no regular file"):
        reader.clip(folder, FrameSampling())
