"""transformers' own InternVL: exports are read by it alone, and its checkpoints by us as it reads them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    pipeline,
)
from transformers.video_processing_utils import BaseVideoProcessor

from random_networks import edit, random_network
from text_tokenizers import IM_MARKERS, NAMED_TEMPLATES, PHI3_MARKERS, write_sentencepiece_directory
from videochat_online.cli.main import main
from videochat_online.errors import CheckpointError, InputError
from videochat_online.model import VideoChatOnlineForConditionalGeneration, load_model, load_network
from videochat_online.model.checkpoints.checkpoint import write_state
from videochat_online.model.checkpoints.hf_export import check_export, probe_logits, text_side
from videochat_online.model.checkpoints.hf_layout import hf_config, to_hf_state
from videochat_online.streaming import GenerationSettings, ImageChat
from videochat_online.testing import LLMS
from videochat_online.text import get_template, load_tokenizer
from videochat_online.text.chat_jinja import jinja_template
from videochat_online.text.tokenizer_json import PLAIN_TEXTS
from videochat_online.types import Turn


class ImagesOnly(InternVLProcessor):
    """What AutoProcessor gives, without torchvision: transformers' video processors cannot be made without it."""

    @classmethod
    def read(cls, folder: Path) -> ImagesOnly:
        return cls(
            image_processor=AutoImageProcessor.from_pretrained(folder),
            tokenizer=AutoTokenizer.from_pretrained(folder),
            video_processor=object.__new__(BaseVideoProcessor),
            image_seq_length=json.loads((folder / "processor_config.json").read_text())["image_seq_length"],
            chat_template=(folder / "chat_template.jinja").read_text(),
        )

    def check_argument_for_proper_class(self, argument_name, argument):
        return type(argument)


def facts(model):
    """A configuration but for where it lies and what its class was called."""
    config = model.config.to_dict()
    return {key: value for key, value in config.items() if key not in ("_name_or_path", "architectures")}


def convert(source, destination, layout="hf", *more):
    return main(["convert", str(source), str(destination), "--format", layout, *more])


@pytest.fixture(scope="module")
def exported(tiny_dir, tmp_path_factory):
    """Exports of the tiny models by language model."""
    folder = tmp_path_factory.mktemp("hf")
    made = {}

    def export(llm="phi3"):
        if llm not in made:
            made[llm] = folder / llm
            assert convert(tiny_dir(llm), made[llm]) == 0
        return made[llm]

    return export


def picture(width=112, height=112, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def asking(image, text="What is this?"):
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]


@pytest.mark.parametrize("llm", LLMS)
def test_there_and_back(exported, tiny_dir, llm):
    source, export = (load_model(folder) for folder in (tiny_dir(llm), exported(llm)))
    assert facts(source) == facts(export)
    expected, found = source.network.state_dict(), export.network.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in found)


