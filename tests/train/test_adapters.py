"""Adapters: what learns, PEFT's files out and in, and checkpoints that hold what was learned alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from train_cases import flags, launch, losses, mixed_rows, state, write_media, write_registry
from videochat_online.cli.main import main
from videochat_online.errors import CheckpointError, InputError
from videochat_online.model import load_model, load_network
from videochat_online.train import TrainReport, parse_arguments, train
from videochat_online.train.folder.learned_weights import put_tensors
from videochat_online.train.keys.arguments import ModelArguments
from videochat_online.train.loop import lean_trainer
from videochat_online.train.setup.lora import scalings_of
from videochat_online.train.setup.model_setup import choose_trainable

ROOT = Path(__file__).resolve().parents[2]
FROZEN = {"freeze_backbone": True, "freeze_llm": True}
BESIDE = {"freeze_mlp": False, "use_backbone_lora": 2, "unfreeze_vit_layers": 1}
LORA = {**FROZEN, "freeze_mlp": True, "use_llm_lora": 4}
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    write_registry(folder, write_media(folder / "media"), mixed=mixed_rows())
    return folder


@pytest.fixture(scope="module")
def keys(place, tiny_dir) -> Callable[..., list[str]]:
    def make(name: str, **changes: Any) -> list[str]:
        paths = {"output_dir": place / name, "model_name_or_path": tiny_dir("phi3")}
        return flags(**paths | {"meta_path": place / "registry.json"} | changes)

    return make


@pytest.fixture(scope="module")
def run(keys) -> Callable[..., TrainReport]:
    return lambda name, **changes: train(parse_arguments(None, keys(name, **changes)))


@pytest.fixture(scope="module")
def whole(run, place) -> Path:
    """A run over adapters with an alpha of their own, its projector, a vision layer, and checkpoints."""
    run("whole", **LORA | SAVING | BESIDE, lora_alpha=3)
    return place / "whole"


def logits(network: nn.Module, frames: Callable[[int], Any] | None = None) -> torch.Tensor:
    """Of a few tokens; the vision tower and the projector are in it, too."""
    torch.manual_seed(0)
    config = network.config
    pixels = torch.rand(1, 3, config.image_size, config.image_size)
    with torch.no_grad():
        seen = network.encode(pixels).flatten(2).transpose(1, 2)
        embeds = network.get_input_embeddings()(torch.tensor([[20, 30, 40]]))
        return network(inputs_embeds=torch.cat((network.project(seen), embeds), dim=1)).logits


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def unfinished(folder: Path, copy: str, step: int) -> Path:
    """A copy of a run as it was when its checkpoint of a step had been written."""
    other = folder.with_name(copy)
    shutil.copytree(folder, other)
    for file in (*other.glob("model*"), other / "report.json"):
        file.unlink(missing_ok=True)
    shutil.rmtree(other / "adapter", ignore_errors=True)
    for checkpoint in other.glob("checkpoint-*"):
        if checkpoint.name != f"checkpoint-{step}":
            shutil.rmtree(checkpoint)
    return other


def test_checkpoint_result_and_adapters_are_one_model(whole, tiny_dir, frames):
    """With an alpha of its own, and with what learns beside the adapters."""
    result = state(whole)
    assert not any("lora" in name for name in result)
    merged = [
        load_network(whole / "checkpoint-4"),
        load_network(tiny_dir("phi3"), adapter=whole / "adapter"),
        load_model(whole / "checkpoint-4", device="cpu").network,
        load_model(tiny_dir("phi3"), device="cpu", adapter=whole / "adapter").network,
    ]
    assert all(same(network.state_dict(), result) for network in merged)
    base = load_network(tiny_dir("phi3")).eval()
    before = logits(base)
    by_peft = PeftModel.from_pretrained(base, str(whole / "adapter")).eval()
    expected = logits(merged[0].eval())
    assert torch.allclose(logits(by_peft.base_model.model), expected, atol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-3)
    config = json.loads((whole / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["lora_alpha"]) == (str(tiny_dir("phi3")), 3)
    assert set(config["modules_to_save"]) >= {"projector.linear_1", "vision_tower.encoder.layer.1"}


def test_a_checkpoint_holds_what_learns(whole, tiny_dir):
    files = {file.name: file.stat().st_size for file in (whole / "checkpoint-2").iterdir()}
    assert "model.safetensors" not in files
    held = load_file(whole / "checkpoint-2" / "learned.safetensors")
    report = json.loads((whole / "report.json").read_text())
    assert sum(map(torch.numel, held.values())) == report["parameters"]["learning"]


def test_a_run_goes_on_from_what_it_learned(whole, run, place):
    unfinished(whole, "again", 2)
    keys = LORA | SAVING | BESIDE
    report = run("again", **keys, lora_alpha=3)
    assert losses(report) == losses(json.loads((whole / "report.json").read_text()))
    assert same(state(place / "again"), state(whole))


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_under_deepspeed_a_run_goes_on_from_what_it_learned(keys, place, tiny_dir, stage):
    """Its files leave the frozen parts out, too; the last step's checkpoint alone gives the result."""
    plan = ROOT / f"configs/deepspeed/zero{stage}.json"
    short = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 1}
    changes = LORA | SAVING | short | {"freeze_mlp": False, "deepspeed": plan, "bf16": True, "lora_dropout": 0.3}

    def run(name: str) -> dict[str, Any]:  # what DeepSpeed leaves behind in a process would reach other tests
        done = launch(keys(name, **changes))
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((place / name / "report.json").read_text())

    first = run(f"zero{stage}")
    folder = place / f"zero{stage}"
    files = [file for file in (folder / "checkpoint-2").rglob("*") if file.suffix in (".pt", ".safetensors")]
    # In bfloat16 twice, with what Adam keeps in float32, and some text; whole, it would be ten times as much.
    assert sum(file.stat().st_size for file in files) < (2 + 2 + 4 * 3) * first["parameters"]["learning"] + 100_000
    for name, step in ((f"again{stage}", 1), (f"taken{stage}", 2)):
        unfinished(folder, name, step)
        assert losses(run(name)) == losses(first)
        assert same(state(place / name), state(folder))
    assert same(load_network(folder / "checkpoint-2").state_dict(), state(folder))
    assert same(load_network(tiny_dir("phi3"), adapter=folder / "adapter").state_dict(), state(folder))


