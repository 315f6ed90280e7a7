"""Published layouts: every weight is read, none is left over, and what is saved is read again."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from videochat_online.errors import CheckpointError
from videochat_online.model.backbones import llava_qwen
from videochat_online.model.backbones.llava_onevision import LlavaOnevision
from videochat_online.model.backbones.llava_qwen import LlavaQwen
from videochat_online.model.backbones.qwen3_vl import Qwen3VL
from videochat_online.testing.tiny_backbones import tiny_clip, tiny_native, tiny_native_config, tiny_siglip

SIGLIP, CLIP = "google/siglip-so400m-patch14-384", "openai/clip-vit-large-patch14-336"
PUBLISHED_QWEN2 = {
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava_qwen",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 8192,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "mm_hidden_size": 32,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "use_cache": True,
}
LONGVA = {
    **PUBLISHED_QWEN2,
    "mm_vision_tower": CLIP,
    "mm_patch_merge_type": "unires",
    "mm_spatial_pool_mode": "average",
}
LLAVA_VIDEO = {
    **PUBLISHED_QWEN2,
    "mm_vision_tower": SIGLIP,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_newline_position": "grid",
    "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": 2,
    "add_faster_video": False,
}
LAYOUTS = {
    # Patterns of the native names, and what stood in their place when the checkpoints were published.
    "llava_onevision": [
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.vision_tower\.", "vision_tower.vision_model."),
        (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
        (r"^model\.image_newline", "image_newline"),
    ],
    "llava_qwen": [
        (r"^model\.language_model\.", "model."),
        (r"^model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
        (r"^model\.multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
        (r"^model\.multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    ],
    "qwen3_vl": [],
}


@pytest.fixture(autouse=True)
def small_towers(monkeypatch):
    monkeypatch.setitem(llava_qwen.TOWERS, SIGLIP.partition("/")[2], tiny_siglip())
    monkeypatch.setitem(llava_qwen.TOWERS, CLIP.partition("/")[2], tiny_clip())


def published(directory, family, config_json=None):
    """A native model, and a folder that has its weights under the published names."""
    if config_json is None:
        config = tiny_native_config(family)
        layout = LAYOUTS["qwen3_vl" if family == "qwen3_vl_moe" else family]
    else:
        config, layout = llava_qwen.translated(config_json), LAYOUTS["llava_qwen"]
    native = tiny_native(config)
    state = {}
    for name, tensor in native.state_dict().items():
        if ".experts." in name:
            tensor = tensor.transpose(1, 2)  # [experts, in, out] in the published files
        for pattern, other in layout:
            if re.match(pattern, name):
                name = re.sub(pattern, other, name)
                break
        state[name] = tensor.clone(memory_format=torch.contiguous_format)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config_json or native.config.to_dict(), default=str))
    return native


CASES = [
    ("llava_onevision", None, LlavaOnevision),
    ("qwen3_vl", None, Qwen3VL),
    ("qwen3_vl_moe", None, Qwen3VL),
    ("longva", LONGVA, LlavaQwen),
    ("llava_video", LLAVA_VIDEO, LlavaQwen),
]


@pytest.mark.parametrize(("family", "config_json", "kind"), CASES, ids=[case[0] for case in CASES])
def test_read_whole_and_read_again(tmp_path, family, config_json, kind):
    (tmp_path / "published").mkdir()
    native = published(tmp_path / "published", family, config_json)
    for directory in (tmp_path / "published", tmp_path / "again"):
        written = json.loads((directory / "config.json").read_text())
        assert [each.family for each in (LlavaQwen, LlavaOnevision, Qwen3VL) if each.reads(written)][0] == kind.family
        backbone = kind.load(directory, dtype=torch.float32)
        found = backbone.network.state_dict()
        assert found.keys() == native.state_dict().keys()
        for name, tensor in native.state_dict().items():
            assert torch.equal(found[name], tensor), name
        backbone.save_pretrained(tmp_path / "again")
    # What was saved is under the native names: resuming looks for no others.
    assert load_file(tmp_path / "again" / "model.safetensors").keys() <= native.state_dict().keys()


@pytest.mark.parametrize(("family", "config_json", "kind"), CASES, ids=[case[0] for case in CASES])
def test_what_does_not_fit_is_said(tmp_path, family, config_json, kind):
    published(tmp_path, family, config_json)
    whole = load_file(tmp_path / "model.safetensors")
    tower = next(name for name in whole if kind.tower in name)
    for change, message in (
        ({name: tensor for name, tensor in whole.items() if name != tower}, "missing"),
        ({**whole, "surplus.weight": torch.zeros(2)}, "unexpected surplus.weight"),
        ({**whole, tower: torch.zeros(3)}, r"has shape \(3,\), expected"),
        ({name: tensor for name, tensor in whole.items() if kind.tower not in name}, "weights of a vision tower"),
    ):
        save_file(change, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=message) as caught:
            kind.load(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_vision_tower": "someone/tower"}, "mm_vision_tower: expected one of siglip-so400m-patch14-384, clip-vit"),
        ({"mm_vision_tower": None}, "mm_vision_tower: expected one of"),
        ({"mm_projector_type": "linear"}, "mm_projector_type: expected 'mlp2x_gelu', found 'linear'"),
        (
            {"mm_spatial_pool_mode": "cubic"},
            "mm_spatial_pool_mode: expected one of average, max, bilinear, found 'cubic'",
        ),
        ({"mm_newline_position": "corner"}, "mm_newline_position: expected one of one_token, grid, frame, no_token"),
        ({"add_faster_video": True}, "add_faster_video: expected false, found true"),
        ({"vocab_size": None}, "config.json: not a configuration we can read: TypeError"),
        ({"hidden_size": "wide"}, "config.json: not a configuration we can read: "),
    ],
)
def test_settings_that_are_not_known(tmp_path, change, message):
    published(tmp_path, "llava_video", LLAVA_VIDEO)
    (tmp_path / "config.json").write_text(json.dumps({**LLAVA_VIDEO, **change}))
    with pytest.raises(CheckpointError, match=message):
        LlavaQwen.load(tmp_path)


@torch.inference_mode()
@pytest.mark.parametrize("config_json", [LONGVA, LLAVA_VIDEO], ids=["longva", "llava_video"])
@pytest.mark.parametrize("newline", ["one_token", "grid", "frame", "no_token"])
@pytest.mark.parametrize("mode", ["average", "max", "bilinear"])
def test_pooling_and_newlines_restated(config_json, newline, mode):
    """Token by token, as the published code puts them."""
    config = {**config_json, "mm_newline_position": newline, "mm_spatial_pool_mode": mode}
    backbone = LlavaQwen(tiny_native(llava_qwen.translated(config)))
    size = backbone.network.config.vision_config.image_size
    frames = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    entries = backbone.encode(frames)
    patches = backbone.features(frames)  # [T, D, rows, columns]
    side = patches.shape[-1]
    kept = (side + 1) // 2 if mode == "bilinear" else side // 2
    assert entries.shape == (2, 32, kept, kept)
    newline_D = backbone.network.model.image_newline
    if config_json is LONGVA:
        newline = "no_token"
    for frame, entry in zip(patches, entries, strict=True):
        expected = []
        for row in range(kept):
            for column in range(kept):
                window = frame[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
                if mode == "max":
                    expected.append(window.amax(1))
                elif mode == "average" or side % 2 == 0:  # on even sides bilinear is the mean, too
                    expected.append(window.mean(1))
                else:
                    expected.append(entry[:, row, column])  # `test_logits_of_onevision` has it against the native class
            if newline == "grid":
                expected.append(newline_D)
        if newline == "frame":
            expected.append(newline_D)
        tokens = backbone.project(entry)
        torch.testing.assert_close(tokens.embeds, torch.stack(expected), atol=1e-5, rtol=1e-6)  # numbers up to 30
        assert len(tokens) == len(expected)
