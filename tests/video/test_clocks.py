"""Files whose clock, counts or streams are not what one expects: late, jumping, missing, promised by nobody."""

from __future__ import annotations

import io
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from video_files import draw_number, packet_spans, pairs, read_number, read_numbers, values, write_song, write_video
from videochat_online.data.samples.pixel_reader import FrameSampling, PixelReader
from videochat_online.errors import InputError, VideoError
from videochat_online.video import FrameTransform, open_video, read_video
from videochat_online.video.files import pyav_reader
from videochat_online.video.files.declared import declared_length, is_cut_mp4
from videochat_online.video.files.timestamps import PacketClock

FRAMES = 30
RATE = 10
CODECS = {"mkv": "libx264", "webm": "libvpx", "mp4": "libx264", "mov": "libx264", "flv": "flv", "ts": "libx264"}
CODECS |= {"asf": "msmpeg4", "avi": "mpeg4", "mpg": "mpeg2video", "nut": "mpeg4", "ogv": "libtheora"}
CODECS = {ending: codec for ending, codec in CODECS.items() if codec in av.codecs_available}


class _Pipe(io.RawIOBase):
    """A file that cannot go back, as a program's output."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.content += data
        return len(data)


def written(path: Path, *, start_s: float = 0.0, codec: str | None = None, **options) -> Path:
    """30 frames, ten a second (25 where the codec knows no other rate), numbered."""
    rate = 25 if path.suffix == ".mpg" else RATE
    ticks = [round(start_s * rate) + tick for tick in range(FRAMES)]
    return write_video(path, ticks, rate=rate, codec=codec or CODECS[path.suffix[1:]], **options)


def test_the_times_of_a_file_whose_packets_were_counted_are_known(tmp_path, monkeypatch):
    path = written(tmp_path / "a.mkv")
    with open_video(path) as video:
        assert video.info.num_frames_declared is None
        video.finish(max_decode_s=0.0)
        monkeypatch.setattr(pyav_reader, "ContainerPass", None)  # another pass over the file would fail
        assert video.frame_times_s() == pytest.approx([i / RATE for i in range(FRAMES)])


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def through(path: Path, *, scale: int = 1, **options):
    """Numbers and times of all frames, and the report after the last one."""
    with open_video(path, **options) as video:
        chunks = list(video.read(chunk=4))
        video.finish()
        times_s = [time_s for chunk in chunks for time_s in chunk.times_s]
        assert list(video.frame_times_s()) == pytest.approx(times_s)  # counted as decoded
        return [read_number(frame, scale) for chunk in chunks for frame in chunk.pixels_THWC], times_s, video


class TestLateClocks:
    @pytest.mark.parametrize("ending", sorted(CODECS))
    @pytest.mark.parametrize("start_s", [2.0, 100.0])
    def test_a_whole_file_is_whole_wherever_it_starts(self, tmp_path, ending, start_s):
        numbers, times_s, video = through(written(tmp_path / f"late.{ending}", start_s=start_s))
        assert numbers == list(range(FRAMES))
        assert video.report.problem is None
        if ending != "avi":  # its first frame stays on view until the second one comes
            assert times_s[-1] - times_s[0] == pytest.approx((FRAMES - 1) / (25 if ending == "mpg" else RATE), abs=0.01)
        if ending in ("mkv", "webm", "mp4", "mov", "asf"):
            assert video.info.duration_s == pytest.approx(FRAMES / RATE, abs=0.1)

    @pytest.mark.parametrize("ending", ["mkv", "ts", "nut"])
    def test_a_stream_that_begins_behind_another_one(self, tmp_path, ending):
        path = tmp_path / f"behind.{ending}"
        with av.open(str(path), "w") as container:
            song, stream = container.add_stream("mp2", rate=32000), container.add_stream("mpeg4", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
            for start in range(0, 32000 * 33, 1152):
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 2304), np.int16), format="s16", layout="stereo")
                sound.pts, sound.sample_rate, sound.time_base = start, 32000, Fraction(1, 32000)
                container.mux(song.encode(sound))
            for tick in range(FRAMES):
                picture = av.VideoFrame.from_ndarray(draw_number(tick), format="rgb24").reformat(format="yuv420p")
                picture.pts, picture.time_base = 300 + tick, Fraction(1, RATE)
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        numbers, times_s, video = through(path)
        assert numbers == list(range(FRAMES))
        assert times_s[0] > 29
        assert video.report.warning is None
        assert through(path, zero_start=True)[1][0] == pytest.approx(0.0)

    @pytest.mark.parametrize("start_s", [0.0, 100.0])
    @pytest.mark.parametrize("ending", ["mkv", "nut", "flv"])
    def test_training_sees_nothing_beyond_the_last_frame(self, tmp_path, ending, start_s):
        path = tmp_path / f"long.{ending}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("flv" if ending == "flv" else "mpeg4", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
            song = container.add_stream("pcm_s16le", rate=22050)
            for tick in range(FRAMES):
                picture = av.VideoFrame.from_ndarray(draw_number(tick), format="rgb24").reformat(format="yuv420p")
                picture.pts, picture.time_base = round(start_s * RATE) + tick, Fraction(1, RATE)
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 22050 * 8), np.int16), format="s16", layout="stereo")
            sound.pts, sound.sample_rate, sound.time_base = round(start_s * 22050), 22050, Fraction(1, 22050)
            container.mux(song.encode(sound))
            container.mux(song.encode(None))
        clip = PixelReader(FrameTransform(size=128)).clip(path, FrameSampling(method="middle", max_num_frames=6))
        assert list(map(read_number, clip.pixels_TSSC)) == [round(time_s * RATE) for time_s in clip.times_s]
        assert clip.duration_s == pytest.approx(FRAMES / RATE)

    def test_training_reads_what_begins_below_0(self, tmp_path):
        path = written(tmp_path / "wrapped.ts", start_s=95440.7, keyframe_every=5)
        numbers, times_s, _ = through(path)
        assert numbers == list(range(FRAMES))
        assert times_s[0] < -1
        reader, sampling = PixelReader(FrameTransform(size=128)), FrameSampling(method="middle", max_num_frames=3)
        usual, wrapped = (reader.clip(file, sampling) for file in (written(tmp_path / "usual.ts"), path))
        assert wrapped.times_s == usual.times_s
        assert list(map(read_number, wrapped.pixels_TSSC)) == list(map(read_number, usual.pixels_TSSC))
        with open_video(path) as video, pytest.raises(InputError, match="expected a time within"):
            list(video.read(times_s=[times_s[0] - 0.1]))

    @pytest.mark.parametrize("ending", ["mkv", "mp4"])
    def test_a_late_file_cut_short_is_cut_short(self, tmp_path, ending):
        whole = written(tmp_path / f"whole.{ending}", start_s=100.0, container_options={"movflags": "faststart"})
        cut = tmp_path / f"cut.{ending}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
        with pytest.raises(VideoError, match="needed|unreadable"):
            PixelReader(FrameTransform(size=28)).clip(cut, FrameSampling(method="middle", max_num_frames=6))
        with open_video(cut) as video:
            list(video.read())
            assert re.search(r"of 103\.00 s|of 30 declared", video.report.problem)

    @pytest.mark.parametrize("ending", ["mkv", "ts", "mp4"])
    def test_zero_start(self, tmp_path, ending):
        path = written(tmp_path / f"late.{ending}", start_s=7.0)
        numbers, times_s, video = through(path, zero_start=True)
        assert numbers == list(range(FRAMES))
        assert times_s == pytest.approx([i / RATE for i in range(FRAMES)])
        assert video.info.start_s == 0
        shown = read_video(path, times_s=[0.0, 0.55, 2.0], zero_start=True)
        assert read_numbers(shown) == [0, 5, 20]
        from_there = read_video(path, start_s=1.0, end_s=1.25, zero_start=True)
        assert read_numbers(from_there) == [10, 11, 12]
        assert read_numbers(read_video(path, fps=2, zero_start=True)) == [0, 5, 10, 15, 20, 25]

    def test_avi_counts_empty_slots_before_its_first_frame(self, tmp_path):
        path = written(tmp_path / "late.avi", start_s=7.0, codec="libx264")
        numbers, times_s, video = through(path)
        assert numbers == list(range(FRAMES))
        assert times_s[0] == pytest.approx(7.0, abs=0.11)
        assert video.info.duration_s == pytest.approx(FRAMES / RATE, abs=0.11)
        assert video.report.warning is None
        assert through(path, zero_start=True)[1] == pytest.approx([i / RATE for i in range(FRAMES)])
        clip = PixelReader(FrameTransform(size=32)).clip(path, FrameSampling(method="middle", max_num_frames=3))
        assert clip.times_s == pytest.approx([0.5, 1.5, 2.5], abs=0.25)

    def test_a_beginning_that_does_not_decode_is_named(self, tmp_path):
        path = written(tmp_path / "late.ts", start_s=5.0)
        path.write_bytes(path.read_bytes()[188 * 20 :])
        with open_video(path) as video:
            assert re.match(r"its first (0\.[5-9]|1\.\d)\d? s do not decode", video.report.warning)

    def test_zero_start_far_into_a_file_and_at_its_broken_end(self, tmp_path):
        path = write_video(tmp_path / "long.mkv", [70 + tick for tick in range(400)], keyframe_every=25)
        shown = list(read_video(path, times_s=[1.0, 24.55, 39.0], zero_start=True))
        assert [number % 256 for number in (10, 245, 390)] == read_numbers(shown)
        assert read_numbers(read_video(path, start_s=30.0, end_s=30.15, zero_start=True)) == [300 % 256, 301 % 256]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with open_video(path, zero_start=True) as video:
            last_s = [time_s for chunk in video.read() for time_s in chunk.times_s][-1]
            assert video.report.ends_at_s == pytest.approx(last_s + 0.1, abs=0.01)
            assert video.report.declared_end_s == pytest.approx(40.0, abs=0.1)

    def test_zero_start_of_a_negative_start(self):
        chunks = list(read_video(pairs([-2.0, -1.0, 0.5]), zero_start=True))
        assert [time_s for chunk in chunks for time_s in chunk.times_s] == [0.0, 1.0, 2.5]
        assert values(chunks) == [0, 1, 2]

    def test_zero_start_counts_from_a_first_frame_that_does_not_decode(self, tmp_path):
        path = written(tmp_path / "late.ts", start_s=5.0)
        with av.open(str(path)) as whole, av.open(str(tmp_path / "cut.mkv"), "w") as part:
            copy = part.add_stream_from_template(whole.streams.video[0])
            for packet in list(whole.demux(video=0))[6:-1]:  # the next keyframe is frame 12
                packet.stream = copy
                part.mux(packet)
        numbers, times_s, video = [], [], open_video(tmp_path / "cut.mkv", zero_start=True)
        with video:
            for chunk in video.read():
                numbers, times_s = numbers + read_numbers([chunk]), [*times_s, *chunk.times_s]
        assert dict(zip(numbers, times_s, strict=True))[20] == pytest.approx((20 - 6) / RATE)


class TestJumps:
    @pytest.mark.parametrize("ending", ["ts", "mpg", "mkv"])
    @pytest.mark.parametrize("b_frames", [0, 2])
    @pytest.mark.parametrize("starts_s", [(0.0, 0.0), (5.0, 0.0, 3.0), (100.0, 1.0)])
    def test_what_follows_a_jump_back_comes_behind_the_last_frame(self, tmp_path, ending, b_frames, starts_s):
        if ending == "mkv" and len(starts_s) > 2:
            pytest.skip("FFmpeg reads two segments of a Matroska file at most")
        parts = [
            written(tmp_path / f"{place}.{ending}", start_s=start_s, b_frames=b_frames if ending != "mpg" else 0)
            for place, start_s in enumerate(starts_s)
        ]
        numbers, times_s, video = through(joined(tmp_path / f"joined.{ending}", *parts))
        assert numbers == list(range(FRAMES)) * len(parts)
        first_s = times_s[0]
        rate = 25 if ending == "mpg" else RATE
        jumps = sum(later < earlier for earlier, later in zip(starts_s, starts_s[1:], strict=False)) or 1
        assert video.report.num_errors == 0
        notes = [note for note in video.report.notes if "jumps" in note]
        assert all(float(note.split(" s")[1].split()[-1]) < 200 for note in notes)  # no 2^33 ticks in them
        assert len(notes) >= jumps
        assert f"from {first_s + FRAMES / rate:.2f} s" in notes[0]
        if len(starts_s) == 2:
            assert times_s == pytest.approx([first_s + i / rate for i in range(2 * FRAMES)], abs=0.002)

    def test_a_question_in_the_second_part_sees_it(self, tmp_path):
        part = written(tmp_path / "part.ts")
        path = joined(tmp_path / "joined.ts", part, part)
        assert read_numbers(read_video(path, times_s=[2.0, 4.5], zero_start=True)) == [20, 15]

    def test_the_length_of_a_file_whose_clock_jumps_is_counted(self, tmp_path):
        """FFmpeg's estimate, from the last packet, is that of one part, or 26 hours; counting alone meets the jump."""
        parts = [written(tmp_path / f"{start_s}.ts", start_s=start_s) for start_s in (100.0, 1.0)]
        with open_video(joined(tmp_path / "joined.ts", *parts)) as video:
            assert video.info.duration_s is None
            assert len(video.frame_times_s()) == 2 * FRAMES
            assert "jumps" in video.report.notes[0]
        sampling = FrameSampling(method="middle", max_num_frames=6)
        clip = PixelReader(FrameTransform(size=32)).clip(tmp_path / "joined.ts", sampling)
        assert clip.duration_s == pytest.approx(2 * FRAMES / RATE)
        assert clip.times_s == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5, 5.5], abs=0.11)

    @pytest.mark.parametrize("ending", ["mp4", "flv"])
    def test_an_appended_file_that_is_not_read_is_named(self, tmp_path, ending):
        part = written(tmp_path / f"part.{ending}", scale=4, codec="mjpeg" if ending == "mp4" else "flv")
        numbers, _, video = through(joined(tmp_path / f"joined.{ending}", part, part), scale=4)
        assert numbers == list(range(FRAMES))
        assert f"another file is appended at byte {part.stat().st_size:,}" in video.report.warning
        assert through(part, scale=4)[2].report.warning is None

    def test_one_wrong_time_is_no_jump(self, tmp_path):
        path = tmp_path / "wrong.nut"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
            ticks = [*range(100, 110), 3, *range(111, 120)]
            packets = []
            for number, tick in enumerate(range(len(ticks))):
                frame = av.VideoFrame.from_ndarray(draw_number(number), format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = tick, Fraction(1, RATE)
                packets += stream.encode(frame)

        # Written as raw packets with times of their own: no muxer takes such times.
        class _Stream:
            time_base, guessed_rate, average_rate, start_time = Fraction(1, RATE), Fraction(RATE), Fraction(RATE), 100
            codec_context = stream.codec_context

        for packet, tick in zip(packets, ticks, strict=False):
            packet.pts = packet.dts = tick
        notes: dict[str, None] = {}
        got = [packet.pts for packet in PacketClock(_Stream(), "nut", notes).packets(packets)]
        assert got == ticks[: len(got)]
        assert len(got) > 15
        assert not notes


class TestPromises:
    @pytest.mark.parametrize(("format_name", "codec"), [("avi", "mpeg4"), ("ivf", "libvpx"), ("matroska", "libx264")])
    def test_what_was_written_to_a_pipe_is_whole(self, tmp_path, format_name, codec):
        ending = {"matroska": "mkv"}.get(format_name, format_name)
        source = written(tmp_path / "source.mkv", codec=codec)
        pipe = _Pipe()
        with av.open(str(source)) as whole, av.open(pipe, "w", format=format_name) as copy:
            stream = copy.add_stream_from_template(whole.streams.video[0])
            for packet in whole.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    copy.mux(packet)
        path = tmp_path / f"pipe.{ending}"
        path.write_bytes(pipe.content)
        numbers, _, video = through(path)
        assert numbers == list(range(FRAMES))
        assert video.report.problem is None
        assert video.info.num_frames_declared in (None, FRAMES)
        assert video.info.duration_s is None or video.info.duration_s < 2 * FRAMES / RATE

    @pytest.mark.parametrize(
        ("num_frames", "seconds", "expected"),
        [
            (300, 30.0, (300, 30.0, 30.0)),
            (3000, 30.0, (None, 30.0, 30.0)),  # has nothing to do with length and rate
            (30, 30.0, (None, 30.0, 30.0)),
            (0, 30.0, (None, 30.0, 30.0)),
            (300, 4e6, (300, None, None)),
            (1 << 30, 30.0, (None, None, None)),  # more frames than bytes
        ],
    )
    def test_what_counts_as_a_promise(self, num_frames, seconds, expected):
        class _Stream:
            frames, time_base, start_time = num_frames, Fraction(1, 1000), 0
            duration, average_rate, guessed_rate = round(seconds * 1000), Fraction(RATE), Fraction(RATE)

        class _Container:
            duration, start_time, format = round(seconds * 1e6), 0, av.format.ContainerFormat("avi")

        found = declared_length(_Container(), _Stream(), num_bytes=100_000)
        assert (found.num_frames, found.duration_s, found.end_s) == expected

    def test_boxes_of_an_mp4(self, tmp_path):
        def box(name, content, *, wide=False, claimed=None):
            length = (16 if wide else 8) + len(content) if claimed is None else claimed
            head = (
                (1).to_bytes(4, "big") + name + length.to_bytes(8, "big") if wide else length.to_bytes(4, "big") + name
            )
            return head + content

        path = tmp_path / "a.mp4"
        plain = box(b"ftyp", b"isom") + box(b"mdat", bytes(40), wide=True)
        fragment = box(b"moof", bytes(12))
        whole = plain + fragment + box(b"mdat", bytes(9))
        for content, is_cut in [
            (whole, False),
            (whole[:-1], True),
            (whole + b"\0\0\0", True),
            (plain + fragment, True),  # whose frames are missing
            (plain + fragment[:-1], True),
            (box(b"mdat", bytes(40), wide=True)[:-3], None),
            (whole + box(b"mdat", bytes(9), claimed=0), False),  # up to the end of the file
        ]:
            path.write_bytes(content)
            assert is_cut_mp4(path, is_fragmented=True) is (is_cut is not False)
            assert is_cut_mp4(path, is_fragmented=False) is bool(is_cut)  # of another file its total tells

    def test_avi_with_pauses_is_whole(self, tmp_path):
        path = write_video(tmp_path / "pauses.avi", [0, 1, 2, 9, 10, 30, 31], codec="mpeg4")
        numbers, times_s, video = through(path)
        assert numbers == [0, 1, 2, 3, 4, 5, 6]
        assert times_s[-1] == pytest.approx(3.1)
        assert video.report.problem is None

    def test_avi_gives_h264_frames_their_times_in_order(self, tmp_path):
        numbers, times_s, video = through(written(tmp_path / "b.avi", codec="libx264", b_frames=3))
        assert numbers == list(range(FRAMES))
        assert np.diff(times_s) == pytest.approx(1 / RATE)
        assert video.report.problem is None

    def test_avi_with_a_broken_frame_keeps_the_times_of_the_others(self, tmp_path):
        path = written(tmp_path / "b.avi", codec="libx264", keyframe_every=6, b_frames=2)
        content = bytearray(path.read_bytes())
        position, size = packet_spans(path)[12]
        content[position : position + size] = bytes(size)
        path.write_bytes(content)
        with open_video(path) as video:
            chunks = list(video.read())
            assert video.report.num_errors == 1
        times_s = [time_s for chunk in chunks for time_s in chunk.times_s]
        shown = zip(read_numbers([chunks[0], chunks[-1]]), [*chunks[0].times_s, *chunks[-1].times_s], strict=True)
        assert {round(time_s * RATE) - number for number, time_s in shown} == {1}  # AVI begins with an empty slot
        assert FRAMES - 12 <= len(times_s) < FRAMES

    @pytest.mark.parametrize(("format_name", "codec"), [("h264", "libx264"), ("hevc", "libx265")])
    def test_raw_streams_have_the_times_of_their_rate(self, tmp_path, format_name, codec):
        if codec not in av.codecs_available:
            pytest.skip(f"PyAV was built without {codec}")
        path = tmp_path / f"raw.{format_name}"
        with av.open(str(path), "w", format=format_name) as container:
            stream = container.add_stream(codec, rate=RATE)
            stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
            stream.options = {"bf": "2", "x265-params": "log-level=none"}
            for number in range(FRAMES):
                frame = av.VideoFrame.from_ndarray(draw_number(number), format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = number, Fraction(1, RATE)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        numbers, times_s, video = through(path)
        assert numbers == list(range(FRAMES))
        assert times_s == pytest.approx([i / RATE for i in range(FRAMES)], abs=1e-3)
        assert video.report.problem is None
        assert "carries no times" in video.report.warning

    @pytest.mark.parametrize(("codec", "rate"), [("mjpeg", 25), ("mpeg1video", 24)])
    def test_times_that_ffmpeg_makes_up_are_none(self, tmp_path, codec, rate):
        path, pixels = tmp_path / f"raw.{codec}", {"mjpeg": "yuvj420p", "mpeg1video": "yuv420p"}[codec]
        with av.open(str(path), "w", format=codec) as container:
            stream = container.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = 128, 64, pixels
            stream.options = {} if codec == "mjpeg" else {"bf": "2"}
            for number in range(FRAMES):
                frame = av.VideoFrame.from_ndarray(draw_number(number), format="rgb24").reformat(format=pixels)
                frame.pts, frame.time_base = number, Fraction(1, rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with open_video(path) as video:
            chunks = list(video.read())
            video.finish()
        assert read_numbers(chunks) == list(range(FRAMES))
        times_s = [time_s for chunk in chunks for time_s in chunk.times_s]
        assert times_s == pytest.approx([i / rate for i in range(FRAMES)], abs=1e-3)
        assert video.report.problem is None
        assert video.report.warning == f"the file carries no times: its frames are shown at {rate} a second"

    def test_asf_has_no_order_either(self, tmp_path):
        numbers, times_s, video = through(written(tmp_path / "b.asf", codec="libx264", keyframe_every=6, b_frames=2))
        assert numbers == list(range(FRAMES))
        assert [time_s - times_s[0] for time_s in times_s] == pytest.approx([i / RATE for i in range(FRAMES)], abs=0.01)
        assert video.report.problem is None

    @pytest.mark.parametrize("movflags", ["frag_keyframe+empty_moov", "frag_keyframe+empty_moov+default_base_moof"])
    def test_a_fragmented_file_cut_anywhere_gives_what_is_there(self, tmp_path, movflags):
        whole = written(tmp_path / "whole.mp4", keyframe_every=6, container_options={"movflags": movflags})
        content, path = whole.read_bytes(), tmp_path / "cut.mp4"
        boxes = [found.start() - 4 for found in re.finditer(b"moof", content)]
        for fragments, box in enumerate(boxes[1:], start=1):
            for extra in (1, 9, 40, 100, 150):
                path.write_bytes(content[: box + extra])
                with open_video(path) as video:
                    numbers = read_numbers(video.read())
                    video.finish()
                    assert numbers == list(range(fragments * 6)), (box, extra)
                    assert video.report.problem is not None, (box, extra)
            media = content.index(b"mdat", box) - 4
            path.write_bytes(content[:media])  # whole boxes, and a fragment without its frames
            assert through(path)[2].report.problem is not None, box
        path.write_bytes(content)
        with open_video(path) as video:
            assert read_numbers(video.read()) == list(range(FRAMES))
            video.finish()
            assert video.report.problem is None

    def test_a_cut_first_fragment_behind_frames_with_a_total(self, tmp_path):
        whole = written(tmp_path / "whole.mp4", keyframe_every=6, container_options={"movflags": "frag_keyframe"})
        content, path = whole.read_bytes(), tmp_path / "cut.mp4"
        path.write_bytes(content[: content.index(b"moof") + 20])
        numbers, _, video = through(path)
        assert numbers == list(range(6))
        assert "breaks off" in video.report.problem


def several(path: Path, streams: list[tuple[int, int, int]], default: int | None) -> Path:
    """Streams of (first number, frames, scale); one of them marked as default."""
    with av.open(str(path), "w") as container:
        made = []
        for place, (_, _, scale) in enumerate(streams):
            stream = container.add_stream("mpeg4", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = 128 * scale, 64 * scale, "yuv420p"
            stream.disposition = av.stream.Disposition.default if place == default else 0
            made.append(stream)
        for tick in range(max(frames for _, frames, _ in streams)):
            for stream, (first, frames, scale) in zip(made, streams, strict=True):
                if tick < frames:
                    picture = av.VideoFrame.from_ndarray(draw_number(first + tick, scale), format="rgb24")
                    picture = picture.reformat(format="yuv420p")
                    picture.pts, picture.time_base = tick, Fraction(1, RATE)
                    container.mux(stream.encode(picture))
        for stream in made:
            container.mux(stream.encode(None))
    return path


class TestWhichStream:
    @pytest.mark.parametrize("ending", ["mkv", "mp4", "nut"])
    @pytest.mark.parametrize(
        ("streams", "default", "first"),
        [
            ([(0, 8, 1), (100, 8, 1)], 1, 100),  # the mark
            ([(0, 8, 2), (100, 8, 1)], 1, 100),  # the mark before the size
            ([(0, 8, 1), (100, 8, 2)], None, 100),  # the size
            ([(0, 1, 2), (100, 8, 1)], 0, 100),  # a still is none, whatever its mark and size
            ([(100, 8, 1), (0, 8, 1)], None, 100),  # the first of equals
        ],
    )
    def test_the_one_that_players_show(self, tmp_path, ending, streams, default, first):
        path = several(tmp_path / f"several.{ending}", streams, default)
        with av.open(str(path)) as container:
            marks = [bool(s.disposition & av.stream.Disposition.default) for s in container.streams.video]
        if marks != [place == default for place in range(len(streams))] and len(set(marks)) > 1:
            pytest.skip(f"the container marks {marks} instead")
        scale = next(scale for number, _, scale in streams if number == first)
        if len(set(marks)) == 1 and streams[0][2] != streams[1][2] and min(s[1] for s in streams) > 1:
            first, scale = max((scale, number) for number, _, scale in streams)[::-1]
        with open_video(path) as video:
            frames = [frame for chunk in video.read() for frame in chunk.pixels_THWC]
        assert [read_number(frame, scale) for frame in frames] == list(range(first, first + 8))

    def test_a_song_with_a_cover(self, tmp_path):
        with pytest.raises(VideoError, match="found no video stream .only: audio, a cover picture."):
            open_video(write_song(tmp_path / "song.mp4"))


@pytest.mark.parametrize("url", ["https://example.org/a/b.mp4", "rtsp://camera/1", "s3://bucket/a.mp4"])
def test_addresses_are_named_whole(url):
    with pytest.raises(VideoError, match=f"^{re.escape(url)}: expected .* a URL, which is not read here"):
        open_video(url)