def test_a_run_of_the_projector_alone_keeps_the_projector(run, place):
    first = run("projector", **FROZEN | SAVING)
    held = load_file(place / "projector" / "checkpoint-2" / "learned.safetensors")
    assert all(name.startswith("projector.") for name in held)
    assert not (place / "projector" / "adapter").exists()
    unfinished(place / "projector", "projector_again", 2)
    assert losses(run("projector_again", **FROZEN | SAVING)) == losses(first)
    assert same(load_network(place / "projector" / "checkpoint-4").state_dict(), state(place / "projector_again"))


def test_a_checkpoint_where_most_learns_is_whole(run, place):
    run("most", freeze_backbone=True, max_steps=1, save_strategy="steps", save_steps=1)
    assert {"model.safetensors"} == {file.name for file in (place / "most" / "checkpoint-1").glob("*.safetensors")}


def test_checkpoints_of_whole_models_with_adapters_are_still_read(run, place, monkeypatch):
    """As they were written before: alpha was always twice the rank."""
    keys = LORA | SAVING
    with monkeypatch.context() as patch:
        patch.setattr(lean_trainer, "kept_names", lambda network, start: None)
        first = run("old", **keys)
    assert any("lora_A" in name for name in state(place / "old" / "checkpoint-2"))
    for name, step in (("old_again", 2), ("old_taken", 4)):
        unfinished(place / "old", name, step)
        assert losses(run(name, **keys)) == losses(first)
        assert same(state(place / name), state(place / "old"))
    assert same(load_network(place / "old" / "checkpoint-4").state_dict(), state(place / "old"))


def test_a_run_does_not_go_on_from_another_base(run, place, tiny_dir):
    """Weights that differ by a hair, at the same place and of the same shape."""
    model = place / "changing"
    shutil.copytree(tiny_dir("phi3"), model)
    run("based", **LORA | SAVING, model_name_or_path=model)
    checkpoint = unfinished(place / "based", "based_again", 2) / "checkpoint-2"
    weights = load_file(model / "model.safetensors")
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    save_file(weights | {name: weights[name] * 1.001}, model / "model.safetensors", {"format": "pt"})
    for call in (
        lambda: run("based_again", **LORA | SAVING, model_name_or_path=model),
        lambda: load_network(checkpoint),
        lambda: load_network(model, adapter=place / "based" / "adapter"),
    ):
        with pytest.raises(CheckpointError, match=r"was learned on top of .*changing \(weights \w+\), but .* others"):
            call()
    shutil.rmtree(model)
    with pytest.raises(CheckpointError, match=r"checkpoint-2: holds what was learned on top of .*changing, and there"):
        load_network(checkpoint)


