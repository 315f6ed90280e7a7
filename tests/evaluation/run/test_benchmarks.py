"""OVO-Bench and StreamingBench from end to end: every kind of question, causal, once, resumed, in shards, summed up."""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest

from benchmark_sets import benchmark_config
from evaluation_sets import Shard, rows_of, run
from videochat_online.errors import InputError
from videochat_online.evaluation import compare_runs, get_task, resolve_protocol
from videochat_online.evaluation.compare.finished_runs import default_label
from videochat_online.evaluation.report.run_report import headline
from videochat_online.evaluation.run.answering import Reply
from videochat_online.evaluation.run.plan import QUESTION_COST, estimated_cost
from videochat_online.evaluation.run.proactive import Polls
from videochat_online.evaluation.run.runner import way_of_answering
from videochat_online.evaluation.scoring.averages import averages
from videochat_online.evaluation.scoring.metrics import compute_metrics
from videochat_online.evaluation.tasks.streamingbench import load_streamingbench
from videochat_online.model import VideoChatModel

TASKS, SETTINGS = ("ovobench", "streamingbench"), ("streaming", "sliding_window")
NUM_QUESTIONS = {"ovobench": 9, "streamingbench": 7}
COUNTED: list[int] = []


class CountingModel(VideoChatModel):
    """Notes how many frames go through the vision tower."""

    def encode(self, pixels_THWC):
        COUNTED.append(len(pixels_THWC))
        return super().encode(pixels_THWC)


class Stop(Exception):  # noqa: N818
    """Ends a run from inside."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder for each benchmark, in which `benchmark_config` makes it once."""
    return {task: tmp_path_factory.mktemp(task) for task in TASKS}


@pytest.fixture(scope="module", params=[(task, setting) for task in TASKS for setting in SETTINGS], ids="-".join)
def asked(request):
    """Benchmark and setting."""
    return request.param


@pytest.fixture(scope="module")
def wholes(sets, tiny_model):
    """Finished runs by benchmark and setting, made when they are asked for. Not to be written to."""
    made = {}

    def whole(task, setting):
        if (task, setting) not in made:
            made[task, setting] = sets[task] / f"whole_{setting}"
            how = {"setting": setting, "answer_by": "likelihood"}
            run(benchmark_config(task, sets[task], made[task, setting], **how), tiny_model)
        return made[task, setting]

    return whole


@pytest.fixture
def whole(asked, wholes):
    return wholes(*asked)


@pytest.fixture
def config(asked, sets, tmp_path):
    """A configuration that answers by likelihood, so that polls are answered with Yes or No."""
    task, setting = asked

    def make(output, **changes):
        how = {"setting": setting, "answer_by": "likelihood", **changes}
        return benchmark_config(task, sets[task], tmp_path / output, **how)

    return make


def annotated(root, source):
    """What stands where a row says that its question does: a row of OVO-Bench, a question of StreamingBench."""
    content = json.loads((root / source["file"]).read_text("utf-8"))
    rows = [row for entry in content for row in (entry if isinstance(entry, list) else [entry])]
    row = rows[source["row"]]
    if "test_info" in row:
        return row | row["test_info"][source["part"]]
    return row if source["part"] is None else row["questions"][source["part"]]


