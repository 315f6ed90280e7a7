"""A benchmark from a table, from end to end: all kinds of questions in both settings and by all ways of answering."""

from __future__ import annotations

import json

import pytest

from clips import write_clip
from evaluation_sets import rows_of, write_frames
from videochat_online.cli.main import main

TABLE = """video,question,time,answer,options,group,evidence,scorer,fps
a,Which?,0:01,red,red|blue,Colours,0,,4
a,Open?,2,no,,States,1.5,,4
b,How many?,1.5,2,,Counts,,,4
b,What?,2,a cup,,Things,,contains,4
b,Last?,,blue,red|blue,Colours,,,4
"""


@pytest.fixture
def call(tmp_path, tiny_dir, frames, capsys, monkeypatch):
    """A command in a folder with `my.csv` and its videos, 2.5 s each; gives status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.csv").write_text(TABLE)
    for seed, name in enumerate("ab"):
        write_frames(tmp_path / "media" / name, frames(10, seed))

    def run(command, *arguments):
        model = ["--model", tiny_dir(), "--max_new_tokens", 2] if command == "evaluate" else []
        table = ["--task", "table", "--task.file", "my.csv"] if command in ("evaluate", "doctor") else []
        status = main([command, *map(str, (*model, *table, *arguments))])
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("setting", ["streaming", "sliding_window"])
@pytest.mark.parametrize("answer_by", ["generation", "likelihood", "text_likelihood"])
def test_every_kind_is_asked_and_scored(call, tmp_path, setting, answer_by):
    how = ("--data_root", "media", "--setting", setting, "--answer_by", answer_by)
    assert call("evaluate", *how, "--output", "out")[0] == 0
    rows = {row["question"]: row for row in rows_of(tmp_path / "out")}
    assert [(row["question"], row["time_s"], row.get("kind")) for row in rows.values()] == [
        ("Which?", 1.0, None),
        ("Open?", 2.0, "yes_no"),
        ("How many?", 1.5, "count"),
        ("What?", 2.0, "open"),
        ("Last?", 2.5, None),
    ]
    for row in rows.values():
        assert row["correct"] is (
            "a cup" in row["text"] if row["question"] == "What?" else row["predicted_index"] == row["answer_index"]
        )
        # The latest frame that starts by then, of four a second; the streams' end is no frame's start.
        assert row["frames_used"][-1]["time_s"] == min(row["time_s"], 2.25)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    cells = {"Colours / other": 2, "States / other": 1, "Counts / other": 1, "Things / other": 1}
    assert {name: score["num_questions"] for name, score in metrics["cells"].items()} == cells
    assert metrics["by_evidence_age_s"]["0-2 s"]["num_questions"] == 2
    assert metrics["num_without_scorer"] == 0
    # A finished run is taken up as it is, and has no official form.
    written = (tmp_path / "out/predictions.jsonl").read_bytes()
    assert call("evaluate", *how, "--output", "out")[0] == 0
    assert (tmp_path / "out/predictions.jsonl").read_bytes() == written
    status, _, err = call("compare", "out", "--score", "official")
    assert (status, "which have official scores, got 'table'" in err) == (2, True)


def test_two_memories_beside_each_other(call):
    for name, memory in (("one", "pyramid"), ("two", "fifo")):
        assert call("evaluate", "--data_root", "media", "--memory", memory, "--output", name)[0] == 0
    status, out, _ = call("compare", "one", "two", "--json")
    assert status == 0
    (_, run) = json.loads(out)["runs"]
    assert {name: group["num_questions"] for name, group in run["by_answer_type"].items()} == {
        "Colours": 2, "Counts": 1, "States": 1, "Things": 1,
    }  # fmt: skip
    assert run["by_evidence_age_s"]["0-2 s"]["num_questions"] == 2


def test_defaults_of_a_memory_are_the_same_run(call, tmp_path):
    how = ("--data_root", "media", "--output", "out", "--memory", "window", "--memory.num_frames", 4)
    assert call("evaluate", *how)[0] == 0
    run = json.loads((tmp_path / "out/run.json").read_text())
    run["settings"]["protocol"]["memory_options"] = {}
    (tmp_path / "out/run.json").write_text(json.dumps(run))
    assert call("evaluate", *how)[0] == 0
    status, _, err = call("evaluate", *how[:-1], 5)
    assert (status, "protocol.memory_options.num_frames was 4, now 5" in err) == (2, True)


def test_what_cannot_be_used_is_said(call, tmp_path):
    """Rows, columns, and questions about moments that the video does not have."""
    write_clip(tmp_path / "media" / "c.mp4")
    rows = "c,Which?,1,red,red|blue,x\nc,Which?,30,red,red|blue,x\nc,Which?,soon,red,red|blue,x\n"
    (tmp_path / "my.csv").write_text(f"video,question,time,answer,options,colour\n{rows}")
    unread = "my.csv: columns that are kept with the questions and not read: colour"
    status, out, _ = call("evaluate", "--data_root", "media", "--max_bad_fraction", 0.5, "--dry_run")
    assert (status, out.splitlines()[-1]) == (0, f"  note: {unread}")
    status, _, err = call("evaluate", "--data_root", "media", "--max_bad_fraction", 0.5, "--output", "out")
    assert status == 0
    assert [line for line in err.splitlines() if line.startswith("warning: ")][:3] == [
        "warning: 1 annotated questions cannot be used; the first: my.csv:4: time: expected a time such as 90, 1:30 or "
        "1:02:30, got 'soon'",
        "warning: c: 1 of 2 questions come after its end at 4.00 s",
        f"warning: {unread}",
    ]
    assert f"\n\n{unread}\n\n" in (tmp_path / "out/report.md").read_text()


def test_another_table_is_another_run(call, tmp_path):
    assert call("evaluate", "--data_root", "media", "--output", "out")[0] == 0
    (tmp_path / "my.csv").write_text(TABLE.replace("a cup", "a jar"))
    status, _, err = call("evaluate", "--data_root", "media", "--output", "out")
    assert status == 2
    assert "annotations was " in err
    assert '"file": "my.csv"' in err


def test_before_a_run(call):
    status, out, _ = call("evaluate", "--dry_run", 2, "--data_root", "media", "--json")
    shown = {one["prompt"].split(": ")[-1].split("\n")[0]: one for one in json.loads(out)["shown"]}
    assert (status, {name: one["expected"] for name, one in shown.items()}) == (
        0,
        {"Which?": "A. red", "Last?": "B. blue", "How many?": "2", "What?": "a cup", "Open?": "No"},
    )
    assert shown["Last?"]["time_s"] == 2.5
    assert shown["Last?"]["frames_seen"][-1] == 2.25
    status, out, _ = call("evaluate", "--dry_run", 2)
    assert "video: b, asked at its end, answered by generation" in out
    status, out, err = call("doctor", "--data_root", "media")
    assert (status, out, err) == (
        0, "2 videos, 5 questions: 0 videos with problems, 0 unusable rows, 0 corrupt archives\n", "",
    )  # fmt: skip


def test_a_blind_run_knows_no_end(call, tmp_path):
    status, _, err = call("evaluate", "--blind", "--output", "out")
    assert status == 2
    assert err.startswith("error: --blind: expected a time for every question, as no video is opened; 1 are asked at")
    (tmp_path / "my.csv").write_text(TABLE.replace("Last?,,", "Last?,2.5,"))
    assert call("evaluate", "--blind", "--output", "out")[0] == 0
