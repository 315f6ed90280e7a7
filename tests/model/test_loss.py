"""The loss in chunks against transformers' own, computed from all logits."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from types import MethodType

import pytest
import torch
from peft import LoraConfig, LoraModel
from torch.nn.functional import cross_entropy

from train_cases import ROOT, environment, flags, launch, losses, mixed_rows, write_media, write_registry
from videochat_online.model import VideoChatOnlineConfig, VideoChatOnlineForConditionalGeneration
from videochat_online.model.loss import NUM_CHUNKS, HeadFinder, chunked_loss, score_tokens
from videochat_online.testing import tiny_config
from videochat_online.train import parse_arguments, train

WORDS, IMAGE = 61, 7
KINDS = {
    "phi3": {},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {"final_logit_softcapping": 0.5, "head_dim": 16, "query_pre_attn_scalar": 16},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.3},
    "minicpm3": {"num_key_value_heads": 4},
    "falcon_h1": {
        "num_hidden_layers": 1,
        "lm_head_multiplier": 0.2,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
    },
    "gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "mixtral": {"num_local_experts": 2},
}
"""What stands between hidden states and logits: nothing, soft-capping, scaling after the head, or before it."""


def make_network(kind="phi3", **changes):
    torch.manual_seed(0)
    config = tiny_config("phi3" if kind == "phi3" else "llama", WORDS, 112).to_dict()
    text = {k: v for k, v in config["text_config"].items() if kind == "phi3" or not k.startswith(("rope", "original"))}
    text |= {"model_type": kind} | KINDS.get(kind, {}) | changes
    vision = config["vision_config"]
    network = VideoChatOnlineForConditionalGeneration(
        VideoChatOnlineConfig(text_config=text, vision_config=vision, image_size=112, dtype="float32")
    )
    network.config.image_token_id = IMAGE
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.train()


def make_batch(layout="padded", learned=0.6):
    """A frame and two texts: padded on the right, on the left, or packed into a row."""
    draw = torch.Generator().manual_seed(1)
    first = torch.cat((torch.tensor([1] + [IMAGE] * 16), torch.randint(10, WORDS, (20,), generator=draw)))
    second = torch.randint(10, WORDS, (11,), generator=draw)
    batch = {"pixel_values": torch.randn(1, 3, 112, 112, generator=draw)}
    if layout == "packed":
        ids = torch.cat((first, second))[None]
        batch["position_ids"] = torch.cat((torch.arange(len(first)), torch.arange(len(second))))[None]
    else:
        gap = torch.zeros(len(first) - len(second), dtype=torch.long)
        rows = (second, gap) if layout == "padded" else (gap, second)
        ids = torch.stack((first, torch.cat(rows)))
        batch["attention_mask"] = (ids != 0).long()
    is_learned = (torch.rand(ids.shape, generator=draw) < learned) & (ids > IMAGE)
    return batch | {"input_ids": ids, "labels": ids.masked_fill(~is_learned, -100)}


def gradients(network, **inputs):
    """Loss, and gradients of all that learns. Asking for logits is asking for the plain way."""
    network.zero_grad()
    output = network(**inputs)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def assert_same(network, bound=1e-6, **inputs):
    output, ours = gradients(network, **inputs)
    assert output.logits is None
    plain, theirs = gradients(network, **inputs, logits_to_keep=0)
    assert plain.logits is not None
    assert ours.keys() == theirs.keys()
    assert output.loss.item() == pytest.approx(plain.loss.item(), rel=bound)
    whole = math.hypot(*(float(g.norm()) for g in theirs.values()))
    assert whole > 1e-3
    for name, gradient in theirs.items():
        allowed = bound * (float(gradient.norm()) + 0.1 * whole)
        assert float((ours[name] - gradient).norm()) <= allowed, name
    assert math.hypot(*(float((ours[n] - g).norm()) for n, g in theirs.items())) <= bound * whole


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_plain_loss_of_any_kind_of_language_model(kind):
    assert_same(make_network(kind), **make_batch())


@pytest.mark.parametrize("num_items", [None, 7, torch.tensor(40)])
@pytest.mark.parametrize("layout", ["padded", "left", "packed"])
def test_equals_the_plain_loss_of_any_batch(layout, num_items):
    more = {} if num_items is None else {"num_items_in_batch": num_items}
    assert_same(make_network(), **make_batch(layout), **more)


@pytest.mark.parametrize("learns", ["projector", "adapters", "checkpointing"])
def test_equals_the_plain_loss_whatever_learns(learns):
    network = make_network()
    if learns == "projector":
        network.language_model.requires_grad_(False)
    elif learns == "adapters":
        targets = ["qkv_proj", "lm_head"]
        LoraModel(network, LoraConfig(r=2, target_modules=targets, init_lora_weights=False), "default")
    else:
        network.activation_checkpointing_enable()
    assert_same(network, **make_batch("packed"))


def test_dropout_of_an_adapted_head_is_drawn_once():
    network = make_network()
    config = LoraConfig(r=2, target_modules=["lm_head"], lora_dropout=0.5, init_lora_weights=False)
    LoraModel(network, config, "default")
    weight = network.language_model.lm_head.lora_B["default"].weight
    batch, values = make_batch(), []
    step = torch.randn_like(weight)
    for size in (0.0, 1e-2, -2e-2):
        weight.data += size * step
        torch.manual_seed(3)
        output, grads = gradients(network, **batch)
        values.append((output.loss.item(), grads["language_model.lm_head.lora_B.default.weight"]))
    slope = (values[1][0] - values[2][0]) / 2e-2
    assert float((values[0][1] * step).sum()) == pytest.approx(slope, rel=0.01)


def test_precision_under_autocast():
    network, batch = make_network(), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        (output, ours), (plain, theirs) = gradients(network, **batch), gradients(network, **batch, logits_to_keep=0)
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(plain.loss.item(), rel=1e-5)
    whole = math.hypot(*(float(g.norm()) for g in theirs.values()))
    assert math.hypot(*(float((ours[n] - g).norm()) for n, g in theirs.items())) <= 5e-3 * whole


@pytest.mark.parametrize("learned", [0.0, 0.05, 1.0])
def test_calls_of_the_head_do_not_depend_on_the_data(learned):
    network, batch = make_network(), make_batch("packed", learned)
    rows = []
    network.language_model.lm_head.register_forward_hook(lambda m, inputs, output: rows.append(output.shape[-2]))
    output, grads = gradients(network, **batch)
    num = int((batch["labels"][:, 1:] != -100).sum())
    assert len(rows) == 2 * NUM_CHUNKS  # each computed again on the way back
    assert max(rows) == math.ceil(num / NUM_CHUNKS)
    assert sum(rows) == 2 * num
    if not learned:
        assert output.loss == 0
        names = {name for name, _ in network.named_parameters()} - {"vision_tower.embeddings.mask_token"}
        assert grads.keys() == names
        assert not any(g.any() for g in grads.values())


def test_who_asks_for_logits_gets_them():
    network, batch = make_network(), make_batch()
    labels = batch.pop("labels")
    assert network(**batch).logits.shape == (2, 37, WORDS)  # label smoothing takes the labels away
    assert network(**batch, labels=labels, output_hidden_states=True).logits.shape == (2, 37, WORDS)
    assert network.eval()(**batch, labels=labels).logits.shape == (2, 37, WORDS)


def test_a_loss_of_its_own_is_left_to_the_language_model():
    network, batch = make_network("mixtral"), make_batch()
    assert network(**batch).logits is None
    without = network(**batch).loss.item()
    network.language_model.config.output_router_logits = True
    network.language_model.router_aux_loss_coef = 1.0
    output = network(**batch)
    assert output.logits is not None
    assert output.loss.item() > without + 0.1


def test_another_loss_function_or_forward_pass_is_left_alone():
    network, batch = make_network(), make_batch()
    network.language_model.loss_function = lambda logits, labels, vocab_size, **kwargs: logits.sum() * 0 + 5
    assert network(**batch).loss == 5
    network = make_network()
    network.language_model.forward = MethodType(lambda self, **inputs: sorted(inputs), network.language_model)
    assert "labels" in network(**batch)


def test_tops_that_cannot_be_split_off():
    """The head looks at other tokens, at a mask, or its logits are not all of the loss."""
    base = type(make_network().language_model)

    class Mixing(base):
        def forward(self, *arguments, **options):
            output = super().forward(*arguments, **options)
            output.logits = output.logits + output.logits.cumsum(1)
            return output

    class Masking(base):
        def forward(self, attention_mask=None, **options):
            output = super().forward(attention_mask=attention_mask, **options)
            if attention_mask is not None:
                output.logits = output.logits * attention_mask[..., None]
            return output

    class Adding(base):
        def forward(self, labels=None, **options):
            output = super().forward(labels=labels, **options)
            if labels is not None:
                output.loss = output.loss + 1e-4 * output.logits.logsumexp(-1).square().mean()
            return output

    class Rescaling(base):
        def forward(self, inputs_embeds=None, **options):
            return super().forward(inputs_embeds=inputs_embeds * 2, **options)

    for changed in (base, Mixing, Masking, Adding, Rescaling):
        language_model = changed(make_network().language_model.config)
        assert (HeadFinder().find(language_model) is None) == (changed is not base), changed


@pytest.mark.parametrize(("kind", "layout"), [("gemma2", "padded"), ("gemma2", "packed"), ("opt", "left")])
def test_scores_are_those_of_all_logits(kind, layout):
    more = {"word_embed_proj_dim": 64, "ffn_dim": 128} if kind == "opt" else {}
    network, batch = make_network(kind, **more).eval(), make_batch(layout)
    scores = network.score(**batch)
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = network(**batch, use_cache=False).logits[:, :-1]
    expected = cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(1)
    torch.testing.assert_close(scores.loss_sum, expected)
    assert scores.num_right.tolist() == ((logits.argmax(-1) == labels) & (labels != -100)).sum(1).tolist()
    assert scores.num_tokens.tolist() == (labels != -100).sum(1).tolist()
    assert not scores.loss_sum.requires_grad


def test_a_token_that_is_foreseen_is_right():
    labels = torch.tensor([[3, 1, -100, 2], [-100, -100, -100, -100]])
    logits = 20 * torch.nn.functional.one_hot(torch.tensor([[1, 0, 2, 0]] * 2), 5).float()
    scores = score_tokens(lambda x: x, logits, labels)
    assert (scores.num_right.tolist(), scores.num_tokens.tolist()) == ([2, 0], [2, 0])
    assert scores.loss_sum.tolist() == pytest.approx([0, 0], abs=1e-6)
    assert chunked_loss(lambda x: x, logits, labels).item() == pytest.approx(0, abs=1e-6)


def test_two_processes_under_zero3_equal_one(tmp_path, tiny_dir):
    registry = write_registry(tmp_path / "registry", write_media(tmp_path / "media"), mixed=mixed_rows())
    keys = {"model_name_or_path": tiny_dir("qwen2"), "meta_path": registry, "max_steps": 2, "packing_tokens": 200}
    one = train(parse_arguments(None, flags(**keys, output_dir=tmp_path / "one")))
    two = keys | {
        "output_dir": tmp_path / "two",
        "per_device_train_batch_size": 1,
        "deepspeed": ROOT / "configs/deepspeed/zero3.json",
    }
    done = launch(flags(**two), processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert losses(report) == pytest.approx(losses(one), abs=2e-6)


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("liger_kernel", "triton")),
    reason="liger-kernel and triton are not installed",
)
def test_ligers_loss_takes_precedence_and_is_the_same(tmp_path, tiny_dir):
    """On the CPU, by Triton's interpreter."""
    registry = write_registry(tmp_path / "registry", write_media(tmp_path / "media"), mixed=mixed_rows())
    keys = {"model_name_or_path": tiny_dir("qwen2"), "meta_path": registry, "max_steps": 2}
    ours = train(parse_arguments(None, flags(**keys, output_dir=tmp_path / "ours")))
    kernels = dict.fromkeys(("rope", "rms_norm", "swiglu", "cross_entropy"), False) | {
        "fused_linear_cross_entropy": True
    }
    options = {"use_liger_kernel": True, "liger_kernel_config": json.dumps(kernels)}
    command = [
        sys.executable,
        ROOT / "tests/helpers/train_cases.py",
        *flags(**keys, **options, output_dir=tmp_path / "liger"),
    ]
    # Not forked: what has imported Triton without its interpreter cannot use it.
    path = {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment() | path)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "liger" / "report.json").read_text())
    assert losses(report) == pytest.approx(losses(ours), rel=1e-5)