class TestRuns:
    def test_causal_and_every_frame_once(self, config, tiny_model, tmp_path):
        COUNTED.clear()
        model = CountingModel(**{field.name: getattr(tiny_model, field.name) for field in fields(VideoChatModel)})
        made = config("out")
        outcome = run(made, model)
        assert outcome.num_answered == NUM_QUESTIONS[made.task.name]
        for row in rows_of(tmp_path / "out"):
            asked_s = row["polls"][-1]["time_s"] if row.get("polls") else row["time_s"]
            assert row["frames_used"][-1]["time_s"] <= asked_s < row["frames_used"][-1]["time_s"] + 1.0
        videos = rows_of(tmp_path / "out", "videos.jsonl")
        assert sum(COUNTED) == sum(row["num_encoded"] for row in videos) == sum(row["num_decoded"] for row in videos)
        # Clips have 60 and 80 frames: no question has its own pass.
        assert all(row["num_encoded"] <= 80 for row in videos)

    def test_generated_answers_are_of_their_kind(self, config, asked, sets, tiny_model, tmp_path):
        run(config("out", answer_by="generation"), tiny_model)
        rows = rows_of(tmp_path / "out")
        assert count_kinds(rows) in ({"choice": 3, "yes_no": 4, "count": 2}, {"choice": 5, "open": 2})
        for row in rows:
            if not row.get("polls"):
                assert row["correct"] == (row["predicted_index"] == row["answer_index"])
            said = annotated(sets[asked[0]], row["source"])
            assert row["question"] in said.values()
            assert row.get("output") == said.get("ground_truth_output")

    @pytest.mark.parametrize("setting", SETTINGS)
    def test_generated_text_is_parsed_by_kind(self, sets, tiny_model, tmp_path, monkeypatch, setting):
        def generate(network, tokens, stop_ids, settings, reuse, contrasts):
            yield from tiny_model.tokenizer("No 3", add_special_tokens=False).input_ids

        monkeypatch.setattr("videochat_online.streaming.generate.generate_ids", generate)
        run(benchmark_config("ovobench", sets["ovobench"], tmp_path / "out", setting=setting), tiny_model)
        rows = {row["id"]: row for row in rows_of(tmp_path / "out")}
        assert {row["text"] for row in rows.values()} == {"No 3"}
        assert [rows[name]["predicted_index"] for name in ("0", "3-1", "3-2", "4-1", "4-2")] == [None, 3, 3, 1, 1]
        assert [name for name in rows if rows[name]["correct"]] == ["4-2", "3-2", "5-1"]
        results = {row["id"]: row for row in json.loads((tmp_path / "out" / "result.json").read_text())["results"]}
        said = [(results[name]["prediction"], results[name]["answer"]) for name in ("3-1", "4-1", "0")]
        assert said == [(3, 1), ("B", "A"), (None, "B")]

    def test_broken_off_anywhere(self, config, whole, tiny_model):
        rows = rows_of(whole)
        for num_answers in (1, 3):
            made = config(f"after{num_answers}")

            def stop(progress, limit=num_answers):
                if progress.questions_done >= limit:
                    raise Stop

            with pytest.raises(Stop):
                run(made, tiny_model, stop)
            assert len(rows_of(made.output)) < len(rows)
            run(made, tiny_model)
            assert rows_of(made.output) == rows

    @pytest.mark.parametrize("setting", SETTINGS)
    @pytest.mark.parametrize("num_polls", [1, 4])
    def test_broken_off_between_polls(self, sets, wholes, tiny_model, tmp_path, monkeypatch, setting, num_polls):
        how = {"setting": setting, "answer_by": "likelihood"}
        config = benchmark_config("streamingbench", sets["streamingbench"], tmp_path / "out", **how)
        taken = []

        class Breaking(Polls):
            def take(self, poll, question):
                if len(taken) == num_polls:
                    raise Stop
                taken.append(poll.id)
                return super().take(poll, question)

        with monkeypatch.context() as patched:
            patched.setattr("videochat_online.evaluation.run.runner.Polls", Breaking)
            with pytest.raises(Stop):
                run(config, tiny_model)
        assert len(rows_of(tmp_path / "out")) < 7
        run(config, tiny_model)
        assert rows_of(tmp_path / "out") == rows_of(wholes("streamingbench", setting))

    @pytest.mark.parametrize("setting", SETTINGS)
    def test_what_is_said_at_a_poll_is_of_its_moment(self, sets, tiny_model, tmp_path, monkeypatch, setting):
        """Yes at the fourth poll: the polls of two questions take turns, so that it is the first question's third."""
        asked = []

        def reply(model, prompt, options):
            asked.append(prompt.layout.text)
            return Reply("Yes", 0, None) if len(asked) == 4 else Reply("No", 1, None)

        monkeypatch.setattr("videochat_online.evaluation.run.runner.answer_by_text_likelihood", reply)
        root, how = sets["streamingbench"], {"setting": setting, "answer_by": "likelihood"}
        made = benchmark_config("streamingbench", root, tmp_path / "out", **how)
        run(replace(made, annotations=(root / "questions_proactive.json",)), tiny_model)
        first, second = rows_of(tmp_path / "out")
        assert (first["time_s"], first["due_s"], first["output_s"]) == (1.0, 3.0, 4.0)
        assert (first["in_time"], first["predicted_index"], first["answer_index"]) == (True, 4, 3)
        assert first["correct"] == first["output_correct"]
        assert first["frames_used"][-1]["time_s"] <= 4.0
        assert (second["output_s"], second["correct"], len(second["polls"])) == (None, False, 4)
        # Three of the first's were not needed.
        for time_s, text in zip((2, 3, 3, 4, 4, 5, 6), asked, strict=True):
            assert f"Question at {time_s}.0s: When there are three" in text
            assert "Answer only with Yes or No." in text
            shown_s = [float(found) for found in re.findall(r"Frame\d+ at ([\d.]+)s", text)]
            assert max(shown_s) <= time_s

    def test_shards_give_the_same(self, config, whole, tiny_model, tmp_path):
        for index in range(2):
            outcome = run(config("parts", shard=Shard(index, 2)), tiny_model)
        assert outcome.num_open == 0
        assert sorted(rows_of(tmp_path / "parts"), key=str) == sorted(rows_of(whole), key=str)
        figures = [json.loads((folder / "metrics.json").read_text()) for folder in (whole, tmp_path / "parts")]
        assert figures[0]["averages"] == figures[1]["averages"]

    def test_finished_runs_can_be_compared(self, config, whole, tiny_model, tmp_path):
        made = config("out")
        shutil.copytree(whole, made.output)
        run(config("blind", blind=True), tiny_model)
        comparison = compare_runs([tmp_path / "out", tmp_path / "blind"])
        assert [found.label for found in comparison.runs] == [default_label(made.settings()), "blind"]
        assert comparison.num_questions == NUM_QUESTIONS[made.task.name]
        figures = comparison.runs[0].groups["answer_type"]
        no_options = {"ovobench": "REC", "streamingbench": "Proactive Output"}[made.task.name]
        assert (figures[no_options].chance, figures[no_options].score.num_questions) == (0.0, 2)
        rows = (tmp_path / "out" / "predictions.jsonl").read_text()
        (tmp_path / "out" / "predictions.jsonl").write_text(rows.replace('"options": []', '"options": null', 1))
        with pytest.raises(InputError, match="options: expected a list, found none"):
            compare_runs([tmp_path / "out", tmp_path / "blind"])


