from __future__ import annotations

import numpy as np
import pytest

from video_files import (
    draw_number,
    packet_spans,
    read_numbers,
    write_folder,
    write_video,
)
from videochat_online.errors import VideoError
from videochat_online.video import open_video, read_video
from videochat_online.video.files.container import ContainerPass


class TestSeeking:
    def test_a_first_time_after_the_end_finds_the_last_frame(self, tmp_path):
        folder = write_folder(tmp_path / "frames", ["0.png", "1.png"])
        array = np.stack([draw_number(i) for i in range(3)])
        clip = write_video(tmp_path / "clip.mkv", range(100), keyframe_every=20)
        for source, last in ((folder, 1), (array, 2), (clip, 99)):
            assert read_numbers(read_video(source, times_s=[1000.0])) == [last]
            assert list(read_video(source, start_s=1000.0, fps=1)) == []
            assert list(read_video(source, start_s=1000.0)) == []

    def test_a_keyframe_that_is_missing(self, tmp_path):
        path = write_video(
            tmp_path / "clip.mp4", range(100), keyframe_every=20, container_options={"movflags": "faststart"}
        )
        path.write_bytes(path.read_bytes()[: packet_spans(path)[50][0]])
        with open_video(path) as video:
            assert read_numbers(video.read(times_s=[9.0])) == [49]
            assert "50 of 100 declared frames" in video.report.problem

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
            assert video.report.problem is None

    def test_a_seek_that_lands_too_late_is_not_trusted(self, long_clip, monkeypatch):
        seek = ContainerPass.seek
        monkeypatch.setattr(ContainerPass, "seek", lambda self, time_s: seek(self, time_s + 30))
        assert read_numbers(read_video(long_clip, times_s=[0.0, 50.0, 51.0])) == [0, 100, 102]

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
            running = video.read(chunk=1)
            next(running)
        for chunks in (running, video.read()):
            with pytest.raises(VideoError, match="was closed"):
                next(chunks)


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

    @pytest.mark.parametrize("num_cores", [1, 2, 3, 8])
    def test_how_much_is_lost_does_not_depend_on_the_machine(self, shared_dir, monkeypatch, num_cores):
        monkeypatch.setattr("os.cpu_count", lambda: num_cores)
        with open_video(shared_dir / "videos" / "bad_truncated.mp4") as video:
            video.finish()
            assert video.report.num_decoded == 146

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

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("none.mp4", "no such file"),
            ("empty.mp4", "an empty one"),
            ("text.mp4", "something unreadable"),
            ("text.txt", "a text file"),
            ("noise.mkv", "something unreadable"),
        ],
    )
    def test_what_is_no_video(self, tmp_path, name, found):
        path = tmp_path / name
        if name.startswith("empty"):
            path.write_bytes(b"")
        elif name.startswith("text"):
            path.write_text("this is no video\n" * 200)
        elif name.startswith("noise"):
            path.write_bytes(np.random.default_rng(0).bytes(20000))
        with pytest.raises(VideoError, match=f"{name}.*: expected a video.* found {found}") as caught:
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
