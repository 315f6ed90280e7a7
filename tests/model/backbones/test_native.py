"""What a family gives is what transformers' own class gives on the same pixels and ids.

The native forward pass is the reference: it looks for placeholders and counts positions by itself. Where a memory has
pooled entries it is given what was encoded (`mm_encoder_outputs`), and does the rest.
"""

from __future__ import annotations

import math

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from videochat_online.memory import pool_to_grid
from videochat_online.model.backbones.llava_onevision import LlavaOnevision
from videochat_online.model.backbones.qwen3_vl import Qwen3VL, patches
from videochat_online.model.tokens import run_language_model
from videochat_online.streaming.generate import GenerationSettings, generate_ids
from videochat_online.testing.tiny_backbones import tiny_native, tiny_native_config
from videochat_online.text import PromptLayout

START, END, VIDEO_PAD, VIDEO = 259, 260, 262, 264


@pytest.fixture(scope="module")
def backbones():
    made = {"llava_onevision": LlavaOnevision(tiny_native(tiny_native_config("llava_onevision")))}
    for name in ("qwen3_vl", "qwen3_vl_moe"):
        made[name] = Qwen3VL(tiny_native(tiny_native_config(name)))
    return made


def pixels(num_frames, height, width, seed=0):
    return torch.randn(num_frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def onevision_prompt(groups):
    """Text, then the frames of a video and its newline, and so on for each video."""
    ids, spans = [1, 2], []
    for visuals in groups:
        for visual in visuals:
            spans.append((len(ids), len(ids) + len(visual)))
            ids += [VIDEO] * len(visual)
        ids += [VIDEO, 5, 6]
    return PromptLayout(tuple(ids), tuple(ids), tuple(spans), "")


def qwen3_prompt(groups):
    ids, spans = [1, 2], []
    for visuals in groups:
        ids += [START]
        for number, visual in enumerate(visuals):
            ids += [60, 48 + number, START]
            spans.append((len(ids), len(ids) + len(visual)))
            ids += [VIDEO_PAD] * len(visual) + [END]
        ids += [END, 5, 6, 7]
    return PromptLayout(tuple(ids), tuple(ids), tuple(spans), "")


def logits_of(backbone, layout, visuals):
    return run_language_model(backbone.language_model, [backbone.tokens(layout, visuals)])[0]


@torch.inference_mode()
@pytest.mark.parametrize("num_videos", [1, 2])
def test_logits_of_onevision(backbones, num_videos):
    backbone = backbones["llava_onevision"]
    videos = [pixels(3, 98, 98, seed) for seed in range(num_videos)]
    groups = [[backbone.project(entry) for entry in backbone.encode(video)] for video in videos]
    assert groups[0][0].grid == (4, 4)
    layout = onevision_prompt(groups)
    found = logits_of(backbone, layout, sum(groups, []))
    ids = torch.tensor([layout.input_ids])
    expected = backbone.network(input_ids=ids, pixel_values_videos=torch.stack(videos)).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.5


def qwen3_native(network, layout, videos, **options):
    """Inputs of the native class, and what it makes of them."""
    ids = torch.tensor([layout.input_ids])
    cut = [patches(video, 16, 2) for video in videos]
    inputs = {
        "input_ids": ids,
        "pixel_values_videos": torch.cat([values for values, _ in cut]),
        "video_grid_thw": torch.tensor([grid for _, grid in cut]),
        "mm_token_type_ids": (ids == VIDEO_PAD).long() * 2,
    }
    return network, inputs | options


@torch.inference_mode()
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl_moe"])
@pytest.mark.parametrize("num_frames", [2, 5, 6])
@pytest.mark.parametrize("num_videos", [1, 2])
def test_logits_of_qwen3(backbones, name, num_frames, num_videos):
    """No difference at all; of an odd number of frames the last one stands for two."""
    backbone = backbones[name]
    videos = [pixels(num_frames, 64, 96, seed) for seed in range(num_videos)]
    groups = [[backbone.project(entry) for entry in backbone.encode(video)] for video in videos]
    assert [len(group) for group in groups] == [math.ceil(num_frames / 2)] * num_videos
    assert groups[0][0].grid == (2, 3)
    layout = qwen3_prompt(groups)
    network, inputs = qwen3_native(backbone.network, layout, videos)
    expected = network(**inputs).logits[0]
    assert torch.equal(logits_of(backbone, layout, sum(groups, [])), expected)
    assert expected.std() > 0.5
    positions, _ = network.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], video_grid_thw=inputs["video_grid_thw"]
    )
    assert torch.equal(backbone.tokens(layout, sum(groups, [])).positions_RL, positions[:, 0])


