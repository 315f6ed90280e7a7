from __future__ import annotations

import bisect
import itertools
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from video_files import (
    draw_number,
    packet_spans,
    read_number,
    read_numbers,
    write_cut,
    write_folder,
    write_video,
)

from videochat_online.errors import InputError, VideoError
from videochat_online.video import (
    list_frame_files,
    natural_key,
    open_video,
    read_image,
    read_video,
)

CONTAINERS = {
    "mp4": {"codec": "libx264", "b_frames": 2},
    "mkv": {"codec": "libx264", "b_frames": 2},
    "mov": {"codec": "mpeg4"},
    "webm": {"codec": "libvpx"},
    "avi": {"codec": "mpeg4"},
    "gif": {"codec": "gif"},
}


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


class TestFormats:
    @pytest.mark.parametrize("extension", CONTAINERS)
    def test_every_frame_comes_once_with_its_time(self, tmp_path, extension):
        path = write_video(tmp_path / f"clip.{extension}", range(30), **CONTAINERS[extension])
        with open_video(path) as video:
            chunks = list(video.read(chunk=7))
            assert read_numbers(chunks) == list(range(30))
            times_s = [time_s for chunk in chunks for time_s in chunk.times_s]
            assert times_s == pytest.approx([i / 10 for i in range(30)], abs=1e-3)
            assert [len(chunk) for chunk in chunks] == [7, 7, 7, 7, 2]
            assert video.report.problem is None
            assert video.report.num_decoded == 30
            assert (video.info.width, video.info.height) == (128, 64)
            assert video.info.duration_s == pytest.approx(3.0, abs=0.11)
            assert video.frame_times_s() == pytest.approx(times_s)

    @pytest.mark.parametrize("extension", ["mp4", "mkv"])
    def test_irregular_times_are_the_containers_own(self, tmp_path, extension):
        ticks = [0, 3, 4, 5, 20, 21, 50, 51, 90]
        path = write_video(tmp_path / f"vfr.{extension}", ticks, rate=25, b_frames=2)
        frames, times_s = read_all(path)
        assert times_s == pytest.approx([tick / 25 for tick in ticks], abs=6e-4)
        assert [read_number(frame) for frame in frames] == list(range(9))

    def test_times_are_not_shifted_to_zero(self, tmp_path):
        path = write_video(tmp_path / "late.mkv", [25, 30, 35])
        with open_video(path) as video:
            assert video.info.start_s == 2.5
            assert next(video.read(fps=2)).times_s == (2.5, 3.0, 3.5)

    def test_stored_order_differs_from_shown_order_with_b_frames(self, tmp_path):
        path = write_video(tmp_path / "b.mp4", range(20), b_frames=3)
        with av.open(str(path)) as container:
            stored = [packet.pts for packet in container.demux(video=0) if packet.size]
        assert stored != sorted(stored), "the test file has no B-frames"
        assert read_numbers(read_video(path)) == list(range(20))

    @pytest.mark.skipif(not hasattr(av.video.stream.VideoStream, "set_display_rotation"), reason="PyAV is too old")
    @pytest.mark.parametrize("rotation", [90, -90, 180])
    def test_rotation_is_applied(self, tmp_path, rotation):
        path = write_video(tmp_path / "turned.mp4", range(5), rotation=rotation)
        with open_video(path) as video:
            chunk = next(video.read())
            assert video.info.rotation % 360 == rotation % 360
            assert chunk.pixels_THWC.shape[1:3] == (video.info.height, video.info.width)
        upright = np.rot90(chunk.pixels_THWC, k=-rotation // 90, axes=(1, 2))
        assert [read_number(frame) for frame in upright] == list(range(5))

    def test_phone_video_stands_upright(self, shared_dir):
        frames, _ = read_all(shared_dir / "videos" / "rot90_3frames.mov")
        assert frames[0].shape == (568, 320, 3)
        stored = next(av.open(str(shared_dir / "videos" / "rot90_3frames.mov")).decode(video=0))
        # Looked at by eye: the letters on the keys are upright after a quarter turn clockwise.
        assert np.array_equal(frames[0], np.rot90(stored.to_ndarray(format="rgb24"), k=-1))

    def test_what_an_edit_list_hides_is_not_shown(self, tmp_path):
        whole = write_video(tmp_path / "whole.mp4", range(60), keyframe_every=20, b_frames=2)
        path = write_cut(whole, tmp_path / "cut.mp4", start_s=2.7)
        with open_video(path) as video:
            chunks = list(video.read())
            assert read_numbers(chunks) == list(range(27, 60))
            assert chunks[0].times_s[:2] == pytest.approx((0.0, 0.1))
            assert video.report.problem is None
            assert read_numbers(video.read(times_s=[0.0, 0.35, 2.0])) == [27, 30, 47]

    def test_name_with_a_colon_is_no_protocol(self, tmp_path):
        path = write_video(tmp_path / "http:clip 100%.mp4", range(3))
        assert read_numbers(read_video(path)) == [0, 1, 2]

    def test_cover_picture_is_no_video(self, shared_dir):
        with pytest.raises(VideoError, match="no video stream .only: audio"):
            open_video(shared_dir / "videos" / "bad_audio_only.mp4")


class TestTimes:
    @pytest.fixture(scope="class")
    def clip(self, tmp_path_factory):
        """Frames at 0, 0.1, ..., with a gap from 1.0 to 3.0 s."""
        ticks = [*range(11), *range(30, 41)]
        return write_video(tmp_path_factory.mktemp("times") / "clip.mkv", ticks, b_frames=2)

    def test_asking_for_a_printed_start_returns_that_frame(self, clip, shared_dir):
        for path in (clip, shared_dir / "videos" / "vfr_car_decimated.mp4", shared_dir / "golden/media/v30.mp4"):
            with open_video(path) as video:
                starts_s = video.frame_times_s()
                asked = [float(repr(time_s)) for time_s in starts_s]
                got = [time_s for chunk in video.read(times_s=asked) for time_s in chunk.times_s]
            assert got == list(starts_s)

    def test_last_frame_that_starts_at_or_before(self, clip):
        asked = [0.0, 0.05, 0.0999999, 0.1, 0.99, 2.9, 2.9, 3.0, 4.0, 1000.0]
        chunks = list(read_video(clip, times_s=asked))
        assert read_numbers(chunks) == [0, 0, 1, 1, 9, 10, 10, 11, 21, 21]

    def test_rate_skips_frames_that_stand_still(self, clip):
        chunks = list(read_video(clip, fps=2))
        assert read_numbers(chunks) == [0, 5, 10, 11, 16, 21]
        assert [t for c in chunks for t in c.times_s] == pytest.approx([0, 0.5, 1.0, 3.0, 3.5, 4.0])

    def test_rate_above_the_videos_own_gives_each_frame_once(self, clip):
        assert read_numbers(read_video(clip, fps=33)) == list(range(22))

    def test_start_and_end(self, clip):
        assert read_numbers(read_video(clip, start_s=0.95, end_s=3.05)) == [10, 11]
        assert read_numbers(read_video(clip, start_s=0.25, end_s=0.75, fps=4)) == [2, 5, 7]
        assert read_numbers(read_video(clip, start_s=3.3, end_s=3.5)) == [14, 15, 16]

    def test_nothing_after_the_end_is_decoded(self, clip):
        with open_video(clip) as video:
            assert read_numbers(video.read(end_s=0.4)) == [0, 1, 2, 3, 4]
            assert video.report.num_decoded == 6  # one more, to know that 0.4 s was the last
        with open_video(clip) as video:
            assert read_numbers(video.read(times_s=[0.4])) == [4]
            assert video.report.num_decoded == 5

    def test_a_time_before_the_first_frame(self, tmp_path):
        path = write_video(tmp_path / "late.mkv", [25, 30])
        with pytest.raises(VideoError, match=r"late\.mkv.* 1 s .*starts at 2\.5 s"):
            list(read_video(path, times_s=[1.0, 2.5]))
        assert read_numbers(read_video(path, start_s=0.0, fps=2)) == [0, 1]

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"fps": 1, "times_s": [0]}, "got both"),
            ({"fps": 0}, "fps: expected"),
            ({"fps": float("nan")}, "fps: expected"),
            ({"times_s": [1.0, 0.5]}, r"times_s\[1\].*ascending"),
            ({"times_s": [float("nan")]}, r"times_s\[0\].*nan"),
            ({"times_s": [-0.5]}, r"times_s\[0\].*-0\.5"),
            ({"times_s": [0.5], "end_s": 0.2}, r"within \[0, 0\.2\]"),
            ({"start_s": 2, "end_s": 1}, "start_s <= end_s"),
            ({"chunk": 0}, "chunk: expected"),
            ({"backend": "vlc"}, "auto, pyav, decord, torchcodec"),
            ({"source_fps": -1}, "fps: expected"),
        ],
    )
    def test_bad_requests_fail_at_once(self, clip, options, match):
        with pytest.raises(InputError, match=match):
            read_video(clip, **options)

    def test_no_times_no_frames(self, clip):
        assert list(read_video(clip, times_s=[])) == []

    @settings(max_examples=60, deadline=None)
    @given(
        gaps=st.lists(st.integers(1, 40), min_size=1, max_size=30),
        asked=st.lists(st.integers(0, 1300), max_size=30),
        chunk=st.integers(1, 9),
    )
    def test_times_against_an_obvious_oracle(self, gaps, asked, chunk):
        starts_s = [0.0, *(total / 30 for total in itertools.accumulate(gaps))]
        asked_s = sorted(tick / 60 for tick in asked)
        expected = [max(i for i, s in enumerate(starts_s) if s <= time_s + 1e-9) for time_s in asked_s]
        assert values(read_video(pairs(starts_s), times_s=asked_s, chunk=chunk)) == expected

    @settings(max_examples=60, deadline=None)
    @given(
        gaps=st.lists(st.integers(1, 40), min_size=1, max_size=30),
        rate=st.sampled_from([0.5, 1, 2, 3, 7.5, 30]),
        start=st.one_of(st.none(), st.integers(0, 200)),
        length=st.one_of(st.none(), st.integers(0, 400)),
    )
    def test_rate_against_an_obvious_oracle(self, gaps, rate, start, length):
        starts_s = [0.0, *(total / 30 for total in itertools.accumulate(gaps))]
        start_s = None if start is None else start / 30
        end_s = None if length is None else (start or 0) / 30 + length / 30
        begin_s = start_s or 0.0
        stop_s = starts_s[-1] + 1.0 - 2e-6  # a frame of a stream without a rate lasts a second
        if end_s is not None:
            stop_s = min(stop_s, end_s + 1e-6)
        expected: list[int] = []
        for time_s in itertools.takewhile(lambda t: t <= stop_s, (begin_s + i / rate for i in itertools.count())):
            shown = bisect.bisect_right(starts_s, time_s + 1e-6) - 1
            if not expected or expected[-1] != shown:
                expected.append(shown)
        got = read_video(pairs(starts_s), fps=rate, start_s=start_s, end_s=end_s)
        assert values(got) == expected

    def test_a_decoded_file_against_decoding_everything(self, shared_dir):
        rng = np.random.default_rng(0)
        for name in ("vfr_car_decimated.mp4", "vfr_no_duration.webm", "walking.gif"):
            path = shared_dir / "videos" / name
            frames, starts_s = read_all(path)
            asked_s = sorted(rng.uniform(starts_s[0], starts_s[-1] + 1, size=40))
            got, times_s = read_all(path, times_s=asked_s)
            expected = [bisect.bisect_right(starts_s, time_s) - 1 for time_s in asked_s]
            assert times_s == [starts_s[i] for i in expected]
            assert all(np.array_equal(got[k], frames[i]) for k, i in enumerate(expected))

    def test_burnt_in_clock(self, shared_dir):
        # A bar of 16 boxes fills up, one white box more each second (looked at by eye, with the printed clock).
        asked_s = [0.0, 0.98, 1.0, 3.52, 7.99, 8.0, 14.96, 15.0]
        frames, _ = read_all(shared_dir / "videos" / "clock25.mp4", times_s=asked_s)
        boxes = [sum(int(frame[398, 49 + round(36.2 * k)].min()) > 200 for k in range(16)) for frame in frames]
        assert boxes == [int(time_s) + 1 for time_s in asked_s]


