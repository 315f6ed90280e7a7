"""What a complete run leaves for people and leaderboards: result.json, plots, cost."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image

from comparison_sets import WINDOW, make_run, make_set, rows_of
from evaluation_sets import Shard, folder_set, make_config, question, run, write_set
from videochat_online.cli.main import main
from videochat_online.errors import InputError
from videochat_online.evaluation import compare_runs
from videochat_online.evaluation.compare.compare import compared_run
from videochat_online.evaluation.report.plots import accuracy_by_type, first_token_times, plot_run, save_figure

TYPES = ("FuturePrediction", "Hallucination", "PastMemory", "SpatioTemporalPerception")


def rows_of_types(types=TYPES, waits_s=(0.1, 0.2, 0.4, 0.3)):
    """Two videos; of each type a right answer and a wrong one, but the first, where both are right."""
    return [
        {
            "id": f"{video}-{kind}", "video": video, "dataset": "tao", "answer_type": kind,
            "sub_answer_type": f"{kind}-1", "time_s": 1.0, "question": "What?", "options": ["red", "blue"],
            "answer_index": 0, "extra": {}, "text": "", "predicted_index": None, "num_visual_tokens": 5,
            "correct": video == "v" or place == 0, "first_token_s": waits_s[place % len(waits_s)],
        }
        for video in ("v", "w")
        for place, kind in enumerate(types)
    ]  # fmt: skip


@pytest.fixture
def call(capsys):
    """`compare`; gives status and stdout."""

    def compare(*arguments):
        return main(["compare", *map(str, arguments)]), capsys.readouterr().out

    return compare


class TestResult:
    @pytest.fixture
    def annotations(self, tmp_path):
        annotations = folder_set(tmp_path, num_videos=3, times_s=(1.0, 3.0))
        rows = json.loads(annotations.read_text())
        rows[0]["questions"][1]["options"] = ["A. là", "B. ici", "C. x"]
        rows.append({"video_id": "absent", "questions": [question(1.0)]})
        return write_set(annotations, rows)

    def test_every_answer_and_the_scores(self, tmp_path, annotations, tiny_model):
        metrics = run(make_config(annotations, tmp_path / "out", max_bad_fraction=0.5), tiny_model).metrics
        result = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
        assert (result["benchmark"], result["model"], result["setting"]) == ("ovbench", "tiny", "streaming")
        assert result["protocol"]["memory_options"]["capacities"] == [2, 2, 12]
        assert (result["num_questions"], result["num_answered"]) == (7, 6)
        assert [row["video"] for row in result["bad_videos"]] == ["absent"]
        for name in ("cell_average", "micro_average", "answer_types", "cells"):
            assert result["scores"][name] == metrics[name]
        given = {row["id"]: row for row in rows_of(tmp_path / "out")}
        assert len(result["results"]) == len(given) == 6
        for row in result["results"]:
            answer = given[row["id"]]
            for name in ("video", "time_s", "question", "options", "answer_type", "sub_answer_type", "correct"):
                assert row[name] == answer[name]
            assert row["response"] == answer["text"]
            assert row["answer"] == "AB"[answer["answer_index"]]
            chosen = answer["predicted_index"]
            assert row["prediction"] == (None if chosen is None else "ABC"[chosen])
            assert row["prediction_text"] == (None if chosen is None else answer["options"][chosen])

    def test_an_option_is_named_by_letter_and_text(self, tmp_path, annotations, tiny_model):
        run(make_config(annotations, tmp_path / "out", max_bad_fraction=0.5, answer_by="likelihood"), tiny_model)
        for row in json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))["results"]:
            assert row["options"]["ABC".index(row["prediction"])] == row["prediction_text"]
            assert (row["prediction"] == row["answer"]) == row["correct"]

    def test_the_same_whatever_the_shards(self, tmp_path, annotations, tiny_model):
        run(make_config(annotations, tmp_path / "one", max_bad_fraction=0.5), tiny_model)
        for index in (1, 0):
            assert not (tmp_path / "two" / "result.json").exists()
            shard = Shard(index, 2)
            run(make_config(annotations, tmp_path / "two", max_bad_fraction=0.5, shard=shard), tiny_model)
        texts = [(tmp_path / name / "result.json").read_text("utf-8") for name in ("one", "two")]
        assert texts[0] == texts[1]


class TestReport:
    def test_plots_and_cost(self, tmp_path, tiny_model):
        annotations = folder_set(tmp_path, num_videos=1, times_s=(1.0, 2.0, 3.0))
        rows = json.loads(annotations.read_text())
        for asked, kind in zip(rows[0]["questions"], TYPES[:3], strict=True):
            asked.update(answer_type=kind, evidence_age_s=1.0)
        write_set(annotations, rows)
        metrics = run(make_config(annotations, tmp_path / "out"), tiny_model, rendered=True).metrics
        report = (tmp_path / "out" / "report.md").read_text("utf-8")
        for title, name in (
            ("Accuracy by answer type", "types.png"),
            ("Accuracy by age of the evidence", "ages.png"),
            ("Time to the first token", "first_token.png"),
        ):
            assert f"![{title}]({name})" in report
            with Image.open(tmp_path / "out" / name) as image:
                assert image.format == "PNG"
            assert (tmp_path / "out" / name).stat().st_size < 100_000
        # 4 frames a second until the last question at 3 s.
        assert metrics["cost"]["num_frames_decoded"] == metrics["cost"]["num_frames_encoded"] == 13
        waits_s = [row["first_token_s"] for row in rows_of(tmp_path / "out")]
        assert metrics["cost"]["first_token_s_p50"] == pytest.approx(np.median(waits_s), abs=1e-4)
        assert metrics["cost"]["first_token_s_p95"] == pytest.approx(np.percentile(waits_s, 95), abs=1e-4)
        assert metrics["cost"]["peak_memory_bytes"] > 2**20
        for line in ("| frames decoded | 13 |", "| visual tokens a question, most |", "| peak memory, MiB |"):
            assert line in report

    def test_sharded_runs_have_the_plots_of_all(self, tmp_path):
        make_set(tmp_path, num_videos=4)
        make_run(tmp_path, "none", 1.0, shard=Shard(0, 2))
        assert not (tmp_path / "none" / "ages.png").exists()
        make_run(tmp_path, "none", 1.0, shard=Shard(1, 2))
        assert (tmp_path / "none" / "ages.png").is_file()

    def test_a_run_without_matplotlib_has_its_figures(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        make_set(tmp_path, num_videos=2)
        folder = make_run(tmp_path, "run", 1.0)
        assert (folder / "result.json").is_file()
        assert "## Plots" not in (folder / "report.md").read_text("utf-8")
        assert "no plots" in caplog.text


class TestRadar:
    def test_a_corner_for_each_type(self):
        figure = accuracy_by_type([compared_run("mine", None, rows_of_types())])
        (axes,) = figure.axes
        assert (axes.get_theta_direction(), axes.get_theta_offset()) == (-1, np.pi / 2)  # clockwise from the top
        mine, chance = axes.lines
        assert list(mine.get_ydata()) == [100, 50, 50, 50, 100]
        assert list(chance.get_ydata()) == [50] * 5
        assert list(mine.get_xdata()) == pytest.approx([0, np.pi / 2, np.pi, 1.5 * np.pi, 0])
        names = [text.get_text() for text in axes.get_xticklabels()]
        assert names == [
            "Future\nPrediction\n2 questions", "Hallucination\n2 questions", "PastMemory\n2 questions",
            "SpatioTemporal\nPerception\n2 questions",
        ]  # fmt: skip
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mine", "chance"]

    @pytest.mark.parametrize(
        "types", [(*TYPES, "SpatialPerception", "TemporalPerception"), [f"{k}Task" for k in TYPES]]
    )
    def test_names_are_apart_and_within_the_picture(self, types):
        figure = accuracy_by_type([compared_run("mine", None, rows_of_types(types))])
        figure.draw_without_rendering()
        (axes,) = figure.axes
        names = [text.get_window_extent() for text in axes.get_xticklabels()]
        boxes = [*names, *(text.get_window_extent() for text in figure.legends[0].get_texts())]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(figure.bbox.containsx(x) for box in boxes for x in (box.x0, box.x1))
        assert all(figure.bbox.containsy(y) for box in boxes for y in (box.y0, box.y1))
        circle = axes.get_window_extent()
        assert names[0].y0 >= circle.y1
        assert names[len(types) // 2].y1 <= circle.y0

    def test_runs_that_coincide_are_all_seen(self):
        one = compared_run("0", None, rows_of_types())
        figure = accuracy_by_type([replace(one, label=str(number)) for number in range(3)])
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        (axes,) = figure.axes
        box = axes.get_window_extent()
        height = figure.bbox.height
        rows, columns = (slice(int(a), int(b)) for a, b in ((height - box.y1, height - box.y0), (box.x0, box.x1)))
        pixels_HWC = np.asarray(canvas.buffer_rgba())[rows, columns, :3].astype(int)
        for line in axes.lines[:3]:
            colour = np.array([round(255 * value) for value in to_rgb(line.get_color())])
            assert (np.abs(pixels_HWC - colour).max(axis=2) < 10).sum() > 100, line.get_label()

    def test_two_types_enclose_nothing(self, tmp_path):
        rows = rows_of_types(TYPES[:2])
        with pytest.raises(InputError, match="at least 3 types, found FuturePrediction, Hallucination"):
            accuracy_by_type([compared_run("mine", None, rows)])
        assert plot_run(tmp_path, rows) == {"Time to the first token": "first_token.png"}
        assert plot_run(tmp_path, []) == {}

    def test_a_radar_of_several_runs(self, call, tmp_path):
        make_set(tmp_path, num_videos=4)
        rows = json.loads((tmp_path / "set.json").read_text("utf-8"))
        for row in rows:
            row["questions"][0]["answer_type"] = "Hallucination"
        write_set(tmp_path / "set.json", rows)
        folders = [make_run(tmp_path, "one", 1.0), make_run(tmp_path, "two", 0.5, protocol=WINDOW)]
        (axes,) = accuracy_by_type(compare_runs(folders, labels=["a", "b"]).runs).axes
        assert [line.get_label() for line in axes.lines] == ["a", "b", "chance"]
        assert list(axes.lines[0].get_ydata()) == [100, 100, 100, 100]
        assert list(axes.lines[2].get_ydata()) == [50, 25, 50, 50]
        right = [row["correct"] for row in rows_of(folders[1]) if row["answer_type"] == "PastMemory"]
        assert axes.lines[1].get_ydata()[1] == pytest.approx(100 * sum(right) / len(right))
        path = tmp_path / "plots" / "types.png"
        assert call(*folders, "--radar", path, "--plot", tmp_path / "plots" / "ages.png")[0] == 0
        assert {file.name for file in path.parent.iterdir()} == {"types.png", "ages.png"}
        assert path.stat().st_size < 100_000


class TestFirstToken:
    def test_every_answer_is_in_a_bar(self):
        waits_s = [0.1] * 60 + [0.3] * 39 + [9.0]
        figure = first_token_times(waits_s)
        (axes,) = figure.axes
        heights = [bar.get_height() for bar in axes.patches]
        assert sum(heights) == 100
        assert (heights[-1], max(heights)) == (1, 60)
        assert axes.get_xlim() == (0, pytest.approx(0.6))
        assert "(the last bar: 1 slower ones, up to 9 s)" in axes.get_xlabel()
        assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx([0.1, 0.3])
        assert [text.get_text() for text in figure.legends[0].get_texts()] == [
            "median 0.1 s", "95th percentile 0.3 s"
        ]  # fmt: skip

    @pytest.mark.parametrize("waits_s", [[0.0], [0.25], [0.1, 0.2]])
    def test_few_answers(self, waits_s, tmp_path):
        figure = first_token_times(waits_s)
        (axes,) = figure.axes
        assert sum(bar.get_height() for bar in axes.patches) == len(waits_s)
        assert "last bar" not in axes.get_xlabel()
        save_figure(figure, tmp_path / "x.png")


class TestAverages:
    def test_averages_beside_each_other(self, call, tmp_path):
        """Columns are runs; figures are those of each run's own report, and of what is left after --where."""
        make_set(tmp_path, num_videos=6)
        rows = json.loads((tmp_path / "set.json").read_text("utf-8"))
        for number, row in enumerate(rows):
            row["dataset"] = ("tao", "ava", "coin")[number % 3]
            row["questions"][0]["answer_type"] = "Hallucination"
        write_set(tmp_path / "set.json", rows)
        folders = [make_run(tmp_path, "pyramid", 0.8), make_run(tmp_path, "blind", 0.3, blind=True)]
        folders.append(make_run(tmp_path, "recent", 0.6, protocol={"memory": "window"}))
        labels = ["--labels", "pyramid", "blind", "recent 4"]
        status, out = call(*folders, *labels)
        assert status == 0
        lines = out[out.index("## Averages") : out.index("### Differences")].splitlines()[2:-1]
        assert lines[0] == "|  | pyramid | blind | recent 4 | chance | questions |"
        expected = []
        of_runs = [json.loads((folder / "metrics.json").read_text("utf-8")) for folder in folders]
        rest = [run["without_object_existence"] for run in of_runs]
        kinds = [("mean of 9 cells", [run["cell_average"] for run in of_runs])]
        kinds += [("all questions alike", [run["micro_average"] for run in of_runs])]
        kinds += [("mean of 8 cells without Hallucination / object", [run["cell_average"] for run in rest])]
        kinds += [("all questions alike without Hallucination / object", [run["micro_average"] for run in rest])]
        for table in ("answer_types", "cells"):
            kinds += [(name, [run[table][name] for run in of_runs]) for name in of_runs[0][table]]
        for name, scores in kinds:
            shown = [f"{one['accuracy']:.1f} ({one['low']:.1f} to {one['high']:.1f})" for one in scores]
            expected.append(
                f"| {name} | {' | '.join(shown)} | {scores[0]['chance']:.1f} | {scores[0]['num_questions']} |"
            )
        assert lines[2:] == expected
        assert len(expected) == 4 + 3 + 9
        compared = json.loads(call(*folders, *labels, "--json")[1])["runs"]
        lines = out[out.index("### Differences to pyramid") : out.index("## By age")].splitlines()[2:-1]
        assert lines[0] == "|  | blind | recent 4 |"
        for row, (name, _) in zip(lines[2:], kinds, strict=True):
            assert row.startswith(f"| {name} | ")
        shown = [run["averages"]["cell_average"]["difference"] for run in compared]
        assert (shown[0]["difference"], shown[0]["low"], shown[0]["high"]) == (0, 0, 0)
        gained = [f"{one['difference']:+.1f} ({one['low']:+.1f} to {one['high']:+.1f})" for one in shown[1:]]
        bold = [f"**{text}**" if one["excludes_zero"] else text for text, one in zip(gained, shown[1:], strict=True)]
        assert lines[2] == f"| mean of 9 cells | {' | '.join(bold)} |"
        assert bold[0].startswith("**-")
        narrowed = json.loads(call(*folders, *labels, "--where", "dataset=ava", "--json")[1])["runs"]
        assert narrowed[0]["averages"]["micro_average"]["num_questions"] == 8
        assert narrowed[0]["averages"].keys() == {
            "cell_average", "micro_average", "cells", "answer_types", "lacking", "average_titles",
        }  # fmt: skip
        assert "## Averages" not in call(*folders, *labels, "--where", "dataset=ava", "evidence_age_s=3")[1]
