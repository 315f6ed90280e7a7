"""Official scores and files: equal to the official rules said once more, and refused where there are none."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

import official_differences
import official_oracle
from benchmark_sets import streaming_choice, streaming_row
from evaluation_sets import write_set
from made_up_replies import STYLES
from official_sets import FILES, made_run, mixed_rows, write_run
from videochat_online.cli.main import main
from videochat_online.evaluation import get_task
from videochat_online.evaluation.official import (
    OFFICIAL,
    export_run,
    official_ovbench,
    official_scores,
)
from videochat_online.evaluation.tasks.streamingbench import PUBLISHED_PROACTIVE_S, TASKS_OF_GROUPS

SHARED = {
    "ovobench": ["benchmarks/ovo/ovo_bench_new.json"],
    "streamingbench": [
        f"benchmarks/streamingbench/questions_{kind}.json" for kind in ("real", "omni", "sqa", "proactive")
    ],
    "ovbench": [f"ovbench/nested/ovbench_{group}.json" for group in ("action", "event", "object")],
}


@pytest.fixture
def call(capsys):
    """The command line; gives status, stdout and stderr."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


def scores_of(call, run: Path) -> dict:
    status, out, err = call("compare", run, "--score", "official", "--json")
    assert (status, err) == (0, "")
    (found,) = json.loads(out)["runs"]
    return {
        script: {name: figure["official"] for name, figure in of["figures"].items()}
        for script, of in found["scripts"].items()
    }


def oracle_of(call, task: str, run: Path, output: Path, published=()) -> dict:
    """Export a run, and read the files by the rules of the oracle."""
    status, out, _ = call("export", "--format", task, run, "--output", output, "--model_name", "M")
    assert status == 0
    paths = [Path(line) for line in out.splitlines()]
    assert sorted(paths) == sorted(path for path in output.rglob("*") if path.is_file())
    if task == "ovobench":
        return official_oracle.ovobench(output, "M")
    if task == "streamingbench":
        return official_oracle.streamingbench(paths, "M", published)
    return official_oracle.ovbench(output)


def check(ours: dict, theirs: dict):
    """All that the oracle gives, and nothing that it does not but what no script prints."""
    for script, figures in theirs.items():
        assert {name: value for name, value in ours[script].items() if name != "cell_average"} == figures


class TestEqualToTheOfficialRules:
    @pytest.mark.parametrize("style", [*STYLES, None])
    @pytest.mark.parametrize("task", FILES)
    def test_made_up_replies_of_ten_styles(self, call, tmp_path, task, style):
        seed = [*STYLES, None].index(style)
        run = made_run(tmp_path, task, seed, style=style, setting=("streaming", "sliding_window")[seed % 2])
        check(scores_of(call, run), oracle_of(call, task, run, tmp_path / "out"))

    @pytest.mark.parametrize("task", FILES)
    def test_the_published_annotations(self, call, tmp_path, shared_dir, task):
        paths = [shared_dir / name for name in SHARED[task]]
        rows = mixed_rows(get_task(task).load(paths), seed=7)
        run = write_run(tmp_path, "run", task, paths, rows)
        check(scores_of(call, run), oracle_of(call, task, run, tmp_path / "out", published_of(shared_dir)))

    @pytest.mark.parametrize(
        ("percents", "contextual", "overall"),
        [
            ((77.39, 67.80, 52.80, 42.40, 59.20, 23), 51.06, 70.26),
            ((74.54, 50.95, 50.40, 42.80, 52.40, 29), 49.06, 64.31),
            ((74.04, 41.40, 36.00, 43.20, 34.80, 33), 39.70, 60.06),
        ],
    )
    def test_published_totals(self, percents, contextual, overall):
        real, omni, *of_tasks, in_time = percents
        numbered = enumerate(PUBLISHED_PROACTIVE_S, start=1)
        published = [(f"sample_{n}_proactive.mp4", float(time_s)) for n, times_s in numbered for time_s in times_s]
        rights = [(TASKS_OF_GROUPS["real_time"], 250, real), (TASKS_OF_GROUPS["omni_source"], 250, omni)]
        rights += [((task,), 250, value) for task, value in zip(TASKS_OF_GROUPS["contextual"], of_tasks, strict=False)]
        rows = []
        for tasks, num_each, percent in rights:
            num_right = percent * num_each * len(tasks) / 100
            places = [(task, i) for i in range(num_each) for task in tasks]
            rows += [choice_row(task, place < num_right - 1e-6) for place, (task, _) in enumerate(places)]
        rows += [proactive_row(video, time_s, i < in_time) for i, (video, time_s) in enumerate(published)]
        rows += [proactive_row("sample_60_proactive.mp4", float(i), True) for i in range(199)]
        rules = OFFICIAL["streamingbench"]
        found = {one.name: one.percent for one in rules.averages("count.py", rows, rules.rules["count.py"])}
        assert found["contextual_by_time"] == pytest.approx(contextual, abs=0.05)
        assert found["overall_by_time"] == pytest.approx(overall, abs=0.05)
        assert found["contextual"] < found["contextual_by_time"]


