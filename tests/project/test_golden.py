"""The checker itself: it must pass what is right, and catch one wrong number, a crash and an empty check."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import check_golden
from golden import answer_scoring
from golden.harness import Case, run_lengths
from golden_folder import PRINTED, write_golden

FRAMES = "import numpy as np\ndef make_frames(seed, T):\n    return np.full((T, 2, 2, 3), seed, dtype=np.uint8)\n"

BATCH = {
    "features": [
        {"input_ids": [1, 0, 5], "labels": [-100, -100, 5], "attention_mask": [1, 1, 1], "num_patches": [2]},
        {"input_ids": [1, 9, 20], "labels": [-100, 9, -100], "attention_mask": [1, 1, 0], "num_patches": [1]},
    ],
    "batch": {
        "input_ids": [[1, 0, 5], [1, 9, 20]],
        "labels": [[-100, -100, 5], [-100, 9, -100]],
        "attention_mask": [[True, False, True], [True, True, True]],
        "num_patches": [2, 1],
    },
    "pixel_values_shape": [3, 3, 2, 2],
}
# Steps of four samples for two ranks: 2, 0, 4, 1 and then 3, which is the longest.
GROUPING = {"lengths": [3, 1, 4, 9, 5], "randperm": [2, 0, 4, 1, 3], "batch_size": 2, "world_size": 2,
            "out": [4, 1, 2, 0, 3], "even_chunks": [[0, 3], [1, 2]]}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A golden folder with a pixel shuffle done by hand, a token schedule, and a kind that is not covered."""
    (tmp_path / "cases").mkdir()
    (tmp_path / "frames.py").write_text(FRAMES)
    grid = torch.arange(1.0, 33.0).reshape(1, 4, 4, 2)
    shuffled = torch.stack(
        [
            torch.cat([grid[0, 2 * r + i, 2 * c + j] for i in range(2) for j in range(2)])
            for r in range(2)
            for c in range(2)
        ]
    ).reshape(1, 2, 2, 8)
    save_file({"input": grid, "output": shuffled}, tmp_path / "cases" / "shuffle.safetensors")
    rows = [{"T": 5, "intervals": [4, 2, 1], "ratios": [1, 2, 4], "out": [1, 4, 2, 4, 1]}]
    (tmp_path / "cases" / "schedule.json").write_text(json.dumps(rows))
    cases = [
        {"name": "shuffle", "kind": "pixel_shuffle", "files": ["cases/shuffle.safetensors"],
         "params": {"ps_version": "v2", "scale": 0.5}, "tolerance": {"atol": 0.01}},
        {"name": "schedule", "kind": "token_schedule", "files": ["cases/schedule.json"], "params": {}, "tolerance": {}},
        {"name": "other", "kind": "oddity", "files": [], "params": {}},
    ]  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps({"cases": cases}))
    return tmp_path


def edit_output(folder, change):
    tensors = {"input": torch.arange(1.0, 33.0).reshape(1, 4, 4, 2)}
    case = next(case for case in check_golden.load_cases(folder) if case.name == "shuffle")
    save_file(tensors | {"output": change(case.tensors["output"].clone())}, folder / "cases" / "shuffle.safetensors")


def nudge(amount):
    def change(output):
        output[0, 1, 1, 3] += amount
        return output

    return change


def test_right_numbers_pass(folder, capsys):
    assert check_golden.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "2/2 cases passed" in out
    assert "oddity" in out
    assert "not covered" in out


@pytest.mark.parametrize("amount", [0.011, -5.0, float("nan"), float("inf")])
def test_one_wrong_number_is_caught(folder, capsys, amount):
    edit_output(folder, nudge(amount))
    assert check_golden.main([str(folder)]) == 1
    assert "FAILED  shuffle: output: largest error" in capsys.readouterr().out


def test_the_case_s_tolerance_binds(folder):
    edit_output(folder, nudge(0.009))
    assert check_golden.main([str(folder)]) == 0


def test_one_wrong_id_is_caught(folder, capsys):
    path = folder / "cases" / "schedule.json"
    path.write_text(path.read_text().replace("[1, 4, 2, 4, 1]", "[1, 4, 2, 4, 2]"))
    assert check_golden.main([str(folder), "--json"]) == 1
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["shuffle"]["passed"]
    assert not rows["schedule"]["passed"]


def test_a_crash_fails_its_case_only(folder, monkeypatch, capsys):
    def crash(case):
        raise KeyError("x")

    monkeypatch.setitem(check_golden.CHECKS, "token_schedule", crash)
    assert check_golden.main([str(folder)]) == 1
    assert "1/2 cases passed" in capsys.readouterr().out


