"""New checkpoints from a language model and a vision tower."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from random_networks import random_network
from text_tokenizers import CHATML, MISTRAL, tokenizer_with
from videochat_online.cli.main import main
from videochat_online.errors import CheckpointError, InputError
from videochat_online.model import export_original, load_model
from videochat_online.model.checkpoints.assembling import assemble
from videochat_online.model.checkpoints.original import PREFIXES
from videochat_online.streaming import GenerationSettings, ImageChat
from videochat_online.text import load_tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
KINDS = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16},
    "olmo2": {"num_key_value_heads": 2},
    "gpt_neox": {},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8},
}


@pytest.fixture(scope="module")
def language_models(tmp_path_factory):
    """A folder of each kind, made once."""
    made = {}

    def folder(kind):
        if kind not in made:
            tokenizer = tokenizer_with(CHATML)  # its template does not write the token that it begins texts with
            made[kind] = tmp_path_factory.mktemp(kind)
            config = AutoConfig.for_model(kind, **SIZES, **KINDS[kind], vocab_size=len(tokenizer) - 3)
            config.vocab_size = len(tokenizer)
            torch.manual_seed(3)
            AutoModelForCausalLM.from_config(config).save_pretrained(made[kind])
            tokenizer.save_pretrained(made[kind])
        return made[kind]

    return folder


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    network = random_network().float()
    path = tmp_path_factory.mktemp("tower")
    network.save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_answered_as_by_the_language_model_alone(tmp_path, language_models, tower, kind):
    folder = language_models(kind)
    arguments = ["--language_model", folder, "--vision_tower", tower, "--output", tmp_path / "out"]
    assert main(["assemble", *map(str, arguments)]) == 0
    model = load_model(tmp_path / "out", device="cpu")
    alone = AutoModelForCausalLM.from_pretrained(folder).eval()
    chat = ImageChat(model, settings=GenerationSettings(max_new_tokens=8))
    for question in ("What is it?", "And now?"):
        ids = chat.prepare(question).layout.input_ids
        with torch.inference_mode():
            found = alone.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
        end = model.stop_ids[0]
        found = found[: found.index(end)] if end in found else found
        assert chat.ask(question) == model.tokenizer.decode(found, skip_special_tokens=True).strip()
    if kind == "llama":  # its template, which has no name, in the layout of others
        assert main(["convert", str(tmp_path / "out"), str(tmp_path / "hf"), "--format", "hf"]) == 0
        assert load_model(tmp_path / "hf").template == model.template
    written = (tmp_path / "out/config.json").read_text()
    assert str(folder) not in written


def bare_tower(network, folder, kind):
    """An InternViT by itself, in the published layout or in transformers'."""
    if kind == "internvl_vision":
        network.vision_tower.save_pretrained(folder)
        return
    export_original(network, folder)
    config = json.loads((folder / "config.json").read_text())["vision_config"]
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    prefix = PREFIXES[1][0]
    alone = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    save_file(alone, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["intern_vit_6b", "internvl_vision"])
def test_a_tower_by_itself(tmp_path, language_models, kind):
    network = random_network().float()
    bare_tower(network, tmp_path / "tower", kind)
    made, _ = assemble(language_models("llama"), tmp_path / "tower")
    expected = network.vision_tower.state_dict()
    found = made.vision_tower.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_same_seed_gives_the_same_projector(language_models, tower):
    before = torch.random.get_rng_state()
    one, two, other = (assemble(language_models("llama"), tower, seed=seed)[0].projector for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.linear_1.weight, two.linear_1.weight)
    assert not torch.equal(one.linear_1.weight, other.linear_1.weight)


def test_bad_input(tmp_path, language_models, tower, capsys):
    llama = language_models("llama")
    for model, vision, error, found in (
        (tmp_path / "none", tower, CheckpointError, "none: expected a language model's directory"),
        (tmp_path / "x.gguf", tower, CheckpointError, "x.gguf: expected a language model's directory"),
        (tower, tower, CheckpointError, "expected a causal language model of transformers"),
        (llama, llama, CheckpointError, "model_type is 'llama'"),
        (llama, tmp_path / "none", CheckpointError, "none"),
    ):
        with pytest.raises(error, match="expected") as raised:
            assemble(model, vision)
        assert found in str(raised.value)
    with pytest.raises(InputError, match="unknown template 'none': expected one of"):
        assemble(llama, tower, template="none")
    network = random_network().float()
    bare_tower(network, tmp_path / "cut", "internvl_vision")
    state = load_file(tmp_path / "cut/model.safetensors")
    state["embeddings.cls_token"] = torch.zeros(1, 1, 3)
    save_file(state, tmp_path / "cut/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="cls_token has shape"):
        assemble(llama, tmp_path / "cut")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    arguments = ["--language_model", llama, "--vision_tower", tower, "--output", tmp_path / "full"]
    assert main(["assemble", *map(str, arguments)]) == 2
    assert "expected a new or empty directory" in capsys.readouterr().err


def test_a_checkpoint_is_asked_and_saved_with_the_template_of_its_tokenizer(tmp_path, language_models, tower):
    """The tokenizer begins texts with a token that its template does not write, and ours leaves to the tokenizer."""
    network, tokenizer = assemble(language_models("llama"), tower, template="chatml")
    network.save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is it?"}], add_generation_prompt=True, return_dict=False
    )
    own = load_model(tmp_path / "out", device="cpu", template="own")
    own.save_pretrained(tmp_path / "saved")
    for model in (own, load_model(tmp_path / "saved", device="cpu")):
        assert list(ImageChat(model).prepare("What is it?").layout.input_ids) == expected
        assert model.template.name == "own"
    named = load_model(tmp_path / "out", device="cpu")
    assert list(ImageChat(named).prepare("What is it?").layout.input_ids) == [tokenizer.bos_token_id, *expected]