@pytest.mark.parametrize(
    ("kind", "right", "text", "expected"),
    [
        ("choice", 0, "Answer: B", True),
        ("choice", 0, "a", False),
        ("choice", 1, "A or B", True),
        ("count", 3, "3", True),
        ("count", 31, "3 times, not 1", True),
        ("count", 3, "3 times, not 1", False),
        ("count", 3, "three", False),
        ("yes_no", 0, "Y", True),
        ("yes_no", 0, "Y.", False),
        ("yes_no", 1, "N", True),
        ("yes_no", 0, "N", False),
        ("yes_no", 1, "Nothing is seen", True),
        ("yes_no", 1, "no", False),
        ("yes_no", 0, "No. Yes.", True),
        ("yes_no", 0, "", False),
    ],
)
def test_oddities_of_ovobench(kind, right, text, expected):
    rule = OFFICIAL["ovobench"].rules["score.py"]
    assert rule({"kind": kind, "answer_index": right, "text": text, "answer_type": "REC"}) is expected


def published_of(shared_dir):
    """Video and second of the 51 proactive questions, by the file that has them alone."""
    content = get_task("streamingbench").load([shared_dir / "benchmarks/streamingbench/questions_proactive_50.json"])
    return {(video.name, one.time_s) for video in content.videos for one in video.questions}


def choice_row(task, right):
    return {
        "answer_type": task,
        "dataset": None,
        "text": "B" if right else "C",
        "answer_index": 1,
        "video": "v",
        "time_s": 0.0,
    }


def proactive_row(video, time_s, in_time):
    """Answered in other words: right by time alone."""
    facts = {
        "answer_type": "Proactive Output",
        "dataset": None,
        "video": video,
        "time_s": time_s,
        "output": "Go",
        "due_s": time_s + 9,
    }
    return facts | {"output_s": time_s + (9 if in_time else 1), "text": "go", "polls": [{}]}


class TestRulesOfOVBench:
    """Against what the released scripts were recorded to read."""

    def test_letters_of_the_sliding_window(self, shared_dir):
        recorded = json.loads((shared_dir / "golden/cases/answer_extraction.json").read_text("utf-8"))
        assert len(recorded) > 70
        for row in recorded:
            assert official_ovbench.window_answer(row["text"]) == row["out"], row["text"]
            wrapped = row["multiturn_wrapped"]
            assert official_ovbench.multiturn_answer(row["text"]) == (wrapped[1:2] or None), row["text"]

    def test_scores_of_the_single_question(self, shared_dir):
        recorded = json.loads((shared_dir / "golden/cases/mcq_acc.json").read_text("utf-8"))
        read = official_ovbench.single_answer
        assert [int(read(row["pred"]) == read(row["gt"])) for row in recorded] == [row["score"] for row in recorded]

    @pytest.mark.parametrize(
        ("text", "single", "window", "multiturn"),
        [
            ("(B) text", "B", "B", "B"),
            ("Answer: B", "B", "B", "A"),
            ("Because of a dog, C", "A", "B", "B"),
            ("b", "B", None, "b"),
            ("", "", None, None),
            ("B. one\ntwo", "B", "B", "B"),
            ("1,000 (c)", "C", None, "1"),
            ("B-1,000", "b1000", "B", "B"),
            ("." * 40 + "x", "." * 8 + "x", None, "."),
        ],
    )
    def test_oddities(self, text, single, window, multiturn):
        assert official_ovbench.single_answer(text) == single
        assert official_ovbench.window_answer(text) == window
        assert official_ovbench.multiturn_answer(text) == multiturn


