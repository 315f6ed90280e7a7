"""Counted tokens and operations, against batches taken apart and against torch's own counter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from train_cases import mixed_rows, normalised, tiny_encoder, write_media, write_registry
from videochat_online.data import BATCH_REPORT, TrainingDataset, load_registries
from videochat_online.model import load_model
from videochat_online.train.loop import throughput
from videochat_online.train.loop.throughput import FlopModel, Throughput, Work, work_of
from videochat_online.train.run import make_collator


@pytest.fixture(scope="module")
def made(tiny_dir, tmp_path_factory):
    """A model, examples of every kind, and a collator."""
    folder = tmp_path_factory.mktemp("throughput")
    model = load_model(tiny_dir("qwen2"), device="cpu")
    registry = write_registry(folder, write_media(folder / "media"), mixed=mixed_rows())
    data = TrainingDataset(load_registries(str(registry)), tiny_encoder(model))
    return model, [data[number] for number in range(8)], make_collator(data.encoder, model.tokenizer)


@pytest.mark.parametrize("is_packed", [False, True])
def test_what_a_batch_holds(made, is_packed):
    model, examples, collator = made
    image = model.network.config.image_token_id
    batch = collator.pack([examples[:3], examples[3:]]) if is_packed else collator(examples)
    work = work_of(batch, image)
    lengths = [len(example) for example in examples]
    assert work.tokens == sum(lengths)
    assert work.slots == (sum(lengths) if is_packed else 8 * max(lengths))
    assert work.padding == pytest.approx(0 if is_packed else 1 - sum(lengths) / (8 * max(lengths)))
    assert work.visual_tokens == sum(example.input_ids.count(image) for example in examples)
    assert work.learned_tokens == sum(label >= 0 for example in examples for label in example.labels)
    assert work.pictures == sum(len(example.pool_ratios) for example in examples)
    assert (work.samples, work.squares) == (8, sum(length**2 for length in lengths))


@pytest.mark.parametrize(
    ("frozen", "llm"),
    [
        ((), "qwen2"),
        (("vision_tower",), "phi3"),
        (("vision_tower", "language_model"), "llama"),
        (("projector",), "qwen3"),
    ],
)
def test_operations_are_those_that_torch_counts(tiny_dir, made, frozen, llm):
    _, examples, collator = made
    model = load_model(tiny_dir(llm), device="cpu")
    network = model.network
    network.set_attn_implementation("eager")  # whose products of matrices are counted
    for part in frozen:
        network.get_submodule(part).requires_grad_(False)
    batch = collator([examples[0]])
    batch.pop(BATCH_REPORT)
    with FlopCounterMode(display=False) as counter:
        network(**normalised(batch)).loss.backward()
    work = work_of(batch, network.config.image_token_id)
    # Eager attention computes all scores, also those that a causal mask throws away.
    ours = FlopModel(network)(replace(work, squares=2 * work.squares))
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_figures_of_several_processes(made, monkeypatch):
    model, examples, collator = made
    monkeypatch.setattr(throughput, "peak_flops", lambda device: 1e9)
    clock = iter([0.0, 2.0, 12.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    account = Throughput(model.network, torch.device("cpu"))
    batch = collator(examples)
    work = work_of(batch, model.network.config.image_token_id)
    account.wait(7.0)  # before the first batch no time is counted
    account.add(batch)
    account.wait(0.5)
    account.add(batch)
    figures = account.take(lambda sums: 3 * sums)  # three processes alike
    assert figures["tokens_per_s"] == pytest.approx(3 * 2 * work.tokens / 2, rel=1e-3)
    assert figures["samples_per_s"] == pytest.approx(3 * 2 * 8 / 2, rel=1e-3)
    assert figures["padding"] == pytest.approx(work.padding, rel=1e-3)
    assert figures["mfu"] == pytest.approx(2 * FlopModel(model.network)(work) / 2 / 1e9, rel=1e-3)
    assert figures["data_wait"] == 0.5 / 2
    assert account.take(lambda sums: sums) | {"mfu": 0} == dict.fromkeys(figures, 0)


def test_the_peak_is_that_of_the_device(monkeypatch):
    assert throughput.peak_flops(torch.device("cpu")) is None
    for name, peak in (("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("Some other", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert throughput.peak_flops(torch.device("cuda:0")) == peak


def test_sums():
    assert Work(1, 2, 3, 4, 5, 6, 7) + Work(1, 1, 1, 1, 1, 1, 1) == Work(2, 3, 4, 5, 6, 7, 8)
    assert Work().padding == 0
