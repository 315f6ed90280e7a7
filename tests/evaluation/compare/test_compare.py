"""Comparing runs: paired differences against slow restatements, the figures of each run, labels."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from comparison_sets import WINDOW, clone, finished_runs, make_run, make_set, rows_of
from videochat_online.evaluation import compare_runs, get_task
from videochat_online.evaluation.report.run_report import headline
from videochat_online.evaluation.scoring.averages import averages
from videochat_online.evaluation.scoring.bootstrap import NUM_RESAMPLES, Difference, chances_by, differences_by
from videochat_online.evaluation.scoring.metrics import age_bucket


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A set and finished runs over it. Not to be written to."""
    return finished_runs(tmp_path_factory.mktemp("runs"))


def random_answers(seed, num_videos=12, num_rows=150):
    """Two runs over the same questions: rows that differ in `correct` alone."""
    rng = random.Random(seed)
    questions = [
        {"id": str(i), "video": f"v{rng.randrange(num_videos)}", "kind": rng.choice("abc")} for i in range(num_rows)
    ]
    return tuple([{**row, "correct": rng.random() < share} for row in questions] for share in (0.7, 0.5))


def restated(rows, baseline, kind, seed):
    """Difference and interval, one resample after another: its videos one by one, their questions one by one."""
    videos = sorted({row["video"] for row in rows})
    weights = np.random.default_rng(seed).multinomial(
        len(videos), np.full(len(videos), 1 / len(videos)), size=NUM_RESAMPLES
    )

    def percent(some, drawn):
        found = [row["correct"] for video in drawn for row in some if row["video"] == video and row["kind"] == kind]
        return 100 * sum(found) / len(found)

    draws = [[video for video, times in zip(videos, row, strict=True) for _ in range(times)] for row in weights]
    samples = [percent(rows, drawn) - percent(baseline, drawn) for drawn in draws]
    return percent(rows, videos) - percent(baseline, videos), *np.percentile(samples, (2.5, 97.5))


class TestPairedDifferences:
    @pytest.mark.parametrize("seed", [0, 5])
    def test_agree_with_a_slow_restatement(self, seed):
        rows, baseline = random_answers(seed)
        shuffled = random.Random(0).sample(baseline, len(baseline))
        found = differences_by(rows, shuffled, lambda row: row["kind"], seed)
        assert list(found) == ["a", "b", "c"]
        for kind in ("a", "c"):
            expected = restated(rows, baseline, kind, seed)
            assert (found[kind].difference, found[kind].low, found[kind].high) == pytest.approx(expected)
            assert found[kind].num_videos == len({row["video"] for row in rows if row["kind"] == kind})

    def test_what_two_runs_share_leaves_no_uncertainty(self):
        """Videos of any difficulty, but one more answer of four is right in each: the gain is certain."""
        baseline = [
            {"id": f"{v}-{q}", "video": f"v{v}", "correct": q < v % 4} for v in range(20) for q in range(4)
        ]  # fmt: skip
        rows = [
            {**row, "correct": row["correct"] or row["id"].endswith(f"-{int(row['video'][1:]) % 4}")}
            for row in baseline
        ]
        gained = differences_by(rows, baseline, lambda row: "all")["all"]
        assert (gained.difference, gained.low, gained.high, gained.excludes_zero) == (25.0, 25.0, 25.0, True)
        lost = differences_by(baseline, rows, lambda row: "all")["all"]
        assert (lost.difference, lost.excludes_zero) == (-25.0, True)

    def test_a_difference_of_one_video_is_never_clear(self):
        rows, baseline = ([{"id": "1", "video": "v", "correct": correct}] for correct in (True, False))
        gained = differences_by(rows, baseline, lambda row: "all")["all"]
        assert (gained.low, gained.num_videos, gained.excludes_zero) == (100.0, 1, False)
        # Other videos without such a question change nothing: resamples that miss it say nothing.
        rows, baseline = ([*some, {"id": "2", "video": "w", "correct": True}] for some in (rows, baseline))
        gained = differences_by(rows, baseline, lambda row: row["video"])["v"]
        assert (gained.low, gained.high, gained.num_videos, gained.excludes_zero) == (100.0, 100.0, 1, False)
        assert not Difference(3.0, -1.0, 7.0, 30).excludes_zero
        assert not Difference(3.0, 0.0, 7.0, 30).excludes_zero

    @pytest.mark.parametrize("change", [{"id": "other"}, {"video": "other"}])
    def test_other_questions_are_refused(self, change):
        rows, baseline = random_answers(0)
        with pytest.raises(ValueError, match="the same questions"):
            differences_by(rows, [{**baseline[0], **change}, *baseline[1:]], lambda row: "all")

    def test_chance(self):
        rows = [{"options": ["x"] * count} for count in (2, 4, 4, 5)]
        p = [1 / 2, 1 / 4, 1 / 4, 1 / 5]
        assert chances_by(rows, lambda row: "all")["all"] == pytest.approx(
            (100 * sum(p) / 4, 100 * sum(x * (1 - x) for x in p) ** 0.5 / 4)
        )
        assert chances_by([{"options": ["x"] * 4}] * 300, lambda row: "all")["all"][1] == pytest.approx(2.5)