def changed(folder, path, **entries):
    """A copy of a language model's folder with other generation settings."""
    shutil.copytree(folder, path)
    (path / "generation_config.json").write_text(json.dumps(entries))
    return path


def test_an_answer_ends_where_the_language_model_ends_one(tmp_path, language_models, tower):
    folder = language_models("llama")
    tokenizer = load_tokenizer(folder)
    end, other = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|eot|>"])
    network, tokenizer = assemble(changed(folder, tmp_path / "llm", eos_token_id=[other, end]), tower)
    network.save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    assert load_model(tmp_path / "out", device="cpu").stop_ids == (end, other)


def test_ids_that_were_never_embedded_start_at_the_mean(tmp_path, language_models, tower):
    folder = shutil.copytree(language_models("llama"), tmp_path / "llm")
    tokenizer = load_tokenizer(folder)
    size = len(tokenizer)
    tokenizer.add_tokens(["[PAD]"], special_tokens=True)
    state = json.loads((folder / "tokenizer.json").read_text())
    names = [token["content"] for token in state["added_tokens"]]
    assert "<IMG_CONTEXT>" in names  # so that nothing is added, which is refused
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="embeds only"):
        assemble(folder, tower)
    text = (folder / "tokenizer.json").read_text().replace("<IMG_CONTEXT>", "<OTHER>")
    (folder / "tokenizer.json").write_text(text)
    (folder / "tokenizer_config.json").write_text(
        (folder / "tokenizer_config.json").read_text().replace("<IMG_CONTEXT>", "<OTHER>")
    )
    network, tokenizer = assemble(folder, tower)
    rows = network.get_input_embeddings().weight
    assert len(rows) == len(tokenizer) == size + 2
    assert torch.allclose(rows[size:], rows[:size].mean(dim=0), atol=1e-6)


@pytest.mark.parametrize(("kind", "found"), [("mamba", "recurrent"), ("bloom", "max_position_embeddings")])
def test_language_models_that_cannot_go_on(tmp_path, tower, kind, found):
    tokenizer = tokenizer_with(CHATML, adds_bos=False)
    config = AutoConfig.for_model(kind, hidden_size=32, num_hidden_layers=1, vocab_size=len(tokenizer), n_head=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=found):
        assemble(tmp_path, tower)


@pytest.mark.parametrize(("name", "found"), [("none", "nothing"), ("a.txt", "a file"), ("", "a directory without one")])
def test_places_that_hold_no_language_model(tmp_path, tower, name, found):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match="image_size: expected a multiple of .* pixels, two patches, found 113"):
        assemble(tmp_path / name, tower, image_size=113)
    with pytest.raises(CheckpointError, match=f"expected a language model's directory.*, found {found}$"):
        assemble(tmp_path / name, tower)
    with pytest.raises(
        CheckpointError, match=r"found ValueError: Unrecognized configuration class[^:]*: AutoModelFor\w+\.$"
    ):
        assemble(tower, tower)


def test_nothing_stays_of_what_fails(tmp_path, language_models, tower, capsys, monkeypatch):
    llama = language_models("llama")
    arguments = ["assemble", "--language_model", str(llama), "--vision_tower", str(tower), "--output"]
    assert main([*arguments, str(tower / "inside")]) == 2
    assert "expected a directory outside" in capsys.readouterr().err
    assert not (tower / "inside").exists()

    def fail(*_):
        raise InputError("a full disk")

    monkeypatch.setattr("videochat_online.cli.assemble.share_files", fail)
    assert main([*arguments, str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    source = MISTRAL
    folder = shutil.copytree(llama, tmp_path / "llm")
    tokenizer_with(source).save_pretrained(folder)
    with pytest.raises(InputError, match="system message: expected none"):
        assemble(folder, tower, system_message="Be brief.")
