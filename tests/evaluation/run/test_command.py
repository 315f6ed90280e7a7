"""`videochat-online evaluate` and the shell scripts that call it."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from benchmark_sets import benchmark_config
from evaluation_sets import folder_set, question, rows_of, write_set
from videochat_online.cli import evaluate as command
from videochat_online.cli.main import COMMANDS, main, parse
from videochat_online.errors import InputError
from videochat_online.evaluation import Shard
from videochat_online.evaluation.report.environment import run_conditions
from videochat_online.model.checkpoints.weight_files import weights_digest
from videochat_online.runs import progress

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(COMMANDS, "evaluate", command)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", *(name for name in os.environ if name.startswith("SLURM_"))):
        monkeypatch.delenv(name, raising=False)


def without_unreadable(err):
    """What is on stderr but for the line that says how much of what this model writes is noise."""
    lines = err.splitlines(keepends=True)
    return "".join(line for line in lines if "of the replies to questions with options name none" not in line)


@pytest.fixture
def annotations(tmp_path):
    return folder_set(tmp_path, num_videos=2)


@pytest.fixture
def call(tmp_path, tiny_dir, annotations, capsys, monkeypatch):
    """Run the command with what every run needs; gives status, stdout and stderr, without lines of progress."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", math.inf)

    def run(*more, without=()):
        defaults = {
            "--model": str(tiny_dir()),
            "--annotations": str(annotations),
            "--data-root": str(tmp_path / "media"),
            "--output": str(tmp_path / "out"),
            "--max_new_tokens": "4",
        }
        given = [text for name, value in defaults.items() if name not in without for text in (name, value)]
        status = main(["evaluate", *given, *map(str, more)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_newer_options_are_settings_of_a_run_where_they_are_given(annotations, tmp_path):
    """So that runs from before they existed can be resumed; a static cache does not change an answer."""
    given = ["evaluate", "--annotations", str(annotations), "--data_root", str(tmp_path), "--model", "model"]
    given += ["--cache", "static"]
    plain = command.evaluation_config(parse(given, "evaluate")).model_options
    assert not {"int8", "compile", "cache"} & plain.keys()
    changed = command.evaluation_config(
        parse([*given, "--compile", "both", "--int8", "vision"], "evaluate")
    ).model_options
    assert changed == plain | {"compile": "both", "int8": "vision"}


def test_conditions_of_processes_that_differ():
    """One of two shards had a GPU; a video that could not be used needed no model."""
    loaded = [{"device": "cuda (X)", "dtype": "bfloat16"}, {"device": "cpu", "dtype": "bfloat16"}]
    settings = {"model_options": {"dtype": "auto", "tokenizer": None}, "generation": {}, "protocol": {}}
    found = run_conditions({"settings": settings}, [{"loaded": one} for one in loaded] + [{"is_bad": True}])
    assert found == {"dtype": "bfloat16", "device": "cpu, cuda (X)"}
    assert run_conditions({"settings": settings}, []) == {"dtype": "auto"}


class TestCommand:
    def test_readable(self, call, tmp_path):
        status, out, err = call()
        assert (status, without_unreadable(err)) == (0, "")
        assert err.startswith("warning: 100% of the replies to questions with options name none")
        assert " mean of 1 cell, " in out
        assert str(tmp_path / "out" / "report.md") in out
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "run.json",
            "predictions.jsonl",
            "videos.jsonl",
            "metrics.json",
            "report.md",
            "result.json",
            "first_token.png",
        }

    def test_conditions_are_in_every_summary(self, call, tmp_path, tiny_dir):
        """What was asked for and what it came to, in the report as in the files; once each."""
        assert call("--temperature", 0.5, "--seed", 3)[0] == 0
        run, metrics, result = (
            json.loads((tmp_path / "out" / name).read_text()) for name in ("run.json", "metrics.json", "result.json")
        )
        found = metrics["conditions"]
        assert result["conditions"] == found
        expected = {"weights": weights_digest(tiny_dir()), "dtype": "float32", "attn_implementation": "sdpa"}
        expected |= {"device": "cpu", "temperature": 0.5, "seed": 3, **run["versions"]}
        assert found == found | expected
        assert found["template"] == json.loads((tiny_dir() / "config.json").read_text())["template"]
        assert {"git", "torch", "transformers"} <= found.keys()
        assert not {"quantization", "tokenizer", "max_new_tokens"} & found.keys()
        report = (tmp_path / "out" / "report.md").read_text()
        section = report[report.index("## Conditions") : report.index("## Accuracy")]
        for name, value in {"model": str(tiny_dir()), **found}.items():
            assert f"| {name} | {json.dumps(value)} |" in section
        assert report.count("| model |") == 1

    def test_json_is_what_the_file_says(self, call, tmp_path):
        status, out, _ = call("--json", "--memory", "window", "--memory.num-frames", 2)
        assert status == 0
        assert json.loads(out) == json.loads((tmp_path / "out" / "metrics.json").read_text())
        run = json.loads((tmp_path / "out" / "run.json").read_text())
        assert run["settings"]["protocol"]["memory_options"] == {"num_frames": 2}
        assert run["settings"]["generation"]["max_new_tokens"] == 4
        assert run["counts"]["num_questions"] == 6
        assert run["versions"]["torch"]

    def test_the_same_budget_for_every_memory(self, call, tmp_path):
        for memory in ("window", "uniform", "fifo"):
            assert call("--memory", memory, "--output", tmp_path / memory)[0] == 0
            most = max(row["num_visual_tokens"] for row in rows_of(tmp_path / memory))
            assert most <= 52  # 2 x 16 + 2 x 4 + 12 x 1
        assert most > 0

    @pytest.mark.parametrize("extra", [[], ["--max_videos", "1"]])
    def test_dry_run(self, call, tmp_path, annotations, extra):
        rows = json.loads(annotations.read_text())
        rows.append({"video_id": "absent", "dataset": "tao", "questions": [question(1.0)]})
        write_set(annotations, rows)
        status, out, _ = call("--dry-run", "--json", *extra, without=("--model", "--output"))
        assert status == 0
        counts = json.loads(out)
        if extra:
            assert (counts["num_videos"], counts["num_questions"], counts["num_missing_videos"]) == (1, 3, 0)
        else:
            assert (counts["num_videos"], counts["num_questions"], counts["num_missing_videos"]) == (3, 7, 1)
            assert counts["cells"] == {"PastMemory / object": 1, "PastMemory / other": 6}
            assert counts["missing_videos"] == ["absent"]
        assert not (tmp_path / "out").exists()
        assert "0 videos missing" in call("--dry-run", "--max_videos", 1)[1]

    def test_a_dry_run_of_a_shard(self, call, annotations):
        """The set's counts stay the set's; two of its three videos are in the other share, or missing."""
        rows = json.loads(annotations.read_text())
        rows.append({"video_id": "absent", "clip": [0.0, 600.0], "questions": [question(500.0)]})
        write_set(annotations, rows)
        given = ("--dry-run", "--shard")
        shards = []
        for shard in ("0/2", "1/2"):
            counts = json.loads(call(*given, shard, "--json")[1])
            assert (counts["num_videos"], counts["num_questions"], counts["num_missing_videos"]) == (3, 7, 1)
            assert counts["missing_videos"] == ["absent"]
            shards.append(counts["shard"])
        assert shards == [
            {"index": 0, "count": 2, "num_videos": 1, "num_questions": 1, "num_missing_videos": 1},
            {"index": 1, "count": 2, "num_videos": 2, "num_questions": 6, "num_missing_videos": 0},
        ]
        lines = call(*given, "1/2")[1].splitlines()
        assert lines[:2] == [
            "3 videos, 7 questions; 1 videos missing, 0 rows unusable",
            "shard 1/2 of them: 2 videos, 6 questions; 0 videos missing",
        ]
        shard = json.loads(call(*given, "1/2", "--json", without=("--data-root",))[1])["shard"]
        assert shard["num_missing_videos"] is None

    def test_a_dry_run_without_a_place_to_look_at(self, call):
        for more, expected in (((), None), (("--blind",), 0)):
            counts = json.loads(call("--dry-run", "--json", *more, without=("--data-root",))[1])
            assert (counts["num_questions"], counts["num_missing_videos"]) == (6, expected)
        assert "videos not looked for (no --data_root), 0 rows" in call("--dry-run", without=("--data-root",))[1]

    def test_shards_by_flag_and_by_rank(self, call, tmp_path, monkeypatch):
        status, out, _ = call("--shard", "0/2", "--json")
        assert (status, json.loads(out)) == (0, {"num_answered": 3, "num_open": 3})
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert json.loads(call("--json")[1])["num_answered"] == 6
        assert len(rows_of(tmp_path / "out")) == 6

    @pytest.mark.parametrize(
        ("variables", "shard"),
        [
            ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4"}, Shard(2, 4)),
            (
                {"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "10"}
                | {"SLURM_ARRAY_TASK_STEP": "2"},
                Shard(2, 3),
            ),
            (
                {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "RANK": "3", "WORLD_SIZE": "8"},
                Shard(11, 16),
            ),
            ({"RANK": "3", "WORLD_SIZE": "8"}, Shard(3, 8)),
            ({}, Shard(0, 1)),
        ],
    )
    def test_shards_by_slurm_and_torchrun(self, monkeypatch, variables, shard):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert command.asked_shard("slurm" if "SLURM_ARRAY_TASK_ID" in variables else None) == shard
        assert command.asked_shard(None).count == int(variables.get("WORLD_SIZE", "1"))
        if "SLURM_ARRAY_TASK_ID" not in variables:
            with pytest.raises(InputError, match="--shard slurm: expected a task of a Slurm array"):
                command.asked_shard("slurm")

    @pytest.mark.parametrize(
        ("given", "now"),
        [(["--slurm_array"], "--shard slurm"), (["--context", "all"], "--window_s with seconds or all")],
    )
    def test_flags_of_before_name_those_of_now(self, given, now, capsys):
        with pytest.raises(SystemExit) as exit_:
            main(["evaluate", "--annotations", "set.json", *given])
        expected = f"error: {given[0]}: expected {now} in its place (see videochat-online evaluate --help)\n"
        assert (exit_.value.code, capsys.readouterr().err) == (2, expected)

    def test_blind_needs_no_data_root(self, call):
        status, out, _ = call("--blind", "--json", without=("--data-root",))
        assert status == 0
        assert json.loads(out)["cost"]["visual_tokens_max"] == 0

    def test_bad_videos_warn(self, call, tmp_path):
        for path in (tmp_path / "media" / "video1").iterdir():
            path.write_bytes(b"x")
        status, _, err = call("--max_bad_fraction", "0.5")
        assert status == 0
        assert err.startswith("warning: video1: ")

    @pytest.mark.parametrize(
        ("arguments", "without", "words"),
        [
            (["--task", "mvbench"], (), "unknown task 'mvbench': expected one of ['ovbench', 'ovobench'"),
            (
                ["--setting", "offline"],
                (),
                "unknown setting 'offline': expected one of ['sliding_window', 'streaming']",
            ),
            (["--memory", "elephant"], (), "unknown memory 'elephant'"),
            (["--capacities", "0", "0", "0"], (), "capacities: expected at least one above 0, got (0, 0, 0)"),
            (
                ["--memory", "uniform", "--memory.num_frames", "1"],
                (),
                "--memory.num_frames: expected a whole number of",
            ),
            (
                ["--memory", "window", "--capacities", "1"],
                (),
                "an option of memory window, --memory.num_frames",
            ),
            (["--setting", "sliding_window", "--memory", "window"], (), "does not use --memory"),
            (["--window_s", "3"], (), "setting 'streaming' does not use --window_s"),
            (
                ["--setting", "sliding_window", "--window_s", "-1"],
                (),
                "--window_s: expected a number above 0, found",
            ),
            (["--fps", "0"], (), "--fps: expected a number above 0, found 0.0"),
            (["--frame_times", "middle"], (), "--frame_times: expected one of start, end, found 'middle'"),
            (["--answer_by", "guess"], (), "--answer_by: expected one of generation, likelihood"),
            (["--max_bad_fraction", "2"], (), "--max_bad_fraction: expected a number of at most 1, found 2.0"),
            (["--max_videos", "0"], (), "--max_videos: expected a number of at least 1, found 0"),
            (["--shard", "3/3"], (), "--shard: expected INDEX/COUNT"),
            (["--annotations", "absent.json"], (), "absent.json: expected a JSON list of rows, found no readable file"),
            (["--data-root", "absent"], (), "absent: expected the folder with the videos"),
            ([], ("--data-root",), "--data_root: expected the folder with the videos, got none"),
            ([], ("--model",), "--model: expected a directory, got none"),
            ([], ("--output",), "--output: expected a directory, got none"),
            (["--model", "absent"], (), "absent: expected a model directory"),
            (["--backend", "vlc"], (), "backend: expected one of auto"),
        ],
    )
    def test_bad_input_is_one_line(self, call, tmp_path, arguments, without, words):
        status, out, err = call(*arguments, without=without)
        assert (status, out) == (2, "")
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
        assert words in err
        # Of decoders only the process that decodes knows.
        assert not (tmp_path / ("out/metrics.json" if "--backend" in arguments else "out")).exists()

    def test_a_window_is_seconds_or_all(self, call, capsys):
        with pytest.raises(SystemExit, match="2"):
            call("--setting", "sliding_window", "--window_s", "1m")
        assert "--window_s: expected seconds or all, got '1m'" in capsys.readouterr().err

    def test_another_run_is_refused(self, call, tmp_path):
        assert call()[0] == 0
        status, _, err = call("--fps", "2", "--answer_by", "likelihood")
        assert status == 2
        assert "answer_by was " in err
        assert "protocol.fps was 8.0, now 2.0" in err


LMMS = ["ava.json", "coin.json", "hirest.json", "tao.json"]
# With one TAO video more than the lmms sample has, and its six questions: two of each kind in these cells.
CELLS = {
    "FuturePrediction / action": 13, "FuturePrediction / event": 131, "FuturePrediction / object": 65,
    "Hallucination / action": 47, "Hallucination / event": 210, "Hallucination / object": 65,
    "PastMemory / action": 60, "PastMemory / event": 210, "PastMemory / object": 65,
    "SpatialPerception / action": 60, "SpatialPerception / object": 64,
    "SpatioTemporalPerception / action": 60, "SpatioTemporalPerception / object": 65,
    "TemporalPerception / action": 40, "TemporalPerception / event": 181, "TemporalPerception / object": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("files", "num_videos", "num_questions"),
    [
        (LMMS, 287, 1400),
        ([f"nested/ovbench_{name}.json" for name in ("action", "event", "object")], 288, 1406),
        ([f"nested/ovbench_{name}_flat.json" for name in ("action", "event", "object")], 288, 1406),
    ],
)
def test_a_dry_run_of_the_published_files(shared_dir, capsys, files, num_videos, num_questions):
    annotations = [str(shared_dir / "ovbench" / name) for name in files]
    given = ["evaluate", "--dry_run", "--json", "--task", "ovbench", "--annotations", *annotations]
    assert main([*given, "--data_root", str(shared_dir / "videos")]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["num_videos"], counts["num_questions"]) == (num_videos, num_questions)
    assert (counts["num_missing_videos"], counts["num_bad_rows"]) == (num_videos, 0)
    assert counts["cells"].keys() == CELLS.keys()
    if files == LMMS:
        assert counts["cells"] == CELLS
    assert sum(counts["cells"].values()) == num_questions
    assert max(counts["cells"][name] - CELLS[name] for name in CELLS) <= 1


@pytest.mark.parametrize(
    ("setting", "rate", "most"), [("streaming", ["--fps", "1"], 16), ("sliding_window", ["--fps", "0.5"], 17)]
)
def test_the_mini_set_from_end_to_end(shared_dir, call, tmp_path, setting, rate, most):
    videos = shared_dir / "videos"
    files = ["--annotations", videos / "ovbench_mini.json", "--data-root", videos]
    status, out, err = call("--setting", setting, *rate, *files, "--json")
    assert (status, without_unreadable(err)) == (0, "")
    metrics = json.loads(out)
    assert (metrics["num_answered"], metrics["num_bad_videos"], metrics["num_without_frames"]) == (43, 0, 0)
    rows = rows_of(tmp_path / "out")
    assert len({row["id"] for row in rows}) == 43
    for row in rows:
        times_s = [frame["time_s"] for frame in row["frames_used"]]
        assert times_s == sorted(times_s)
        assert len(times_s) <= most
        # Every n-th frame: where frames are shown for long, the latest may be a few seconds old.
        assert times_s[-1] <= row["time_s"] < times_s[-1] + 4
    assert any(len(row["frames_used"]) > 10 for row in rows)


@pytest.mark.parametrize("setting", ["streaming", "sliding_window"])
@pytest.mark.parametrize("task", ["ovobench", "streamingbench"])
def test_other_benchmarks(call, tmp_path, task, setting):
    made = benchmark_config(task, tmp_path / "set", tmp_path / "unused", setting=setting)
    files = ["--task", task, "--setting", setting, "--annotations", *made.annotations, "--data-root", made.data_root]
    given = ("--annotations", "--data-root")
    status, out, _ = call(*files, "--dry-run", "--json", without=(*given, "--model", "--output"))
    counts = json.loads(out)
    cells = {"forward / REC": 2, "backward / EPM": 1} if task == "ovobench" else {"contextual / Proactive Output": 2}
    assert (status, counts["num_missing_videos"], counts["num_bad_rows"]) == (0, 0, 0)
    assert cells.items() <= counts["cells"].items()
    assert sum(counts["cells"].values()) == counts["num_questions"] == {"ovobench": 9, "streamingbench": 7}[task]
    whole = ["--window_s", "all"] if (task, setting) == ("streamingbench", "sliding_window") else []
    status, out, err = call(*files, *whole, without=given)
    assert (status, without_unreadable(err)) == (0, "")
    incomplete = {"ovobench": "- three_way_total: incomplete, lacks backward / ASI, realtime / ACR, "}
    incomplete |= {"streamingbench": "- overall: incomplete, lacks contextual / Anomaly Context Understanding, "}
    assert incomplete[task] in out
    assert (" forward\n" in out) == (task == "ovobench")
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert (settings["task"], settings["protocol"]["window_s"]) == (task, None)
    assert settings["protocol"]["fps"] == (8.0 if setting == "streaming" else 1.0 if whole else 2.0)


@pytest.mark.parametrize(
    ("script", "fixed"),
    [
        ("online_bench_stream.sh", ["--task", "ovbench", "--setting", "streaming"]),
        ("online_bench_sliding_window.sh", ["--task", "ovbench", "--setting", "sliding_window"]),
        ("ovobench.sh", ["--task", "ovobench"]),
        ("streamingbench.sh", ["--task", "streamingbench"]),
    ],
)
def test_scripts_pass_arguments_on_and_keep_the_status(tmp_path, script, fixed):
    for name in ("videochat-online", "torchrun"):
        (tmp_path / name).write_text(f'#!/usr/bin/env bash\nprintf "%q " {name} "$@"\nexit 3\n')
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    path = ROOT / "shell" / "eval" / script
    done = subprocess.run(["bash", path, "--output", "my run"], env=environment, capture_output=True, text=True)
    expected = ["evaluate", *fixed, "--output", "my run"]
    assert (done.returncode, shlex.split(done.stdout)) == (3, ["videochat-online", *expected])
    done = subprocess.run(["bash", path, "--blind"], env={**environment, "GPUS": "4"}, capture_output=True, text=True)
    assert done.returncode == 3
    assert shlex.split(done.stdout)[:6] == [
        "torchrun", "--standalone", "--nproc_per_node", "4", "-m", "videochat_online.cli.main",
    ]  # fmt: skip