def answers_of_task(task, seed):
    """Two runs: eight videos with questions of half the cells each, every cell somewhere, one of them in one video."""
    rng = random.Random(seed)
    cells = task.published_cells
    asked = [(f"v{v}", cell) for v in range(8) for cell in cells[1:] if v == 0 or rng.random() < 0.5]
    source = {"action": "ava", "event": "coin", "object": "tao"}
    rows = []
    for place, (video, cell) in enumerate([*asked, ("v3", cells[0])]):
        answer_type, dataset = (cell[1], "any") if task.type_groups else (cell[0], source[cell[1]])
        options = ["x"] * rng.choice((2, 3, 4))
        row = {"id": str(place), "video": video, "answer_type": answer_type, "dataset": dataset, "options": options}
        rows.append({**row, "cell": cell})
    return tuple([{**row, "correct": rng.random() < share} for row in rows] for share in (0.7, 0.45))


def percent_of(rows):
    return 100 * sum(row["correct"] for row in rows) / len(rows)


def mean_of_cells(rows):
    cells = {row["cell"] for row in rows}
    return sum(percent_of([row for row in rows if row["cell"] == cell]) for cell in cells) / len(cells)


def mean_of_groups(rows):
    groups = {row["cell"][0] for row in rows}
    return sum(mean_of_cells([row for row in rows if row["cell"][0] == group]) for group in groups) / len(groups)


def in_groups(*groups):
    return lambda row: row["cell"][0] in groups


def everything(row):
    return True


STATISTICS = {
    "ovbench": {
        "cell_average": (everything, mean_of_cells),
        "micro_average": (everything, percent_of),
        "without_object_existence.cell_average": (
            lambda row: row["cell"] != ("Hallucination", "object"), mean_of_cells
        ),
    },
    "ovobench": {
        "cell_average": (everything, mean_of_cells),
        "averages.three_way_total": (everything, mean_of_groups),
        "averages.two_way_total": (in_groups("backward", "realtime"), mean_of_groups),
        "averages.forward": (in_groups("forward"), mean_of_cells),
    },
    "streamingbench": {
        "averages.overall": (everything, percent_of),
        "averages.contextual": (in_groups("contextual"), percent_of),
    },
}  # fmt: skip
"""For each published average the questions it is about, and what is computed from them."""