def count_kinds(rows):
    """How many rows there are of each kind."""
    kinds = [row.get("kind", "choice") for row in rows]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds), key=kinds.index)}


class TestReports:
    def test_ovobench(self, sets, tiny_model, tmp_path):
        outcome = run(benchmark_config("ovobench", sets["ovobench"], tmp_path / "out"), tiny_model)
        metrics = outcome.metrics
        # Of the set's twelve tasks six are here: a mean of others than the published ones is another figure.
        assert metrics["accuracy_of"] == "forward"
        assert list(metrics["averages"]) == ["three_way_total", "two_way_total", "backward", "realtime", "forward"]
        assert metrics["cells"].keys() == {
            "backward / EPM", "backward / HLD", "realtime / OCR", "forward / REC", "forward / SSR", "forward / CRR",
        }  # fmt: skip
        report = (tmp_path / "out" / "report.md").read_text()
        lacking = "realtime / ACR, realtime / ATR, realtime / FPD, realtime / OJR, realtime / STU"
        everything = f"(incomplete: lacks backward / ASI, {lacking})"
        assert f"| total: mean of backward, real-time and forward {everything} | - | - | - | - |" in report
        assert "| backward: mean of its tasks (incomplete: lacks backward / ASI) | - |" in report
        assert "| mean of 6 of 12 cells | " in report
        assert "| forward / REC |" in report
        assert "By answer type" not in report
        assert "| window_s | null |" in report

    def test_streamingbench(self, wholes):
        folder = wholes("streamingbench", "streaming")
        metrics = json.loads((folder / "metrics.json").read_text())
        names = ["overall", "real_time", "omni_source", "contextual", "overall_250", "contextual_250"]
        assert list(metrics["averages"]) == names
        assert set(metrics["averages"].values()) == {None}
        assert metrics["micro_average"]["num_questions"] == metrics["num_answered"] == 7
        assert metrics["proactive"]["within"].keys() == {"1 s", "2 s", "3 s", "4 s"}
        report = (folder / "report.md").read_text()
        assert "its audio, which omni-source questions are about, is not heard" in report
        assert "### Output at the right time" in report
        assert "2 questions have a start of their own; the memory has seen what was before it, too." in report

    @pytest.mark.parametrize(
        ("task_name", "groups", "titles"),
        [
            (
                "streamingbench",
                ("real_time",),
                ["overall: all questions alike (incomplete: lacks contextual, omni_source)",
                 "real_time: all its questions alike", "mean of 10 of 18 cells"],
            ),
            (
                "streamingbench",
                ("real_time", "omni_source", "contextual"),
                ["overall: all questions alike",
                 *(f"{group}: all its questions alike" for group in ("real_time", "omni_source", "contextual")),
                 "mean of 18 cells"],
            ),
            (
                "ovobench",
                ("backward",),
                ["total: mean of backward, real-time and forward (incomplete: lacks forward, realtime)",
                 "without forward: mean of backward and real-time (incomplete: lacks realtime)",
                 "backward: mean of its tasks", "all questions alike"],
            ),
        ],
    )  # fmt: skip
    def test_no_figure_has_two_names(self, task_name, groups, titles):
        task = get_task(task_name)
        rows = [row for row in random_rows(task, 0) if task.type_groups[row["answer_type"]] in groups]
        assert list(headline(averages(rows, task))) == titles

    def test_ovbench_has_none_of_this(self):
        assert not {"averages", "proactive"} & compute_metrics([], get_task("ovbench")).keys()


