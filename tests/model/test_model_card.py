"""Model cards: valid front matter, what is known and no more, nothing of the user's overwritten."""

from __future__ import annotations

import shutil

from huggingface_hub import ModelCard

from videochat_online.cli.main import main
from videochat_online.model.checkpoints.model_card import public, table, write_card


def test_a_readme_that_is_there_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    assert not write_card(tmp_path, "native", base="owner/name")
    assert (tmp_path / "README.md").read_text() == "mine"


def test_front_matter_and_base(tmp_path):
    assert write_card(
        tmp_path, "native", base="owner/name", sections={"Training data": table([{"set": "a|b", "rows": 3}])}
    )
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {
        "base_model": "owner/name",
        "library_name": "videochat-online",
        "pipeline_tag": "video-text-to-text",
        "tags": ["videochat-online", "video", "streaming"],
    }
    assert "| set | rows |\n|---|---|\n| a\\|b | 3 |" in card.text
    assert "License: to be filled in" in card.text
    assert "vco.load_model" in card.text


def test_a_local_base_gives_its_name_and_its_licence_but_no_place(tmp_path):
    base = tmp_path / "private" / "stage1"
    base.mkdir(parents=True)
    (base / "README.md").write_text("---\nlicense: mit\nbase_model: owner/first\n---\n\nStage 1.\n")
    (tmp_path / "run").mkdir()
    write_card(tmp_path / "run", "native", base=base)
    text = (tmp_path / "run" / "README.md").read_text()
    assert "Trained from stage1 with" in text
    assert str(tmp_path) not in text
    assert ModelCard(text).data.license == "mit"
    assert ModelCard(text).data.base_model == "owner/first"


def test_a_card_goes_along_into_another_layout(tiny_dir, tmp_path):
    shutil.copytree(tiny_dir(), tmp_path / "source")
    mine = "---\nlicense: apache-2.0\ntags: [mine]\n---\n\n# Mine\n\n## Load\n\nSomehow.\n\n## After\n\nThe end.\n"
    (tmp_path / "source" / "README.md").write_text(mine)
    assert main(["convert", str(tmp_path / "source"), str(tmp_path / "hf"), "--format", "hf"]) == 0
    card = ModelCard.load(tmp_path / "hf" / "README.md")
    assert (card.data.license, card.data.library_name, card.data.tags[0]) == ("apache-2.0", "transformers", "mine")
    assert "AutoProcessor.from_pretrained" in card.text
    assert "Somehow." not in card.text
    assert card.text.strip().endswith("## After\n\nThe end.")
    assert (tmp_path / "source" / "README.md").read_text() == mine


def test_what_a_card_says_of_values():
    assert public("/home/somebody/models/base") == "base"
    assert public("../models/base") == "base"
    assert public("C:\\models\\base") == "base"
    assert public({"a": ["/x/y", 3], "b": "two\nlines"}) == "a y, 3, b two lines"
    assert public("owner/name") == "owner/name"
