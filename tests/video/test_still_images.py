"""Still images of more than 8 bits, and animations in the formats of still images."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image

from video_files import draw_number, read_number, write_video
from videochat_online.errors import VideoError
from videochat_online.video import open_video, read_image, read_video
from videochat_online.video.transforms import to_rgb

RAMP = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)


def save_ramp(path, kind):
    """The ramp from black to white as a 16-bit file of one kind or another."""
    if path.suffix == ".pgm":
        path.write_bytes(b"P5 256 256 65535\n" + RAMP.astype(">u2").tobytes())
    elif kind == "float":
        Image.fromarray((RAMP / 65535).astype(np.float32)).save(path)
    else:
        Image.fromarray(RAMP).save(path)
    return path


class TestDeepImages:
    @pytest.mark.parametrize(("name", "kind"), [("a.png", "16"), ("a.tif", "16"), ("a.pgm", "16"), ("a.tiff", "float")])
    def test_white_stays_white_and_the_mean_where_it_was(self, tmp_path, name, kind):
        path = save_ramp(tmp_path / name, kind)
        pixels_HWC = np.asarray(read_image(path))
        assert pixels_HWC.dtype == np.uint8
        assert pixels_HWC.shape == (256, 256, 3)
        assert (pixels_HWC == np.rint(RAMP / 257).astype(np.uint8)[..., None]).all()
        assert pixels_HWC.mean() == pytest.approx(127.5, abs=0.1)

    @pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
    def test_every_order_of_bytes(self, mode):
        order = ">u2" if mode.endswith("B") else "<u2"
        image = Image.frombytes(mode, (256, 256), RAMP.astype(order).tobytes())
        assert np.asarray(to_rgb(image)).mean() == pytest.approx(127.5, abs=0.1)

    def test_a_folder_of_them_says_so(self, tmp_path):
        for number in range(3):
            save_ramp(tmp_path / f"{number}.png", "16")
        with open_video(tmp_path) as video:
            means = [frame.mean() for chunk in video.read() for frame in chunk.pixels_THWC]
            assert means == pytest.approx([127.5] * 3, abs=0.1)
            assert video.report.problem is None
            assert "divided by 257" in video.report.warning

    @pytest.mark.parametrize(
        ("values", "found"),
        [
            (RAMP.astype(np.int32), "one of 32 bits with values from 0 to 65535"),
            ((RAMP / 1000).astype(np.float32), "fractions from 0 to 65.535"),
            (np.full((4, 4), -0.5, np.float32), "fractions from -0.5 to -0.5"),
            (np.full((4, 4), np.nan, np.float32), "fractions from nan to nan"),
        ],
    )
    def test_numbers_without_a_known_range_are_refused(self, tmp_path, values, found):
        path = tmp_path / "deep.tif"
        Image.fromarray(values).save(path)
        with pytest.raises(VideoError, match=f"deep.tif: expected an image of .*, found {found}"):
            read_image(path)
        with pytest.raises(VideoError, match=found):
            open_video(path)


NUMBERS = [3, 1, 4, 1, 5, 9, 2, 6]
DURATIONS_MS = [100, 200, 50, 50, 300, 100, 100, 400]


def save_animation(path, **options):
    pictures = [Image.fromarray(draw_number(number)) for number in NUMBERS]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **options)
    return path


class TestAnimations:
    @pytest.mark.parametrize("name", ["a.webp", "a.png", "a.gif", "a.avif"])
    def test_all_pictures_with_their_durations(self, tmp_path, name):
        options = {"lossless": True} if name.endswith("webp") else {}
        path = save_animation(tmp_path / name, duration=DURATIONS_MS, **options)
        with open_video(path) as video:
            chunks = list(video.read(chunk=3))
            assert [read_number(frame) for chunk in chunks for frame in chunk.pixels_THWC] == NUMBERS
            starts_s = [sum(DURATIONS_MS[:i]) / 1000 for i in range(len(NUMBERS))]
            assert [time_s for chunk in chunks for time_s in chunk.times_s] == pytest.approx(starts_s, abs=0.006)
            assert list(video.frame_times_s()) == pytest.approx(starts_s, abs=0.006)
            assert video.report.problem is None
            shown = video.read(times_s=[0.05, 0.15, 0.31, 0.36, 0.85])
            assert [read_number(frame) for chunk in shown for frame in chunk.pixels_THWC] == [3, 1, 4, 1, 2]
            again = video.read(fps=2)
            assert [read_number(frame) for chunk in again for frame in chunk.pixels_THWC] == [3, 5, 6]

    def test_no_duration_is_a_tenth_of_a_second(self, tmp_path):
        path = save_animation(tmp_path / "a.webp", duration=0, lossless=True)
        times_s = [time_s for chunk in read_video(path) for time_s in chunk.times_s]
        assert times_s == pytest.approx([i / 10 for i in range(len(NUMBERS))])

    def test_a_picture_for_programs_without_animations_is_left_out(self, tmp_path):
        path = tmp_path / "a.png"
        pictures = [Image.fromarray(draw_number(number)) for number in NUMBERS]
        Image.fromarray(draw_number(77)).save(
            path, save_all=True, default_image=True, append_images=pictures, duration=100
        )
        with open_video(path) as video:
            assert [read_number(frame) for chunk in video.read() for frame in chunk.pixels_THWC] == NUMBERS
            assert video.report.problem is None

    def test_pages_follow_at_the_given_rate(self, tmp_path):
        path = save_animation(tmp_path / "a.tif")
        chunks = list(read_video(path, source_fps=4))
        assert [read_number(frame) for chunk in chunks for frame in chunk.pixels_THWC] == NUMBERS
        assert [time_s for chunk in chunks for time_s in chunk.times_s] == [i / 4 for i in range(len(NUMBERS))]

    def test_pages_of_another_size_are_left_out(self, tmp_path):
        pictures = [Image.fromarray(draw_number(number)) for number in NUMBERS]
        pages = [*pictures[1:3], pictures[3].resize((32, 16)), *pictures[4:]]
        pictures[0].save(tmp_path / "a.tif", save_all=True, append_images=pages)
        with open_video(tmp_path / "a.tif") as video:
            numbers = [read_number(frame) for chunk in video.read() for frame in chunk.pixels_THWC]
            assert numbers == [*NUMBERS[:3], *NUMBERS[4:]]
            assert video.report.problem is None

    def test_an_animation_that_breaks_off(self, tmp_path):
        path = save_animation(tmp_path / "a.gif", duration=DURATIONS_MS)
        broken = tmp_path / "a.webp"  # known by what it holds, not by its name
        content = path.read_bytes()
        broken.write_bytes(content[: len(content) * 2 // 3])
        with open_video(broken) as video:
            numbers = [read_number(frame) for chunk in video.read() for frame in chunk.pixels_THWC]
            video.finish()
            assert numbers[:4] == NUMBERS[:4]
            assert len(numbers) < len(NUMBERS)
            assert video.report.problem is not None

    def test_a_file_is_opened_once_to_know_its_kind_and_once_a_pass(self, tmp_path, monkeypatch):
        path, opened, open_image = save_animation(tmp_path / "a.webp", duration=100), [], Image.open
        monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(args) or open_image(*args, **options))
        open_video(path).close()
        assert len(opened) == 2

    def test_as_an_image_it_is_the_first_picture_and_a_warning(self, tmp_path, caplog):
        path = save_animation(tmp_path / "a.webp", duration=100, lossless=True)
        with caplog.at_level(logging.WARNING):
            assert read_number(np.asarray(read_image(path))) == NUMBERS[0]
        assert f"{path}: an animation" in caplog.text

    @pytest.mark.parametrize("name", ["a.jpg", "b.png", "a.webp", "a.mpo"])
    def test_a_still_image_is_none(self, tmp_path, caplog, name):
        path = tmp_path / name
        picture = Image.fromarray(draw_number(5))
        if name == "a.mpo":  # a photograph with its preview, as telephones write it under .jpg
            picture.save(path, save_all=True, append_images=[Image.fromarray(draw_number(6))])
            path = path.rename(tmp_path / "b.jpg")
        else:
            picture.save(path)
        with caplog.at_level(logging.WARNING), open_video(path) as video:
            assert [read_number(frame) for chunk in video.read() for frame in chunk.pixels_THWC] == [5]
        assert not caplog.text


def test_a_video_that_has_an_images_name_is_refused_in_one_line(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(3)).rename(tmp_path / "a.png")
    with pytest.raises(VideoError, match=r"a.png: expected readable images, found none"):
        open_video(path)