def random_rows(task, seed, num_rows=300):
    rng, types = random.Random(seed), list(task.type_groups)
    return [
        {
            "video": f"v{rng.randrange(40)}", "answer_type": rng.choice(types), "sub_answer_type": "x", "dataset": "d",
            "options": ["a", "b"], "predicted_index": 0, "correct": rng.random() < 0.4,
        }
        for _ in range(num_rows)
    ]  # fmt: skip


def percent(rows):
    return 100 * float(np.mean([row["correct"] for row in rows]))


class TestAverages:
    @pytest.mark.parametrize("seed", range(3))
    def test_totals_of_ovobench_by_hand(self, seed):
        task = get_task("ovobench")
        rows = random_rows(task, seed)
        of_groups = {group: [] for group in ("backward", "realtime", "forward")}
        for name, group in task.type_groups.items():
            of_groups[group].append(percent([row for row in rows if row["answer_type"] == name]))
        means = {group: np.mean(values) for group, values in of_groups.items()}
        figures = compute_metrics(rows, task)
        assert figures["accuracy"] == figures["averages"]["three_way_total"]["accuracy"]
        assert figures["accuracy"] == pytest.approx(np.mean(list(means.values())), abs=1e-3)
        two = figures["averages"]["two_way_total"]
        assert two["accuracy"] == pytest.approx((means["backward"] + means["realtime"]) / 2, abs=1e-3)
        for group, mean in means.items():
            assert figures["averages"][group]["accuracy"] == pytest.approx(mean, abs=1e-3)
        assert all(score["low"] < score["accuracy"] < score["high"] for score in figures["averages"].values())
        assert (figures["accuracy_of"], figures["lacking"]) == ("three_way_total", {})

    def test_all_questions_of_streamingbench_count_alike(self):
        task = get_task("streamingbench")
        rows = random_rows(task, 0)
        totals = averages(rows, task)["averages"]
        assert totals["overall"]["accuracy"] == pytest.approx(percent(rows), abs=1e-3)
        omni = [row for row in rows if task.type_groups[row["answer_type"]] == "omni_source"]
        assert totals["omni_source"]["accuracy"] == pytest.approx(percent(omni), abs=1e-3)

    def test_a_total_without_one_of_its_groups_is_not_given(self):
        task = get_task("ovobench")
        rows = [row for row in random_rows(task, 0) if task.type_groups[row["answer_type"]] != "forward"]
        figures = compute_metrics(rows, task)
        assert figures["averages"]["three_way_total"] is figures["averages"]["forward"] is None
        assert figures["accuracy_of"] == "two_way_total"
        assert figures["lacking"] == {"three_way_total": ["forward"], "cell_average": ["forward"]}
        empty = compute_metrics([], task)
        assert (empty["accuracy"], empty["accuracy_of"], empty["chance"]) == (None, None, None)
        assert set(empty["averages"].values()) == {None}
        assert headline(empty) == {}

    def test_a_total_without_one_of_its_tasks_is_not_given(self):
        task = get_task("ovobench")
        rows = [row for row in random_rows(task, 0) if row["answer_type"] not in ("SSR", "OCR")]
        figures = compute_metrics(rows, task)
        assert figures["lacking"]["three_way_total"] == ["forward / SSR", "realtime / OCR"]
        known = {name for name, score in figures["averages"].items() if score is not None}
        assert (known, figures["accuracy_of"]) == ({"backward"}, "backward")
        shown = headline(figures)
        assert shown["forward: mean of its tasks (incomplete: lacks forward / SSR)"] is None
        assert shown["mean of 10 of 12 cells"] == figures["cell_average"]

    def test_a_small_group_may_miss_in_a_resample(self):
        task = get_task("ovobench")
        rows = [{**row, "answer_type": "EPM"} for row in random_rows(task, 0)]
        rows += [{**rows[0], "video": "alone", "answer_type": name, "correct": True} for name in task.type_groups]
        rows = [row for row in rows if row["video"] != "alone" or row["answer_type"] != "EPM"]
        score = averages(rows, task)["averages"]["three_way_total"]
        assert score["accuracy"] == pytest.approx(((percent(rows[:300]) + 200) / 3 + 200) / 3, abs=1e-3)
        assert np.isfinite([score["low"], score["high"]]).all()
        # What is missing counts as nothing, not as wrong: all of EPM, or two groups that are right.
        assert 25 < score["low"] < 45 < score["accuracy"]

    def test_outputs_in_time(self):
        task = get_task("streamingbench")
        gaps = [None, 0.0, -1.0, 2.0, 3.0, 10.0]
        rows = [
            {
                **random_rows(task, 0, 1)[0], "answer_type": "Proactive Output", "options": [], "due_s": 20.0,
                "polls": [{}, {}], "output_s": None if gap is None else 20.0 + gap, "predicted_index": None,
                "in_time": gap is not None and abs(gap) <= 2, "output_correct": gap in (0.0, 3.0),
                "correct": gap == 0.0,
            }
            for gap in gaps
        ]  # fmt: skip
        figures = compute_metrics(rows, task)["proactive"]
        assert (figures["num_without_output"], figures["num_polls"]) == (1, 12)
        shares = [score["accuracy"] for score in figures["within"].values()]
        assert shares == pytest.approx([100 * count / 6 for count in (2, 3, 4, 4)], abs=1e-3)
        shares = [figures[name]["accuracy"] for name in ("in_time", "in_time_and_right")]
        assert shares == pytest.approx([100 * 3 / 6, 100 / 6], abs=1e-3)
        metrics = compute_metrics(rows, task)
        assert (metrics["num_unparsed"], metrics["micro_average"]["chance"]) == (0, 0.0)