class TestSeeking:
    @pytest.fixture(scope="class", params=["mp4", "mkv"])
    def long_clip(self, request, tmp_path_factory):
        """Two minutes at 2 frames per second with a keyframe every 5 s."""
        folder = tmp_path_factory.mktemp("seek")
        return write_video(folder / f"l.{request.param}", range(240), rate=2, keyframe_every=10, b_frames=2)

    def test_a_late_start_finds_the_same_frames(self, long_clip):
        for start_s in (60.0, 62.4, 64.9, 65.0, 119.5):
            with open_video(long_clip) as video:
                first = int(start_s * 2)
                assert read_numbers(video.read(start_s=start_s, fps=2))[:3] == list(range(first, 240))[:3]
                assert video.report.num_decoded < 240 - first + 40

    def test_far_apart_times_are_sought(self, long_clip):
        asked_s = [0.0, 1.2, 50.0, 50.6, 119.0]
        with open_video(long_clip) as video:
            assert read_numbers(video.read(times_s=asked_s)) == [0, 2, 100, 101, 238]
            assert video.report.num_decoded < 120
            video.finish()
            assert video.report.problem is None

    def test_one_keyframe_only(self, tmp_path):
        path = write_video(tmp_path / "one.mp4", range(120), rate=2, keyframe_every=1000)
        with open_video(path) as video:
            assert read_numbers(video.read(times_s=[0, 25, 55])) == [0, 50, 110]
            assert video.report.num_decoded == 111

    def test_a_format_without_an_index(self, tmp_path):
        path = write_video(tmp_path / "a.avi", range(120), rate=2, codec="mpeg4")
        assert read_numbers(read_video(path, times_s=[0, 25, 55])) == [0, 50, 110]

    def test_a_second_pass(self, long_clip):
        with open_video(long_clip) as video:
            assert read_numbers(video.read(end_s=1.0)) == [0, 1, 2]
            assert read_numbers(video.read(end_s=1.0)) == [0, 1, 2]
            running = video.read(chunk=1)
            next(running)
            next(video.read())
            with pytest.raises(VideoError, match="one pass at a time"):
                next(running)