@torch.inference_mode()
def test_one_frame_of_qwen3_is_the_image(backbones):
    """Doubled, as the processor does."""
    network, image = backbones["qwen3_vl"].network, pixels(1, 64, 96)
    values, grid = patches(image.expand(2, -1, -1, -1), 16, 2)
    expected = network.model.get_image_features(values, torch.tensor([grid]))
    levels = [expected.pooler_output[0], *(level[0] for level in expected.deepstack_features)]
    found = backbones["qwen3_vl"].project(backbones["qwen3_vl"].encode(image)[0])
    assert torch.equal(found.levels_SND, torch.stack(levels))


@torch.inference_mode()
def test_entries_are_encoded_alone_as_together(backbones):
    for name, size in (("llava_onevision", (98, 98)), ("qwen3_vl", (64, 96)), ("qwen3_vl_moe", (32, 64))):
        backbone, video = backbones[name], pixels(6, *size)
        per_entry = backbone.layout_of(backbone.network.config).frames_per_entry
        together, alone = backbone.encode(video), [backbone.encode(part)[0] for part in video.split(per_entry)]
        torch.testing.assert_close(torch.stack(alone), together, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_pooled_entries_are_what_the_native_class_makes_of_them(backbones):
    """Positions too: a pooled entry stands where an image of that size would."""
    backbone = backbones["qwen3_vl"]
    entries = backbone.encode(pixels(6, 128, 128))
    kept = [entries[0], pool_to_grid(entries[1], (2, 2)), pool_to_grid(entries[2], (1, 1))]
    visuals = [backbone.project(entry) for entry in kept]
    layout = qwen3_prompt([visuals])
    ids = torch.tensor([layout.input_ids])
    grids = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in (visual.grid for visual in visuals)])
    output = BaseModelOutputWithDeepstackFeatures(
        pooler_output=tuple(visual.embeds for visual in visuals),
        deepstack_features=[tuple(visual.levels_SND[level] for visual in visuals) for level in (1, 2, 3)],
    )
    expected = backbone.network(
        input_ids=ids,
        video_grid_thw=grids,
        mm_token_type_ids=(ids == VIDEO_PAD).long() * 2,
        mm_encoder_outputs={"video": output},
    ).logits[0]
    assert torch.equal(logits_of(backbone, layout, visuals), expected)


@torch.inference_mode()
def test_pooled_frames_of_onevision(backbones):
    backbone = backbones["llava_onevision"]
    entries = backbone.encode(pixels(3, 98, 98))
    visuals = [
        backbone.project(e) for e in (entries[0], pool_to_grid(entries[1], (2, 2)), pool_to_grid(entries[2], (1, 1)))
    ]
    layout = onevision_prompt([visuals])
    features = torch.cat([*(visual.embeds for visual in visuals), backbone.network.model.image_newline[None]])
    expected = backbone.network(
        input_ids=torch.tensor([layout.input_ids]),
        mm_encoder_outputs={"video": BaseModelOutputWithPooling(pooler_output=features[None])},
    ).logits[0]
    torch.testing.assert_close(logits_of(backbone, layout, visuals), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llava_onevision", "qwen3_vl", "qwen3_vl_moe"])
def test_greedy_ids_are_those_of_generate(backbones, name):
    backbone, settings = backbones[name], GenerationSettings(max_new_tokens=8, min_new_tokens=8)
    is_qwen = name.startswith("qwen3")
    video = pixels(5, *((64, 96) if is_qwen else (98, 98)))
    visuals = [backbone.project(entry) for entry in backbone.encode(video)]
    if is_qwen:
        layout = qwen3_prompt([visuals])
        _, inputs = qwen3_native(backbone.network, layout, [video])
    else:
        layout = onevision_prompt([visuals])
        inputs = {"input_ids": torch.tensor([layout.input_ids]), "pixel_values_videos": video[None]}
    expected = backbone.network.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    found = list(generate_ids(backbone.language_model, backbone.tokens(layout, visuals), (258,), settings))
    assert found == expected[0, len(layout.input_ids) :].tolist()
    assert len(set(found)) > 1
