"""What may come in as a file: real media within limits; everything else is refused, and hurts nobody."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import shutil
import signal
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clips import write_clip
from videochat_online.errors import InputError
from videochat_online.serving.sources import uploads
from videochat_online.serving.sources.sandbox import MAX_NAME, safe_name
from videochat_online.serving.sources.uploads import UploadLimits, accept_upload
from videochat_online.video import open_video, read_image


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "viewer"
    path.mkdir()
    return path


@pytest.fixture
def upload(tmp_path, folder):
    """Write bytes or copy a file to where the server puts uploads, and offer it."""
    path = tmp_path / "incoming"

    def offer(content, name, **limits):
        if isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_bytes(content)
        return accept_upload(path, name, folder, UploadLimits(**limits))

    offer.path = path
    return offer


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


def png_of(width, height):
    """A PNG that says how large it is, and is a few bytes itself."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class TestAccepted:
    @pytest.mark.parametrize(
        ("suffix", "codec", "kept"),
        [
            (".mp4", "libx264", ".mp4"),
            (".mkv", "libx264", ".mkv"),
            (".avi", "mpeg4", ".avi"),
            (".ts", "libx264", ".ts"),
        ],
    )
    def test_a_video_is_moved_and_measured(self, upload, folder, tmp_path, suffix, codec, kept):
        found = upload(write_clip(tmp_path / f"clip{suffix}", codec=codec), "holiday.mp4")
        assert (found.kind, found.name, found.width, found.height) == ("video", "holiday.mp4", 64, 48)
        assert found.duration_s == pytest.approx(4.0, abs=0.11)
        assert found.fps == pytest.approx(10.0)
        assert found.problem is None
        # By what it is, whatever it is called.
        assert found.path.suffix == kept
        assert list(folder.iterdir()) == [found.path]
        assert not upload.path.exists()
        with open_video(found.path) as source:
            assert sum(len(chunk.times_s) for chunk in source.read()) == 40

    def test_two_of_one_name_keep_apart(self, upload, clip):
        assert upload(clip, "a.mp4").path != upload(clip, "a.mp4").path

    def test_an_image_is_turned_upright_and_written_anew(self, upload, folder, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "SECRET-CAMERA"
        Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif)
        found = upload(tmp_path / "photo.jpg", "photo.JPG")
        assert (found.kind, found.width, found.height, found.duration_s) == ("image", 40, 60, None)
        assert list(folder.iterdir()) == [found.path]
        assert np.array_equal(np.asarray(read_image(found.path)), np.asarray(read_image(tmp_path / "photo.jpg")))
        assert b"SECRET-CAMERA" not in found.path.read_bytes()

    def test_across_devices_it_is_copied(self, upload, clip, folder, monkeypatch):
        def rename(self, to):
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(Path, "rename", rename)
        found = upload(clip, "a.mp4")
        assert found.path.read_bytes() == clip.read_bytes()
        assert not upload.path.exists()

    def test_damage_is_told(self, upload, tmp_path):
        whole = write_clip(tmp_path / "whole.mkv", 100).read_bytes()
        found = upload(whole[: len(whole) // 2], "half.mkv")
        assert "of 10.00 s declared" in found.problem
        assert found.duration_s < 9

    @pytest.mark.parametrize(
        "name",
        [
            "bad_audio_only.mp4",
            "bad_corrupted.mp4",
            "bad_truncated.mp4",
            "bbb_0_30.webm",
            "bottle.mp4",
            "car.mp4",
            "clock25.mp4",
            "dog.mp4",
            "index.json",
            "montage_66s.mp4",
            "rot90_3frames.mov",
            "vfr_car_decimated.mp4",
            "vfr_no_duration.webm",
            "walking.gif",
        ],
    )
    def test_recorded_files(self, upload, shared_dir, name):
        path = shared_dir / "videos" / name
        if not path.is_file():
            pytest.skip(f"no {name} among the shared clips")
        refused = {"bad_audio_only.mp4": "no video stream", "index.json": "another kind of file"}
        if name in refused:
            with pytest.raises(InputError, match=refused[name]):
                upload(path, name)
            return
        found = upload(path, name)
        assert (found.problem is not None) == (name == "bad_truncated.mp4")
        with open_video(path) as source:
            assert (found.width, found.height) == (source.info.width, source.info.height)
            starts_s = source.frame_times_s()
        assert found.duration_s >= starts_s[-1] - starts_s[0]


class TestRefused:
    def check(self, folder, offer, says):
        """One line that says so, no file left, and no path of the server."""
        with pytest.raises(InputError, match=says) as caught:
            offer()
        assert "\n" not in str(caught.value)
        assert str(folder.parent) not in str(caught.value)
        assert list(folder.iterdir()) == []

    @pytest.mark.parametrize(
        ("content", "name", "says"),
        [
            (b"", "a.mp4", "an empty one"),
            (b"<!doctype html><html><body>hello</body></html>" * 50, "a.mp4", "expected a video"),
            (b"hello " * 500, "a.mp4", "expected a video"),
            (b"hello " * 500, "a.png", "no known image format"),
            (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "a.png", "expected a readable image"),
            (b"MZ" * 500, "a.exe", "another kind of file"),
            (b"MZ" * 500, "mp4", "another kind of file"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a.png", "no known image format"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "a.mp4", "expected"),
            (b"\0" * 3000, "a.ts", "expected a video"),
            (png_of(30_000, 30_000), "bomb.png", "at most 50,000,000 pixels, found many more"),
            (png_of(9_000, 9_000), "bomb.png", "at most 50,000,000 pixels, found 9000x9000"),
        ],
        ids=["empty", "html", "text", "text2", "png", "exe", "no_suffix", "eps", "svg", "zeros", "bomb", "bomb2"],
    )
    def test_what_is_no_media(self, upload, folder, content, name, says):
        self.check(folder, lambda: upload(content, name), says)

    def test_a_picture_is_no_video_and_the_other_way_round(self, upload, folder, clip, tmp_path):
        self.check(folder, lambda: upload(clip, "clip.png"), "no known image format")
        Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
        self.check(folder, lambda: upload(tmp_path / "a.png", "a.mp4"), "a kind of file that is not played")

    @pytest.mark.parametrize(
        "text",
        [
            "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n",
            "ffconcat version 1.0\nfile {target}\n",
            "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 33\n",
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><BaseURL>{target}</BaseURL>'
            "<Period><AdaptationSet mimeType='video/mp4'><Representation id='1'/></AdaptationSet></Period></MPD>",
        ],
        ids=["m3u8", "concat", "sdp", "dash"],
    )
    @pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
    def test_lists_open_no_other_file(self, upload, folder, text, name):
        """The target is a pipe, beside the list as FFmpeg wants it, on which somebody waits for a reader."""
        target, opened = folder / "target.mp4", threading.Event()
        os.mkfifo(target)

        def watch():
            os.close(os.open(target, os.O_WRONLY))
            opened.set()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        for address in (f"file://{target}", str(target), target.name):
            with pytest.raises(InputError, match="expected a video"):
                upload(text.format(target=address).encode() + b"\n" * 100, name)
        was_opened = opened.is_set()
        os.close(os.open(target, os.O_RDONLY | os.O_NONBLOCK))
        watcher.join(30)
        assert not was_opened
        assert list(folder.iterdir()) == [target]

    def test_a_file_of_exactly_the_limit_is_not_too_large(self, upload, folder, clip):
        num_bytes = clip.stat().st_size
        self.check(
            folder,
            lambda: upload(clip, "a.mp4", max_bytes=num_bytes - 1),
            f"expected at most {num_bytes - 1} bytes, found {num_bytes}",
        )
        assert upload(clip, "a.mp4", max_bytes=num_bytes).path.stat().st_size == num_bytes

    def test_too_large(self, upload, folder, clip, tmp_path):
        self.check(folder, lambda: upload(clip, "a.mp4", max_bytes=1000), "at most 1000 bytes, found")
        with upload.path.open("wb") as file:
            file.truncate(10 * 2**30)  # a hole: it takes no room
        self.check(folder, lambda: accept_upload(upload.path, "a.mp4", folder), "at most 536870912 bytes, found 10737")
        self.check(folder, lambda: upload(clip, "a.mp4", max_pixels=1000), "at most 1000 pixels, found 64 x 48")
        Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
        self.check(folder, lambda: upload(tmp_path / "a.png", "a.png", max_image_pixels=1000), "at most 1,000 pixels")

    @pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
    def test_too_long(self, upload, folder, tmp_path, suffix):
        long = write_clip(tmp_path / f"long{suffix}")
        self.check(folder, lambda: upload(long, "a.mp4", max_duration_s=3.0), "at most 3 s, found a longer one")
        assert upload(long, "a.mp4", max_duration_s=4.2).duration_s == pytest.approx(4.0, abs=0.11)

    def test_a_length_that_is_not_declared_is_measured(self, upload, folder, shared_dir):
        path = shared_dir / "videos" / "vfr_no_duration.webm"
        self.check(folder, lambda: upload(path, "a.webm", max_duration_s=4.0), "at most 4 s")
        assert upload(path, "a.webm").duration_s == pytest.approx(4.94, abs=0.1)

    def test_declared_to_be_huge(self, upload, folder):
        head = struct.pack(">I4s4sI4s", 20, b"ftyp", b"isom", 0, b"isom")
        box = struct.pack(">I4sQ", 1, b"mdat", 10 * 2**30)
        self.check(folder, lambda: upload(head + box + b"\0" * 1000, "a.mp4"), "expected a video")

    def test_links_and_what_is_no_file(self, folder, tmp_path, clip):
        for name, make in [
            ("link", lambda path: path.symlink_to(clip)),
            ("folder", lambda path: path.mkdir()),
            ("pipe", os.mkfifo),
        ]:
            make(tmp_path / name)
            self.check(folder, lambda name=name: accept_upload(tmp_path / name, "a.mp4", folder), "a regular file")
        self.check(folder, lambda: accept_upload(tmp_path / "none", "a.mp4", folder), "found none")
        assert clip.exists()

    @pytest.mark.parametrize(
        "name",
        [
            "../../etc/passwd.mp4",
            "..\\..\\windows\\a.mp4",
            "a\0b.mp4",
            "a\r\nSet-Cookie: x.mp4",
            "<script>alert(1)</script>.mp4",
            "[x](javascript:alert(1)).mp4",
            "\u202egnp.mp4",
            "x" * 5000 + ".mp4",
            "видео 会议 (1).mp4",
            ".mp4.mp4",
        ],
    )
    def test_names_go_nowhere(self, upload, folder, clip, name):
        found = upload(clip, name)
        assert list(folder.iterdir()) == [found.path]
        assert found.path.name.removeprefix("video_").removesuffix(".mp4").isalnum()
        assert 0 < len(found.name) <= MAX_NAME
        assert not set(found.name) & set("<>&\"'`/\\[]:\0\r\n\u202e")
        with pytest.raises(InputError) as caught:
            upload(b"hello" * 100, name)
        assert str(caught.value).startswith(f"{found.name}: expected")

    def test_names(self):
        assert safe_name("видео 会议 (1).mp4") == "видео 会议 (1).mp4"
        assert safe_name("a/b/c.mp4") == safe_name("a\\b\\c.mp4") == "c.mp4"
        assert safe_name("") == safe_name("/") == safe_name("\n") == "_"
        assert safe_name("x" * 5000 + ".mp4").endswith("xxx.mp4")

    def test_limits_out_of_range(self):
        with pytest.raises(InputError, match="max_bytes: expected a number above 0, got 0"):
            UploadLimits(max_bytes=0)


class TestIsolation:
    def test_what_hangs_is_killed(self, upload, folder, clip, monkeypatch):
        monkeypatch.setattr(uploads, "_examine_video", lambda path, limits: time.sleep(600))
        with pytest.raises(InputError, match=r"a.mp4: .* could not be opened \(no result within 0.5 s\)"):
            upload(clip, "a.mp4", max_examination_s=0.5)
        assert list(folder.iterdir()) == []
        assert multiprocessing.active_children() == []

    def test_what_crashes_takes_nothing_with_it(self, upload, folder, clip, monkeypatch):
        def crash(path, limits):
            faulthandler.disable()  # quietly
            os.kill(os.getpid(), signal.SIGSEGV)

        monkeypatch.setattr(uploads, "_examine_video", crash)
        with pytest.raises(InputError, match="SIGSEGV"):
            upload(clip, "a.mp4")
        assert list(folder.iterdir()) == []

    def test_what_takes_too_much_memory(self, upload, folder, clip, monkeypatch):
        monkeypatch.setattr(uploads, "_examine_video", lambda path, limits: bytearray(2**30))
        with pytest.raises(InputError, match="takes too much memory"):
            upload(clip, "a.mp4", max_memory_bytes=2**28)

    def test_what_computes_for_ever(self, upload, folder, clip, monkeypatch):
        def compute(path, limits):
            while True:
                pass

        monkeypatch.setattr(uploads, "_examine_video", compute)
        patient = uploads.run_isolated  # so that the limit of computing is the one that is met

        def run_isolated(function, calls, *, num_processes, limits_s):
            return patient(function, calls, num_processes=num_processes, limits_s=[60])

        monkeypatch.setattr(uploads, "run_isolated", run_isolated)
        with pytest.raises(InputError, match="SIGXCPU|SIGKILL"):
            upload(clip, "a.mp4", max_examination_s=0.1)

    def test_half_written_pictures_do_not_stay(self, upload, folder, tmp_path, monkeypatch):
        def hang(path, limits):
            path.with_suffix(".png").write_bytes(b"half")
            time.sleep(600)

        monkeypatch.setattr(uploads, "_examine_image", hang)
        Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
        with pytest.raises(InputError, match="no result within"):
            upload(tmp_path / "a.png", "a.png", max_examination_s=0.5)
        assert list(folder.iterdir()) == []

    def test_from_another_thread(self, upload, clip):
        found = []
        thread = threading.Thread(target=lambda: found.append(upload(clip, "a.mp4")))
        thread.start()
        thread.join(60)
        assert found[0].width == 64
