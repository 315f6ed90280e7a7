"""decord and torchcodec: the frame that PyAV gives, or a refusal in one line that names pyav.

torchcodec is not installed with the tests: a stand-in takes its place, which is wrong where a test wants it.
"""

from __future__ import annotations

import importlib.util
import random
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import av
import numpy as np
import pytest
import torch

from video_files import HEIGHT, WIDTH, draw_number, packet_spans, read_all, read_number, write_cut, write_video
from videochat_online.errors import VideoError
from videochat_online.video import open_video
from videochat_online.video.files import decord_torchcodec, pyav_comparison

ROOT = Path(__file__).resolve().parents[2]


def write_encoded(path, codec, num_frames=60, num_streams=1, **options):
    """Frame i shows number i and starts at i / 10 seconds; `options` are the encoder's."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(codec, rate=10, options=options) for _ in range(num_streams)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.codec_context.gop_size = 12
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(draw_number(i)).reformat(format="yuv420p")
            for stream in streams:
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


def refused(path, backend="decord"):
    """The error of a refusal, which is one line with the file, the backend and the way out."""
    with pytest.raises(VideoError) as caught, open_video(path, backend=backend) as video:
        list(video.read())
    message = str(caught.value)
    assert message.startswith(f"{path} with backend '{backend}': expected ")
    assert message.endswith("; use backend 'pyav'")
    assert "\n" not in message
    return message


class TestDecord:
    @pytest.fixture(autouse=True)
    def _needs_decord(self):
        pytest.importorskip("decord")

    @pytest.mark.parametrize(
        "name", ["clock25.mp4", "dog.mp4", "vfr_car_decimated.mp4", "rot90_3frames.mov", "bottle.mp4"]
    )
    def test_frame_by_frame_on_real_files(self, shared_dir, name):
        path = shared_dir / "videos" / name
        options = {} if name.startswith("rot90") else {"fps": 2, "start_s": 3.0, "end_s": 8.0}
        frames, times_s = read_all(path, backend="pyav", **options)
        others, other_times_s = read_all(path, backend="decord", **options)
        assert times_s == other_times_s
        assert all(np.array_equal(a, b) for a, b in zip(frames, others, strict=True))

    @pytest.mark.parametrize("extension", ["mp4", "mkv", "mov"])
    def test_made_files(self, tmp_path, extension):
        path = write_video(tmp_path / f"a.{extension}", [0, 1, 2, 7, 8, 20], b_frames=2)
        for options in ({}, {"fps": 4}, {"times_s": [0.0, 0.15, 0.7, 0.7, 5.0]}):
            expected = read_all(path, backend="pyav", **options)
            got = read_all(path, backend="decord", **options)
            assert got[1] == expected[1]
            assert all(np.array_equal(a, b) for a, b in zip(got[0], expected[0], strict=True))

    @pytest.mark.parametrize(("extension", "first"), [("mp4", 0), ("mkv", 0), ("mkv", 1000)])
    def test_times_in_any_order(self, tmp_path, extension, first):
        path = write_video(tmp_path / f"a.{extension}", range(first, first + 90), b_frames=3)
        generator = random.Random(0)
        with open_video(path, backend="decord") as video:
            for number in (generator.randrange(90) for _ in range(24)):
                (chunk,) = video.read(times_s=[(first + number) / 10 + 0.05])
                assert read_number(chunk.pixels_THWC[0]) == number

    @pytest.mark.parametrize(
        ("name", "codec", "found"),
        [
            ("a.ts", "libx264", "mp4, mov, mkv or webm file, found mpegts"),
            ("a.mpg", "mpeg2video", "mp4, mov, mkv or webm file, found mpeg;"),
            ("a.avi", "mpeg4", "mp4, mov, mkv or webm file, found avi"),
            ("a.flv", "libx264", "mp4, mov, mkv or webm file, found flv"),
            ("a.mp4", "mpeg4", "codec among h264, hevc, mjpeg, prores, found mpeg4"),
            ("a.webm", "libvpx", "codec among h264, hevc, mjpeg, prores, found vp8"),
        ],
    )
    def test_kinds_that_are_not_sure(self, tmp_path, name, codec, found):
        assert found in refused(write_encoded(tmp_path / name, codec))

    def test_key_frames_at_which_decoding_cannot_begin(self, tmp_path):
        path = write_encoded(tmp_path / "a.mp4", "libx264", bf="0", **{"x264-params": "intra-refresh=1"})
        assert "found another kind at 1.200 s" in refused(path)

    @pytest.mark.parametrize("extension", ["mp4", "mkv"])
    def test_open_groups_of_pictures(self, tmp_path, extension):
        options = {"x265-params": "log-level=error:keyint=12:open-gop=1:bframes=3:b-adapt=0"}
        assert "(open GOP)" in refused(write_encoded(tmp_path / f"a.{extension}", "libx265", **options))

    def test_key_frames_too_close_for_the_index(self, tmp_path):
        options = {"x264-params": "scenecut=0:b-adapt=0:bframes=3:b-pyramid=normal"}
        path = tmp_path / "a.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10, options=options)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for i in range(40):
                frame = av.VideoFrame.from_ndarray(draw_number(i)).reformat(format="yuv420p")
                frame.pict_type = av.video.frame.PictureType.I if i in (20, 21) else av.video.frame.PictureType.NONE
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        assert "too close to be told apart at 2.000 s" in refused(path)

    def test_edit_lists(self, tmp_path):
        whole = write_video(tmp_path / "whole.mp4", range(60), keyframe_every=20)
        assert "edit list" in refused(write_cut(whole, tmp_path / "cut.mp4", start_s=2.7))

    def test_several_streams(self, tmp_path):
        assert "one video stream, found 2" in refused(write_encoded(tmp_path / "a.mkv", "libx264", num_streams=2))

    def test_damage(self, tmp_path):
        path = write_encoded(tmp_path / "a.mp4", "libx264")
        start, size = packet_spans(path)[24]
        data = bytearray(path.read_bytes())
        data[start + size // 2 : start + size] = bytes(size - size // 2)
        path.write_bytes(data)
        assert "a file that is whole, found a damaged frame" in refused(path)

    def test_interlaced_colours_are_converted_otherwise(self, tmp_path):
        path = tmp_path / "a.mp4"
        with av.open(str(path), "w") as container:
            options = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
            stream = container.add_stream("libx264", rate=10, options=options)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            colours = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
            picture = np.ascontiguousarray(colours.repeat(8, 0).repeat(8, 1))
            for _ in range(5):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode(None))
        assert "PyAV's picture at" in refused(path)

    def test_what_decord_cannot_open(self, shared_dir):
        assert "found gif" in refused(shared_dir / "videos" / "walking.gif")


class TestStandIn:
    """torchcodec as far as it is used, with pictures from PyAV that `change` may replace."""

    @pytest.fixture
    def path(self, tmp_path):
        return write_video(tmp_path / "a.mp4", range(60), keyframe_every=12)

    @pytest.fixture
    def stand_in(self, monkeypatch):
        def install(change=lambda i, frames: frames[i], time_of=lambda i: i / 10, num_missing=0):
            class VideoDecoder:
                def __init__(self, path, **options):
                    self.frames = read_all(path)[0]

                def __len__(self):
                    return len(self.frames) - num_missing

                def get_frame_at(self, i):
                    picture = torch.from_numpy(np.array(change(i, self.frames)))
                    return SimpleNamespace(data=picture, pts_seconds=time_of(i))

            module = ModuleType("torchcodec.decoders")
            module.VideoDecoder = VideoDecoder
            monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
            monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)

        return install

    def test_right(self, stand_in, path):
        stand_in(lambda i, frames: np.clip(frames[i].astype(int) + 2, 0, 255).astype(np.uint8))  # rounding
        assert [read_number(frame) for frame in read_all(path, backend="torchcodec")[0]] == list(range(60))

    @pytest.mark.parametrize(
        ("options", "found"),
        [
            ({"change": lambda i, frames: frames[i // 12 * 12]}, "PyAV's picture at"),
            ({"change": lambda i, frames: frames[max(0, i - (i > 50))]}, "PyAV's picture at"),
            ({"time_of": lambda i: (i + 1) / 10}, "for that of"),
            ({"num_missing": 1}, "expected 60 frames as in the file, found 59"),
        ],
    )
    def test_wrong(self, stand_in, path, options, found):
        stand_in(**options)
        assert found in refused(path, "torchcodec")

    def test_a_small_change_of_a_still_picture_is_another_picture(self, stand_in, path):
        def change(i, frames):
            picture = frames[i].copy()
            picture[:3, :3] ^= np.uint8(8 * (i == 30))
            return picture

        stand_in(change)
        assert "PyAV's picture at 3.000 s" in refused(path, "torchcodec")

    def test_key_frames_that_were_not_sampled_are_compared_before_they_are_counted_from(
        self, stand_in, path, monkeypatch
    ):
        monkeypatch.setattr(pyav_comparison, "MAX_PIXELS", 1)
        monkeypatch.setattr(pyav_comparison, "MIN_FRAMES", 4)
        monkeypatch.setattr(pyav_comparison, "MAX_GROUPS", 2)
        stand_in(lambda i, frames: frames[i + 1 if 24 <= i < 36 else i])
        with open_video(path, backend="torchcodec") as video:
            for number in (59, 36, 0, 23):
                (chunk,) = video.read(times_s=[number / 10])
                assert read_number(chunk.pixels_THWC[0]) == number
            with pytest.raises(VideoError, match=r"a\.mp4.*PyAV's picture at 2\.400 s.*use backend 'pyav'"):
                next(video.read(times_s=[3.0]))

    def test_after_a_failure_nothing_more_is_asked(self, stand_in, path, monkeypatch):
        asked = []

        def change(i, frames):
            asked.append(i)
            if len(asked) > 100:
                raise RuntimeError("broken\nat a place")
            return frames[i]

        stand_in(change)
        with open_video(path, backend="torchcodec") as video:
            for _ in range(2):
                with pytest.raises(VideoError, match=r"frame \d+ to decode, found broken; use backend 'pyav'"):
                    list(video.read())
            assert len(asked) == 101

    def test_what_is_compared_is_bounded(self, path):
        table = decord_torchcodec.read_frame_table(path, "a", open_video(path).info, frozenset({"h264"}))
        small = pyav_comparison.sampled_groups(table, WIDTH, HEIGHT)
        assert sorted(index for group in small for index in group) == list(range(60))
        groups = sorted(pyav_comparison.sampled_groups(table, 3840, 2160), key=lambda group: group[0])
        assert groups == [range(first, first + 3) for first in (0, 12, 24, 36, 48)]

    def test_not_installed(self, path, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
        with pytest.raises(VideoError, match="torchcodec.*use backend 'pyav'"):
            open_video(path, backend="torchcodec")


class TestScript:
    @pytest.fixture(scope="class")
    def script(self):
        if shutil.which("ffmpeg") is None:
            pytest.skip("no ffmpeg here to write the videos")
        pytest.importorskip("decord")
        spec = importlib.util.spec_from_file_location("check", ROOT / "scripts" / "tools" / "check_video_backends.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def test_table(self, script, capsys):
        options = ["--backends", "decord", "--containers", "mkv", "ts", "--codecs", "h264", "h264, open GOP"]
        assert script.main(options) == 0
        assert capsys.readouterr().out.splitlines()[2:] == [
            "| mkv | h264 | 24 / 0 / 0 |",
            "| mkv | h264, open GOP | 0 / 24 / 0 |",
            "| ts | h264; h264, open GOP | 0 / 24 / 0 |",
        ]

    def test_a_wrong_frame_is_found(self, script, capsys, monkeypatch):
        monkeypatch.setattr(decord_torchcodec, "MAX_DIFFERENCE", 255)
        # A reader that is wrong about every other frame.
        monkeypatch.setattr(decord_torchcodec.IndexedReader, "_decode", lambda reader, i: reader._fetch(i // 2 * 2))
        assert script.main(["--backends", "decord", "--containers", "mkv", "--codecs", "h264"]) == 1
        right, refused, wrong = map(int, capsys.readouterr().out.splitlines()[2].split("|")[3].split("/"))
        assert right + wrong == 24
        assert min(right, wrong) > 0 == refused