def test_learning_goes_on_with_given_adapters(whole, run, place, tiny_dir):
    """From where they were; what was learned beside them stays, whether it learns or not."""
    given = {"adapter_name_or_path": whole / "adapter", "lora_dropout": 0}
    keys = FROZEN | {"freeze_mlp": True, "max_steps": 2}
    first = run("go_on", **keys | given, save_strategy="steps", save_steps=1)
    merged_first = run("from_merged", **LORA | {"max_steps": 1}, model_name_or_path=whole)
    assert losses(first)[0] == pytest.approx(losses(merged_first)[0], abs=1e-5)
    before, after = state(whole), state(place / "go_on")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.endswith("_proj.weight") or ".projection_layer." in name or ".fc" in name for name in moved)
    assert same(load_network(tiny_dir("phi3"), adapter=place / "go_on" / "adapter").state_dict(), after)
    unfinished(place / "go_on", "go_on_again", 1)
    assert losses(run("go_on_again", **keys | given)) == losses(first)
    assert same(load_network(place / "go_on" / "checkpoint-2").state_dict(), after)


def test_which_layers_get_adapters(tiny_dir):
    def adapted(llm: str, **options: Any) -> set[str]:
        network = load_network(tiny_dir(llm))
        choose_trainable(network, ModelArguments(freeze_llm=True, freeze_backbone=True, **options))
        return set(scalings_of(network))

    qwen = adapted("qwen2", use_llm_lora=4)
    assert {name.rpartition(".")[2] for name in qwen} == {
        f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")
    }
    assert all(name.startswith("language_model.model.layers.") for name in qwen)
    both = {"use_llm_lora": 4, "use_backbone_lora": 4}
    chosen = adapted("phi3", **both, lora_target_modules=["o_proj", r"vision_tower\..*\.0\..*fc\d"])
    assert {name.rpartition(".")[2] for name in chosen} == {"o_proj", "fc1", "fc2"}
    assert len(chosen) == 4
    # A layer that learns needs none.
    assert not any("layer.1." in name for name in adapted("phi3", use_backbone_lora=2, unfreeze_vit_layers=1))
    for options, message in (
        ({"use_llm_lora": 4, "lora_target_modules": ["q_prj"]}, r"\(down_proj, .*\), found 'q_prj'"),
        ({"use_llm_lora": 4, "lora_target_modules": ["("]}, r"linear layers \(.*\), found '\('"),
        ({**both, "lora_target_modules": ["o_proj"]}, r"vision_tower: expected frozen linear layers .* found none"),
        ({"lora_alpha": 8}, "lora_alpha: expected use_llm_lora or use_backbone_lora with it"),
        ({"lora_dropout": 0.1}, "lora_dropout: expected use_llm_lora or use_backbone_lora with it"),
        ({"use_llm_lora": 4, "lora_alpha": 0}, "lora_alpha: expected a number above 0, found 0"),
        ({"use_llm_lora": 4, "lora_dropout": 1}, "lora_dropout: expected a number below 1, found 1"),
        ({"use_llm_lora": 4, "adapter_name_or_path": "x"}, "use_llm_lora: expected none with adapter_name_or_path"),
        ({"adapter_name_or_path": "nowhere"}, "nowhere: expected a folder of adapters with adapter_config.json"),
    ):
        with pytest.raises(InputError, match=message):
            adapted("phi3", **options)


