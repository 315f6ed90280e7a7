from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from videochat_online.errors import InputError
from videochat_online.video import FrameTransform, choose_tile_grid, normalize, stack_images, tile_image
from videochat_online.video.transforms import NORMALIZATIONS, resize_image, to_rgb


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (3, 30, 50, 3), dtype=np.uint8)


class TestResize:
    @pytest.mark.parametrize(
        ("width", "height", "is_column_first"),
        [(64, 64, False), (60, 20, True), (100, 30, True), (30, 30, False), (45, 29, True), (45, 30, False)],
    )
    def test_order_of_directions(self, frames, width, height, is_column_first):
        # 50 x 40: the height shrinks by more than twice as many pixels as the width, or does not.
        image = Image.fromarray(np.concatenate([frames[0], frames[1][:10]]))
        bicubic = Image.Resampling.BICUBIC
        columns = image.resize((50, height), bicubic).resize((width, height), bicubic)
        rows = image.resize((width, 40), bicubic).resize((width, height), bicubic)
        assert np.any(np.asarray(columns) != np.asarray(rows))
        expected = columns if is_column_first else rows
        assert np.array_equal(np.asarray(resize_image(image, width, height)), np.asarray(expected))

    def test_torch_is_close_but_named(self, frames):
        exact = FrameTransform(size=20, normalization="siglip")(frames)
        fast = FrameTransform(size=20, normalization="siglip", resize="torch")(frames)
        levels = (exact - fast).abs() * 127.5
        assert levels.max() < 12  # noise, shrunk: the worst case for clipping between the two directions
        assert levels.mean() < 0.6

    def test_torch_in_parts_equals_one_by_one(self):
        many = np.random.default_rng(1).integers(0, 256, (19, 16, 24, 3), dtype=np.uint8)
        transform = FrameTransform(size=12, resize="torch")
        assert torch.equal(transform(many), torch.cat([transform(many[i : i + 1]) for i in range(19)]))


class TestFrameTransform:
    def test_values(self, frames):
        square = frames[:, :30, :30]
        for name, statistics in NORMALIZATIONS.items():
            result = FrameTransform(size=30, normalization=name)(square)
            assert result.shape == (3, 3, 30, 30)
            assert result.dtype == torch.float32
            expected = (square.transpose(0, 3, 1, 2) / 255 - np.reshape(statistics.mean, (3, 1, 1))) / np.reshape(
                statistics.std, (3, 1, 1)
            )
            np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)

    def test_frames_do_not_influence_each_other(self, frames):
        transform = FrameTransform(size=28)
        assert torch.equal(transform(frames), torch.cat([transform(frame[None]) for frame in frames]))

    def test_the_input_is_left_alone(self, frames):
        before = frames.copy()
        for options in ({}, {"pad_square": True}, {"size": 30, "pad_square": True}):
            FrameTransform(**{"size": 28, **options})(frames)
            FrameTransform(size=30)(frames[:, :, :30])
        assert np.array_equal(frames, before)

    @pytest.mark.parametrize("size", [16, 30])
    def test_views_with_negative_strides(self, frames, size):
        mirrored = frames[:, ::-1, :30]
        assert torch.equal(FrameTransform(size=size)(mirrored), FrameTransform(size=size)(mirrored.copy()))

    def test_padding_keeps_the_picture_and_normalises_to_nearly_zero(self, frames):
        padded = FrameTransform(size=50, pad_square=True)(frames)
        assert torch.equal(padded[:, :, 10:40], normalize(frames))
        assert padded[:, :, :10].abs().max() < 0.02
        assert padded[:, :, 40:].abs().max() < 0.02

    def test_tall_frames_are_padded_left_and_right(self, frames):
        tall = np.rot90(frames, axes=(1, 2))[:, :, :29]
        padded = FrameTransform(size=50, pad_square=True)(tall)
        assert torch.equal(padded[..., 10:39], normalize(tall))
        assert padded[..., :10].abs().max() < 0.02
        assert padded[..., 39:].abs().max() < 0.02

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
    def test_images_of_any_mode(self, frames, mode):
        image = Image.fromarray(frames[0]).convert(mode)
        result = FrameTransform(size=16).image(image)
        assert torch.equal(result, FrameTransform(size=16).image(image.convert("RGB")))
        assert to_rgb(image).mode == "RGB"

    def test_alpha_is_dropped(self, frames):
        image = Image.fromarray(frames[0]).convert("RGBA")
        image.putalpha(0)
        assert np.array_equal(np.asarray(to_rgb(image)), frames[0])

    @pytest.mark.parametrize("name", NORMALIZATIONS)
    def test_every_value_is_rounded_as_it_always_was(self, name):
        """Published numbers hang on it to the last bit, wherever it is computed."""
        values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
        statistics = NORMALIZATIONS[name]
        mean, std = (np.float32(numbers) for numbers in (statistics.mean, statistics.std))
        expected = (values.astype(np.float32) / np.float32(255) - mean) / std
        found = FrameTransform(size=16, normalization=name)(values, torch.device("cpu"))
        assert found.dtype is torch.float32
        assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), expected)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_a_gpu_gives_the_same_bits(self, frames):
        transform = FrameTransform(size=20)
        assert torch.equal(transform(frames, torch.device("cuda")).cpu(), transform(frames))

    def test_no_frames(self):
        assert FrameTransform(size=16)(np.zeros((0, 16, 16, 3), np.uint8)).shape == (0, 3, 16, 16)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"normalization": "mean"}, "imagenet, clip, siglip, got 'mean'"),
            ({"resize": "fast"}, "pil, torch, got 'fast'"),
            ({"size": 0}, "at least 1 pixel, got 0"),
        ],
    )
    def test_bad_settings(self, options, match):
        with pytest.raises(InputError, match=match):
            FrameTransform(**options)

    @pytest.mark.parametrize("shape", [(30, 50, 3), (1, 3, 30, 50), (1, 0, 5, 3)])
    def test_bad_frames(self, shape):
        with pytest.raises(InputError, match=r"expected uint8 \[T,H,W,3\]"):
            FrameTransform()(np.zeros(shape, np.uint8))
        with pytest.raises(InputError, match="got float64"):
            FrameTransform()(np.zeros((1, 4, 4, 3)))


