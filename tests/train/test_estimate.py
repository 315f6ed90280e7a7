"""What a dry run says of parameters, tokens, steps and memory, against the run itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import training_plan_memory
from processes import run_program
from train_cases import flags, mixed_rows, write_media, write_registry
from videochat_online.data import TrainingDataset, load_registries
from videochat_online.data.samples.sample_lengths import EstimatedSample
from videochat_online.errors import InputError
from videochat_online.model import VideoChatOnlineConfig, load_model, load_network
from videochat_online.testing import published_config
from videochat_online.train import dry_run, parse_arguments, train
from videochat_online.train.estimate.device_memory import Sizes, memory_estimate, remarks
from videochat_online.train.estimate.run_estimate import parameter_table, planned_network, token_statistics
from videochat_online.train.keys.deepspeed_plan import resolve_plan
from videochat_online.train.keys.parsing import read_config
from videochat_online.train.loop.throughput import Work
from videochat_online.train.setup.model_setup import choose_trainable, load_texts, make_encoder

PARTS = ("weights", "gradients", "accumulation", "optimizer", "buckets")
BATCH = Work(tokens=1000, learned_tokens=300, pictures=10, samples=1)
ROOT = Path(__file__).resolve().parents[2]


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
    blank = planned_network(network.config, arguments.model)
    assert {p.device.type for p in blank.parameters()} == {"meta"}
    assert parameter_table(blank) == parameter_table(network)
    together = parameter_table(blank)["together"]
    assert together["all"] == sum(p.numel() for p in network.parameters())
    assert together["learning"] == sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_the_published_size(parse):
    """4.15 billion: InternViT-300M, Phi-3-mini (3,821,079,552 by its own card) and the projector."""
    table = parameter_table(planned_network(published_config(), parse().model))
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


def test_samples_that_are_longer_than_a_pack_are_packs(parse):
    keys = {"max_steps": -1, "packing_tokens": 20, "per_device_train_batch_size": 1}
    assert dry_run(parse(**keys))["estimate"]["steps"] == train(parse(**keys)).steps == 8


BILLION = 10**9
LARGEST, HEAD = 10**8, 5 * 10**7
PLAN_BYTES = [
    # plan, bytes of a number: weights, gradients, sums, optimizer, buckets
    ("", 4, 4 + 3 * 0.2, 0, 8, 4),  # the head's thrice more, on its way
    ("zero1", 2, 2, 4, 12 / 4, 0),  # sums on each device, whole; sent as they are
    ("zero2", 2, 0.2 + 3 * 0.1, 4 / 4, 12 / 4, 0.8),  # the largest matrix, the head's; two buckets of 200 million
    ("zero2_one_gpu", 2, 0.2 + 3 * 0.1, 4 / 4, 12 / 4, 0.1),
    ("zero3", 2 / 4, 0.2, 8 / 4, 12 / 4, 2 * (1 + 0.0001)),
    ("zero3_offload", 0, 0.2, 0, 0, 2 * (1 + 0.0001)),
]


@pytest.mark.parametrize(("plan", *PARTS), PLAN_BYTES, ids=[row[0] or "none" for row in PLAN_BYTES])
def test_memory_by_plan(parse, monkeypatch, plan, weights, gradients, accumulation, optimizer, buckets):
    """Bytes for each parameter, on each of four devices; a billion of them, all of which learn."""
    sizes = Sizes(all=BILLION, learning=BILLION, largest=LARGEST, head=HEAD, halved=0, matrices=BILLION)
    # A model of a billion parameters, of which nothing but its sizes is read.
    monkeypatch.setattr("videochat_online.train.estimate.device_memory._sizes", lambda network: sizes)
    arguments = parse()
    network = planned_network(load_config_of(arguments), arguments.model)
    monkeypatch.setenv("PLANNED_PROCESSES", "4")
    monkeypatch.setattr(arguments.training, "deepspeed", plan and str(ROOT / f"configs/deepspeed/{plan}.json"))
    monkeypatch.setattr(arguments.training, "bf16", bool(plan))
    found = memory_estimate(network, arguments, BATCH)
    for name, number in zip(PARTS, (weights, gradients, accumulation, optimizer, buckets), strict=True):
        assert found[name] == pytest.approx(number * 1e9 / 2**30, abs=0.02), name
    assert found["together"] == pytest.approx(sum(found.values()) - found["together"], abs=0.05)


def test_what_a_users_plan_says_is_counted(parse, monkeypatch):
    """As DeepSpeed fills it in: its own defaults, "auto" by the width, sums in half precision."""
    arguments = parse()
    monkeypatch.setattr(arguments.training, "bf16", True)

    def resolved(**zero):
        monkeypatch.setattr(arguments.training, "deepspeed", {"zero_optimization": zero, "fp16": {"enabled": False}})
        return resolve_plan(arguments.training, 3072)

    plain = resolved(stage=2)
    assert (plain.weights, plain.accumulation, plain.communication) == (2, 2, 2)
    zero = plain.zero
    assert (zero.reduce_bucket_size, zero.overlap_comm, zero.contiguous_gradients) == (500_000_000, False, True)
    third = resolved(stage=3, reduce_bucket_size="auto", stage3_prefetch_bucket_size="auto")
    sizes = (third.zero.reduce_bucket_size, third.zero.prefetch_bucket_size)
    assert (sizes, third.zero.overlap_comm) == ((3072**2, int(0.9 * 3072**2)), True)
    assert resolved(stage=2, offload_optimizer={"device": "cpu"}).offloads("optimizer")
    assert not resolved(stage=2, offload_optimizer={"device": "none"}).offloads("optimizer")
    with pytest.raises(InputError, match="zero_optimization: reduce_bucket_size: expected a whole number, found 'x'"):
        resolved(stage=2, reduce_bucket_size="x")


def test_pixels_logits_and_masks(parse, monkeypatch):
    arguments = parse()
    network = planned_network(published_config(), arguments.model)
    one = memory_estimate(network, arguments, Work(tokens=8192, learned_tokens=1600, pictures=32, samples=1))
    assert one["pixels"] == pytest.approx(32 * 3 * 448**2 * 5 / 2**30, abs=0.01)  # as bytes and in float32
    assert one["logits"] == pytest.approx(100 * 32064 * 12 / 2**30, abs=0.01)  # of a sixteenth of what is learned
    assert one["masks"] == 0  # a row alone is plainly causal
    packed = parse(packing_tokens=8192, per_device_train_batch_size=1)
    row = Work(tokens=8192, samples=1, squares=8192**2)
    found = memory_estimate(network, packed, row)["masks"]
    assert found == pytest.approx(8192**2 * (1 + 4 * 32) / 2**30, abs=0.01)  # one of places, one of numbers a layer
    (remark,) = remarks(network, packed, 8192, 1)
    assert f"attention sdpa makes masks of 1 x 8192 x 8192 entries, {found:.1f} GiB" in remark
    monkeypatch.setattr(
        "videochat_online.train.estimate.device_memory.attention_of", lambda arguments: "flash_attention_2"
    )
    assert memory_estimate(network, packed, row)["masks"] == 0
    assert remarks(network, packed, 8192, 1) == []


def test_masks_of_a_packed_row_are_as_large_as_estimated(tiny_dir):
    """Numbers with two sides of the row's length that a pass keeps for the way back, found in the network."""
    network = load_network(tiny_dir("phi3"), attn_implementation="sdpa")
    length, seen = 96, {}

    def keep(tensor):
        if tensor.shape[-2:] == (length, length):
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    for starts, number in (((0,), 0), ((0, 40), network.config.text_config.num_hidden_layers)):
        positions = torch.arange(length)[None] - max(starts) * (torch.arange(length)[None] >= max(starts))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(input_ids=torch.ones_like(positions), position_ids=positions, use_cache=False)
        assert sum(tensor.untyped_storage().nbytes() for tensor in seen.values()) == number * 4 * length**2


