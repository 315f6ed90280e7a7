from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import InternVLConfig, InternVLForConditionalGeneration

from random_networks import edit, random_network
from videochat_online.errors import CheckpointError, InputError
from videochat_online.model import VideoChatOnlineConfig, export_original, load_model, load_network
from videochat_online.model.checkpoints.original import merge_lora, original_config, translate_config
from videochat_online.model.checkpoints.weight_files import tensor_names

LLMS = ("phi3", "qwen2", "qwen3", "llama")


def outputs(network, seed=0):
    """First logits after a picture and a few words: goes through every weight."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(2, 3, 112, 112, generator=generator, dtype=torch.float64).to(network.dtype)
    ids = torch.randint(8, 60, (1, 24), generator=generator)
    ids[:, 2:18] = 7
    network.config.image_token_id = 7
    with torch.no_grad():
        return network(input_ids=ids, pixel_values=pixels[:1], use_cache=False).logits


@pytest.fixture
def original(tmp_path):
    """A published-layout checkpoint of a Qwen2 model."""
    export_original(random_network().float(), tmp_path / "original")
    return tmp_path / "original"


@pytest.mark.parametrize("llm", LLMS)
def test_round_trip_in_both_layouts(tmp_path, llm):
    network = random_network(llm, select_layer=-2, ps_version="v1").float()
    network.save_pretrained(tmp_path / "native")
    export_original(network, tmp_path / "original")
    native, original = load_network(tmp_path / "native"), load_network(tmp_path / "original")
    for other in (native, original):
        assert torch.equal(outputs(other), outputs(network))
        assert other.config.select_layer == -2
        assert other.config.ps_version == "v1"
    export_original(native, tmp_path / "again")
    first, second = (load_file(tmp_path / d / "model.safetensors") for d in ("original", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_model_loaded_from_the_published_layout_saves_in_ours(tmp_path, original):
    network = load_network(original)
    network.save_pretrained(tmp_path / "saved")
    assert tensor_names(tmp_path / "saved") == set(network.state_dict())
    assert "vision_model.embeddings.class_embedding" in tensor_names(original)


def test_published_names_and_fused_projection(original):
    state = load_file(original / "model.safetensors")
    assert state["vision_model.encoder.layers.1.attn.qkv.weight"].shape == (192, 64)
    assert {"mlp1.0.weight", "mlp1.1.weight", "mlp1.3.bias", "vision_model.encoder.layers.0.ls1"} <= state.keys()
    network = load_network(original)
    q, k, v = state["vision_model.encoder.layers.1.attn.qkv.weight"].chunk(3)
    attention = network.vision_tower.encoder.layer[1].attention
    assert torch.equal(attention.q_proj.weight, q)
    assert torch.equal(attention.k_proj.weight, k)
    assert torch.equal(attention.v_proj.weight, v)


def test_sharded_checkpoints_load(tmp_path):
    network = random_network().float()
    export_original(network, tmp_path, max_shard_size="400KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(outputs(load_network(tmp_path)), outputs(network))
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(CheckpointError, match=r"missing model-00002"):
        load_network(tmp_path)


def test_internlm2_is_read_into_the_llama_layout(tmp_path):
    network = random_network("llama").float()
    export_original(network, tmp_path)
    names = {"embed_tokens": "tok_embeddings", "input_layernorm": "attention_norm"}
    names |= {"post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attention.wo"}
    names |= {"mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2"}
    names |= {"language_model.lm_head": "language_model.output"}

    def to_internlm2(state):
        result = {}
        for key, tensor in state.items():
            if "self_attn.q_proj" in key:
                q, k, v = (state[key.replace("q_proj", f"{x}_proj")] for x in "qkv")
                # For each key head: its two queries, then its key, then its value; head size 16.
                rows = []
                for head in range(2):
                    rows += [q[head * 32 : head * 32 + 32], k[head * 16 :][:16], v[head * 16 :][:16]]
                result[key.replace("self_attn.q_proj", "attention.wqkv")] = torch.cat(rows)
            elif "self_attn.k_proj" not in key and "self_attn.v_proj" not in key:
                for ours, theirs in names.items():
                    key = key.replace(ours, theirs)
                result[key] = tensor
        return result

    edit(tmp_path, to_internlm2)
    config = json.loads((tmp_path / "config.json").read_text())
    config["llm_config"] |= {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_network(tmp_path)
    assert type(loaded.language_model).__name__ == "LlamaForCausalLM"
    assert torch.equal(outputs(loaded), outputs(network))


def test_transformers_internvl_layout_loads(tmp_path):
    network = random_network("qwen2").float()
    vision = network.config.vision_config.to_dict()
    config = InternVLConfig(
        vision_config=vision, text_config=network.config.text_config.to_dict(), tie_word_embeddings=False
    )
    torch.manual_seed(1)
    theirs = InternVLForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path / "old_names")
    theirs.save_pretrained(tmp_path / "new_names", save_original_format=False)
    pixels = torch.randn(2, 3, 112, 112)
    ids = torch.randint(8, 60, (1, 12))
    with torch.no_grad():
        features = theirs.model.get_image_features(pixels).pooler_output
        logits = theirs(input_ids=ids).logits
    for layout in ("old_names", "new_names"):
        ours = load_network(tmp_path / layout)
        with torch.no_grad():
            embedded = ours.embed_frames(pixels)
            torch.testing.assert_close(embedded, torch.cat(list(features)).reshape(embedded.shape))
            torch.testing.assert_close(ours(input_ids=ids).logits, logits)


@pytest.mark.parametrize("llm", ["phi3", "qwen2"])
def test_lora_wrapped_checkpoints_are_merged(tmp_path, llm):
    network = random_network(llm).float()
    targets = r".*\.(qkv_proj|o_proj|gate_up_proj|down_proj|q_proj|k_proj|v_proj)"
    torch.manual_seed(3)
    network.language_model = get_peft_model(
        network.language_model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.0)
    ).eval()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    expected = outputs(network)
    export_original(network, tmp_path)
    assert any("lora_A.default" in name for name in tensor_names(tmp_path))
    merged = load_network(tmp_path)
    torch.testing.assert_close(outputs(merged), expected, atol=1e-4, rtol=1e-4)
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_lora_on_the_fused_vision_projection_is_merged():
    a, b, base = torch.randn(2, 8), torch.randn(24, 2), torch.randn(24, 8)
    prefix = "vision_model.base_model.model.encoder.layers.0.attn.qkv."
    state = {f"{prefix}base_layer.weight": base, f"{prefix}lora_A.default.weight": a}
    merged = merge_lora(state | {f"{prefix}lora_B.default.weight": b})
    assert merged.keys() == {"vision_model.encoder.layers.0.attn.qkv.weight"}
    torch.testing.assert_close(merged["vision_model.encoder.layers.0.attn.qkv.weight"], base + 2 * b @ a)
    with pytest.raises(CheckpointError, match=r"attn\.qkv.* found lora_A"):
        merge_lora(state)


class TestStrictness:
    """What does not fit is an error that names the tensor as it is called in the file."""

    def test_missing(self, original):
        edit(original, lambda s: {k: v for k, v in s.items() if k != "vision_model.encoder.layers.1.norm2.weight"})
        with pytest.raises(CheckpointError, match=r"missing vision_model\.encoder\.layers\.1\.norm2\.weight"):
            load_network(original)

    def test_missing_fused(self, original):
        edit(original, lambda s: {k: v for k, v in s.items() if k != "vision_model.encoder.layers.0.attn.qkv.bias"})
        with pytest.raises(CheckpointError, match=r"missing vision_model\.encoder\.layers\.0\.attn\.qkv\.bias$"):
            load_network(original)

    def test_renamed(self, original):
        edit(original, lambda s: {k.replace("mlp1.3", "mlp1.4"): v for k, v in s.items()})
        with pytest.raises(CheckpointError, match=r"missing mlp1\.3\.bias, mlp1\.3\.weight; unexpected mlp1\.4"):
            load_network(original)

    def test_shape(self, original):
        edit(original, lambda s: s | {"mlp1.0.weight": torch.zeros(9)})
        with pytest.raises(CheckpointError, match=r"mlp1\.0\.weight has shape \(9,\), expected \(256,\)"):
            load_network(original)

    def test_unexpected(self, original):
        edit(original, lambda s: s | {"language_model.model.layers.9.x": torch.zeros(1)})
        with pytest.raises(CheckpointError, match=r"unexpected language_model\.model\.layers\.9\.x"):
            load_network(original)

    def test_native_layout(self, tmp_path):
        random_network().float().save_pretrained(tmp_path)
        edit(tmp_path, lambda s: {k: v for k, v in s.items() if k != "projector.linear_1.bias"})
        with pytest.raises(CheckpointError, match=r"missing projector\.linear_1\.bias"):
            load_network(tmp_path)

    def test_cut_file(self, original):
        path = original / "model.safetensors"
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: expected tensors, found an unreadable file"):
            load_network(original)

    def test_nothing_there(self, tmp_path, original):
        with pytest.raises(CheckpointError, match="found nothing"):
            load_network(tmp_path / "absent")
        (original / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match="found no weights"):
            load_network(original)

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "3", "null", '{"model_type": "bert"}', '{"model_type": "videochat_online", "image_size": "x"}'],
    )
    def test_configurations_that_are_none(self, tiny_dir, tmp_path, text):
        shutil.copytree(tiny_dir(), tmp_path / "model")
        (tmp_path / "model" / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_model(tmp_path / "model")

    def test_integers(self, original):
        edit(original, lambda s: s | {"mlp1.0.weight": s["mlp1.0.weight"].to(torch.int64)})
        with pytest.raises(CheckpointError, match=r"mlp1\.0\.weight: expected a floating-point tensor, found I64"):
            load_network(original)

    def test_pickles(self, original):
        state = load_file(original / "model.safetensors")
        (original / "model.safetensors").unlink()
        path = original / "pytorch_model.bin"
        for legacy in (False, True):
            torch.save(state, path, _use_new_zipfile_serialization=not legacy)
            assert load_network(original).config.text_config.model_type == "qwen2"
        torch.save([1, 2], path)
        with pytest.raises(CheckpointError, match="expected a dictionary of tensors, found list"):
            load_network(original)
        torch.save({"x": original}, path)  # a path object: unpickling it would run code
        with pytest.raises(CheckpointError, match="nothing that runs code"):
            load_network(original)

    def test_index_that_is_none(self, original):
        for text in ("{", "{}", "[]"):
            (original / "model.safetensors.index.json").write_text(text)
            with pytest.raises(CheckpointError, match="expected JSON with a weight_map"):
                load_network(original)

    def test_a_tied_head_with_values_of_its_own(self, original):
        config = json.loads((original / "config.json").read_text())
        config["llm_config"]["tie_word_embeddings"] = True
        (original / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"ties language_model\.lm_head\.weight to the embeddings"):
            load_network(original)
        name = "language_model.model.embed_tokens.weight"
        edit(original, lambda s: s | {"language_model.lm_head.weight": s[name].clone()})
        load_network(original)

    def test_unknown_language_model(self, original):
        config = json.loads((original / "config.json").read_text())
        config["llm_config"]["architectures"] = ["MambaForCausalLM"]
        (original / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"'MambaForCausalLM'; expected one of .*Phi3ForCausalLM"):
            load_network(original)

    def test_tied_embeddings_are_not_missing(self, tmp_path):
        network = random_network("qwen2").float()
        network.config.text_config.tie_word_embeddings = network.config.tie_word_embeddings = True
        tied = type(network)(network.config).eval()
        for save in (tied.save_pretrained, lambda path: export_original(tied, path)):
            shutil.rmtree(tmp_path / "tied", ignore_errors=True)
            save(tmp_path / "tied")
            loaded = load_network(tmp_path / "tied")
            head = loaded.language_model.lm_head.weight
            assert head is loaded.get_input_embeddings().weight
            assert torch.equal(outputs(loaded), outputs(tied))


class TestConfiguration:
    PUBLISHED = {
        "force_image_size": 224,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "phi3-chat",
        "torch_dtype": "bfloat16",
        "reverse_memory_sample_ratio": [6, 3, 1],
        "vision_config": {
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
            "image_size": 448, "qkv_bias": True, "qk_normalization": False, "drop_path_rate": 0.1,
            "initializer_factor": 0.1,
        },
        "llm_config": {
            "architectures": ["Phi3ForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 131072, "sliding_window": 262144,
            "original_max_position_embeddings": 4096, "rope_theta": 10000.0,
            "rope_scaling": {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
        },
    }  # fmt: skip

    def test_published_values_arrive(self):
        config = VideoChatOnlineConfig(**translate_config(self.PUBLISHED))
        assert config.text_config.model_type == "phi3"
        assert config.text_config.sliding_window is None  # or the KV cache would be a sliding one
        assert config.text_config.rope_parameters["rope_type"] == "longrope"
        assert config.text_config.rope_parameters["original_max_position_embeddings"] == 4096
        assert config.vision_config.attention_bias
        assert config.vision_config.use_mean_pooling  # no final norm
        assert config.vision_config.layer_scale_init_value == pytest.approx(0.1)
        assert config.drop_path_rate == pytest.approx(0.1)
        assert config.memory_intervals == (6, 3, 1)
        assert (config.image_size, config.grid, config.feature_dim) == (224, (8, 8), 256)

    def test_there_and_back(self):
        config = VideoChatOnlineConfig(**translate_config(self.PUBLISHED))
        again = VideoChatOnlineConfig(**translate_config(json.loads(json.dumps(original_config(config)))))
        assert again.to_dict() == config.to_dict()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ps_version": "v3"}, "ps_version: expected 'v1' or 'v2', got 'v3'"),
            ({"select_layer": 3}, "select_layer: a vision tower of 2 layers has none 3"),
            ({"select_layer": -4}, "has none -4"),
            ({"downsample_ratio": 0.3}, "downsample_ratio: expected 1, 1/2"),
            ({"downsample_ratio": 0}, "downsample_ratio"),
            ({"force_image_size": 210}, "image_size 210: 15 patches a side"),
        ],
    )
    def test_values_that_no_forward_pass_can_honour(self, change, message):
        with pytest.raises(InputError, match=message):
            VideoChatOnlineConfig(**translate_config(self.PUBLISHED | change))


class TestLoadModel:
    def test_options_that_do_not_exist(self, tiny_dir):
        for options, message in (
            ({"dtype": "int8"}, "dtype: expected 'auto' or one of float32"),
            ({"device": "tpu0"}, "device: expected"),
            ({"device": "meta"}, "device: expected"),
            ({"quantization": "4bit", "device": "cpu"}, "quantization '4bit' needs CUDA"),
            ({"template": "alpaca"}, "expected one of .*phi3-chat"),
            ({"attn_implementation": "magic"}, "attn_implementation: expected 'auto' or one of eager, sdpa"),
            ({"attn_implementation": "flash_attention_2", "device": "cpu"}, "needs CUDA"),
        ):
            with pytest.raises(InputError, match=message):
                load_model(tiny_dir(), **options)

    def test_dtype(self, tiny_dir):
        assert load_model(tiny_dir(), device="cpu").dtype is torch.float32
        assert load_model(tiny_dir(), device="cpu", dtype="bfloat16").dtype is torch.bfloat16

    def test_tokenizer_larger_than_the_embeddings(self, tiny_dir, tmp_path):
        random_network().float().save_pretrained(tmp_path)  # 64 embeddings
        with pytest.raises(CheckpointError, match=r"ids up to 508, the language model embeds only 64"):
            load_model(tmp_path, tokenizer=tiny_dir())

    def test_frames_of_another_size_than_the_vision_tower(self, tiny_dir, tmp_path, frames):
        shutil.copytree(tiny_dir(), tmp_path / "model")
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"image_size": 56}))
        model = load_model(tmp_path / "model", device="cpu")
        assert model.encode(frames(1)).shape[-2:] == (2, 2)

    def test_save_pretrained_keeps_the_tokenizer(self, tiny_model, tmp_path, frames):
        tiny_model.save_pretrained(tmp_path)
        again = load_model(tmp_path, device="cpu")
        assert again.tokenizer.get_vocab() == tiny_model.tokenizer.get_vocab()
        assert torch.equal(again.encode(frames(2)), tiny_model.encode(frames(2)))

    def test_push_to_hub_uploads_network_and_tokenizer(self, tiny_model, monkeypatch):
        uploads = {}

        def create_commit(self, repo_id, operations, **kwargs):
            uploads.setdefault(repo_id, set()).update(operation.path_in_repo for operation in operations)

        monkeypatch.setattr("huggingface_hub.HfApi.create_commit", create_commit)
        monkeypatch.setattr(
            "huggingface_hub.HfApi.create_repo",
            lambda self, repo_id, **kwargs: type("Repo", (), {"repo_id": repo_id})(),
        )
        tiny_model.push_to_hub("someone/model")
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= uploads["someone/model"]
