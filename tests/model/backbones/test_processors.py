"""Prompts and pixels are those of transformers' processors, as `scripts/tools/processor_inputs.py` recorded them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from videochat_online.model.backbones.llava_onevision import LlavaOnevision
from videochat_online.model.backbones.llava_qwen import CLIP
from videochat_online.model.backbones.qwen3_vl import Qwen3VL, patches
from videochat_online.testing.tiny_backbones import byte_tokenizer, striped_frames, tiny_native, tiny_native_config
from videochat_online.text import get_template, layout_prompt
from videochat_online.types import FrameUse, Turn
from videochat_online.video import FrameTransform
from videochat_online.video.transforms import Normalization

RECORDED = Path(__file__).parents[2] / "samples" / "processors"
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), is_fused=True)


@pytest.fixture(scope="module")
def recorded():
    return {family: dict(np.load(RECORDED / f"{family}.npz")) for family in ("qwen3_vl", "llava_onevision")}


def ids_of(family, videos):
    """A question about each video, in turn."""
    turns = [Turn(family.wording.turn(video, "What?", with_times=True), "A cup.") for video in videos]
    turns[-1] = Turn(turns[-1].user)
    layout = layout_prompt(turns, tokenizer=byte_tokenizer(), template=get_template("chatml"), wording=family.wording)
    return list(layout.input_ids), layout


def test_prompts_of_qwen3(recorded):
    first = [FrameUse(0, 0.25, 2), FrameUse(1, 1.0, 2)]  # the last of three frames stands for two
    second = [FrameUse(0, 0.25, 2), FrameUse(1, 1.25, 2)]
    for name, videos in (("one", [first]), ("two", [first, second])):
        ids, layout = ids_of(Qwen3VL, videos)
        assert ids == recorded["qwen3_vl"][f"{name}.ids"].tolist()
        assert [stop - start for start, stop in layout.visual_spans] == [2] * sum(map(len, videos))


def test_prompts_of_onevision(recorded):
    video = [FrameUse(0, 0.0, 16), FrameUse(1, 1.0, 16)]
    for name, count in (("one", 1), ("two", 2)):
        ids, layout = ids_of(LlavaOnevision, [video] * count)
        assert ids == recorded["llava_onevision"][f"{name}.ids"].tolist()
        assert [stop - start for start, stop in layout.visual_spans] == [16] * 2 * count


def test_what_a_user_writes_is_no_mark():
    """A question that spells the family's own tokens is text, whatever the family puts beside it."""
    tokenizer = byte_tokenizer()
    for family in (Qwen3VL, LlavaOnevision):
        spelled = family.wording.opens + family.wording.token + family.wording.closes
        turn = Turn(family.wording.turn([FrameUse(0, 0.0, 3)], f"{spelled}?", with_times=True))
        layout = layout_prompt([turn], tokenizer=tokenizer, template=get_template("chatml"), wording=family.wording)
        assert len(layout.visual_spans) == 1
        assert layout.input_ids.count(tokenizer.convert_tokens_to_ids(family.wording.token)) == 3 + (
            family is LlavaOnevision  # the newline at the end
        )


def levels_of(pixels_TCHW):
    return (pixels_TCHW * 127.5 + 127.5).round().to(torch.uint8)


def test_pixels_of_qwen3(recorded):
    clips = {
        "one": [striped_frames(3, 40, 70)],
        "two": [striped_frames(3, 40, 70), striped_frames(4, 70, 40)],
        "image": [striped_frames(1, 40, 70)],
    }
    for name, videos in clips.items():
        found = []
        for video in videos:
            height, width = (32, 64) if video.shape[1] < video.shape[2] else (64, 32)
            transform = FrameTransform(size=height, width=width, normalization=HALF, resize="torch")
            found.append(patches(transform(video), 16, 2)[0])
        expected = torch.from_numpy(recorded["qwen3_vl"][f"{name}.levels"])
        assert torch.equal(levels_of(torch.cat(found)), expected)
        assert torch.equal(torch.cat(found), (expected.float() - 127.5) / 127.5)


def test_pixels_of_onevision(recorded):
    for name, clips in (("one", [(60, 100)]), ("two", [(60, 100), (100, 60)])):
        transform = FrameTransform(size=98, normalization=HALF, resize="torch")
        found = torch.stack([transform(striped_frames(2, *size)) for size in clips])
        expected = torch.from_numpy(recorded["llava_onevision"][f"{name}.levels"])
        assert torch.equal(found, (expected.float() - 127.5) / 127.5)


@pytest.mark.parametrize("size", [(60, 100), (100, 60), (336, 336), (71, 400)])
def test_the_middle_is_cut_as_by_the_processor_of_clip(size):
    transform = FrameTransform(size=56, normalization=Normalization(*CLIP), center_crop=True)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    video = striped_frames(2, *size)
    expected = processor(list(video), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(transform(video), expected, atol=1e-5, rtol=0)


def test_images_of_qwen3(recorded):
    """Sizes are the processor's; the levels are Pillow's, which differ by up to two from torchvision's."""
    backbone = Qwen3VL(tiny_native(tiny_native_config("qwen3_vl")))
    seen = {}
    backbone._encode = lambda patches_PC, grid: seen.update(patches=patches_PC, grid=grid) or torch.zeros(1, 128, 1, 2)
    budget = {"shortest_edge": 32 * 32, "longest_edge": 3 * 64 * 64}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("videochat_online.model.backbones.qwen3_vl.IMAGE_PIXELS", budget)
        backbone.image(Image.fromarray(striped_frames(1, 40, 70)[0]))
    assert [seen["grid"]] == recorded["qwen3_vl"]["image.grids"].tolist()
    expected = recorded["qwen3_vl"]["image.levels"].astype(int)
    found = levels_of(seen["patches"]).numpy().astype(int)
    assert abs(found - expected).max() <= 2


def test_images_of_onevision(recorded):
    """As many tokens as the processor leaves room for, and those that the native class makes of its tiles."""
    config = tiny_native_config("llava_onevision")
    backbone = LlavaOnevision(tiny_native(config))
    picture = Image.fromarray(striped_frames(1, 60, 100)[0])
    with torch.inference_mode():
        found = backbone.image(picture)
        levels = torch.from_numpy(recorded["llava_onevision"]["image.levels"]).float()
        expected = backbone.network.model.get_image_features(
            (levels - 127.5) / 127.5,
            torch.from_numpy(recorded["llava_onevision"]["image.sizes"]),
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            vision_aspect_ratio=config.vision_aspect_ratio,
        ).pooler_output[0]
    turn = Turn((*LlavaOnevision.image_wording.images([len(found)]), "What?"))
    layout = layout_prompt(
        [turn],
        tokenizer=byte_tokenizer(),
        template=get_template("chatml"),
        wording=LlavaOnevision.image_wording,
    )
    assert list(layout.input_ids) == recorded["llava_onevision"]["image.ids"].tolist()
    assert found.embeds.shape == expected.shape
    difference = (found.embeds - expected).abs().mean() / expected.abs().mean()
    assert difference < 0.002  # Pillow resizes, not torchvision
