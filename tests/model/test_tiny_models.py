"""Tiny models: with random weights, with a tokenizer that knows whole words, and one that sees (pretraining)."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

import pretrain_tiny_model as script
from synthetic_sets import TINY_SEVERAL, TINY_SINGLE
from videochat_online.constants import IMAGE_CONTEXT_TOKEN, SPECIAL_TOKENS
from videochat_online.errors import InputError
from videochat_online.evaluation.run.answering import letter_ids
from videochat_online.model import load_model
from videochat_online.streaming import StreamingSession
from videochat_online.synthetic import synthesize, vocabulary
from videochat_online.synthetic.files.training_clips import IMAGE_QUESTION
from videochat_online.testing import build_word_tokenizer
from videochat_online.testing.__main__ import main as make_model_command
from videochat_online.testing.tiny_tokenizer import MARKERS, SEQUENCE_TOKENS
from videochat_online.text import get_template, layout_prompt, load_tokenizer
from videochat_online.text.prompt import INTERNVL
from videochat_online.text.questions import OVBENCH_SYSTEM_MESSAGE, ovbench_question
from videochat_online.types import FrameUse, Turn

WORDS = vocabulary("single")
PRESET = replace(TINY_SINGLE, num_images=24)


@pytest.fixture(scope="module")
def tokenizer():
    return build_word_tokenizer(WORDS, last_s=6, fps=2, phrases=[OVBENCH_SYSTEM_MESSAGE])


def pieces(tokenizer, text: str) -> list[str]:
    """Tokens of a text, without <s>."""
    first, *others = tokenizer(text)["input_ids"]
    assert first == tokenizer.bos_token_id
    return tokenizer.convert_ids_to_tokens(others)


class TestWordTokenizer:
    def test_what_it_knows_is_one_token(self, tokenizer):
        known = [*WORDS, *(f" {word}" for word in WORDS if word.isalpha())]
        known += [f"Frame{number}" for number in range(1, 14)]
        known += [f" at {number / 2:.1f}s: " for number in range(13)]
        known += [f"{letter})" for letter in "ABCDEFGH"] + ["(", "\n(", ": ", OVBENCH_SYSTEM_MESSAGE]
        known += [*MARKERS, *SEQUENCE_TOKENS, *SPECIAL_TOKENS]
        assert [text for text in known if pieces(tokenizer, text) != [text]] == []
        assert len(tokenizer) >= len({*known}) + 256

    def test_a_line_of_a_prompt_is_few_tokens(self, tokenizer):
        assert pieces(tokenizer, "Frame12 at 5.5s: \n") == ["Frame12", " at 5.5s: ", "<0x0A>"]
        assert pieces(tokenizer, "Frame3: ") == ["Frame3", ": "]
        assert pieces(tokenizer, "Question at 4.0s: Where is") == ["Question", " at 4.0s: ", "Where", " is"]
        assert pieces(tokenizer, "\n(B) right top") == ["\n(", "B)", " right", " top"]
        assert pieces(tokenizer, " zé") == ["<0x20>", "<0x7A>", "<0xC3>", "<0xA9>"]
        assert pieces(tokenizer, "<|user|>\nWhere") == ["<|user|>", "Where"], "markers swallow the line break"

    def test_times_of_long_streams_are_two_tokens(self):
        split = build_word_tokenizer(WORDS, last_s=60, fps=1, split_times=True)
        assert pieces(split, "Frame12 at 5.5s: \n") == ["Frame12", " at 5", ".5s: ", "<0x0A>"]
        assert pieces(split, "Frame3: ") == ["Frame3", ": "]
        assert pieces(split, "Question at 60.0s: Where is") == ["Question", " at 60", ".0s: ", "Where", " is"]
        text = "Frame61 at 59.9s: at 3.5 at last: (B) right at 61.0s: "
        assert split.decode(split(text)["input_ids"], skip_special_tokens=True) == text

    @pytest.mark.parametrize(
        "text", ["zebra", " Zürich 你好 🙂", "Frame14 at 6.5s: 3.25", "a\n\n b\t(z) \x00", "Wherever (AB) is"]
    )
    def test_any_other_text_comes_back(self, tokenizer, text):
        assert "<unk>" not in pieces(tokenizer, text)
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text

    def test_a_dialogue_with_frames_decodes_to_its_prompt(self, tokenizer, tmp_path):
        seen = [FrameUse(0, 0.0, 16), FrameUse(3, 1.5, 4)]
        later = [FrameUse(9, 4.5, 1)]
        question = ovbench_question("Where is the shape now?", ["left top", "right top"], asked_at_s=1.5)
        turns = [
            Turn((*INTERNVL.frames(seen, with_times=True), question + "\nAnswer:"), "(B) right top"),
            Turn((*INTERNVL.frames(later, with_times=True), "And an aardvark?"), None),
        ]
        options = {"template": get_template("phi3-chat"), "system_message": OVBENCH_SYSTEM_MESSAGE}
        layout = layout_prompt(turns, tokenizer=tokenizer, **options)
        text = layout.text
        for count in (16, 4, 1):
            text = text.replace(f"{IMAGE_CONTEXT_TOKEN}*{count}", IMAGE_CONTEXT_TOKEN * count)
        for marker in MARKERS:
            text = text.replace(f"{marker}\n", marker)
        assert tokenizer.decode(layout.input_ids) == "<s>" + text.removeprefix("<s>")
        assert layout.num_visual_tokens == 21
        assert (
            pieces(tokenizer, "(B) right top")
            == [tokenizer.convert_ids_to_tokens(label) for label in layout.labels if label != -100][:-1]
        )
        tokenizer.save_pretrained(tmp_path)
        again = load_tokenizer(tmp_path)
        assert layout_prompt(turns, tokenizer=again, **options) == layout
        assert len(again) == len(tokenizer)


def test_the_command_makes_a_model_that_answers(tmp_path, monkeypatch, capsys):
    """`python -m videochat_online.testing`, for checkouts and installed packages alike."""
    folder = tmp_path / "model"
    monkeypatch.setattr("sys.argv", ["testing", str(folder), "--llm", "qwen2"])
    make_model_command()
    assert re.fullmatch(rf"{folder}: tiny qwen2 model, \d\.\d MB, random weights\n", capsys.readouterr().out)
    session = StreamingSession(load_model(folder, device="cpu"))
    session.push(np.zeros((1, 112, 112, 3), dtype=np.uint8), [0.0])
    assert session.ask("What is this?").num_visual_tokens == 16


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data set with a few images. Not to be written to."""
    folder = tmp_path_factory.mktemp("pretraining") / "data"
    synthesize(folder, seed=0, preset=PRESET)
    return folder


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory) -> tuple[Path, float]:
    """A model after two steps, and the accuracy that was reported. Not to be written to."""
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    return folder, script.pretrain(data, folder, seed=0, num_steps=2)


