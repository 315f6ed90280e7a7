from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from video_files import (
    draw_number,
    pairs,
    read_number,
    read_numbers,
    values,
    write_folder,
)
from videochat_online.errors import InputError, VideoError
from videochat_online.video import list_frame_files, open_video, read_image, read_video
from videochat_online.video.still_images import natural_key


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
        for max_decode_s, content in ((60.0, b"no image"), (0.0, b"")):
            (folder / "4.png").write_bytes(content)
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
        with open_video(folder) as video:
            assert read_numbers(video.read(times_s=[0.0, 0.5, 1.0, 1.5], may_begin_late=True)) == [1, 1]
            assert read_numbers(video.read(times_s=[0.5], may_begin_late=True)) == []

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
        with open_video(folder / "only.png") as video:
            assert read_numbers(video.read()) == [0]
            assert video.info.kind == "frame_folder"

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
        with pytest.raises(VideoError, match=r"got uint8 \[2, 2\] at frame 0"):
            open_video(iter([np.zeros((2, 2), np.uint8)]))
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
