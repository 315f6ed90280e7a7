from __future__ import annotations

import bisect
import itertools
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video_files import (
    pairs,
    read_all,
    read_number,
    read_numbers,
    values,
    write_cut,
    write_song,
    write_video,
)
from videochat_online.errors import InputError, VideoError
from videochat_online.video import open_video, read_video

CONTAINERS = {
    "mp4": {"codec": "libx264", "b_frames": 2},
    "mkv": {"codec": "libx264", "b_frames": 2},
    "mov": {"codec": "mpeg4"},
    "webm": {"codec": "libvpx"},
    "avi": {"codec": "mpeg4"},
    "gif": {"codec": "gif"},
}


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
        path = write_video(tmp_path / "late.mkv", [25, 30, 35, 40])
        with open_video(path) as video:
            assert video.info.start_s == 2.5
            assert next(video.read(fps=1)).times_s == (2.5, 3.5)

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
            assert video.frame_times_s() == pytest.approx([i / 10 for i in range(33)])

    def test_name_with_a_colon_is_no_protocol(self, tmp_path, monkeypatch):
        write_video(tmp_path / "http:clip 100%.mp4", range(3))
        monkeypatch.chdir(tmp_path)
        assert read_numbers(read_video("http:clip 100%.mp4")) == [0, 1, 2]

    def test_sound_alone_is_no_video(self, shared_dir):
        with pytest.raises(VideoError, match="no video stream .only: audio"):
            open_video(shared_dir / "videos" / "bad_audio_only.mp4")

    def test_a_cover_picture_is_no_video(self, tmp_path):
        with pytest.raises(VideoError, match="no video stream .only: audio, a cover picture"):
            open_video(write_song(tmp_path / "song.mp4"))


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


def test_path_types(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(3))
    assert read_numbers(read_video(str(path))) == read_numbers(read_video(Path(path))) == [0, 1, 2]