class TestDamage:
    @pytest.fixture
    def clip(self, tmp_path):
        return write_video(
            tmp_path / "clip.mp4", range(50), keyframe_every=10, container_options={"movflags": "faststart"}
        )

    def test_a_file_cut_short(self, clip):
        position, size = packet_spans(clip)[30]
        data = clip.read_bytes()
        clip.write_bytes(data[: position + size // 2])
        with open_video(clip) as video:
            chunks = list(video.read())
            assert read_numbers(chunks)[:30] == list(range(30))
            assert 30 <= video.report.num_decoded <= 31
            assert f"decoded {video.report.num_decoded} of 50 declared frames" in video.report.problem
            assert "\n" not in video.report.problem

    def test_a_broken_packet_costs_little(self, clip):
        position, size = packet_spans(clip)[24]
        data = bytearray(clip.read_bytes())
        data[position : position + size] = b"\xff" * size
        clip.write_bytes(data)
        with open_video(clip) as video:
            times_s = [round(10 * t) for chunk in video.read() for t in chunk.times_s]
            assert set(times_s) >= set(range(50)) - {24}
            assert video.report.problem is not None
            assert "2.400 s" in video.report.problem

    def test_early_stop_then_finish(self, clip):
        position, size = packet_spans(clip)[30]
        clip.write_bytes(clip.read_bytes()[: position + size // 2])
        for max_decode_s, verb in ((120.0, "decoded"), (0.0, "found")):
            with open_video(clip) as video:
                next(video.read(chunk=3))
                assert video.report.problem is None
                video.finish(max_decode_s)
                assert f"{verb} 3" in video.report.problem
                assert "of 50 declared frames" in video.report.problem

    def test_finish_after_all_was_well(self, clip):
        for max_decode_s in (120.0, 0.0):
            with open_video(clip) as video:
                next(video.read(chunk=3))
                video.finish(max_decode_s)
                assert video.report.is_complete
                assert video.report.problem is None
                assert video.report.num_decoded + video.report.num_undecoded == 50

    def test_a_container_without_a_count(self, tmp_path):
        path = write_video(tmp_path / "clip.mkv", range(100), keyframe_every=10)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with open_video(path) as video:
            read_numbers(video.read())
            assert video.report.num_declared is None
            assert "of 10.00 s declared" in video.report.problem

    def test_an_index_at_the_end_that_is_missing(self, tmp_path):
        path = write_video(tmp_path / "clip.mp4", range(20))
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(VideoError, match=r"clip\.mp4: expected a video"):
            open_video(path)

    def test_known_damaged_files(self, shared_dir):
        expected = {
            "bad_truncated.mp4": (146, "decoded 146 of 287 declared frames"),
            "bad_corrupted.mp4": (49, "decoded 49 of 50 declared frames"),
        }
        for name, (num_frames, problem) in expected.items():
            with open_video(shared_dir / "videos" / name) as video:
                times_s = [t for chunk in video.read(chunk=2) for t in chunk.times_s]
                assert len(times_s) == num_frames
                assert times_s == sorted(set(times_s))
                assert video.report.problem.startswith(problem)

    def test_no_false_alarm_on_healthy_files(self, shared_dir):
        for path in sorted((shared_dir / "videos").iterdir()):
            if path.suffix == ".json" or path.name.startswith("bad_") or path.name == "montage_66s.mp4":
                continue
            with open_video(path) as video:
                next(video.read(fps=1, chunk=1))
                video.finish(12.0)
                assert video.report.problem is None, path.name

    @pytest.mark.parametrize("name", ["none.mp4", "empty.mp4", "text.mp4", "text.txt", "noise.mkv"])
    def test_what_is_no_video(self, tmp_path, name):
        path = tmp_path / name
        if name.startswith("empty"):
            path.write_bytes(b"")
        elif name.startswith("text"):
            path.write_text("this is no video\n" * 200)
        elif name.startswith("noise"):
            path.write_bytes(np.random.default_rng(0).bytes(20000))
        with pytest.raises(VideoError, match=f"{name}.*: expected a video") as caught:
            open_video(path)
        assert "\n" not in str(caught.value)

    def test_a_video_in_which_nothing_decodes(self, tmp_path):
        path = write_video(tmp_path / "clip.mp4", range(5), container_options={"movflags": "faststart"})
        data = bytearray(path.read_bytes())
        for position, size in packet_spans(path):
            data[position : position + size] = b"\xff" * size
        path.write_bytes(data)
        with pytest.raises(VideoError, match=r"clip\.mp4: expected a video, found no frame that decodes"):
            open_video(path)


class TestFolders:
    def test_natural_order(self):
        shuffled = ["f10", "f9", "f1", "g", "f", "f01", "f1a", "", "10", "9"]
        assert sorted(shuffled, key=natural_key) == ["", "9", "10", "f", "f1", "f01", "f1a", "f9", "f10", "g"]

    def test_order_times_and_what_is_left_out(self, tmp_path):
        folder = write_folder(tmp_path / "frames", ["img2.png", "img10.png", "img11.jpg", "img100.png"])
        (folder / ".img1.png").write_bytes(b"hidden")
        (folder / "notes.txt").write_text("other")
        chunks = list(read_video(folder, source_fps=2))
        assert read_numbers(chunks) == [0, 1, 2, 3]
        assert chunks[0].times_s == (0.0, 0.5, 1.0, 1.5)
        assert [path.name for path in list_frame_files(folder)] == ["img2.png", "img10.png", "img11.jpg", "img100.png"]

    def test_default_rate_is_one_frame_per_second(self, tmp_path):
        folder = write_folder(tmp_path / "frames", ["a.png", "b.png"])
        with open_video(folder) as video:
            assert video.info.average_fps == 1.0
            assert video.frame_times_s() == (0.0, 1.0)

    def test_a_broken_image_leaves_its_slot_empty(self, tmp_path):
        folder = write_folder(tmp_path / "frames", [f"{i}.png" for i in range(6)])
        (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
        (folder / "5.png").write_bytes(b"no image")
        with open_video(folder, fps=10) as video:
            chunks = list(video.read())
            assert read_numbers(chunks) == [0, 1, 3, 4]
            assert chunks[0].times_s == (0.0, 0.1, 0.3, 0.4)
            assert "errors: 2" in video.report.problem
            assert "2.png" in video.report.problem
            assert read_numbers(video.read(times_s=[0.2, 0.3, 9])) == [1, 3, 4]
            assert read_numbers(video.read(fps=10)) == [0, 1, 3, 4]

    def test_finish_finds_a_broken_image_later_on(self, tmp_path):
        folder = write_folder(tmp_path / "frames", [f"{i}.png" for i in range(6)])
        (folder / "4.png").write_bytes(b"")
        for max_decode_s in (60.0, 0.0):
            with open_video(folder) as video:
                next(video.read(chunk=1))
                assert video.report.problem is None
                video.finish(max_decode_s)
                assert "4.png" in video.report.problem

    def test_a_broken_first_image(self, tmp_path):
        folder = write_folder(tmp_path / "frames", ["0.png", "1.png"])
        (folder / "0.png").write_bytes(b"no image")
        assert read_numbers(read_video(folder, fps=1)) == [1]
        with pytest.raises(VideoError, match="no readable frame starts at or before 0 s"):
            list(read_video(folder, times_s=[0.0]))

    def test_a_list_of_images_keeps_its_order(self, tmp_path):
        folder = write_folder(tmp_path / "frames", ["0.png", "1.png", "2.png"])
        files = [folder / "2.png", str(folder / "0.png")]
        chunks = list(read_video(files, source_fps=4))
        assert read_numbers(chunks) == [2, 0]
        assert chunks[0].times_s == (0.0, 0.25)

    def test_pictures_of_several_sizes(self, tmp_path):
        folder = write_folder(tmp_path / "frames", ["0.png", "1.png", "2.png"])
        Image.fromarray(draw_number(1, scale=2)).save(folder / "1.png")
        assert [chunk.pixels_THWC.shape[1:3] for chunk in read_video(folder)] == [(64, 128), (128, 256), (64, 128)]

    def test_one_image_is_a_video_of_one_frame(self, tmp_path):
        folder = write_folder(tmp_path, ["only.png"])
        assert read_numbers(read_video(folder / "only.png")) == [0]

    def test_no_images(self, tmp_path):
        (tmp_path / "notes.txt").write_text("nothing here")
        with pytest.raises(VideoError, match="expected a folder with images .* found 1 other"):
            open_video(tmp_path)
        with pytest.raises(VideoError, match="expected readable images, found none among 1"):
            open_video([tmp_path / "notes.txt"])

    def test_real_folder(self, shared_dir):
        folder = shared_dir / "videos" / "bedroom_frames"
        chunk = next(read_video(folder, source_fps=10, times_s=[6.6], chunk=1))
        assert np.array_equal(chunk.pixels_THWC[0], np.asarray(Image.open(folder / "frame0067.jpg")))


class TestImages:
    def test_exif_orientation(self, tmp_path):
        image = Image.fromarray(draw_number(5))
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned a quarter clockwise
        image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
        upright = np.asarray(read_image(tmp_path / "turned.jpg"))
        assert upright.shape == (128, 64, 3)
        assert read_number(np.rot90(upright)) == 5
        assert next(read_video([tmp_path / "turned.jpg"])).pixels_THWC.shape == (1, 128, 64, 3)

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
    def test_every_mode_becomes_rgb(self, tmp_path, mode):
        path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
        Image.fromarray(draw_number(9)).convert(mode).save(path)
        assert read_image(path).mode == "RGB"
        assert read_number(np.asarray(read_image(path))) == 9

    def test_errors(self, tmp_path):
        (tmp_path / "text.png").write_text("no image")
        Image.fromarray(draw_number(1)).save(tmp_path / "half.png")
        (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:50])
        for name in ("text.png", "half.png", "none.png"):
            with pytest.raises(VideoError, match=f"{name}: expected"):
                read_image(tmp_path / name)


class TestArrays:
    FRAMES = np.stack([draw_number(i) for i in range(5)])

    def test_numpy_and_both_tensor_layouts(self):
        tensor = torch.from_numpy(self.FRAMES)
        for source in (self.FRAMES, tensor, tensor.permute(0, 3, 1, 2)):
            chunks = list(read_video(source, source_fps=10, chunk=2))
            assert read_numbers(chunks) == [0, 1, 2, 3, 4]
            assert [chunk.times_s for chunk in chunks] == [(0.0, 0.1), (0.2, 0.3), (0.4,)]
            assert read_numbers(read_video(source, source_fps=10, start_s=0.2, fps=5)) == [2, 4]

    @pytest.mark.parametrize(
        "frames",
        [
            np.zeros((2, 3, 8, 8), np.uint8),
            np.zeros((8, 8, 3), np.uint8),
            np.zeros((2, 8, 8, 3), np.float32),
            np.zeros((0, 8, 8, 3), np.uint8),
            torch.zeros((2, 3, 8, 3), dtype=torch.uint8),
            torch.zeros((2, 8, 8, 3)),
            torch.zeros((2, 4, 8, 8), dtype=torch.uint8),
        ],
    )
    def test_other_shapes_and_types(self, frames):
        with pytest.raises(VideoError, match="array of frames: expected uint8"):
            open_video(frames)

    def test_no_source(self):
        with pytest.raises(InputError, match="got int"):
            open_video(3)


class TestStreams:
    def test_frames_without_times(self):
        chunks = list(read_video((draw_number(i) for i in range(4)), source_fps=2))
        assert read_numbers(chunks) == [0, 1, 2, 3]
        assert chunks[0].times_s == (0.0, 0.5, 1.0, 1.5)

    def test_a_camera_never_ends_and_is_not_read_ahead(self):
        taken = []

        def camera():
            for i in itertools.count():
                taken.append(i)
                yield i / 10, draw_number(i % 256)

        chunks = read_video(camera(), fps=2, chunk=2)
        first = next(chunks)
        assert first.times_s == (0.0, 0.5)
        assert len(taken) <= 7

    def test_a_camera_that_fills_one_buffer(self):
        def camera():
            buffer = np.empty_like(draw_number(0))
            for i in range(6):
                buffer[:] = draw_number(i)
                yield buffer

        assert read_numbers(read_video(camera(), source_fps=10, fps=3.3)) == [0, 3]

    def test_times_never_go_back(self):
        with pytest.raises(VideoError, match="got 0.5 s after 1.0 s"):
            list(read_video(pairs([0.0, 1.0, 0.5])))
        assert values(read_video(pairs([0.0, 1.0, 1.0]))) == [0, 1, 2]

    def test_errors(self):
        with pytest.raises(VideoError, match="at least one frame, found none"):
            open_video(iter([]))
        with pytest.raises(VideoError, match=r"expected uint8 \[H,W,3\], got float64 \[2, 2\] at frame 1"):
            list(read_video(iter([np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2))])))
        video = open_video(iter(pairs([0.0, 1.0])))
        list(video.read())
        with pytest.raises(VideoError, match="second"):
            list(video.read())

    def test_memory_stays_bounded(self):
        frame_bytes = 128 * 256 * 3

        def camera():
            for i in range(400):
                yield np.full((128, 256, 3), i % 256, np.uint8)

        chunks = read_video(camera(), source_fps=10, chunk=4)
        next(chunks)
        tracemalloc.start()
        for chunk in chunks:
            assert len(chunk) == 4
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # The consumer's chunk, the frames of the next one and their copy, and a frame looked ahead.
        assert peak < 16 * frame_bytes


class TestBackends:
    @pytest.fixture(autouse=True)
    def _needs_decord(self):
        pytest.importorskip("decord")

    @pytest.mark.parametrize(
        "name", ["clock25.mp4", "dog.mp4", "vfr_car_decimated.mp4", "bbb_0_30.webm", "rot90_3frames.mov", "bottle.mp4"]
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

    def test_edit_lists_are_refused(self, tmp_path):
        whole = write_video(tmp_path / "whole.mp4", range(60), keyframe_every=20)
        path = write_cut(whole, tmp_path / "cut.mp4", start_s=2.7)
        with pytest.raises(VideoError, match=r"cut\.mp4.*decord.*edit list"):
            open_video(path, backend="decord")

    def test_what_decord_cannot_open(self, shared_dir):
        with pytest.raises(VideoError, match=r"walking\.gif.*decord"):
            open_video(shared_dir / "videos" / "walking.gif", backend="decord")

    def test_a_backend_that_is_not_installed(self, tmp_path, monkeypatch):
        path = write_video(tmp_path / "a.mp4", range(3))
        monkeypatch.setitem(__import__("sys").modules, "torchcodec.decoders", None)
        with pytest.raises(VideoError, match="torchcodec.*use backend 'pyav'"):
            open_video(path, backend="torchcodec")


def test_path_types(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(3))
    assert read_numbers(read_video(str(path))) == read_numbers(read_video(Path(path))) == [0, 1, 2]
