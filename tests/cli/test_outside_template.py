"""A chat template of one file outside the tree: named by commands, and loaded by processes that cannot import it."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

import pytest
from transformers import AutoTokenizer

from clips import write_clip
from evaluation_sets import folder_set
from processes import run_program
from train_cases import flags, launch_by_torchrun, online_rows, write_media, write_registry
from videochat_online.cli.main import main
from videochat_online.errors import InputError
from videochat_online.model import load_model
from videochat_online.streaming import ImageChat, question_prompt
from videochat_online.text import layout_prompt, load_tokenizer
from videochat_online.train.folder.training_folder import TrainingFolder

NAME = "terse_words:TERSE"
SOURCE = """
from videochat_online.text import ChatTemplate

TERSE = ChatTemplate(
    name="terse",
    default_system_message="Be terse.",
    system_prefix="<|system|>",
    system_end="<|end|>",
    user_prefix="<|user|>> ",
    user_end="<|end|>",
    assistant_prefix="<|assistant|>",
    reply_end="<|end|>",
    after_reply="~",
)
"""
ASKED = "<|system|>Be terse.<|end|><|user|>> What is it?<|end|><|assistant|>"
GOES_ON = "{}<|end|>~<|user|>> And now?<|end|><|assistant|>"


@pytest.fixture
def outside(tmp_path):
    """The folder of the file, which is not among those that modules are imported from."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "terse_words.py").write_text(SOURCE)
    yield folder
    sys.modules.pop("terse_words", None)


@pytest.fixture
def prompts(monkeypatch):
    """Every prompt that is asked, as people read it."""
    asked = []

    def watched(*arguments, **options):
        layout = layout_prompt(*arguments, **options)
        asked.append(layout.text)
        return layout

    monkeypatch.setattr(question_prompt, "layout_prompt", watched)
    return asked


def check_it_stays(folder, tmp_path):
    """A checkpoint is used, and given to other programs, where the template cannot be imported."""
    sys.modules.pop("terse_words", None)
    assert find_spec("terse_words") is None
    assert json.loads((folder / "config.json").read_text())["template"]["user_prefix"] == "<|user|>> "
    done = run_program(main, ["videochat-online", "doctor", "--model", str(folder), "--json"])
    assert json.loads(done.stdout)["model"]["template"] == "terse", done.stderr
    chat = ImageChat(load_model(folder, device="cpu"))
    tokenizer = load_tokenizer(folder)
    assert list(chat.prepare("What is it?").layout.input_ids) == tokenizer(ASKED).input_ids
    reply = chat.ask("What is it?")
    ids = list(chat.prepare("And now?").layout.input_ids)
    assert ids == tokenizer(ASKED + GOES_ON.format(reply)).input_ids
    hf = tmp_path / f"{folder.name}_hf"
    assert main(["convert", str(folder), str(hf), "--format", "hf"]) == 0
    roles = ("user", "assistant", "user")
    messages = [{"role": r, "content": t} for r, t in zip(roles, ("What is it?", reply, "And now?"), strict=True)]
    theirs = AutoTokenizer.from_pretrained(hf)
    assert theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids
    assert load_model(hf, device="cpu").template == load_model(folder, device="cpu").template


def test_chat_and_evaluation_ask_with_it(outside, tmp_path, tiny_dir, monkeypatch, prompts):
    monkeypatch.syspath_prepend(outside)
    model = ["--model", str(tiny_dir()), "--template", NAME, "--max_new_tokens", "2"]
    clip = write_clip(tmp_path / "clip.mp4")
    assert main(["chat", *model, "--video", str(clip), "--ask", "1:What is it?"]) == 0
    assert [text.startswith("<|system|>Be terse.<|end|><|user|>> Frame1") for text in prompts] == [True]
    prompts.clear()
    annotations = folder_set(tmp_path / "set", num_videos=1)
    where = ["--annotations", str(annotations), "--data_root", str(tmp_path / "set/media")]
    command = ["evaluate", *model, *where, "--output", str(tmp_path / "run")]
    assert main(command) == 0
    assert len(prompts) == 3
    assert all("<|end|><|user|>> Frame1" in text for text in prompts)
    settings = json.loads((tmp_path / "run/run.json").read_text())["settings"]
    assert settings["model_options"]["template"]["user_prefix"] == "<|user|>> "
    # What a name stands for is a part of the run: the strings of another day are those of another run.
    (outside / "terse_words.py").write_text(SOURCE.replace("after_reply", "reply_suffix"))
    sys.modules.pop("terse_words")
    assert main(command) == 2


def test_assembled_with_it(outside, tmp_path, tiny_dir):
    tiny = load_model(tiny_dir("phi3"), device="cpu")
    tiny.network.language_model.save_pretrained(tmp_path / "language_model")
    tiny.tokenizer.save_pretrained(tmp_path / "language_model")
    parts = ["--language_model", str(tmp_path / "language_model"), "--vision_tower", str(tiny_dir("phi3"))]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(outside)
        assert main(["assemble", *parts, "--template", NAME, "--output", str(tmp_path / "assembled")]) == 0
    check_it_stays(tmp_path / "assembled", tmp_path)


def test_a_training_run_goes_on_with_the_same_strings_under_another_name_only(outside, tmp_path):
    folder, keys = tmp_path / "run", {"output_dir": "run", "deepspeed": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(outside)
        TrainingFolder(folder, keys | {"conv_style": NAME}).open({}, {}, None)
        (outside / "other_words.py").write_text((outside / "terse_words.py").read_text())
        TrainingFolder(folder, keys | {"conv_style": NAME.replace("terse_words", "other_words")}).check({})
        with pytest.raises(InputError, match=r"holds another run.*conv_style was .*terse.*, now null"):
            TrainingFolder(folder, keys | {"conv_style": None}).check({})
        (outside / "terse_words.py").write_text(SOURCE.replace("<|user|>>", "<|user|>"))
        sys.modules.pop("terse_words")
        with pytest.raises(InputError, match=r"holds another run.*conv_style.user_prefix was .*>> .*, now "):
            TrainingFolder(folder, keys | {"conv_style": NAME}).check({})


@pytest.mark.slow
def test_trained_with_it_in_two_processes(outside, tmp_path, tiny_dir):
    registry = write_registry(tmp_path / "registry", write_media(tmp_path / "media"), online=online_rows(4))
    keys = {"model_name_or_path": tiny_dir("phi3"), "meta_path": registry, "conv_style": NAME}
    keys |= {"output_dir": tmp_path / "trained", "per_device_train_batch_size": 1}
    done = launch_by_torchrun(flags(**keys), processes=2, folder=outside)
    assert done.returncode == 0, done.stderr[-3000:]
    check_it_stays(tmp_path / "trained", tmp_path)


def test_saved_with_the_one_it_was_loaded_with(outside, tmp_path, tiny_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(outside)
        load_model(tiny_dir(), device="cpu", template=NAME).save_pretrained(tmp_path / "saved")
    check_it_stays(tmp_path / "saved", tmp_path)