class TestAverages:
    @pytest.mark.parametrize("name", STATISTICS)
    def test_differences_agree_with_a_slow_restatement(self, name):
        """Each average is computed anew from the questions of each resample, for both runs."""
        runs = answers_of_task(get_task(name), seed=1)
        figures = averages(runs[0], get_task(name), baseline=random.Random(0).sample(runs[1], len(runs[1])))
        for path, (keep, statistic) in STATISTICS[name].items():
            found = figures
            for key in path.split("."):
                found = found[key]
            rows, baseline = ([row for row in some if keep(row)] for some in runs)
            videos = sorted({row["video"] for row in rows})
            weights = np.random.default_rng(0).multinomial(
                len(videos), np.full(len(videos), 1 / len(videos)), size=NUM_RESAMPLES
            )
            samples = []
            for times in weights:
                drawn = [video for video, count in zip(videos, times, strict=True) for _ in range(count)]
                places = [place for video in drawn for place, row in enumerate(rows) if row["video"] == video]
                samples.append([statistic([some[place] for place in places]) for some in (rows, baseline)])
            mine, theirs = np.array(samples).T
            expected = (statistic(rows) - statistic(baseline), *np.percentile(mine - theirs, (2.5, 97.5)))
            shown = found["difference"]
            assert (shown["difference"], shown["low"], shown["high"]) == pytest.approx(expected, abs=1e-3)
            assert shown["num_videos"] == len(videos)
            expected = (statistic(rows), *np.percentile(mine, (2.5, 97.5)))
            assert (found["accuracy"], found["low"], found["high"]) == pytest.approx(expected, abs=1e-3)
            guessed = [{**row, "correct": 1 / len(row["options"])} for row in rows]
            assert found["chance"] == pytest.approx(statistic(guessed), abs=1e-3)

    def test_cells_and_types_have_differences_too(self):
        task = get_task("ovbench")
        rows, baseline = answers_of_task(task, seed=2)
        figures = averages(rows, task, baseline=baseline)
        for table, key in (
            ("cells", lambda row: " / ".join(row["cell"])),
            ("answer_types", lambda r: r["answer_type"]),
        ):
            expected = differences_by(rows, baseline, key)
            assert {name: score["difference"] for name, score in figures[table].items()} == {
                name: gained.as_dict() for name, gained in expected.items()
            }
        assert "difference" not in averages(rows, task)["cell_average"]

    def test_a_mean_of_some_of_the_cells_says_so(self):
        task = get_task("ovbench")
        rows, _ = answers_of_task(task, seed=3)
        assert [*headline(averages(rows, task))][0] == "mean of 16 cells"
        part = averages([row for row in rows if row["cell"][1] != "event"], task)
        titles = ["mean of 12 of 16 cells", "all questions alike"]
        apart = " without Hallucination / object"
        assert [*headline(part)] == [*titles, f"mean of 11 of 15 cells{apart}", f"all questions alike{apart}"]
        kinds = ("FuturePrediction", "Hallucination", "PastMemory", "TemporalPerception")
        assert part["lacking"] == {"cell_average": [f"{kind} / event" for kind in kinds]}
        # A set of one's own has cells of its own.
        own = averages([*rows[:5], {**rows[5], "dataset": "mine"}], task)
        assert ([*headline(own)][0], own["lacking"]) == ("mean of 6 cells", {})


