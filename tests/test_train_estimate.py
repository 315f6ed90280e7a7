"""What a dry run says of parameters, tokens, steps and memory, against the run itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from published_size import published_config
from train_cases import flags, mixed_rows, write_media, write_registry
from videochat_online.data import TrainingDataset, load_registries
from videochat_online.data.lengths import EstimatedSample
from videochat_online.model import VideoChatOnlineConfig, load_model
from videochat_online.train import dry_run, parse_arguments, train
from videochat_online.train.estimate import blank_network, memory_estimate, parameter_table, token_statistics
from videochat_online.train.preparation import choose_trainable, load_texts, make_encoder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("estimate")
    return write_registry(folder, write_media(folder / "media"), mixed=mixed_rows())


@pytest.fixture
def parse(tiny_dir, registry, tmp_path):
    def parsed(**keys):
        paths = {"output_dir": tmp_path / "run", "model_name_or_path": tiny_dir("qwen2"), "meta_path": registry}
        return parse_arguments(None, flags(**paths | keys))

    return parsed


def test_parameters_are_those_of_the_network(tiny_dir, parse):
    arguments = parse(freeze_backbone=True, unfreeze_vit_layers=1, freeze_llm=True, use_llm_lora=4)
    network = load_model(tiny_dir("qwen2"), device="cpu").network
    choose_trainable(network, arguments.model)
    blank = blank_network(network.config, arguments.model)
    assert {p.device.type for p in blank.parameters()} == {"meta"}
    assert parameter_table(blank) == parameter_table(network)
    together = parameter_table(blank)["together"]
    assert together["all"] == sum(p.numel() for p in network.parameters())
    assert together["learning"] == sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_the_published_size(parse):
    """4.15 billion: InternViT-300M, Phi-3-mini (3,821,079,552 by its own card) and the projector."""
    table = parameter_table(blank_network(published_config(), parse().model))
    assert table["language_model"]["all"] == 3_821_079_552
    assert table["vision_tower"]["all"] == pytest.approx(304e6, rel=0.01)
    assert table["together"]["all"] == pytest.approx(4.15e9, rel=0.005)


def test_tokens():
    estimates = [
        EstimatedSample(10, 4, 1),
        EstimatedSample(30, 16, 3),
        EstimatedSample(20),
        EstimatedSample(100, 60, 4),
    ]
    assert token_statistics(estimates) == {
        "mean": 40.0,
        "median": 25.0,
        "percentile_95": pytest.approx(89.5),
        "longest": 100,
        "visual_share": 0.5,
        "pictures_a_sample": 2.0,
    }


def test_rows_that_were_encoded_correct_the_estimate(parse, registry, tmp_path):
    """Eight of sixteen rows are, and tell how long the videos are of which rows do not."""
    rows = [*mixed_rows(), *mixed_rows()]
    path = write_registry(tmp_path, registry.parent / "media", a=rows, b=rows[:2])
    given = parse(meta_path=path, max_steps=-1)
    found = dry_run(given)["estimate"]["tokens_of_a_sample"]
    config, tokenizer, template = load_texts(given)
    encoder = make_encoder(config, tokenizer, template, given.data)
    data = TrainingDataset(load_registries(str(path)), encoder)
    lengths = [len(data[item]) for item in range(len(data))]
    assert found["longest"] == data.estimate_lengths().max() >= max(lengths)
    assert found["longest"] == pytest.approx(max(lengths), rel=0.1)
    assert data.estimate_lengths().mean() > found["mean"]
    assert found["mean"] == pytest.approx(sum(lengths) / len(lengths), rel=0.1)
    assert (found["encoded"], found["items"]) == (10, 18)


@pytest.mark.parametrize("keys", [{}, {"per_device_train_batch_size": 3}, {"num_train_epochs": 2}, {"max_steps": 5}])
def test_steps_are_those_of_the_run(parse, tmp_path, keys):
    keys = {"max_steps": -1} | keys
    estimate = dry_run(parse(**keys))["estimate"]
    assert not (tmp_path / "run").exists()
    assert estimate["steps"] == train(parse(**keys)).steps
    assert estimate["tokens_of_a_sample"]["items"] == 8
    assert estimate["operations"] > 0


def test_packs_are_about_as_many(parse):
    estimate = dry_run(parse(max_steps=-1, packing_tokens=300, per_device_train_batch_size=1))["estimate"]
    assert (
        abs(estimate["steps"] - train(parse(max_steps=-1, packing_tokens=300, per_device_train_batch_size=1)).steps)
        <= 2
    )


@pytest.mark.parametrize(
    ("plan", "weights", "gradients", "optimizer"),
    [
        ("", 4, 4, 8),  # full precision without DeepSpeed
        ("zero1", 2, 2, 12 / 4),
        ("zero2", 2, 2 / 4, 12 / 4),
        ("zero3", 2 / 4, 2 / 4, 12 / 4),
        ("zero3_offload", 0, 2 / 4, 0),
    ],
)
def test_memory_by_plan(parse, monkeypatch, plan, weights, gradients, optimizer):
    """Bytes for each parameter, on each of four devices; a billion of them, all of which learn."""
    monkeypatch.setattr("videochat_online.train.estimate.parameter_table", lambda network: {"together": BILLION})
    arguments = parse()
    network = blank_network(load_config_of(arguments), arguments.model)
    monkeypatch.setenv("PLANNED_PROCESSES", "4")
    monkeypatch.setattr(arguments.training, "deepspeed", plan and str(ROOT / f"configs/deepspeed/{plan}.json"))
    monkeypatch.setattr(arguments.training, "bf16", bool(plan))
    found = memory_estimate(network, arguments, 1000, 10)
    for name, number in (("weights", weights), ("gradients", gradients), ("optimizer", optimizer)):
        assert found[name] == pytest.approx(number * 1e9 / 2**30, abs=0.01), name
    assert found["together"] == pytest.approx(sum(found.values()) - found["together"], abs=0.03)


def test_checkpointing_keeps_less(parse, monkeypatch):
    arguments = parse()
    network = blank_network(load_config_of(arguments), arguments.model)
    without = memory_estimate(network, arguments, 100_000, 1000)["activations"]
    monkeypatch.setattr(arguments.training, "activation_checkpointing", True)
    assert memory_estimate(network, arguments, 100_000, 1000)["activations"] < without


BILLION = {"all": 10**9, "learning": 10**9}


def load_config_of(arguments):
    return VideoChatOnlineConfig.from_pretrained(arguments.model.model_name_or_path)
