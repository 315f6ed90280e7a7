"""Runs whose files were damaged or edited: `compare` names the file, the line and the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from comparison_sets import WINDOW, clone, make_run, make_set, rows_of
from videochat_online.cli.main import main
from videochat_online.evaluation import compare_runs

PYRAMID = {"setting": "streaming", "causal": True, "kv_memory": False, "memory": "pyramid", "strategy": "direct"}
PYRAMID |= {"strategy_options": {}}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two finished runs over a small set. Not to be written to."""
    folder = tmp_path_factory.mktemp("runs")
    make_set(folder, num_videos=2)
    make_run(folder, "pyramid", 1.0)
    make_run(folder, "window", 0.5, protocol=WINDOW)
    return folder


def refusal(capsys, root: Path, damaged: Path) -> str:
    """What the command says to a damaged run: one line, status 2."""
    assert main(["compare", str(root / "pyramid"), str(damaged)]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    return err


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (["protocol"], [], "protocol: expected an object, found []"),
        (["protocol"], "streaming", "protocol: expected an object, found 'streaming'"),
        (["protocol", "memory_options"], None, "protocol.memory_options: expected an object, found none"),
        (
            ["protocol"],
            {**PYRAMID, "memory_options": {"capacities": 5}},
            "protocol.memory_options.capacities: expected a list of whole numbers of at least 0 such as 2, 2, 12",
        ),
        (["protocol", "memory"], 3, "protocol.memory: expected a text, found 3"),
        (["protocol"], {"memory": None}, "protocol.setting: expected a text, found none"),
        (["generation"], None, "generation: expected an object, found none"),
        (["blind"], "no", "blind: expected true or false, found 'no'"),
    ],
)
def test_settings_that_are_none(capsys, root, tmp_path, keys, value, words):
    copy = clone(root / "window", tmp_path / "copy")
    run = json.loads((copy / "run.json").read_text("utf-8"))
    place = run["settings"]
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (copy / "run.json").write_text(json.dumps(run), "utf-8")
    assert f"{copy / 'run.json'}: settings: {words}" in refusal(capsys, root, copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extra": None}, "extra: expected an object, found none"),
        ({"extra": {"evidence_age_s": "old"}}, "extra.evidence_age_s: expected a number, found 'old'"),
        ({"extra": {"evidence_age_s": float("nan")}}, "extra.evidence_age_s: expected a finite number, found nan"),
        ({"options": []}, "options: expected at least 1 of them, found []"),
        ({"options": 4}, "options: expected a list, found 4"),
        ({"num_visual_tokens": None}, "num_visual_tokens: expected a whole number, found none"),
        ({"correct": 1}, "correct: expected true or false, found 1"),
        ({"correct": "false"}, "correct: expected true or false, found 'false'"),
        ({"id": ["x"]}, "id: expected a text, found ['x']"),
        ({"video": {}}, "video: expected a text, found {}"),
        ({"time_s": "late"}, "time_s: expected a number, found 'late'"),
        ({"time_s": 10**400}, "time_s: expected a number, found 1000"),
        ({"answer_index": True}, "answer_index: expected a whole number, found True"),
    ],
)
def test_rows_that_are_none(capsys, root, tmp_path, change, words):
    copy = clone(root / "window", tmp_path / "copy")
    rows = rows_of(copy)
    rows[4] |= change
    (copy / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert f"{copy / 'predictions.jsonl'} line 5: {words}" in refusal(capsys, root, copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_unanswered": None}, "num_unanswered: expected a whole number, found none"),
        ({"num_left_out": "1"}, "num_left_out: expected a whole number, found '1'"),
        ({"num_answered": "8"}, "num_answered: expected a whole number, found '8'"),
        ({"num_answered": -8}, "num_answered: expected a number of at least 0, found -8"),
        ({"bad_videos": ["v0"]}, "bad_videos[0]: expected an object, found 'v0'"),
        ({"bad_videos": None, "num_unanswered": 1}, "bad_videos: expected a list, found none"),
    ],
)
def test_figures_that_are_none(capsys, root, tmp_path, change, words):
    copy = clone(root / "window", tmp_path / "copy")
    metrics = json.loads((copy / "metrics.json").read_text("utf-8"))
    (copy / "metrics.json").write_text(json.dumps(metrics | change), "utf-8")
    assert f"{copy / 'metrics.json'}: {words}" in refusal(capsys, root, copy)


def test_an_unfinished_run_whose_counts_are_none(capsys, root, tmp_path):
    copy = clone(root / "window", tmp_path / "copy")
    (copy / "metrics.json").unlink()
    run = json.loads((copy / "run.json").read_text("utf-8"))
    (copy / "run.json").write_text(json.dumps(run | {"counts": []}), "utf-8")
    assert "the run is not finished: no metrics.json, 8 answers; its evaluate" in refusal(capsys, root, copy)


def test_what_may_be_null(root, tmp_path):
    copies = [clone(root / name, tmp_path / name) for name in ("pyramid", "window")]
    for copy in copies:
        rows = rows_of(copy)
        rows[0] |= {"dataset": None, "extra": rows[0]["extra"] | {"evidence_age_s": None}}
        (copy / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    compared = compare_runs(copies)
    ages = compared.runs[0].groups["evidence_age_s"]
    assert sum(figures.score.num_questions for figures in ages.values()) == compared.num_questions - 1 == 7