class TestProtocols:
    def test_each_benchmark_has_its_window(self):
        settings = {name: get_task(name).settings for name in ("ovbench", *TASKS)}
        windows = {name: resolve_protocol("sliding_window", of_task=values) for name, values in settings.items()}
        assert {name: (found.window_s, found.fps) for name, found in windows.items()} == {
            "ovbench": (32.0, 2.0), "ovobench": (None, 2.0), "streamingbench": (60.0, 1.0),
        }  # fmt: skip
        assert windows["ovbench"] == resolve_protocol("sliding_window")
        for name in TASKS:
            assert resolve_protocol("streaming", of_task=get_task(name).settings) == resolve_protocol("streaming")

    def test_the_command_line_goes_before(self):
        settings = get_task("streamingbench").settings
        assert resolve_protocol("sliding_window", of_task=settings, window_s=10.0).window_s == 10.0
        assert resolve_protocol("sliding_window", of_task=settings, window_s=float("inf")).window_s is None
        with pytest.raises(InputError, match="--window_s: expected a (number above 0|finite number)"):
            resolve_protocol("sliding_window", of_task=settings, window_s=float("-inf"))

    def test_what_a_question_ends_in(self):
        protocol = resolve_protocol("sliding_window")
        assert protocol.suffix_of("choice") == protocol.suffix == "\nOnly give the best option."
        assert protocol.suffix_of("yes_no") == "\nAnswer only with Yes or No."
        assert protocol.suffix_of("count") == "\nAnswer only with a number."

    def test_a_window_of_the_whole_stream_costs_no_more_than_its_frames(self, sets, tmp_path):
        root = sets["ovobench"]
        content = benchmark_config("ovobench", root, tmp_path / "out").task.load([root / "ovo.json"])
        video = content.videos[0]
        late = replace(video, questions=tuple(replace(asked, time_s=1000.0) for asked in video.questions[:2]))
        protocol = resolve_protocol("sliding_window", of_task=get_task("ovobench").settings)
        assert estimated_cost(late, protocol) == 2 * (64 + QUESTION_COST)
        assert estimated_cost(late, resolve_protocol("streaming")) == 8000 + 2 * QUESTION_COST

    def test_ways_of_answering(self, tmp_path):
        (tmp_path / "set").mkdir()
        paths = benchmark_config("streamingbench", tmp_path / "set", tmp_path / "out").annotations
        questions = {asked.answer_type: asked for asked in load_streamingbench(paths).questions}
        choice, proactive = questions["Counting"], questions["Proactive Output"]
        poll = proactive.proactive.polls[0]
        ways = {how: [way_of_answering(asked, how) for asked in (choice, poll, proactive)] for how in HOW}
        assert ways == HOW


HOW = {
    "generation": ["generation", "generation", "generation"],
    "likelihood": ["likelihood", "text_likelihood", "generation"],
    "text_likelihood": ["text_likelihood", "text_likelihood", "generation"],
}