def test_the_letters_that_are_scored_are_those_of_training_answers(pretrained):
    model = load_model(pretrained[0], device="cpu")
    num_dropped, ids = letter_ids(model, 4)
    assert num_dropped == 0
    assert model.tokenizer.convert_ids_to_tokens(ids) == ["A)", "B)", "C)", "D)"]


def restated_accuracy(data: Path, folder: Path, num_images: int) -> float:
    """Image by image and word by word: which word is nearest to the image, averaged into one token?"""
    rows = [json.loads(line) for line in (data / "annotations" / "images.jsonl").read_text("utf-8").splitlines()]
    captions = [row["conversations"][1]["value"].split(" ") for row in rows]
    model = load_model(folder, device="cpu")
    right = []
    with torch.inference_mode():
        for row, caption in list(zip(rows, captions, strict=True))[:num_images]:
            pixels_HWC = np.array(Image.open(data / "images" / "train" / row["image"]))
            grid_CHW = model.network.encode(model.transform(pixels_HWC[None]))[0]
            token_D = model.network.project(grid_CHW.mean(dim=(1, 2))[None])[0]
            seen_D = functional.layer_norm(token_D, (script.WIDTH,))
            for place, word in enumerate(caption):
                choices = sorted({other[place] for other in captions})
                ids = [model.tokenizer(f" {choice}")["input_ids"][-1] for choice in choices]
                scores = [float(seen_D @ model.network.get_input_embeddings().weight[index]) for index in ids]
                right.append(choices[int(np.argmax(scores))] == word)
    return sum(right) / len(right)