def test_the_plan_for_24_gb_adds_up_to_20_gib(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = ["--use_cpu", "True", "--bf16", "True", "--attn_implementation", "sdpa"]
    arguments = parse_arguments(ROOT / "configs/train/stage2_lora.yaml", ["--deepspeed", "", *config])
    content = read_config(ROOT / "configs/train/stage2_lora.yaml")
    monkeypatch.setattr(arguments.training, "deepspeed", content["deepspeed"])
    network = planned_network(published_config(), arguments.model)
    longest = Work(tokens=8192, learned_tokens=8192, pictures=32, samples=1, squares=8192**2)
    found = memory_estimate(network, arguments, longest)
    assert 10 < found["together"] <= 20
    assert found["buckets"] == pytest.approx(0.09, abs=0.01)


def test_checkpointing_keeps_less(parse, monkeypatch):
    arguments = parse()
    network = planned_network(load_config_of(arguments), arguments.model)
    without = memory_estimate(network, arguments, BATCH)["activations"]
    monkeypatch.setattr(arguments.training, "activation_checkpointing", True)
    assert memory_estimate(network, arguments, BATCH)["activations"] < without


def load_config_of(arguments):
    return VideoChatOnlineConfig.from_pretrained(arguments.model.model_name_or_path)


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_a_process_holds_what_is_said_of_its_plan(name):
    done = run_program(training_plan_memory.child, ["measure", json.dumps(training_plan_memory.small_plan(name))])
    assert done.returncode == 0, done.stderr[-3000:]
    measured, estimated = map(float, done.stdout.splitlines()[-1].split())
    assert measured > 500
    assert 0.9 < estimated / measured < 1.15
