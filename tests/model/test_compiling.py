"""Compiled and quantised models: what they give is what the plain one gives, as far as they promise it."""

from __future__ import annotations

import pytest
import torch
from transformers import CompileConfig

from videochat_online.errors import InputError
from videochat_online.model import load_model
from videochat_online.model.compiling import FixedBatches
from videochat_online.streaming import GenerationSettings, StreamingSession

SETTINGS = GenerationSettings(max_new_tokens=6, min_new_tokens=6)


def answer(model, frames):
    session = StreamingSession(model, settings=SETTINGS)
    session.push(frames(3), range(3))
    return [session.ask("What?").text, session.ask("And now?").text]


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (2, [4]), (4, [4]), (5, [4, 1]), (7, [4, 4]), (9, [4, 4, 1])])
def test_batches_have_one_of_two_sizes(count, sizes):
    seen = []

    def encode(pixels_TCSS):
        seen.append(len(pixels_TCSS))
        return 2 * pixels_TCSS + pixels_TCSS.mean()  # a frame that is not there counts for nothing in a tower

    pixels_TCSS = torch.arange(count * 12, dtype=torch.float).reshape(count, 3, 2, 2)
    found = FixedBatches(lambda part: encode(part) - part.mean(), size=4)(pixels_TCSS)
    assert torch.equal(found, 2 * pixels_TCSS)
    assert seen == sizes


def test_compiled_parts_are_used_and_give_the_same(tiny_model, tiny_dir, frames, monkeypatch):
    """By backend "eager", which traces as any other does; `benchmark_streaming.py --compile` compares for real."""
    config = CompileConfig(dynamic=False, backend="eager", mode=None)
    # The compiler of a CPU takes minutes: the one that traces alone stands in for it.
    monkeypatch.setattr("videochat_online.model.compiling._compile_config", lambda device: config)
    model = load_model(tiny_dir(), device="cpu", compile="both")
    monkeypatch.setattr(model.network, "encode", None)  # only the compiled one is left
    for count in (1, 3, 9):
        torch.testing.assert_close(model.encode(frames(count)), tiny_model.encode(frames(count)), atol=1e-5, rtol=0)
    steps = []
    compiled = model.network.language_model.get_compiled_call
    monkeypatch.setattr(
        model.network.language_model, "get_compiled_call", lambda config: steps.append(config) or compiled(config)
    )
    assert answer(model, frames) == answer(tiny_model, frames)
    assert len(steps) >= 2 * (SETTINGS.max_new_tokens - 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_recorded_graphs_give_the_same(tiny_dir, frames):
    """What one batch or step leaves is not written over by the next; answers before and after a push."""
    plain, model = (load_model(tiny_dir(), device="cuda", dtype="float32", compile=part) for part in (None, "both"))
    found = [[each.encode(frames(count)) for count in (1, 8, 1, 3)] for each in (plain, model)]
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)
    assert answer(model, frames) == answer(plain, frames)


def test_a_static_cache_gives_the_same(tiny_model, tiny_dir, frames):
    model = load_model(tiny_dir(), device="cpu", cache="static")
    assert answer(model, frames) == answer(tiny_model, frames)
    assert model.network.language_model.generation_config.cache_implementation == "static"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": "all"}, "compile: expected one of vision, language, both, got 'all'"),
        ({"int8": "8bit"}, "int8: expected one of vision, language, both, got '8bit'"),
        ({"cache": "huge"}, "cache: expected one of dynamic, static, got 'huge'"),
        ({"int8": "both", "quantization": "4bit"}, "for the language model, got 4bit and both"),
        (
            {"compile": "both", "attn_implementation": "flash_attention_2"},
            "compile 'both': expected attn_implementation sdpa or eager",
        ),
    ],
)
def test_options_that_cannot_be_met(tiny_dir, options, message):
    with pytest.raises(InputError, match=message):
        load_model(tiny_dir(), device="cpu", **options)


@pytest.fixture
def weights_stay_closed(monkeypatch):
    monkeypatch.delattr("videochat_online.model.backbones.internvl.load_network")


def test_without_a_compiler(tiny_dir, monkeypatch, weights_stay_closed):
    monkeypatch.setattr("videochat_online.model.compiling.shutil.which", lambda name: None)
    for part in ("vision", "language"):
        with pytest.raises(InputError, match=r"compile: needs a C\+\+ compiler, found neither g\+\+ nor clang"):
            load_model(tiny_dir(), device="cpu", compile=part)


def test_without_torchao(tiny_dir, monkeypatch, weights_stay_closed):
    monkeypatch.setattr("videochat_online.extras.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"expected torchao, which is not installed: pip install '.*\[int8\]'"):
        load_model(tiny_dir(), device="cpu", int8="language")


@pytest.mark.parametrize("part", ["vision", "language", "both"])
def test_weights_in_8_bits_differ_a_little(tiny_model, tiny_dir, frames, tmp_path, part):
    pytest.importorskip("torchao", reason="the extra `int8` is not installed")
    model = load_model(tiny_dir(), device="cpu", int8=part)
    plain, found = (each.encode(frames(2)) for each in (tiny_model, model))
    assert torch.equal(plain, found) == (part == "language")
    torch.testing.assert_close(found, plain, atol=0.15 * float(plain.std()), rtol=0)
    ids = torch.arange(5, 60)[None]
    with torch.inference_mode():
        plain, found = (each.network.language_model(input_ids=ids).logits for each in (tiny_model, model))
    assert torch.equal(plain, found) == (part == "vision")
    torch.testing.assert_close(found, plain, atol=0.15 * float(plain.std()), rtol=0)
    assert len(answer(model, frames)) == 2
    kinds = {name: type(parameter).__name__ for name, parameter in model.network.named_parameters()}
    assert kinds["projector.linear_1.weight"] == kinds["language_model.lm_head.weight"] == "Parameter"
    with pytest.raises(InputError, match="cannot be saved: load the model without `int8`"):
        model.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