class TestFiles:
    def test_of_ovobench(self, call, tmp_path):
        run = made_run(tmp_path, "ovobench", style="letter")
        assert call("export", "--format", "ovobench", run, "--output", tmp_path / "out")[0] == 0
        (path,) = (tmp_path / "out" / "tiny").iterdir()
        assert path.name.startswith("tiny_EPM_")
        assert path.name.endswith("_offline_1.json")
        results = json.loads(path.read_text("utf-8"))
        rows = json.loads((tmp_path / "ovo.json").read_text("utf-8"))
        assert {group: len(some) for group, some in results.items()} == {"backward": 12, "realtime": 24, "forward": 12}
        assert list(results["backward"][0]) == ["id", "video", "task", "question", "response", "ground_truth"]
        for made in results["forward"]:
            row = next(row for row in rows if row["id"] == made["id"])
            tests = [{key: value for key, value in test.items() if key != "response"} for test in made["test_info"]]
            assert {**made, "test_info": tests} == row
            assert all(isinstance(test["response"], str) for test in made["test_info"])

    def test_of_streamingbench(self, call, tmp_path):
        run = made_run(tmp_path, "streamingbench", style="letter")
        assert call("export", "--format", "streamingbench", run, "--output", tmp_path / "out")[0] == 0
        kinds = ("omni", "proactive", "real", "sqa")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{k}_output_tiny.json" for k in kinds]
        for kind in kinds:
            made = json.loads((tmp_path / "out" / f"{kind}_output_tiny.json").read_text("utf-8"))
            # The oracle's own walk through a file of results.
            replies = [without_reply(one) for one in official_oracle._rows(made) for one in one["questions"]]
            assert all(replies)
            assert made == json.loads((tmp_path / f"questions_{kind}.json").read_text("utf-8"))
            if kind == "proactive":
                history = replies[0]["dialog_history"]
                assert [(one["role"], "time" in one) for one in history[:2]] == [("user", True), ("assistant", True)]
                assert {one["content"] for one in history[1::2]} <= {"Yes", "No", "3", "Break point", "GOAL"}

    def test_of_ovbench(self, call, tmp_path):
        run = made_run(tmp_path, "ovbench", style="sentence", setting="sliding_window")
        assert call("export", "--format", "ovbench", run, "--output", tmp_path / "out")[0] == 0
        final = json.loads((tmp_path / "out" / "ovbench_result_final.json").read_text("utf-8"))
        rows = json.loads((tmp_path / "out" / "ovbench_fps2_f64_window32.json").read_text("utf-8"))
        right = Counter(row["task_type"] for row in rows if row["pred"] == row["gt"])
        assert final["total"] == len(rows) == 48
        assert final["Avg"] == pytest.approx(100 * sum(right.values()) / 48)
        assert list(rows[0]) == ["question", "pred", "gt", "task_type"]
        assert rows[0]["question"].startswith("Question at ")

    def test_of_one_question_at_a_time(self, call, tmp_path):
        run = made_run(tmp_path, "ovbench")
        assert call("export", "--format", "ovbench", run, "--output", tmp_path / "out")[0] == 0
        types, kinds, values, again = (tmp_path / "out" / "ovbench_result_final.csv").read_text("utf-8").splitlines()
        assert types.split(",")[:3] == ["FuturePrediction", "FuturePrediction", "Hallucination"]
        assert kinds.split(",")[:3] == ["FuturePrediction-1", "FuturePrediction-2", "Hallucination-1"]
        assert values == again
        single = scores_of(call, run)["stream_single"]["Avg"]
        assert sum(map(float, values.split(","))) / len(values.split(",")) == pytest.approx(single, abs=0.01)

    def test_rows_that_cannot_be_used_are_left_out_and_said(self, call, tmp_path):
        good, bad = streaming_choice("00:00:02"), streaming_choice("never")
        path = write_set(tmp_path / "questions_real.json", [streaming_row("sample_1_real.mp4", bad, good)])
        content = get_task("streamingbench").load([path])
        run = write_run(tmp_path, "run", "streamingbench", [path], mixed_rows(content, 0))
        status, out, err = call("export", "--format", "streamingbench", run, "--output", tmp_path / "out")
        assert status == 0
        assert (
            "note: 1 annotated questions cannot be used and have no reply; the first: questions_real.json row 1" in err
        )
        made = json.loads(Path(out.strip()).read_text("utf-8"))[0]["questions"]
        assert ["tiny" in one for one in made] == [False, True]

    def test_an_empty_reply_is_a_blank(self, call, tmp_path):
        path = write_set(tmp_path / "q.json", [streaming_row("a.mp4", streaming_choice("00:00:02"))])
        (row,) = mixed_rows(get_task("streamingbench").load([path]), 0)
        run = write_run(tmp_path, "run", "streamingbench", [path], [row | {"text": "", "correct": False}])
        status, out, err = call("export", "--format", "streamingbench", run, "--output", tmp_path / "out")
        assert (status, "1 questions have an empty reply, which counts as wrong" in err) == (0, True)
        assert json.loads(Path(out.strip()).read_text("utf-8"))[0]["questions"][0]["tiny"] == " "
        assert Path(out.strip()).name == "q_output_tiny.json"

    def test_annotations_that_were_moved(self, call, tmp_path):
        run = made_run(tmp_path, "ovobench")
        (tmp_path / "there").mkdir()
        moved = (tmp_path / "ovo.json").rename(tmp_path / "there" / "ovo.json")
        given = ("export", "--format", "ovobench", run, "--output", tmp_path / "out")
        status, _, err = call(*given)
        assert (status, "--annotations: expected the files that" in err, len(err.splitlines())) == (2, True, 1)
        assert call(*given, "--annotations", moved)[0] == 0