def test_from_there_to_the_native_layout(exported, tiny_dir, tmp_path):
    assert convert(exported(), tmp_path / "native", "native") == 0
    first, second = (load_file(folder / "model.safetensors") for folder in (tiny_dir(), tmp_path / "native"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert facts(load_model(tmp_path / "native")) == facts(load_model(tiny_dir()))


def test_facts_without_a_word_in_that_layout_come_back(tiny_dir, tmp_path):
    shutil.copytree(tiny_dir("qwen2"), tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    changes = {
        "memory_intervals": [6, 2], "image_size": 56, "drop_path_rate": 0.1, "max_dynamic_patch": 5,
        "dynamic_image_size": False, "use_thumbnail": False, "select_layer": -2, "projector_hidden_act": "relu",
        "system_message": "It's \"a\" {{ test }} {% x %}\\n\n世界 😀",
    }  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert convert(tmp_path / "source", tmp_path / "hf") == 0  # the dialogues with that system message are compared
    assert facts(load_model(tmp_path / "hf")) == facts(load_model(tmp_path / "source"))
    theirs = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (theirs["image_seq_length"], theirs["vision_feature_layer"]) == (4, -2)
    assert json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())["max_patches"] == 1


@pytest.mark.parametrize("llm", ["phi3", "qwen2"])
def test_transformers_own_class_pixels_and_prompt_are_ours(exported, tiny_dir, llm):
    """One untiled image and a chat message: pixels, ids, logits, and the answer."""
    model, processor = load_model(tiny_dir(llm)), ImagesOnly.read(exported(llm))
    image = picture(80, 60)
    inputs = processor.apply_chat_template(
        asking(image), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"images_kwargs": {"crop_to_patches": False}},
    )  # fmt: skip
    assert torch.equal(inputs["pixel_values"], model.transform.image(image))
    model.config.dynamic_image_size = False
    chat = ImageChat(model, [image], GenerationSettings(max_new_tokens=6))
    assert list(chat.prepare("What is this?").layout.input_ids) == inputs["input_ids"][0].tolist()
    theirs = InternVLForConditionalGeneration.from_pretrained(exported(llm)).eval()
    with torch.no_grad():
        expected = model.network(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits
        torch.testing.assert_close(theirs(**inputs).logits, expected, atol=1e-5, rtol=0)
    answer = theirs.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(answer, skip_special_tokens=True).strip() == chat.ask("What is this?")


def test_pipeline_tiles_and_stops_as_we_do(exported, tiny_dir):
    processor = ImagesOnly.read(exported())
    for name, token in (("start_image", "<img>"), ("end_image", "</img>"), ("context_image", "<IMG_CONTEXT>")):
        assert getattr(processor.tokenizer, f"{name}_token") == token
        assert getattr(processor.tokenizer, f"{name}_token_id") == processor.tokenizer.get_vocab()[token]
    model = load_model(tiny_dir())
    assert (GenerationConfig.from_pretrained(exported()).eos_token_id,) == model.stop_ids
    images = [picture(300, 100), picture(90, 90)]
    chat = ImageChat(model, images, GenerationSettings(max_new_tokens=4))
    message = asking(images[0], "Which?")[0]
    message["content"].insert(1, {"type": "image", "image": images[1]})
    inputs = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=True, return_dict=True)
    assert list(chat.prepare("Which?").layout.input_ids) == inputs["input_ids"][0]
    pipe = pipeline(
        "image-text-to-text", model=AutoModelForImageTextToText.from_pretrained(exported()), processor=processor
    )
    answer = pipe(text=[message], max_new_tokens=4, return_full_text=False)[0]["generated_text"]
    assert answer.strip() == chat.ask("Which?")


def test_longrope_has_the_same_regime_on_both_sides_of_its_threshold(tmp_path):
    config = random_network("phi3").config
    config.text_config.original_max_position_embeddings = 32
    config.text_config.rope_parameters["original_max_position_embeddings"] = 32
    torch.manual_seed(0)
    ours = VideoChatOnlineForConditionalGeneration(config).eval()
    write_state(to_hf_state(ours.state_dict()), hf_config(config, 7), tmp_path)
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    last = []
    for length in (32, 33):
        ids = torch.randint(64, (1, length), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits = [network(input_ids=ids, use_cache=False).logits for network in (ours, theirs)]
        torch.testing.assert_close(*logits, atol=1e-5, rtol=0)
        last.append(logits[0][:, :32])
    assert (last[0] - last[1]).abs().max() > 1e-3, "the regimes are to differ"


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ps_version": "v1"}, "ps_version 'v1': transformers' InternVL knows no such thing"),
            ({"pad2square": True}, "pad2square True"),
            ({"use_thumbnail": False}, "use_thumbnail False"),
            ({"template": "Hermes-2"}, r"'Hermes-2': expected '<\|im_end\|>' to be a token"),
        ],
    )
    def test_what_that_layout_cannot_say(self, tiny_dir, tmp_path, capsys, change, message):
        shutil.copytree(tiny_dir(), tmp_path / "source")
        path = tmp_path / "source" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        assert convert(tmp_path / "source", tmp_path / "hf") == 2
        assert message.replace("\\", "") in capsys.readouterr().err
        assert not (tmp_path / "hf").exists()

    def test_a_language_model_that_computes_more_than_its_layers(self, tmp_path):
        network = random_network("qwen2", image_token_id=7).float()
        expected = probe_logits(network, network.config)
        write_state(to_hf_state(network.state_dict()), hf_config(network.config, 7), tmp_path)
        assert check_export(tmp_path, expected, network.config, torch.float32) < 1e-5
        with pytest.raises(CheckpointError, match=r"answers otherwise: logits differ by up to \d"):
            check_export(tmp_path, expected * 4, network.config, torch.float32)

    def test_no_tokenizer(self, tiny_dir, tmp_path, capsys):
        shutil.copytree(tiny_dir(), tmp_path / "bare", ignore=shutil.ignore_patterns("*token*", "*template*"))
        assert convert(tmp_path / "bare", tmp_path / "out") == 2
        assert "expected tokenizer.model, tokenizer.json" in capsys.readouterr().err

    @pytest.mark.parametrize("layout", ["hf", "native", "original"])
    def test_a_destination_inside_the_source(self, tiny_dir, tmp_path, capsys, layout):
        (tmp_path / "model").symlink_to(tiny_dir())
        assert convert(tmp_path / "model", tiny_dir() / "inside", layout) == 2
        assert "expected a directory outside" in capsys.readouterr().err
        assert not (tiny_dir() / "inside").exists()

    def test_nothing_is_left_of_an_export_that_failed(self, tiny_dir, tmp_path, monkeypatch, capsys):
        def full(*args):
            raise OSError(28, "No space left on device", "chat_template.jinja")

        (tmp_path / "hf").mkdir()
        # A full disk, where the file is written.
        monkeypatch.setattr("videochat_online.model.checkpoints.hf_export.write_json", full)
        assert convert(tiny_dir(), tmp_path / "hf") == 2
        assert "No space left on device" in capsys.readouterr().err
        assert list((tmp_path / "hf").iterdir()) == []