def test_a_check_that_compares_nothing_fails(folder, monkeypatch, capsys):
    monkeypatch.setitem(check_golden.CHECKS, "token_schedule", lambda case: case.exclude("everything"))
    assert check_golden.main([str(folder)]) == 1
    assert "nothing was compared" in capsys.readouterr().out


def test_only_one_kind(folder, capsys):
    assert check_golden.main([str(folder), "--kind", "pixel_shuffle"]) == 0
    assert "1/1 cases passed" in capsys.readouterr().out


def test_no_such_folder(tmp_path, capsys):
    assert check_golden.main([str(tmp_path)]) == 2
    assert "index.json" in capsys.readouterr().err


@pytest.mark.parametrize("cases", [[], [{"name": "x", "kind": "pixel_shufle", "files": [], "params": {}}]])
def test_nothing_to_check_is_not_a_pass(folder, cases, capsys):
    (folder / "index.json").write_text(json.dumps({"cases": cases}))
    assert check_golden.main([str(folder)]) == 2
    assert "expected" in capsys.readouterr().err


def run_changed(case, *path, value):
    """Failures of a case with one recorded value changed; none given: as recorded."""
    changed = Case(root=case.root, entry=case.entry, frames=case.frames)
    changed.recorded = copy.deepcopy(case.recorded)
    place = changed.recorded
    for key in path[:-1]:
        place = place[key]
    if path:
        assert place[path[-1]] != value
        place[path[-1]] = value
    check_golden.run_check(changed)
    assert changed.exclusions
    return changed.failures


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("collator", ("batch", "input_ids", 0, 2), 6),
        ("collator", ("batch", "labels", 1, 1), 8),
        ("collator", ("batch", "attention_mask", 0, 1), True),
        ("collator", ("batch", "num_patches"), [1, 2]),
        ("collator", ("pixel_values_shape", 0), 2),
        ("sampler", ("out",), [4, 1, 0, 2, 3]),
        ("sampler", ("out",), [4, 3, 2, 0, 1]),
        ("sampler", ("randperm",), [3, 0, 4, 1, 2]),
        ("sampler", ("even_chunks", 1), [2, 1]),
    ],
)
def test_batches(kind, path, value):
    case = Case(root=None, entry={"name": kind, "kind": kind}, frames=None)
    case.recorded = {"collator": BATCH, "sampler": GROUPING}[kind]
    assert run_changed(case, value=None) == []
    assert run_changed(case, *path, value=value) != []


@pytest.mark.parametrize("row", ["online_timestamps", "tracking_max6", "llava_video_tok64", "llava_multi_image_trunc"])
def test_rows_that_the_reference_corrupts_can_fail(shared_dir, row):
    """The value of ours that stands in for the recorded one is compared as well."""
    cases = {case.name: case for case in check_golden.load_cases(shared_dir / "golden")}
    case = cases[f"dataset_phi3_spm_{row}"]
    recorded = case.recorded
    assert run_changed(case, value=None) == []
    for key in ("input_ids_rle", "labels_rle"):
        index, count = recorded[key][-1]
        assert run_changed(case, key, -1, value=[index + 1, count]) != []
    assert run_changed(case, "pixel_means", -1, 2, value=recorded["pixel_means"][-1][2] + 0.051) != []
    assert run_changed(case, "conversations_after", 0, "value", value="Else.") != []
    assert run_changed(case, "num_patches", value=[recorded["num_patches"][0] + 1]) != []
    assert run_changed(case, "is_video", value=[1 - recorded["is_video"][0]]) != []


@pytest.mark.parametrize(
    ("script", "paths"),
    [
        ("stream_single_time_fps2", [(3, "timestamps", 0), (12, "n_frames"), (5, "add_generation_prompt")]),
        ("stream_multiturn_notime_fps1", [(2, "question"), (2, "history", 0, 0), (1, "system_message")]),
        ("sliding_window_time_fps1", [(11, "question"), (0, "generation_config", "min_new_tokens"), (4, "answer")]),
    ],
)
def test_what_the_published_scripts_ask_can_fail(shared_dir, script, paths):
    cases = {case.name: case for case in check_golden.load_cases(shared_dir / "golden")}
    case = cases[f"evalscript_{script}"]
    assert run_changed(case, value=None) == []
    for path in paths:
        place = case.recorded["calls"]
        for key in path:
            place = place[key]
        if isinstance(place, int):
            value = place + 1
        else:
            value = re.sub(r"Frame\d+", "Frame0", place, count=1) if "Frame" in place else f"B{place}"
        assert run_changed(case, "calls", *path, value=value) != [], path