class TestTiles:
    @pytest.mark.parametrize(
        ("width", "height", "max_tiles", "grid"),
        [
            (448, 448, 12, (1, 1)),
            (640, 480, 12, (4, 3)),
            (480, 640, 12, (3, 4)),
            (1000, 200, 6, (5, 1)),
            (900, 900, 12, (2, 2)),
            (1000, 1000, 12, (3, 3)),
            (50, 50, 12, (1, 1)),
        ],
    )
    def test_known_grids(self, width, height, max_tiles, grid):
        assert choose_tile_grid(width, height, max_tiles=max_tiles) == grid

    @settings(max_examples=100, deadline=None)
    @given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 6), st.integers(0, 8))
    def test_no_grid_is_nearer_to_the_aspect_ratio(self, width, height, min_tiles, more):
        max_tiles = min_tiles + more
        columns, rows = choose_tile_grid(width, height, min_tiles=min_tiles, max_tiles=max_tiles)
        assert min_tiles <= columns * rows <= max_tiles
        gap = abs(width / height - columns / rows)
        for c in range(1, max_tiles + 1):
            for r in range(1, max_tiles + 1):
                assert not (min_tiles <= c * r <= max_tiles and abs(width / height - c / r) < gap)

    def test_tiles_are_rows_of_the_resized_image_and_the_thumbnail_is_last(self):
        pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        tiles = tile_image(image, max_tiles=6, size=20)
        assert len(tiles) == 7
        rows = [np.concatenate([np.asarray(t) for t in tiles[3 * r : 3 * r + 3]], axis=1) for r in range(2)]
        assert np.array_equal(np.concatenate(rows), pixels)
        assert np.array_equal(np.asarray(tiles[-1]), np.asarray(resize_image(image, 20, 20)))
        assert len(tile_image(image, max_tiles=6, size=20, thumbnail=False)) == 6
        assert stack_images(tiles).shape == (7, 20, 20, 3)

    def test_one_tile_has_no_thumbnail(self):
        assert len(tile_image(Image.new("L", (30, 30)), max_tiles=1, size=16)) == 1

    def test_bad_requests(self):
        with pytest.raises(InputError, match="min 3, max 2"):
            choose_tile_grid(10, 10, min_tiles=3, max_tiles=2)
        with pytest.raises(InputError, match="0 x 5"):
            choose_tile_grid(0, 5)
        with pytest.raises(InputError, match="common size"):
            stack_images([Image.new("RGB", (2, 2)), Image.new("RGB", (3, 2))])
        with pytest.raises(InputError, match="got 0 images"):
            stack_images([])
