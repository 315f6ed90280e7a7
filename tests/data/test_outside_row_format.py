"""A row format of one file outside the tree, the one that docs/extend.md shows, wherever rows are read."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import videochat_online.parts
from train_cases import dialogue, flags, launch_by_torchrun, tiny_encoder, write_media, write_registry
from videochat_online.cli.main import main
from videochat_online.data import Example, TrainingDataset, load_registries, parse_row
from videochat_online.data.rows.row_formats import RowParser
from videochat_online.errors import InputError
from videochat_online.train import parse_arguments, train

EXTEND = (Path(__file__).parents[2] / "docs" / "extend.md").read_text("utf-8")
DOCUMENT = (Path(__file__).parents[2] / "anno_data" / "README.md").read_text("utf-8")
NAME = {"name": "captions:Captions", "question": "What is shown?"}
ROWS = [{"clip_name": "clip", "caption": f"A square, {number}.", "video_path": "x.mp4"} for number in range(3)]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with the file, from which Python imports."""
    (source,) = re.findall(r"captions\.py -->\n```python\n(.*?)```", EXTEND, re.DOTALL)
    (tmp_path / "captions.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write_set(place: Path, row_format: Any = NAME, rows: list[Any] | None = None, **more: Any) -> Path:
    path = write_registry(place, write_media(place / "media"), mine=ROWS if rows is None else rows)
    entries = json.loads(path.read_text())
    entries["mine"] |= {"row_format": row_format, **more}
    path.write_text(json.dumps(entries))
    return path


def test_its_rows_are_those_that_say_the_same_in_a_known_format(tiny_model, place):
    ours = TrainingDataset(load_registries(str(write_set(place))), tiny_encoder(tiny_model))
    known = [{"video": "clip.mp4", "conversations": dialogue("What is shown?", row["caption"])} for row in ROWS]
    theirs_path = write_registry(place / "known", place / "media", known=known)
    theirs = TrainingDataset(load_registries(str(theirs_path)), tiny_encoder(tiny_model))
    for number in range(3):
        first, second = ours[number], theirs[number]
        assert isinstance(first, Example)
        assert isinstance(second, Example)
        assert first.input_ids == second.input_ids
    assert ours.estimate_lengths().tolist() == theirs.estimate_lengths().tolist()
    assert ours.estimate_lengths().min() > 1
    assert ours.unread_keys() == {"mine": {"video_path": 3}}


def test_doctor_reads_them(place, capsys):
    path = write_set(place, rows=[*ROWS, {"clip_name": "clip", "caption": 3}, {"clip_name": "none", "caption": "a"}])
    assert main(["doctor", "--registry", str(path), "--processes", "2"]) == 2
    text = capsys.readouterr().out
    assert re.search(r"mine +5 +5 +2 +\d+  video 3", text)
    assert "mine row 3: caption: expected a text, found 3" in text
    assert "keys that are not read: video_path (3)" in text


@pytest.mark.slow
def test_processes_of_torchrun_and_their_loaders_learn_them(tiny_dir, place, monkeypatch):
    """In a table, whose columns no known format has; the run's folder says with which format, and goes on with it."""
    path = write_set(place, annotation="rows.csv")
    (place / "rows.csv").write_text("clip_name,caption\n" + "clip,A square.\n" * 8, encoding="utf-8")
    keys = {"model_name_or_path": tiny_dir("phi3"), "meta_path": path, "dataloader_num_workers": 1, "max_steps": 2}
    monkeypatch.setenv("PYTHONPATH", str(place))
    done = launch_by_torchrun(flags(**keys, output_dir=place / "run", per_device_train_batch_size=1), processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((place / "run" / "report.json").read_text())
    assert (len(report["losses"]), report["skipped"]["count"]) == (2, 0)
    assert "captions:Captions" in "".join(file.read_text("utf-8") for file in (place / "run").glob("*.json"))


def test_a_run_of_this_process_learns_them(tiny_dir, place):
    paths = {"model_name_or_path": tiny_dir("phi3"), "meta_path": write_set(place), "output_dir": place / "run"}
    assert train(parse_arguments(None, flags(**paths))).skipped == ()


@pytest.mark.parametrize(
    ("row_format", "message"),
    [
        (
            "nothing_here:Format",
            "row_format 'nothing_here:Format': expected a module nothing_here that can be imported",
        ),
        ("captions:Missing", "expected 'Missing' in the module captions, found none"),
        ("captions:option", "expected a row_format with claims, parse, keys, found none of claims, parse"),
        ("tables", "unknown row_format 'tables': expected one of .*'QA', 'conversations'.* or package.module:Name"),
        (NAME | {"questions": "a"}, "row_format 'captions:Captions' does not take questions: it takes question"),
        (NAME | {"question": 3}, "question of .*: expected a text|question of .*: expected text, got 3"),
        ({"question": "a"}, "expected a name, or an object with a name and options, found"),
        (3, "expected a name, or an object with a name and options, found 3"),
    ],
)
def test_what_is_no_format_is_named_with_its_entry(place, row_format, message):
    with pytest.raises(InputError, match=rf"entry 'mine': row_format: .*({message})"):
        load_registries(str(write_set(place, row_format)))


def test_a_known_format_by_name(place):
    path = write_set(place, "QA", rows=[{"conversations": dialogue("a", "b"), "QA": [{"q": "c", "a": "d"}]}])
    (entry,) = load_registries(str(path))
    row = {"video": "a.mp4", "conversations": dialogue("a", "b"), "QA": [{"q": "c", "a": "d"}]}
    assert entry.row_format.parse(row, place).turns[0].user == "c"
    with pytest.raises(InputError, match="QA: expected a list, found none"):
        entry.row_format.parse({"video": "a.mp4"}, place)


def test_an_installed_format_is_recognised_and_may_not_claim_what_others_do(place, monkeypatch):
    point = EntryPoint("captions", "captions:Captions", "videochat_online.row_formats")
    monkeypatch.setattr(videochat_online.parts, "entry_points", lambda group: [point] if point.group == group else [])
    parser = RowParser()
    assert parser.parse(ROWS[0], place).turns[0].user == "What happens?"
    assert parser.parse({"conversations": dialogue("a", "b")}, place).kind == "text"
    with pytest.raises(InputError, match="expected conversations or captions, found both"):
        parser.parse({"caption": "a", "conversations": dialogue("a", "b")}, place)
    with pytest.raises(InputError, match="prompt/response or captions, found title"):
        parser.parse({"title": "a"}, place)


def test_what_a_format_returns_is_looked_at(place):
    (place / "careless.py").write_text(
        "from videochat_online.data import DialogueTurn, Sample\n"
        "class Careless:\n"
        "    keys = {}\n"
        "    def claims(self, row): return True\n"
        "    def parse(self, row, root): return eval(row['python'])\n"
    )
    parser = RowParser("careless:Careless")
    with pytest.raises(TypeError, match=r"Careless\.parse: expected a Sample, found dict"):
        parser.parse({"python": "{}"}, place)
    for source, message in (
        (
            "Sample(kind='movie')",
            "kind of a sample: expected one of text, image, video, online, tracking, found 'movie'",
        ),
        (
            "Sample(kind='video', turns=(DialogueTurn('a', 'b'),))",
            "media of a sample of kind video: expected 1, found 0",
        ),
        ("Sample(kind='text', media=(root,))", "media of a sample of kind text: expected 0, found 1"),
        ("Sample(kind='image', turns=(DialogueTurn('a', 'b'),))", "kind image: expected at least 1, found 0"),
        ("Sample(kind='text')", "turns of a sample of kind text: expected at least 1, found none"),
        (
            "Sample(kind='online', media=(root,), turns=(DialogueTurn('a', 'b'),))",
            "turn 1: timestamps: expected a time",
        ),
    ):
        with pytest.raises(InputError, match=message):
            parser.parse({"python": source}, place)


def test_the_examples_of_the_document_are_rows():
    """Each block of JSON with a row of its formats, and its table."""
    kinds = []
    rows = DOCUMENT[DOCUMENT.index("## Rows") : DOCUMENT.index("## A format of your own")]
    for block in re.findall(r"```json\n(.*?)```", rows, re.DOTALL):
        kinds.append(parse_row(json.loads(block), Path()).kind)
    assert kinds == ["image", "video", "online", "tracking", "video", "video", "online"]
    (table,) = re.findall(r"```csv\n(.*?)```", rows, re.DOTALL)
    header, *lines = (line.split(",") for line in table.splitlines())
    samples = [parse_row(dict(zip(header, line, strict=True)), Path()) for line in lines]
    assert [sample.turns[0].time_s for sample in samples] == [4, 9]
