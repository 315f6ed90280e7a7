"""Frozen matrices in bfloat16: which ones, that nothing computed or saved is another number, and how a run goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from train_cases import flags, losses, mixed_rows, write_media, write_registry
from videochat_online.model import load_network
from videochat_online.train import parse_arguments, train
from videochat_online.train.keys.arguments import ModelArguments
from videochat_online.train.setup.frozen_matrices import frozen_matrices, halve_frozen
from videochat_online.train.setup.model_setup import choose_trainable

FROZEN = {"freeze_backbone": True, "freeze_llm": True, "freeze_mlp": False}
SETUPS = {
    "adapters": FROZEN | {"use_llm_lora": 4, "use_backbone_lora": 2},
    "last layers and head": FROZEN | {"unfreeze_vit_layers": 1, "unfreeze_lm_head": True, "drop_path_rate": 0.2},
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("frozen")
    return write_registry(folder, write_media(folder / "media"), mixed=mixed_rows())


@pytest.fixture
def run(tiny_dir, registry, tmp_path):
    def trained(name: str, llm: str = "qwen2", **keys):
        paths = {"model_name_or_path": tiny_dir(llm), "meta_path": registry, "output_dir": tmp_path / name}
        return train(parse_arguments(None, flags(**paths | {"bf16": True} | keys)))

    return trained


@pytest.mark.parametrize("setup", SETUPS)
def test_not_a_bit_is_computed_otherwise(run, tmp_path, monkeypatch, setup):
    ours = run("ours", **SETUPS[setup])
    monkeypatch.setattr("videochat_online.train.setup.model_setup.keeps_frozen_in_half", lambda arguments: False)
    theirs = run("theirs", **SETUPS[setup])
    assert losses(ours) == losses(theirs)
    assert len(set(losses(ours))) == 2
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert {name for name in first if not torch.equal(first[name], second[name])} == set()
    assert {tensor.dtype for tensor in first.values()} == {torch.float32}


@pytest.mark.parametrize("is_tied", [False, True])
def test_which_numbers_are_halved(tiny_dir, is_tied):
    network = load_network(tiny_dir("phi3"), dtype=torch.float32)
    if is_tied:
        network.get_output_embeddings().weight = network.get_input_embeddings().weight
    options = ModelArguments(**FROZEN, unfreeze_vit_layers=1, use_llm_lora=4)
    choose_trainable(network, options)
    halve_frozen(network, saves=True)
    half = {name for name, parameter in network.named_parameters() if parameter.dtype == torch.bfloat16}
    layer = "language_model.model.layers.0."
    assert {layer + "mlp.down_proj.base_layer.weight", "vision_tower.encoder.layer.0.mlp.fc1.weight"} <= half
    assert "vision_tower.embeddings.patch_embeddings.projection.weight" in half
    assert ("language_model.lm_head.weight" in half) != is_tied
    for name, parameter in network.named_parameters():
        if parameter.requires_grad or "norm" in name or "embed_tokens" in name or parameter.dim() == 3:
            assert name not in half, name
    assert not frozen_matrices(network)


def test_the_state_has_lost_nothing(tiny_dir):
    """A checkpoint in float32 keeps what bfloat16 would lose; one in bfloat16 needs no second copy."""
    for rounded in (False, True):
        network = load_network(tiny_dir("phi3"), dtype=torch.float32)
        if rounded:
            network.to(torch.bfloat16).to(torch.float32)
        choose_trainable(network, ModelArguments(**FROZEN))
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        held = sum(parameter.nbytes for parameter in network.parameters())
        halved = sum(parameter.nbytes for parameter in frozen_matrices(network).values())
        halve_frozen(network, saves=True)
        assert sum(parameter.nbytes for parameter in network.parameters()) == held - halved // 2
        after = network.state_dict()
        assert {name for name in before if not torch.equal(before[name], after[name])} == set()
        network.load_state_dict(after)
        assert {name for name, tensor in network.state_dict().items() if not torch.equal(before[name], tensor)} == set()


def test_a_result_has_the_frozen_weights_of_its_checkpoint(run, tiny_dir, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_dir("phi3"), base)
    state = load_file(base / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in state.items()}, base / "model.safetensors", {"format": "pt"})
    for name, directory in (("from_float", tiny_dir("phi3")), ("from_half", base)):
        run(name, model_name_or_path=directory, **FROZEN)
        was, now = (load_file(folder / "model.safetensors") for folder in (directory, tmp_path / name))
        changed = {key for key in now if not torch.equal(now[key], was[key].float())}
        assert changed
        assert all(key.startswith("projector.") for key in changed)


def test_adapters_are_merged_into_what_the_checkpoint_says(run, tiny_dir, tmp_path):
    """Not into what bfloat16 has made of it; and a checkpoint of a run with adapters holds nothing else."""
    run("adapters", **FROZEN | {"freeze_mlp": True, "use_llm_lora": 4, "save_strategy": "steps", "save_steps": 1})
    learned = load_file(next(tmp_path.glob("adapters/checkpoint-*")) / "learned.safetensors")
    assert all(".lora_" in name for name in learned)
    base, result = (load_file(folder / "model.safetensors") for folder in (tiny_dir("qwen2"), tmp_path / "adapters"))
    for name, tensor in base.items():
        halves = [learned.get(f"{name.removesuffix('.weight')}.lora_{side}.default.weight") for side in "BA"]
        added = 0 if None in halves else 2.0 * halves[0] @ halves[1]
        assert result[name].dtype == torch.float32
        assert torch.equal(result[name], tensor + added)
    assert any(not torch.equal(result[name], base[name]) for name in base)


def test_a_run_goes_on_as_if_nothing_had_happened(run, tmp_path):
    keys = FROZEN | {"use_llm_lora": 4, "max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    whole = run("whole", **keys)
    folder = tmp_path / "whole"
    (folder / "report.json").unlink()
    shutil.rmtree(folder / "checkpoint-3")
    assert losses(run("whole", **keys)) == losses(whole)