class TestFigures:
    def test_the_metrics_of_each_run_come_back(self, root):
        folders = [root / name for name in ("pyramid", "window", "blind")]
        compared = compare_runs(folders).as_dict()
        assert (compared["num_questions"], compared["num_videos"], compared["protocol_differences"]) == (96, 24, [])
        for folder, found in zip(folders, compared["runs"], strict=True):
            metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
            assert found["folder"] == str(folder)
            assert found["visual_tokens_mean"] == metrics["cost"]["visual_tokens_mean"]
            assert found["chance"] == metrics["chance"] == 37.5
            assert {name: found[name] for name in metrics["micro_average"]} == metrics["micro_average"]
            tables = {"by_answer_type": "answer_types"}
            for name in ("by_answer_type", "by_evidence_age_s", "by_detail", "by_template"):
                table = metrics[tables.get(name, name)]
                assert found[name].keys() == table.keys()
                for group, score in table.items():
                    assert {key: found[name][group][key] for key in score} == score

    def test_differences_and_chance_of_a_group(self, root):
        compared = compare_runs([root / name for name in ("pyramid", "window")]).as_dict()
        rows, baseline = rows_of(root / "window"), rows_of(root / "pyramid")
        assert len(compared["runs"][1]["by_evidence_age_s"]) == 4
        for band, found in compared["runs"][1]["by_evidence_age_s"].items():
            mine, theirs = (
                [
                    {**row, "kind": "x"}
                    for row in some
                    if age_bucket(row["extra"]["evidence_age_s"]) == band
                ]
                for some in (rows, baseline)
            )  # fmt: skip
            expected = restated(mine, theirs, "x", seed=0)
            shown = found["difference"]
            assert (shown["difference"], shown["low"], shown["high"]) == pytest.approx(expected, abs=1e-3)
            options = len(mine[0]["options"])
            assert found["chance"] == 100 / options
            assert found["chance_standard_error"] == pytest.approx(
                100 * ((options - 1) / options**2 / 24) ** 0.5, abs=1e-3
            )
        assert compared["runs"][1]["by_template"]["first_shape"]["difference"]["excludes_zero"]
        assert not compared["runs"][1]["by_template"]["where_now"]["difference"]["excludes_zero"]

    def test_the_baseline_is_a_choice(self, root):
        folders = [root / name for name in ("pyramid", "window", "blind")]
        first, second = compare_runs(folders), compare_runs(folders, baseline="window 6")
        assert (first.baseline, second.baseline) == ("pyramid 2/2/12", "window 6")
        there, back = first.runs[1].overall.difference, second.runs[0].overall.difference
        assert back.difference == pytest.approx(-there.difference)
        assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
        nothing = second.runs[1].overall.difference
        assert (nothing.difference, nothing.low, nothing.high, nothing.excludes_zero) == (0, 0, 0, False)

    def test_the_order_of_rows_is_no_matter(self, root, tmp_path):
        copy = clone(root / "window", tmp_path / "copy")
        lines = (copy / "predictions.jsonl").read_text("utf-8").splitlines(keepends=True)
        (copy / "predictions.jsonl").write_text("".join(reversed(lines)), "utf-8")
        one, other = (compare_runs([root / "pyramid", window]) for window in (root / "window", copy))
        assert one.runs[1].overall == other.runs[1].overall
        assert one.runs[1].groups == other.runs[1].groups


class TestLabels:
    @pytest.mark.parametrize(
        ("changes", "label"),
        [
            ({}, "pyramid 2/2/12"),
            ({"protocol": {"memory": "fifo", "memory_options": {"capacities": (4, 4, 16)}}}, "fifo 4/4/16"),
            ({"protocol": {"memory": "uniform"}}, "uniform 3"),
            ({"protocol": {"memory": "keep_all"}}, "keep_all"),
            ({"setting": "sliding_window"}, "sliding_window"),
            ({"blind": True}, "blind"),
        ],
    )
    def test_by_memory(self, tmp_path, changes, label):
        make_set(tmp_path, num_videos=1)
        folders = [make_run(tmp_path, "one", 1.0, **changes), make_run(tmp_path, "two", 1.0, protocol=WINDOW)]
        assert [run.label for run in compare_runs(folders, across_protocols=True).runs] == [label, "window 6"]

    def test_memories_alike_are_told_apart_by_their_folders(self, root, tmp_path):
        copies = [clone(root / "window", tmp_path / name) for name in ("a", "b")]
        (tmp_path / "more").mkdir()
        copies.append(clone(root / "window", tmp_path / "more" / "b"))
        labels = [run.label for run in compare_runs([root / "pyramid", *copies]).runs]
        again = [f"window 6 (b) ({folder})" for folder in copies[1:]]
        assert labels == ["pyramid 2/2/12", "window 6 (a)", *again]

    def test_given(self, root):
        compared = compare_runs([root / "pyramid", root / "window"], labels=["x", "y"], baseline="y")
        assert [run.label for run in compared.runs] == ["x", "y"]
        assert compared.baseline == "y"