def without_reply(question):
    return question.pop("tiny")


class TestTables:
    def test_two_runs_beside_each_other(self, call, tmp_path):
        runs = []
        for name in ("ovobench", "ovbench"):
            (tmp_path / name).mkdir()
            runs.append(made_run(tmp_path / name, name))
        status, out, _ = call("compare", *runs, "--score", "official", "--labels", "one", "two")
        assert status == 0
        assert out.index("## one") < out.index("| published total: mean of the three groups |") < out.index("## two")
        lines = call("compare", *runs, "--score", "official")[1].splitlines()
        assert len({line for line in lines if line.startswith("## ")}) == 2
        (scored,) = official_scores(runs[:1])
        judged = [
            (OFFICIAL["ovobench"].rules["score.py"](row), row["correct"])
            for row in map(json.loads, (runs[0] / "predictions.jsonl").read_text("utf-8").splitlines())
        ]
        assert scored.scripts["score.py"].only_official == judged.count((True, False)) > 0
        assert f"Right by `score.py` alone: {judged.count((True, False))} replies" in out

    def test_differences_on_made_up_replies(self, tmp_path, capsys):
        given = []
        for task, make in FILES.items():
            given += [f"--{task}", *(str(path) for path in make(tmp_path, random.Random(0)))]
        official_differences.main(given)
        first = capsys.readouterr().out
        head, ruler, *lines = first.splitlines()
        assert head.count("|") == ruler.count("|") == 5 + len(STYLES)
        assert all(line.count("|") == 5 + len(STYLES) for line in lines)
        assert len(lines) == sum(map(len, official_differences.LINES.values()))
        sizes = {line.split(" | ")[1]: line.split(" | ")[4:] for line in lines if line.startswith("| ovobench")}
        assert set(sizes["counts"]) > {"0.0"}
        official_differences.main(given)
        assert capsys.readouterr().out == first


@pytest.mark.parametrize("task", OFFICIAL)
def test_half_a_character_is_written_as_it_was_replied(task, tmp_path):
    run = made_run(tmp_path, task, style="letter")
    path = run / "predictions.jsonl"
    rows = [json.loads(line) | {"text": "A \ud800\n"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = export_run(run, tmp_path / "out", task).paths[0].read_text(encoding="utf-8")
    assert r"A \ud800\n" in json.dumps(json.loads(written))
