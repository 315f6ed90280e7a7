"""The way through FlashAttention, with a stand-in for its kernels, against sdpa: towers, padding, packs, training."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
import torch

import flash_attn_stub
from train_cases import flags, losses, mixed_rows, state, write_media, write_registry
from videochat_online.model import load_network
from videochat_online.model.backbones.internvl import InternVL
from videochat_online.streaming import GenerationSettings, StreamingSession
from videochat_online.train import parse_arguments, train
from videochat_online.train.setup import model_setup

IMAGE = 7


@pytest.fixture
def calls(monkeypatch):
    """FlashAttention is there; what it is called for."""
    with flash_attn_stub.installed(monkeypatch) as made:
        yield made


@pytest.fixture(params=["phi3", "qwen2"])
def networks(request, tiny_dir, calls):
    """The same weights with sdpa and with FlashAttention; qwen2 has fewer key heads than heads."""
    pair = []
    for attention in ("sdpa", "flash_attention_2"):
        network = load_network(tiny_dir(request.param), attn_implementation=attention).train()
        network.config.image_token_id = IMAGE
        pair.append(network)
    return pair


def gradients(network, **inputs):
    network.zero_grad()
    loss = network(**inputs).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def assert_same_gradients(networks, **inputs):
    (expected, theirs), (loss, ours) = (gradients(network, **inputs) for network in networks)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert ours.keys() == theirs.keys()
    whole = torch.stack([g.norm() for g in theirs.values()]).norm()
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).norm()) <= 1e-6 * float(gradient.norm() + whole), name


def packed(lengths):
    ids = torch.randint(10, 400, (1, sum(lengths)), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[0, [0, *accumulate(lengths)][:-1]] = -100  # as the collator: nobody learns another's first token
    return {"input_ids": ids, "labels": labels, "position_ids": torch.cat([torch.arange(n) for n in lengths])[None]}


def test_the_stand_in_aligns_rows_at_their_ends():
    q, k = torch.randn(1, 2, 4, 8), torch.randn(1, 5, 2, 8)
    ours = flash_attn_stub.flash_attn_func(q, k, k, causal=True)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, k)), attn_mask=mask, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(ours, expected)
    near = flash_attn_stub.flash_attn_func(q, k, k, causal=True, window_size=(1, 1))
    mask &= torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]).bool()
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, k)), attn_mask=mask, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(near, expected)


def test_the_vision_tower_sees_whole_frames(networks, calls):
    pixels = torch.randn(2, 3, 112, 112)
    expected, ours = (network.encode(pixels) for network in networks)
    assert {name for name, *_ in calls} == {"rows"}
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_attended_to(networks, calls, side):
    ids = torch.randint(10, 400, (2, 12), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, slice(0, 5) if side == "left" else slice(7, 12)] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[1, 5 if side == "left" else 0] = -100
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        expected, ours = (network(**inputs).logits[mask.bool()] for network in networks)
    assert calls[-1] == ("borders", 19, (0, 12, 19))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(networks, **inputs, labels=labels)


@pytest.mark.parametrize("lengths", [(13, 20, 7), (1, 39), (38, 1, 1), (40,)])
def test_packed_rows_do_not_attend_to_each_other(networks, calls, lengths):
    sdpa, flash = networks
    batch = packed(lengths)
    assert_same_gradients(networks, **batch)
    borders = (0, *accumulate(lengths))
    expected = ("borders", 40, borders) if len(lengths) > 1 else ("rows", 40, ())
    assert set(calls) == {expected}
    labels = batch.pop("labels")
    with torch.no_grad():
        ours = flash(**batch, use_cache=False).logits[0]
        alone = [sdpa(row, use_cache=False).logits[0] for row in batch["input_ids"].split(lengths, dim=1)]
        torch.testing.assert_close(ours, torch.cat(alone), rtol=1e-5, atol=1e-5)
        scores = [network.score(**batch, labels=labels).loss_sum for network in networks]
        torch.testing.assert_close(*scores, rtol=1e-6, atol=0)


def test_checkpointing_computes_the_same_again(networks):
    for network in networks:
        network.activation_checkpointing_enable()
    batch = packed((20, 19))
    batch["input_ids"][0, 2:18] = IMAGE
    batch["labels"][0, 2:18] = -100
    assert_same_gradients(networks, **batch, pixel_values=torch.randn(1, 3, 112, 112))


def test_a_session_answers_alike(tiny_model, tiny_dir, frames, calls):
    network = load_network(tiny_dir("phi3"), attn_implementation="flash_attention_2").eval()
    network.config.image_token_id = tiny_model.config.image_token_id
    answers = []
    for model in (tiny_model, replace(tiny_model, backbone=InternVL(network))):
        session = StreamingSession(model, settings=GenerationSettings(max_new_tokens=6, min_new_tokens=6))
        session.push(frames(6), [float(t) for t in range(6)])
        answers.append([session.ask(question).text for question in ("What happens?", "And then?")])
    assert answers[0] == answers[1]
    assert any(num == 1 for _, num, _ in calls)  # a step of one token, all others from the cache


def test_a_training_step_on_packs(tiny_dir, tmp_path, calls, monkeypatch):
    registry = write_registry(tmp_path / "registry", write_media(tmp_path / "media"), mixed=mixed_rows())
    keys = {"model_name_or_path": tiny_dir("qwen2"), "meta_path": registry, "packing_tokens": 300, "max_steps": 1}
    found = []
    for attention in ("sdpa", "flash_attention_2"):
        monkeypatch.setattr(model_setup, "_attention", lambda *arguments, name=attention: name)
        calls.clear()
        report = train(parse_arguments(None, flags(**keys, output_dir=tmp_path / attention)))
        found.append((losses(report), state(tmp_path / attention)))
    assert any(len(borders) > 2 for _, _, borders in calls)
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    for name, weight in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], weight, rtol=0, atol=1e-4)