class TestPretraining:
    def test_the_model_loads_and_answers(self, pretrained):
        model = load_model(pretrained[0], device="cpu")
        assert model.frames.grid == (4, 4)
        session = StreamingSession(model)
        session.push(np.zeros((3, 64, 64, 3), dtype=np.uint8), [0.0, 1.0, 2.0])
        assert session.ask("Where is the shape now?").num_visual_tokens == 16 + 1 + 1
        assert model.config.system_message == OVBENCH_SYSTEM_MESSAGE

    def test_what_learns_and_what_does_not(self, data, pretrained, tmp_path):
        script.pretrain(data, tmp_path / "longer", seed=0, num_steps=3)
        before, after = (load_file(folder / "model.safetensors") for folder in (pretrained[0], tmp_path / "longer"))
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        kept = before.keys() - changed
        assert any("embed_tokens" in name for name in changed)
        assert {name for name in before if name.startswith(("vision_tower", "projector"))} <= changed
        assert kept == {name for name in before if name.startswith("language_model") and "embed_tokens" not in name}

    def test_the_same_seed_gives_the_same_weights(self, data, pretrained, tmp_path):
        for seed in (0, 1):
            script.pretrain(data, tmp_path / str(seed), seed=seed, num_steps=2)
        first, again, other = (
            load_file(folder / "model.safetensors") for folder in (pretrained[0], tmp_path / "0", tmp_path / "1")
        )
        assert all(torch.equal(again[name], first[name]) for name in first)
        assert not all(torch.equal(other[name], first[name]) for name in first)

    def test_the_accuracy_agrees_with_a_slow_restatement(self, data, tmp_path):
        """Of a model whose accuracy is not the same on each grid."""
        accuracy = script.pretrain(data, tmp_path, seed=0, num_steps=8)
        assert accuracy == pytest.approx(restated_accuracy(data, tmp_path, PRESET.num_images // 4))
        assert json.loads((tmp_path / script.REPORT_FILE).read_text("utf-8"))["accuracy"] == accuracy

    def test_images_that_measure_do_not_teach(self, data, pretrained, tmp_path):
        copy = tmp_path / "data"
        shutil.copytree(data, copy)
        rows = [json.loads(line) for line in (copy / "annotations" / "images.jsonl").read_text("utf-8").splitlines()]
        for row in rows[: PRESET.num_images // 4]:
            Image.new("RGB", (64, 64), (9, 9, 9)).save(copy / "images" / "train" / row["image"])
        script.pretrain(copy, tmp_path / "model", seed=0, num_steps=2)
        ours, theirs = (load_file(folder / "model.safetensors") for folder in (pretrained[0], tmp_path / "model"))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_a_finished_model_is_left_as_it_is(self, data, pretrained):
        folder, accuracy = pretrained
        before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
        assert script.pretrain(data, folder, seed=0, num_steps=2) == accuracy
        for changes in ({"seed": 1}, {"num_steps": 3}):
            with pytest.raises(InputError, match=f"model made with .*'{next(iter(changes))}': "):
                script.pretrain(data, folder, **{"seed": 0, "num_steps": 2, **changes})
        assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == before

    def test_data_that_is_none(self, tmp_path):
        with pytest.raises(InputError, match=r"expected a folder of `videochat-online synthesize`, found no ann"):
            script.pretrain(tmp_path, tmp_path / "model", seed=0, num_steps=2)
        assert not (tmp_path / "model").exists()

    def test_the_data_are_the_same_by_any_path(self, data, pretrained, tmp_path, monkeypatch):
        folder, accuracy = pretrained
        monkeypatch.chdir(data.parent)
        assert script.pretrain(Path(data.name), folder, seed=0, num_steps=2) == accuracy
        (tmp_path / "link").symlink_to(data)
        assert script.pretrain(tmp_path / "link", folder, seed=0, num_steps=2) == accuracy
        (tmp_path / "before").mkdir()
        report = json.loads((folder / script.REPORT_FILE).read_text("utf-8"))
        assert report["settings"]["data"] == str(data.resolve())
        for written in (str(tmp_path / "link"), data.name):
            report["settings"]["data"] = written
            (tmp_path / "before" / script.REPORT_FILE).write_text(json.dumps(report), "utf-8")
            assert script.pretrain(data, tmp_path / "before", seed=0, num_steps=2) == accuracy

    def test_a_relative_directory(self, data, pretrained, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert script.pretrain(data, Path("."), seed=0, num_steps=2) == pretrained[1]
        assert (tmp_path / script.REPORT_FILE).is_file()

    def test_the_command(self, data, pretrained, monkeypatch, capsys):
        folder, accuracy = pretrained
        for seed, status in (("0", 0), ("1", 2)):
            arguments = [str(data), str(folder), "--steps", "2", "--seed", seed]
            monkeypatch.setattr("sys.argv", ["pretrain_tiny_model.py", *arguments])
            assert script.main() == status
        out, err = capsys.readouterr()
        assert out == f"{folder}: {100 * accuracy:.1f}% of caption words right in new images seen as one token\n"
        assert err.startswith(f"error: {folder}: expected a model made with ")


IMAGES, WORDS_FILE, BENCHMARK = "annotations/images.jsonl", "vocabulary.json", "annotations/ovbench_test.json"
ROW = {"image": "a.jpg", "conversations": [{"value": IMAGE_QUESTION}, {"value": "red dot left top"}]}


def row(**changes) -> str:
    return json.dumps(ROW | changes) + "\n"


def captioned(caption: object) -> str:
    return row(conversations=[ROW["conversations"][0], {"value": caption}])


class TestRefusals:
    """One line, status 2, and nothing written."""

    @pytest.fixture
    def copy(self, data, tmp_path) -> Path:
        copy = tmp_path / "data"
        shutil.copytree(data / "annotations", copy / "annotations")
        shutil.copytree(data / "images", copy / "images")
        shutil.copy(data / WORDS_FILE, copy)
        return copy

    @pytest.fixture
    def refusal(self, monkeypatch, capsys):
        def refusal(*arguments: object) -> str:
            monkeypatch.setattr("sys.argv", ["pretrain_tiny_model.py", *map(str, arguments)])
            assert script.main() == 2
            out, err = capsys.readouterr()
            assert (out, len(err.splitlines())) == ("", 1)
            return err.removeprefix("error: ")

        return refusal

    @pytest.mark.parametrize(
        ("file", "text", "words"),
        [
            (IMAGES, "", "expected at least 8 images with captions, found 0"),
            (IMAGES, captioned("red dot left top") * 7, "expected at least 8 images with captions, found 7"),
            (IMAGES, row(conversations=[{"value": "Why?"}, {"value": "So."}]) * 9, "images with captions, found 0"),
            (IMAGES, row() + '{"image": ', " line 2: expected an image and a dialogue about it in JSON, found '{"),
            (IMAGES, "[1]\n", " line 1: expected an image and a dialogue"),
            (IMAGES, row(conversations=[]), " line 1: expected an image and a dialogue"),
            (IMAGES, row(conversations={}), " line 1: expected an image and a dialogue"),
            (IMAGES, captioned(None), " line 1: expected an image and a dialogue"),
            (IMAGES, captioned("a cat"), " line 1: expected a caption such as 'red dot left top', found 'a cat'"),
            (IMAGES, captioned("red dot row 1 top"), " line 1: expected a caption such as"),
            (IMAGES, captioned("red dot left column 2"), " line 1: expected a caption such as"),
            (IMAGES, b"\xff\xfe", ": expected a text file in UTF-8, found none ('utf-8' codec"),
            (IMAGES, None, "expected a folder of `videochat-online synthesize`, found no annotations/images.jsonl"),
            (WORDS_FILE, None, ": expected a text file in UTF-8, found none (No such file"),
            (WORDS_FILE, "[", ": expected a JSON object with a list of words"),
            (WORDS_FILE, '{"words": "abc"}', ": expected a JSON object with a list of words"),
            (WORDS_FILE, '{"words": ["left", "right"]}', ": expected all words of captions, found no '"),
            (BENCHMARK, None, ": expected a text file in UTF-8, found none (No such file"),
            (BENCHMARK, "[]", ": expected a JSON list of videos, each with its clip"),
            (BENCHMARK, '[{"clip": [0, Infinity]}]', ": expected a JSON list of videos, each with its clip"),
            (BENCHMARK, '[{"clip": 4}]', ": expected a JSON list of videos, each with its clip"),
        ],
    )
    def test_damaged_data(self, copy, tmp_path, refusal, file, text, words):
        if text is None:
            (copy / file).unlink()
        else:
            (copy / file).write_bytes(text if isinstance(text, bytes) else text.encode())
        found = refusal(copy, tmp_path / "model", "--steps", 2)
        assert found.startswith(str(copy if file == IMAGES and text is None else copy / file))
        assert words in found
        assert {path.name for path in tmp_path.iterdir()} == {"data"}

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda path: path.unlink(), "expected an image, found none that can be read (No such file"),
            (lambda path: path.write_bytes(b"none"), "expected an image, found none that can be read (cannot identify"),
            (lambda path: path.write_bytes(path.read_bytes()[:400]), "expected an image, found none that can be read"),
            (lambda path: Image.new("RGB", (32, 16)).save(path), "an image of 64 x 64 pixels as the first, found 32 x"),
        ],
    )
    def test_a_missing_or_broken_image(self, copy, tmp_path, refusal, damage, words):
        name = json.loads((copy / IMAGES).read_text("utf-8").splitlines()[5])["image"]
        damage(copy / "images" / "train" / name)
        assert f"{copy / 'images' / 'train' / name}: " in (found := refusal(copy, tmp_path / "model", "--steps", 2))
        assert words in found
        assert {path.name for path in tmp_path.iterdir()} == {"data"}

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--steps", 0], "--steps: expected at least 1, got 0"),
            (["--seed", -1], "--seed: expected a whole number from 0 to 18446744073709551615, got -1"),
            (["--seed", 2**64], "--seed: expected a whole number from 0 to "),
        ],
    )
    def test_numbers_out_of_range(self, data, tmp_path, refusal, arguments, words):
        assert words in refusal(data, tmp_path / "model", *arguments)
        assert not any(tmp_path.iterdir())

    @pytest.mark.parametrize("text", ["{", "[]", '{"settings": {}}', '{"settings": [], "accuracy": 1}', "{}", "\x00"])
    def test_a_broken_report(self, data, tmp_path, refusal, text):
        (tmp_path / script.REPORT_FILE).write_text(text, "utf-8")
        words = f"{tmp_path / script.REPORT_FILE}: expected settings and accuracy of a model, found something else"
        assert words in refusal(data, tmp_path)

    def test_a_directory_below_a_file(self, data, tmp_path, refusal, monkeypatch):
        monkeypatch.setattr(script, "train", lambda *arguments: pytest.fail("trained for nothing"))
        (tmp_path / "file").write_text("")
        for directory in (tmp_path / "file" / "model", tmp_path / "file" / "more" / "model"):
            assert ": expected a folder that can be made (" in refusal(data, directory)
        assert "expected a new or empty directory" in refusal(data, tmp_path / "file")