def test_shares_can_fail():
    case = Case(root=None, entry={"name": "shares", "kind": "sharding"}, frames=None)
    case.recorded = [{"total": 7, "world": 3, "shards": [[0, 3], [3, 5], [5, 7]]}]
    assert run_changed(case, value=None) == []
    assert run_changed(case, 0, "shards", 1, value=[3, 6]) != []
    assert run_changed(case, 0, "total", value=8) != []


def test_shapes_must_agree():
    case = Case(root=None, entry={"name": "x", "tolerance": {"atol": 1.0}}, frames=None)
    assert not case.close("x", torch.zeros(2), torch.zeros(1, 2))
    assert case.failures == ["x: expected shape (1, 2), got (2,)"]


def test_run_lengths():
    assert run_lengths([5, 5, 1, 5]) == [[5, 2], [1, 1], [5, 1]]
    assert run_lengths([]) == []


def test_every_kind_but_those_of_later_work_is_covered(shared_dir):
    index = json.loads((shared_dir / "golden" / "index.json").read_text())
    kinds = {case["kind"] for case in index["cases"]}
    assert kinds - check_golden.CHECKS.keys() == check_golden.NOT_COVERED


def test_the_document_counts_every_kind(shared_dir):
    text = (Path(check_golden.__file__).parents[1] / "docs" / "golden.md").read_text(encoding="utf-8")
    written = {kind: int(count) for kind, count in re.findall(r"`(\w+)` \((\d+)\)", text)}
    index = json.loads((shared_dir / "golden" / "index.json").read_text())
    counts = Counter(case["kind"] for case in index["cases"])
    assert written == {kind: count for kind, count in counts.items() if kind in check_golden.CHECKS}


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory, tiny_dir):
    """Another recording: other rows, rates, sizes, and wordings of replies."""
    root = tmp_path_factory.mktemp("golden")
    write_golden(root, tiny_dir("phi3"))
    return root


def test_another_recording_passes(other_folder, capsys):
    assert check_golden.main([str(other_folder)]) == 0, capsys.readouterr().out
    assert "7/7 cases passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("clips", (0, "indices", 1), -76),
        ("clips", (1, "timestamps", 2), 0.4),
        ("clips", (2, "indices", 3), 55),
        ("clips", (4, "timestamps", 0), 0.4),
        ("files", (0, "indices", 4), 71),
        ("files", (1, "sec", 2), "2.2"),
        ("track", ("pixel_means", 3, 0), 9.0),
        ("track", ("conversations_after", 6, "value"), "Frame5 at 1.2s: <image>\n"),
        ("track", ("num_patches",), [5]),
        ("track", ("n",), 2),
        ("track", ("n_supervised",), 2),
        ("track", ("image_flags", 1), 0),
        ("track", ("is_video",), [2]),
        ("track", ("attention_ones",), 10**6),
        ("track", ("conversations_after", 6, "timestamps"), 1.3),
        ("track", ("conversations_after", 2, "from"), "gpt"),
        ("letters", (3, "out"), "C"),
        ("letters", (6, "out"), None),
        ("pairs", (2, "score"), 0),
        ("items", ("items", 0, "result", "score"), 0),
        ("items", ("aggregate",), 25.0),
        ("items", ("printed",), PRINTED.replace("33.33%", "34.33%")),
        ("turns", ("calls", 1, "question"), "Frame1 at 0.5s: <image>\nWhich?"),
        ("turns", ("calls", 0, "n_frames"), 3),
        ("turns", ("printed_result",), "{'Spatial': 0.0, 'Avg': 50.0, 'total': 2}"),
    ],
)
def test_one_number_of_another_recording_can_fail(other_folder, name, path, value):
    case = next(case for case in check_golden.load_cases(other_folder) if case.name == name)
    changed = Case(root=case.root, entry=case.entry, frames=case.frames)
    changed.recorded = place = copy.deepcopy(case.recorded)
    for key in path[:-1]:
        place = place[key]
    assert place[path[-1]] != value
    place[path[-1]] = value
    check_golden.run_check(changed)
    assert changed.failures
    assert not any("raised" in line for line in changed.failures)


@pytest.mark.parametrize(("reply", "num_unexplained"), [(None, 4), ("A", 15)])
def test_a_reading_without_a_reason_fails(other_folder, monkeypatch, reply, num_unexplained):
    """A parser that reads nothing, and one that reads an A in everything."""
    monkeypatch.setattr(answer_scoring, "parse_answer", lambda text, options: None if reply is None else 0)
    case = next(case for case in check_golden.load_cases(other_folder) if case.name == "letters")
    check_golden.run_check(case)
    assert len(case.failures) == num_unexplained
    assert all("nothing in it says why" in line for line in case.failures)