def random_adapter(network: nn.Module, folder: Path, **options: Any) -> Any:
    """What PEFT saves of adapters with random numbers, and the network with them."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["o_proj", "down_proj"]} | options
    wrapped = get_peft_model(network, LoraConfig(**settings))
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(str(folder))
    return wrapped


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"layers.1.*down_proj": 2}, "alpha_pattern": {"o_proj": 5}},
        {"modules_to_save": ["lm_head"], "layers_to_transform": [1]},
        {"target_modules": r".*layers\.0.*(qkv|o)_proj"},
    ],
)
@pytest.mark.parametrize("part", ["", "language_model"])
def test_adapters_of_peft_are_merged(tmp_path, tiny_dir, options, part):
    """Of the whole network, or of its language model alone."""
    network = load_network(tiny_dir("phi3")).eval()
    random_adapter(network.get_submodule(part), tmp_path / "adapter", **options)
    ours = load_network(tiny_dir("phi3"), adapter=tmp_path / "adapter").eval()
    assert torch.allclose(logits(ours), logits(network), atol=1e-5)
    assert not torch.allclose(logits(ours), logits(load_network(tiny_dir("phi3")).eval()), atol=1e-3)


def test_adapters_that_cannot_be_used(tmp_path, tiny_dir, caplog):
    random_adapter(load_network(tiny_dir("phi3")), tmp_path / "good")
    weights = load_file(tmp_path / "good" / "adapter_model.safetensors")
    settings = json.loads((tmp_path / "good" / "adapter_config.json").read_text())
    first = next(name for name in weights if name.endswith("lora_A.weight"))
    layer = first.removesuffix(".lora_A.weight")
    pair = {first, f"{layer}.lora_B.weight"}
    elsewhere = {name.replace("layers.", "blocks."): tensor for name, tensor in weights.items()}
    cases: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor] | bytes | None, str]] = {
        "dora": ({"use_dora": True}, weights, "use_dora: expected False, found True"),
        "unknown": ({"peft_type": "BONE"}, weights, "peft_type: expected LORA, found 'BONE'"),
        "new": ({"use_newest": 3}, weights, "use_newest: expected None, found 3"),
        "pissa": ({"init_lora_weights": "pissa"}, weights, "'pissa' changes the base"),
        "rank": ({"r": 8}, weights, "expected rank 8, as adapter_config.json says, found 4"),
        "no_alpha": ({"lora_alpha": None}, weights, "expected r and lora_alpha"),
        "half": ({}, weights | {}, "expected lora_A and lora_B, found lora_B alone"),
        "fewer": ({}, {name: tensor for name, tensor in weights.items() if name not in pair}, "found none"),
        "names": ({}, elsewhere, "which has none of that name"),
        "shape": ({}, weights | {first: weights[first][:, :5].clone()}, r"has shape \(4, 5\)"),
        "magnitude": ({}, weights | {f"{layer}.lora_magnitude_vector": torch.ones(3)}, "found another"),
        "integers": ({}, {name: tensor.to(torch.int8) for name, tensor in weights.items()}, "floating-point"),
        "broken": ({}, b"no tensors", "expected tensors, found an unreadable file"),
        "empty": ({}, {}, "expected adapters, found no tensor"),
        "absent": ({}, None, "expected adapter_model.safetensors beside"),
    }
    del cases["half"][1][first]  # type: ignore[union-attr]
    for name, (changes, tensors, message) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(settings | changes))
        if isinstance(tensors, bytes):
            (folder / "adapter_model.safetensors").write_bytes(tensors)
        elif tensors is not None:
            save_file(tensors, folder / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match=message) as caught:
            load_network(tiny_dir("phi3"), adapter=folder)
        assert "\n" not in str(caught.value)
    (tmp_path / "dora" / "adapter_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="expected PEFT's settings"):
        load_network(tiny_dir("phi3"), adapter=tmp_path / "dora")
    # Where names and shapes fit, only a record of ours tells: with PEFT's alone there is a warning.
    assert not caplog.messages
    load_network(tiny_dir("qwen2"), adapter=tmp_path / "good")
    assert "/tiny_qwen20/model has the same weights is not known" in caplog.text


def tied(tiny_dir: Callable[..., Path], folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a model without a head of its own, which is written into a folder."""
    network = load_network(tiny_dir("phi3"))
    network.config.tie_word_embeddings = network.config.text_config.tie_word_embeddings = True
    network.save_pretrained(folder)
    weights = state(folder)
    weights.pop("language_model.lm_head.weight", None)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return weights


def test_a_tied_weight_is_put_back_from_a_checkpoint_that_holds_it_under_both_names(tmp_path, tiny_dir):
    words = tied(tiny_dir, tmp_path / "tied")["language_model.model.embed_tokens.weight"] + 1
    network = load_network(tmp_path / "tied")
    names = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")  # as DeepSpeed saves them
    put_tensors(network, {name: words.clone() for name in names})
    assert all(torch.equal(dict(network.named_parameters(remove_duplicate=False))[name], words) for name in names)


def test_a_tied_head_has_no_adapters_of_its_own(tmp_path, tiny_dir):
    tied(tiny_dir, tmp_path / "tied")
    random_adapter(load_network(tmp_path / "tied"), tmp_path / "head", target_modules=["lm_head"])
    with pytest.raises(CheckpointError, match="lm_head.weight is tied to language_model.model.embed_tokens"):
        load_network(tmp_path / "tied", adapter=tmp_path / "head")
    options = ModelArguments(freeze_llm=True, use_llm_lora=2, lora_target_modules=["lm_head"])
    with pytest.raises(InputError, match="found 'lm_head'"):
        choose_trainable(load_network(tmp_path / "tied"), options)


def test_commands_take_adapters(whole, tmp_path, tiny_dir, capsys):
    convert = ["convert", str(tiny_dir("phi3")), str(tmp_path / "out"), "--format", "native", "--adapter"]
    assert main([*convert, "none"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: none: expected a folder of adapters")
    for command in (["doctor"], ["chat", "--ask", "Hello?"]):
        assert main([*command, "--model", str(whole / "adapter")]) == 2
        assert "adapter: expected a model, found adapters alone: give the model they are for" in capsys.readouterr().err
    assert main([*convert, str(whole / "adapter")]) == 0
    assert same(state(tmp_path / "out"), state(whole))