class TestSeveralShapes:
    """In the world of the preset "full" an image may show three: a token teaches of the only one that it shows."""

    @pytest.fixture(scope="class")
    def several(self, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("several") / "data"
        synthesize(folder, seed=0, preset=replace(TINY_SEVERAL, num_images=60))
        return folder

    def test_which_tokens_show_which_shape(self, several):
        rows = [json.loads(line) for line in (several / "annotations" / "images.jsonl").read_text("utf-8").splitlines()]
        questions = [row["conversations"][0]["value"] for row in rows]
        captions = [row["conversations"][1]["value"] for row in rows]
        wanted = [text.split(", ") for text, q in zip(captions, questions, strict=True) if IMAGE_QUESTION in q]
        cells = [[(int(words[-3]) - 1, int(words[-1]) - 1) for words in map(str.split, shapes)] for shapes in wanted]
        found = script.Captions(several, build_word_tokenizer(vocabulary("several"), 24, 2, script._PLACES))
        assert found.image_of_U.tolist() == [image for image, shapes in enumerate(cells) for _ in shapes]
        assert {len(shapes) for shapes in cells} >= {1, 2}
        for side in (4, 2, 1):
            expected = []
            for shapes in cells:
                # Four cells a side: the token at (r, c) shows all cells that fall into it.
                shown = [(row * side // 4, column * side // 4) for row, column in shapes]
                for place in shown:
                    mask = [(r, c) == place and shown.count(place) == 1 for r in range(side) for c in range(side)]
                    expected.append([True] * side**2 if len(shapes) == 1 else mask)
            assert found.masks(side).tolist() == expected

    def test_an_image_either_teaches_or_measures(self, several, monkeypatch):
        """With all of its shapes."""
        tokenizer = build_word_tokenizer(vocabulary("several"), 24, 2, script._PLACES)
        captions, chosen_images = script.Captions(several, tokenizer), []

        def recorded(network, captions, chosen, masks):
            chosen_images.append(set(captions.image_of_U[chosen].tolist()))
            return network.get_input_embeddings().weight.sum(), 0.0

        monkeypatch.setattr(script, "loss_and_accuracy", recorded)
        script.train(script.new_network(len(tokenizer)), captions, 30)
        *teaching, measuring = chosen_images
        assert len(teaching) == 30
        assert max(measuring) < len(captions.pixels_NCSS) // 4 == min(set.union(*teaching))
        assert len(captions) // 4 > len(captions.pixels_NCSS) // 4

    def test_shapes_that_are_never_seen_alone_are_too_few(self, several, tmp_path):
        tokenizer = build_word_tokenizer(vocabulary("several"), 24, 2, script._PLACES)
        found = script.Captions(several, tokenizer)
        found.masks = lambda side: torch.zeros(len(found), side**2, dtype=torch.bool)
        with pytest.raises(InputError, match="expected shapes that no other one covers on grids of every size"):
            script.train(script.new_network(len(tokenizer)), found, 1)

    def test_a_model_of_it_loads(self, several, tmp_path):
        assert 0 <= script.pretrain(several, tmp_path, seed=0, num_steps=2) <= 1
        tokenizer = load_model(tmp_path, device="cpu").tokenizer
        assert pieces(tokenizer, "red square row 2 column 3") == ["red", " square", " row 2", " column 3"]