class TestTokenizers:
    @pytest.mark.parametrize(
        ("template", "markers", "legacy"), [("phi3-chat", PHI3_MARKERS, False), ("internlm2-chat", IM_MARKERS, True)]
    )
    def test_sentencepiece_gives_the_same_ids_from_tokenizer_json(self, tmp_path, template, markers, legacy):
        folder = write_sentencepiece_directory(tmp_path / "source", markers=markers, config={"legacy": legacy})
        tokenizer = load_tokenizer(folder)
        network = random_network("llama").float()
        network.language_model.resize_token_embeddings(len(tokenizer))
        network.config.template = template
        network.config.text_config.vocab_size = len(tokenizer)
        network.save_pretrained(folder)
        assert convert(folder, tmp_path / "hf") == 0
        theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
        for text in (*PLAIN_TEXTS, " two  blanks", "end \n"):
            assert theirs(text)["input_ids"] == tokenizer(text)["input_ids"]
        answer = tokenizer("Hello, world! 你好 😀")["input_ids"]
        assert theirs.decode(answer, skip_special_tokens=True) == "Hello, world! 你好 😀"
        processor, model = ImagesOnly.read(tmp_path / "hf"), load_model(tmp_path / "hf", tokenizer=folder)
        inputs = processor.apply_chat_template(
            asking(picture(), " Hello? "), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        assert inputs["input_ids"][0] == list(ImageChat(model, [picture()]).prepare(" Hello? ").layout.input_ids)

    def test_rules_that_tokenizer_json_cannot_say_are_refused(self, tmp_path):
        folder = write_sentencepiece_directory(tmp_path, remove_extra_whitespaces=True)
        with pytest.raises(CheckpointError, match=r"have the ids .* from tokenizer\.json .* other programs read"):
            text_side(load_tokenizer(folder), random_network("llama").config)

    def test_a_free_row_is_taken_for_videos(self, tiny_dir):
        config = load_model(tiny_dir()).config
        tokenizer = load_tokenizer(tiny_dir())
        assert text_side(tokenizer, config).named_tokens["video_token"] == "<quad>"
        config.text_config.vocab_size += 1
        assert text_side(tokenizer, config).named_tokens["video_token"] == "<video>"

    @pytest.mark.parametrize("system", ["'quoted' \\n {{ x }} {# y #}\n 世界 😀", ""])
    @pytest.mark.parametrize("name", [*NAMED_TEMPLATES, "system folded into the first turn"])
    def test_chat_templates_word_for_word(self, tiny_model, name, system):
        folded = replace(get_template("chatml"), folds_system=True, prompt_start="<q>")
        template = get_template(name) if name in NAMED_TEMPLATES else folded
        source = jinja_template(template, system_message=system, start="<s>", video_token="<video>")
        turns = [("One?", "First."), ("Two\n?", "Second."), ("Three?", None)]
        messages = [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
            if text is not None
        ]
        for last in (3, 2):
            pieces = template.render([Turn((user,), reply) for user, reply in turns[:last]], system_message=system)
            rendered = tiny_model.tokenizer.apply_chat_template(
                messages[: 2 * last - (last == 3)],
                chat_template=source,
                tokenize=False,
                add_generation_prompt=last == 3,
            )
            assert rendered == "<s>" + "".join(str(piece.segment) for piece in pieces)
        with pytest.raises(Exception, match="at most one system message"):
            tiny_model.tokenizer.apply_chat_template(
                [*messages, {"role": "system", "content": "x"}], chat_template=source, tokenize=False
            )


class TestTiedHeads:
    """What config.json says at top level and of the language model, against what lies in the file."""

    ABSENT = object()
    CASES = (*product(("both", "embeddings"), (ABSENT, True, False)), ("equal", True), ("head", ABSENT))

    @pytest.fixture(scope="class")
    def state(self):
        network = random_network("qwen2").float()
        return to_hf_state(network.state_dict()), hf_config(network.config, 7)

    @pytest.mark.parametrize(("file", "top"), CASES)
    def test_they_load_as_transformers_loads_them(self, state, tmp_path, file, top):
        tensors, config = dict(state[0]), json.loads(json.dumps(state[1], default=list))
        head, embeddings = "lm_head.weight", "model.language_model.embed_tokens.weight"
        if file == "equal":
            tensors[head] = tensors[embeddings].clone()
        tensors.pop({"embeddings": head, "head": embeddings}.get(file), None)
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        ids = torch.randint(60, (1, 9), generator=torch.Generator().manual_seed(0))
        # The language model's own entry decides nothing; both readers are asked with each.
        own = {self.ABSENT: True, True: False, False: True}[top]
        config["text_config"]["tie_word_embeddings"] = own
        config.pop("tie_word_embeddings")
        if top is not self.ABSENT:
            config["tie_word_embeddings"] = top
        (tmp_path / "config.json").write_text(json.dumps(config))
        theirs, report = InternVLForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
        if report["missing_keys"]:
            with pytest.raises(CheckpointError, match="missing"):
                load_network(tmp_path)
            return
        ours = load_network(tmp_path)
        is_tied = theirs.lm_head.weight is theirs.get_input_embeddings().weight
        assert (ours.language_model.lm_head.weight is ours.get_input_embeddings().weight) == is_tied
        assert ours.config.tie_word_embeddings == ours.config.text_config.tie_word_embeddings == is_tied
        with torch.no_grad():
            torch.testing.assert_close(ours(input_ids=ids).logits, theirs.eval()(input_ids=ids).logits)
        ours.save_pretrained(tmp_path / "again")
        assert torch.equal(load_network(tmp_path / "again").language_model.lm_head.weight, theirs.lm_head.weight)

    def test_a_tied_model_is_exported_tied(self, tmp_path):
        network = random_network("qwen2", image_token_id=7)
        network.config.text_config.tie_word_embeddings = network.config.tie_word_embeddings = True
        tied = type(network)(network.config).eval()
        expected = probe_logits(tied, tied.config)
        tied.save_pretrained(tmp_path / "native")
        state = {key: value for key, value in tied.state_dict().items() if "lm_head" not in key}
        write_state(to_hf_state(state), hf_config(tied.config, 7), tmp_path / "hf")
        assert check_export(tmp_path / "hf", expected, tied.config, torch.float32) < 1e-5
        assert load_network(tmp_path / "hf").config.tie_word_embeddings


class TestForeignParts:
    @pytest.mark.parametrize(
        ("layout", "kind"),
        [("native", "siglip_vision_model"), ("original", "intern_vit_300m"), ("hf", "intern_vit_6b")],
    )
    def test_a_vision_tower_of_another_family(self, exported, tiny_dir, tmp_path, layout, kind):
        if layout == "original":
            convert(tiny_dir(), tmp_path / "model", "original")
        else:
            shutil.copytree(exported() if layout == "hf" else tiny_dir(), tmp_path / "model")
        path = tmp_path / "model" / "config.json"
        config = json.loads(path.read_text())
        config["vision_config"]["model_type"] = kind
        path.write_text(json.dumps(config))
        for load in (load_model, load_network):
            with pytest.raises(CheckpointError, match=rf"vision_config\.model_type: expected .*intern.*, got '{kind}'"):
                load(tmp_path / "model")

    @pytest.mark.parametrize(
        ("part", "change", "message"),
        [
            (
                "vision_config",
                {"architectures": ["SiglipVisionModel"]},
                "expected InternVisionModel, got 'SiglipVision",
            ),
            ("vision_config", {"use_rope": True}, "vision_config: use_rope: nothing here is computed by it"),
            ("vision_config", {"use_moe": True, "num_experts": 8}, "num_experts, use_moe: nothing here"),
            ("llm_config", {"attn_logit_softcapping": 50.0}, "llm_config: attn_logit_softcapping: nothing here"),
        ],
    )
    def test_keys_that_switch_something_on(self, tiny_dir, tmp_path, part, change, message):
        convert(tiny_dir(), tmp_path / "model", "original")
        path = tmp_path / "model" / "config.json"
        config = json.loads(path.read_text())
        off = {"use_rope": False, "use_moe": False, "num_experts": 8, "laux_allreduce": "all_nodes", "temperature": 1.0}
        config["vision_config"] |= off
        path.write_text(json.dumps(config))
        load_network(tmp_path / "model")
        config[part] |= change
        path.write_text(json.dumps(config))
        with pytest.raises(InputError, match=message):
            load_network(tmp_path / "model")


class TestAutoClasses:
    def test_they_read_what_we_saved(self, tiny_dir):
        assert type(AutoConfig.from_pretrained(tiny_dir())).__name__ == "VideoChatOnlineConfig"
        expected = load_network(tiny_dir()).state_dict()
        for auto in (AutoModel, AutoModelForImageTextToText):
            network, report = auto.from_pretrained(tiny_dir(), output_loading_info=True)
            assert type(network) is VideoChatOnlineForConditionalGeneration
            assert not report["missing_keys"]
            found = network.state_dict()
            assert all(torch.equal(found[key], expected[key]) for key in expected)

    def test_strictly(self, tiny_dir, tmp_path):
        shutil.copytree(tiny_dir(), tmp_path / "model")
        edit(tmp_path / "model", lambda s: {k: v for k, v in s.items() if k != "projector.linear_1.bias"})
        for read in (
            AutoModelForImageTextToText.from_pretrained,
            VideoChatOnlineForConditionalGeneration.from_pretrained,
        ):
            with pytest.raises(CheckpointError, match=r"missing projector\.linear_1\.bias"):
                read(tmp_path / "model")

    def test_pictures_need_the_id_of_their_token(self, tiny_dir):
        network = AutoModelForImageTextToText.from_pretrained(tiny_dir())
        network.config.image_token_id = None
        with pytest.raises(ValueError, match=r"image_token_id: expected the id of <IMG_CONTEXT>"):
            network(input_ids=torch.ones(1, 4, dtype=torch.int64), pixel_values=torch.zeros(1, 3, 112, 112))
