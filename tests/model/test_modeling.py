from __future__ import annotations

import copy
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache

import slow_vision
from model_figures import digest
from random_networks import random_network
from videochat_online.errors import InputError
from videochat_online.model import VideoChatOnlineForConditionalGeneration, export_original, load_network
from videochat_online.model.modeling import pixel_shuffle
from videochat_online.model.rope import fixed_regime, switch_length
from videochat_online.testing import LLMS, tiny_config


@pytest.mark.parametrize(("select_layer", "version"), [(-1, "v2"), (-1, "v1"), (-2, "v2"), (1, "v1")])
def test_encode_and_project_against_slow_restatement(tmp_path, select_layer, version):
    network = random_network(select_layer=select_layer, ps_version=version)
    export_original(network, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    pixels = torch.randn(3, 3, 112, 112, dtype=torch.double)
    expected = slow_vision.encode(state, pixels, config)
    with torch.no_grad():
        ours = network.encode(pixels)
        torch.testing.assert_close(ours.permute(0, 2, 3, 1), expected, atol=1e-10, rtol=1e-10)
        projected = network.project(expected[0, 0])
    torch.testing.assert_close(projected, slow_vision.project(state, expected[0, 0]), atol=1e-10, rtol=1e-10)


def test_encode_skips_layers_past_the_chosen_one():
    network = random_network(select_layer=1)
    network.vision_tower.encoder.layer[1] = None  # would fail if it were called
    assert network.encode(torch.zeros(1, 3, 112, 112, dtype=torch.double)).shape == (1, 256, 4, 4)


def test_pixel_shuffle_versions_are_transposed_and_lose_nothing():
    grid = torch.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    v2 = pixel_shuffle(grid)
    assert v2.shape == (2, 2, 2, 12)
    assert torch.equal(v2[0, 0, 1], torch.cat([grid[0, 0, 2], grid[0, 0, 3], grid[0, 1, 2], grid[0, 1, 3]]))
    assert torch.equal(pixel_shuffle(grid, version="v1"), v2.transpose(1, 2))
    assert torch.equal(v2.flatten().sort().values, grid.flatten())


def test_embed_frames_pools_each_frame_as_asked():
    network = random_network()
    pixels = torch.randn(4, 3, 112, 112, dtype=torch.double)
    with torch.no_grad():
        mixed = network.embed_frames(pixels, [1, 4, 2, 4])
        parts = mixed.split([16, 1, 4, 1])
        features = network.encode(pixels)
        for part, feature, ratio in zip(parts, features, [1, 4, 2, 4], strict=True):
            pooled = feature.reshape(256, 4 // ratio, ratio, 4 // ratio, ratio).mean((2, 4))
            torch.testing.assert_close(part, network.project(pooled.flatten(1).T))
        torch.testing.assert_close(network.embed_frames(pixels), network.embed_frames(pixels, [1] * 4))


def test_embed_frames_names_both_counts():
    with pytest.raises(InputError, match=r"4 frames of features but 2 ratios"):
        random_network().embed_frames(torch.randn(4, 3, 112, 112, dtype=torch.double), [1, 2])


def test_fuse_puts_tokens_in_order_and_refuses_a_mismatch():
    network = random_network()
    network.config.image_token_id = 7
    ids = torch.tensor([[1, 7, 7, 2], [7, 3, 3, 3]])
    tokens = torch.randn(3, 64, dtype=torch.double)
    fused = network.fuse(ids, tokens)
    assert torch.equal(fused[ids == 7], tokens)
    assert torch.equal(fused[0, 3], network.get_input_embeddings().weight[2])
    with pytest.raises(ValueError, match=r"3 places .* 2 tokens"):
        network.fuse(ids, tokens[:2])


def test_forward_matches_the_language_model_on_fused_embeddings_and_reaches_every_parameter():
    network = random_network()
    network.config.image_token_id = 7
    pixels = torch.randn(1, 3, 112, 112, dtype=torch.double)
    ids = torch.tensor([[1, *[7] * 16, 2, 3]])
    labels = ids.masked_fill(ids == 7, -100)
    out = network(input_ids=ids, pixel_values=pixels, labels=labels)
    embeds = network.fuse(ids, network.embed_frames(pixels))
    expected = network.language_model(inputs_embeds=embeds, labels=labels)
    torch.testing.assert_close(out.loss, expected.loss)
    out.loss.backward()
    untouched = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


class TestDropPath:
    def test_off_in_evaluation_and_at_rate_zero(self):
        network = random_network()
        pixels = torch.randn(2, 3, 112, 112, dtype=torch.double)
        dropping = copy.deepcopy(network)
        dropping.add_drop_path(0.5)
        assert torch.equal(network.encode(pixels), dropping.encode(pixels))
        # torch has no public list of a module's hooks.
        assert not any(layer.mlp._forward_hooks for layer in network.vision_tower.encoder.layer)

    def test_drops_whole_branches_of_a_sample_and_rescales_the_rest(self):
        network = random_network()
        network.add_drop_path(0.5)  # rates 0 and 0.5 on the two layers
        layer = network.vision_tower.encoder.layer[1].train()
        hidden = torch.randn(1, 5, 64, dtype=torch.double)
        attention = layer.attention(layer.layernorm_before(hidden))
        outputs = set()
        for seed in range(32):
            torch.manual_seed(seed)
            out = layer.attention(layer.layernorm_before(hidden))[0]
            outputs.add("dropped" if not out.any() else "kept")
            kept = layer.eval().attention(layer.layernorm_before(hidden))[0] * 2
            layer.train()
            assert not out.any() or torch.allclose(out, kept)
        assert outputs == {"dropped", "kept"}
        assert isinstance(attention, tuple)

    def test_depth_grows_linearly(self):
        network = random_network()
        network.add_drop_path(0.3)
        # torch has no public list of a module's hooks.
        rates = [
            hook.rate for layer in network.vision_tower.encoder.layer for hook in layer.mlp._forward_hooks.values()
        ]
        assert rates == pytest.approx([0.3])


def test_resized_position_embeddings_equal_interpolation_on_the_fly():
    network = random_network()
    pixels = torch.randn(1, 3, 56, 56, dtype=torch.double)
    with torch.no_grad():
        expected = network.encode(pixels)
        network.resize_position_embeddings(56)
        # The resize is kept in fp32, as the reference computes it.
        torch.testing.assert_close(network.encode(pixels), expected, atol=1e-5, rtol=1e-5)
    assert network.config.grid == (2, 2)


class TestLongRope:
    """Phi-3's two sets of frequencies, chosen once for a request."""

    @pytest.fixture(scope="class")
    def network(self):
        config = tiny_config("phi3", 64, 112)
        config.text_config.original_max_position_embeddings = 12
        config.text_config.rope_parameters["original_max_position_embeddings"] = 12
        torch.manual_seed(0)
        return VideoChatOnlineForConditionalGeneration(config).eval().double()

    def test_only_phi3_switches(self, network):
        assert switch_length(network.language_model) == 12
        assert switch_length(random_network("qwen2").language_model) is None

    def test_left_alone_it_agrees_with_transformers(self, network):
        from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

        theirs = Phi3RotaryEmbedding(network.config.text_config)
        ours = network.language_model.model.rotary_emb
        x = torch.zeros(1, dtype=torch.float32)
        for length in (5, 12, 13, 40):
            positions = torch.arange(length)[None]
            for a, b in zip(ours(x, positions), theirs(x, positions), strict=True):
                assert torch.equal(a, b)

    def test_cached_steps_equal_one_pass_across_the_switch(self, network):
        ids = torch.randint(0, 64, (1, 20), generator=torch.Generator().manual_seed(0))
        model = network.language_model
        with torch.no_grad(), fixed_regime(True):
            whole = model(ids, use_cache=False).logits
            cache = DynamicCache(config=model.config)
            steps = [model(ids[:, :8], past_key_values=cache).logits]
            steps += [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(8, 20)]
        torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-9, rtol=1e-9)

    def test_the_regimes_differ_and_do_not_leak(self, network):
        ids = torch.arange(8)[None]
        with torch.no_grad():
            short = network.language_model(ids, use_cache=False).logits
            with fixed_regime(True):
                long = network.language_model(ids, use_cache=False).logits
            again = network.language_model(ids, use_cache=False).logits
        assert torch.equal(short, again)
        assert not torch.allclose(short, long)


def test_saving_keeps_the_notice_of_a_missing_gpu_from_stdout_and_nothing_else(tmp_path, monkeypatch):
    log = logging.getLogger("DeepSpeed")
    monkeypatch.setattr(log, "filters", [])  # what was saved before, in other tests
    network = random_network()
    for _ in range(2):
        network.save_pretrained(tmp_path)
    texts = ("Setting accelerator to CPU. If you have GPU, we were unable to detect it.", "Loading extension")
    said = [log.filter(logging.makeLogRecord({"msg": text})) for text in texts]
    assert [bool(passes) for passes in said] == [False, True]
    assert len(log.filters) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_half_precision_on_a_gpu_is_near_single(tiny_dir):
    directory = tiny_dir("phi3")
    pixels = torch.randn(2, 3, 112, 112)
    single = load_network(directory).encode(pixels)
    half = load_network(directory, dtype=torch.bfloat16, device="cuda").encode(pixels.to("cuda", torch.bfloat16))
    torch.testing.assert_close(half.float().cpu(), single, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("llm", LLMS)
def test_digest_of_the_whole_road(tiny_dir, llm):
    """Figures and how to regenerate them: `tests/figures/model.json`."""
    recorded = json.loads((Path(__file__).parents[1] / "figures" / "model.json").read_text())[llm]
    ours = digest(tiny_dir(llm))
    assert ours["frames"] == recorded["frames"]
    assert ours["num_prompt_ids"] == recorded["num_prompt_ids"]
    assert ours["logits"] == pytest.approx(recorded["logits"], abs=2e-4)
