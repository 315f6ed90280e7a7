"""`videochat-online compare`: refusals, filters, tables, the plot."""

from __future__ import annotations

import csv
import json
import os
import runpy
import sys
from pathlib import Path

import pytest
from matplotlib.colors import to_rgba

from comparison_sets import AGES_S, WINDOW, append, clone, finished_runs, make_run, make_set, rows_of
from evaluation_sets import folder_set, make_config, run, write_set
from videochat_online.cli.main import main
from videochat_online.errors import InputError
from videochat_online.evaluation import Shard, compare_runs
from videochat_online.evaluation.compare.compare_report import render_comparison
from videochat_online.evaluation.report import plots
from videochat_online.evaluation.report.plots import accuracy_by_age


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A set and finished runs over it. Not to be written to."""
    return finished_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def call(capsys, root, monkeypatch):
    """The command in the folder of the runs; gives status, stdout and stderr."""
    monkeypatch.chdir(root)

    def compare(*arguments):
        status = main(["compare", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return compare


def run_with_bad_videos(root, output, *bad, late=None):
    """A finished run that could not use some videos, one of them from its last question on."""
    config = make_config(root / "set.json", output, max_bad_fraction=1.0, protocol=WINDOW)

    def is_right(video, one):
        return None if video in bad or (video == late and one.question == "Question 3?") else True

    return append(config, is_right)


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"protocol": {"fps": 4.0}}, "protocol.fps is 4.0, not 8.0"),
            ({"protocol": {"frame_times": "end"}}, 'protocol.frame_times is "end", not "start"'),
            ({"protocol": {"system_message": "Look."}}, 'protocol.system_message is "Look.", not "'),
            ({"protocol": {"suffix": "?"}}, 'protocol.suffix is "?", not "\\nAnswer:"'),
            ({"protocol": {"max_new_tokens": 5}}, "protocol.max_new_tokens is 5, not 4 (--across"),
            ({"model": "large"}, 'model is "large", not "tiny"'),
            ({"model_options": {"quantization": "4bit"}}, 'model_options.quantization is "4bit", not null'),
            ({"answer_by": "likelihood"}, 'answer_by is "likelihood", not "generation"'),
            ({"protocol": {"fps": 4.0}, "blind": True}, "protocol.fps is 4.0, not 8.0"),
        ],
    )
    def test_another_protocol_or_model(self, root, tmp_path, changes, words):
        (tmp_path / "media").mkdir()
        (tmp_path / "set.json").write_bytes((root / "set.json").read_bytes())
        other = make_run(tmp_path, "other", 0.5, **changes)
        with pytest.raises(InputError) as caught:
            compare_runs([root / "window", other], labels=["w", "o"])
        assert str(caught.value).startswith(f"o differs from w in more than memory and strategy: {words}")
        compared = compare_runs([root / "window", other], labels=["w", "o"], across_protocols=True)
        ((label, found),) = compared.protocol_differences
        assert words.startswith(f"{found.name} is {found.now}, not ")
        assert (label, found.name) == ("o", words.split()[0])
        assert f"- o: `{found.name}` is `{found.now}`, not `{found.was}`" in render_comparison(compared)

    def test_all_that_differs_is_named(self, call):
        status, out, err = call("pyramid", "window", "sliding")
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        names = ("setting", "fps", "window_s", "max_frames", "suffix")
        assert all(f"protocol.{name} is " in err for name in names)
        assert "memory_options" not in err
        assert call("pyramid", "window", "blind")[0] == 0

    def test_other_questions(self, root, tmp_path):
        make_set(tmp_path, num_videos=25)
        more = make_run(tmp_path, "more", 1.0)
        make_set(tmp_path, num_videos=23, ages_s=AGES_S[:3])
        fewer = make_run(tmp_path, "fewer", 1.0)
        with pytest.raises(
            InputError, match=rf"0 only in \S+pyramid, 4 only in {more}, 0 with another question"
        ) as caught:
            compare_runs([root / "pyramid", more])
        assert "'Question 0?' about v24 at 61 s" in str(caught.value)
        with pytest.raises(InputError, match=rf"27 only in \S+pyramid, 0 only in {fewer}, 0 with another") as caught:
            compare_runs([root / "pyramid", fewer])
        assert "'Question 3?' about v0 at 64 s" in str(caught.value)

    @pytest.mark.parametrize("change", [{"answer_index": 2}, {"question": "Why?"}, {"time_s": 63.5}])
    def test_another_right_answer(self, root, tmp_path, change):
        copy = clone(root / "window", tmp_path / "copy")
        lines = (copy / "predictions.jsonl").read_text("utf-8").splitlines()
        lines[5] = json.dumps(json.loads(lines[5]) | change)
        (copy / "predictions.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        name = json.loads(lines[5])["id"]
        with pytest.raises(InputError, match=f"1 with another question, time or right answer; the first: {name} "):
            compare_runs([root / "pyramid", copy])

    def test_a_run_that_is_not_finished(self, root, tmp_path):
        config = make_config(root / "set.json", tmp_path / "part", shard=Shard(0, 2))
        append(config, lambda video, one: True)
        with pytest.raises(
            InputError, match=r"part: the run is not finished: no metrics.json, 48 answers to 96 questions"
        ):
            compare_runs([root / "pyramid", tmp_path / "part"])

    def test_a_run_with_a_bad_video(self, root, tmp_path):
        bad = run_with_bad_videos(root, tmp_path / "bad", "v3")
        with pytest.raises(InputError) as caught:
            compare_runs([root / "pyramid", bad])
        said = str(caught.value)
        assert f"4 only in {root / 'pyramid'}, 0 only in {bad}, 0 with another question" in said
        assert said.endswith(f"; {bad} could not use v3 (--common_questions compares those that all runs answered)")
        with pytest.raises(InputError, match=rf"; {bad} could not use v3 \(--common_questions"):
            compare_runs([bad, root / "pyramid"])

    def test_runs_with_nothing_in_common(self, root, tmp_path):
        halves = [[f"v{number}" for number in range(24) if number % 2 == half] for half in (0, 1)]
        folders = [run_with_bad_videos(root, tmp_path / str(place), *half) for place, half in enumerate(halves)]
        with pytest.raises(InputError, match="expected questions that all 2 runs answered, found none"):
            compare_runs(folders, only_common=True)
        with pytest.raises(InputError, match="expected answers, found none about a video that could be used"):
            compare_runs([run_with_bad_videos(root, tmp_path / "none", *halves[0], *halves[1]), root / "pyramid"])

    def test_a_folder_that_is_no_run(self, root, tmp_path):
        with pytest.raises(InputError, match="output folder of an evaluation, found no such folder"):
            compare_runs([root / "pyramid", tmp_path / "absent"])
        with pytest.raises(InputError, match=r"output folder of an evaluation, found no run\.json in it"):
            compare_runs([root / "pyramid", tmp_path])

    @pytest.mark.parametrize(
        ("file", "change", "words"),
        [
            ("metrics.json", lambda text: text[:100], "expected the figures of an evaluation, found no JSON"),
            ("metrics.json", lambda text: "[]", "expected the figures of an evaluation, found list"),
            ("run.json", lambda text: '{"settings": {"blind": true}}', "settings: task: expected a value, found none"),
            ("predictions.jsonl", lambda text: text[: text.rindex('{"id"')], "each of 96 answers, found 95 rows of 95"),
            ("predictions.jsonl", lambda text: text + text[: text.index("\n") + 1], "found 97 rows of 96 questions"),
            (
                "predictions.jsonl",
                lambda text: text.replace('"extra"', '"x"', 1),
                "line 1: extra: expected an object, found none",
            ),
        ],
    )
    def test_a_damaged_run(self, root, tmp_path, file, change, words):
        copy = clone(root / "window", tmp_path / "copy")
        (copy / file).write_text(change((copy / file).read_text("utf-8")), "utf-8")
        with pytest.raises(InputError, match=words):
            compare_runs([root / "pyramid", copy])

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["pyramid"], "expected at least two runs to compare, got 1"),
            (["pyramid", "window", "./pyramid"], "pyramid: expected each run once, got it 2 times"),
            (["pyramid", "window", "--labels", "a"], "--labels: expected 2, one for each run, got 1"),
            (["pyramid", "window", "--labels", "a", "a"], "expected a different one for each run, got 'a' 2 times"),
            (["pyramid", "window", "--baseline", "x"], "expected one of 'pyramid 2/2/12', 'window 6', found 'x'"),
            (["pyramid", "window", "--where", "template"], "expected KEY=VALUE[,VALUE] such as template=first_shape"),
            (["pyramid", "window", "--where", "template="], "got 'template='"),
            (["pyramid", "window", "--where", "template=a,,b"], "got 'template=a,,b'"),
            (["pyramid", "window", "--where", "a=1", "--where", "a=2"], "each key once with all its values, got 'a'"),
            (["pyramid", "window", "--where", "correct=true"], "no question has 'correct'; there are answer_index, "),
            (["pyramid", "window", "--where", "template=x"], "has template = 'x'; there are first_shape, where_now"),
            (["pyramid", "window", "--where", "evidence_age_s=4"], "there are 0.0, 20.0, 3.0, 60.0"),
            (["pyramid", "window", "--where", "video=w"], "v0, v1, v10, v11, v12, v13, v14, v15, v16, v17, v18, v19, "
             "v2, v20, v21, v22, v23, v3, v4, v5 and 4 more"),
            (["pyramid", "window", "--where", "template=where_now", "evidence_age_s=20"], "all of template, evidence"),
            (["pyramid", "window", "--plot", "ages.jpg"], "--plot: expected the name of a PNG file such as ages.png"),
            (["pyramid", "window", "--output", "."], "--output: expected the name of a Markdown file such as ages.md"),
            (["pyramid", "window", "--output", "set.json"], "name of a Markdown file such as ages.md, got set.json"),
            (["pyramid", "window", "--output", "pyramid/report.md"], "--output: expected a file outside the runs that"),
            (["pyramid", "window", "--output", "blind/../window/a/x.md"], "the runs that are compared, got blind/"),
            (["pyramid", "window", "--radar", "types"], "--radar: expected the name of a PNG file such as types.png"),
            (["pyramid", "window", "--radar", "window/types.png"], "--radar: expected a file outside the runs that"),
            (["pyramid", "window", "--radar", "types.png"], "at least 3 types, found PastMemory, SpatialPerception"),
            (["pyramid", "window", "--plot", "window/ages.png"], "--plot: expected a file outside the runs that are"),
            (["pyramid", "window", "--output", "set.json/x.md"], "set.json: expected a place that can be read or"),
        ],
    )  # fmt: skip
    def test_bad_arguments_are_one_line(self, call, arguments, words):
        status, out, err = call(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
        assert words in err

    def test_a_disk_that_is_full_leaves_what_was_there(self, call, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left", "x")))
        (tmp_path / "ages.md").write_text("old")
        status, _, err = call("pyramid", "window", "--output", tmp_path / "ages.md")
        assert (status, len(err.splitlines())) == (2, 1)
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"ages.md": "old"}

    def test_nothing_of_a_run_is_written_over(self, call, root, tmp_path):
        copy = clone(root / "window", tmp_path / "copy")
        (tmp_path / "link").symlink_to(copy)
        before = {path.name: path.read_bytes() for path in copy.iterdir()}
        for target in (copy / "metrics.json", copy / "report.md", tmp_path / "link" / "report.md", copy / "new.md"):
            assert call("pyramid", copy, "--output", target)[0] == 2
        assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
        assert call("pyramid", copy, "--output", tmp_path / "copy.md")[0] == 0


class TestCommonQuestions:
    def test_questions_that_a_run_lost_are_left_out_of_all(self, call, root, tmp_path):
        folders = [root / "pyramid", run_with_bad_videos(root, tmp_path / "bad", "v3", "v5")]
        status, out, err = call(*folders, "--common_questions", "--json", "--labels", "whole", "bad")
        assert (status, err) == (0, "")
        found = json.loads(out)
        assert (found["num_questions"], found["num_videos"]) == (88, 22)
        assert [(run["num_left_out"], run["bad_videos"]) for run in found["runs"]] == [(8, []), (8, ["v3", "v5"])]
        kept = [row["correct"] for row in rows_of(root / "pyramid") if row["video"] not in ("v3", "v5")]
        assert found["runs"][0]["accuracy"] == pytest.approx(100 * sum(kept) / 88, abs=1e-3)
        assert found["runs"][0]["averages"]["micro_average"]["num_questions"] == 88
        text = call(*folders, "--common_questions", "--labels", "whole", "bad")[1]
        assert "88 questions about 22 videos." in text
        assert "Left out are questions that not every run answered: 8 of whole, 8 of bad." in text
        assert "Videos that could not be used: v3, v5 (bad)." in text

    def test_runs_that_lost_the_same_are_alike(self, root, tmp_path):
        folders = [run_with_bad_videos(root, tmp_path / name, "v3") for name in ("one", "two")]
        compared = compare_runs(folders)
        assert (compared.num_questions, [run.num_left_out for run in compared.runs]) == (92, [4, 4])

    def test_whole_runs_lose_nothing(self, root):
        folders = [root / "pyramid", root / "window"]
        assert compare_runs(folders, only_common=True) == compare_runs(folders)
        assert "Left out" not in render_comparison(compare_runs(folders))

    def test_another_right_answer_is_refused_still(self, root, tmp_path):
        copy = clone(root / "window", tmp_path / "copy")
        text = (copy / "predictions.jsonl").read_text("utf-8")
        (copy / "predictions.jsonl").write_text(text.replace('"Question 0?"', '"Why?"', 1), "utf-8")
        with pytest.raises(InputError, match="1 with another question, time or right answer; the first: ") as caught:
            compare_runs([root / "pyramid", copy], only_common=True)
        assert "--common_questions" not in str(caught.value)

    def test_answers_of_a_bad_video_do_not_count(self, root, tmp_path):
        """It was answered up to its third question; none of its answers is compared, and they hinder nothing."""
        bad = run_with_bad_videos(root, tmp_path / "bad", late="v3")
        assert len(rows_of(bad)) == 95
        compared = compare_runs([root / "pyramid", bad], only_common=True)
        assert (compared.num_questions, compared.runs[1].bad_videos) == (92, ("v3",))


class TestWhere:
    def test_by_values_of_one_key(self, root):
        folders = [root / "pyramid", root / "window"]
        compared = compare_runs(folders, where={"template": ["first_shape"]})
        right = [row["correct"] for row in rows_of(root / "window") if row["extra"]["template"] == "first_shape"]
        assert compared.num_questions == 48
        assert compared.runs[1].overall.score.accuracy == pytest.approx(100 * sum(right) / 48)
        assert list(compared.runs[1].groups["evidence_age_s"]) == ["8-32 s", "32-128 s"]
        both = compare_runs(folders, where={"template": ["first_shape", "where_now"]})
        assert both.runs == compare_runs(folders).runs

    def test_all_keys_have_to_fit_and_numbers_are_numbers(self, call):
        where = ["--where", "evidence_age_s=0,20.0,60", "answer_type=PastMemory", "--where", "video=v1,v2,v3"]
        found = json.loads(call("pyramid", "window", "--json", *where)[1])
        assert (found["num_questions"], found["num_videos"]) == (6, 3)
        assert found["where"] == {
            "evidence_age_s": ["0", "20.0", "60"], "answer_type": ["PastMemory"], "video": ["v1", "v2", "v3"],
        }  # fmt: skip
        text = call("pyramid", "window", *where)[1]
        assert "Only questions with evidence_age_s = 0, 20.0, 60; answer_type = PastMemory; video = v1, v2, v3." in text
        assert "Fewer than 10 videos: the intervals say little." in text

    def test_names_are_taken_literally(self, tmp_path):
        make_set(tmp_path, num_videos=2, code="1e5", flag=True, nothing=None, many=["x"])
        folders = [make_run(tmp_path, "one", 1.0), make_run(tmp_path, "two", 1.0, protocol=WINDOW)]
        for where in ({"code": ["1e5"]}, {"flag": ["true"]}, {"nothing": ["null"]}):
            assert compare_runs(folders, where=where).num_questions == 8
        for where in ({"code": ["100000"]}, {"flag": ["1"]}, {"nothing": ["None"]}):
            with pytest.raises(InputError, match=f"no question has {next(iter(where))} = "):
                compare_runs(folders, where=where)
        with pytest.raises(InputError, match="no question has 'many'; there are answer_index, "):
            compare_runs(folders, where={"many": ["x"]})


class TestCommand:
    def test_json(self, call, root):
        status, out, err = call("pyramid", "window", "blind", "sliding", "--across-protocols", "--json")
        assert (status, err, len(out.splitlines())) == (0, "", 1)
        folders = [Path(name) for name in ("pyramid", "window", "blind", "sliding")]
        assert json.loads(out) == compare_runs(folders, across_protocols=True).as_dict()
        found = json.loads(out)
        assert found["baseline"] == "pyramid 2/2/12"
        assert [run["label"] for run in found["runs"]] == ["pyramid 2/2/12", "window 6", "blind", "sliding_window"]
        assert {one["label"] for one in found["protocol_differences"]} == {"sliding_window"}
        numbers = {"accuracy", "low", "high", "num_questions", "chance", "chance_standard_error", "difference"}
        tables = {"by_answer_type", "by_template", "by_evidence_age_s", "by_detail"}
        for run_ in found["runs"]:
            others = {"label", "folder", "num_left_out", "bad_videos", "visual_tokens_mean", "averages"}
            assert run_.keys() == others | numbers | tables
            assert (run_["num_left_out"], run_["bad_videos"]) == (0, [])
            for figures in (run_, *(row for table in tables for row in run_[table].values())):
                assert numbers <= figures.keys()
                assert figures["difference"].keys() == {"difference", "low", "high", "num_videos", "excludes_zero"}

    def test_tables(self, call, root, tmp_path):
        file = tmp_path / "new" / "tables.md"
        status, out, err = call("pyramid", "window", "--labels", "a|b", "window", "--output", file)
        assert (status, err) == (0, "")
        assert file.read_text("utf-8") == out
        compared = compare_runs([root / "pyramid", root / "window"])
        overall, kinds = compared.runs[1].overall, compared.runs[1].groups["template"]
        gained, score = overall.difference, overall.score
        lines = out.splitlines()
        assert "|  | visual tokens | all questions | difference | first_shape | where_now |" in lines
        assert next(line for line in lines if line.startswith("| a\\|b | 96.0 | ")).split(" | ")[3] == "baseline"
        assert (
            f"| window | 96.0 | {score.accuracy:.1f} ({score.low:.1f} to {score.high:.1f}) "
            f"| **{gained.difference:.1f} ({gained.low:.1f} to {gained.high:.1f})** "
            f"| {kinds['first_shape'].score.accuracy:.1f} | {kinds['where_now'].score.accuracy:.1f} |"
        ) in lines
        assert "| chance |  | 37.5 |  | 25.0 | 50.0 |" in lines
        assert "| questions |  | 96 |  | 48 | 48 |" in lines
        assert "|  | 0-2 s | 2-8 s | 8-32 s | 32-128 s |" in lines
        assert "| questions | 24 | 24 | 24 | 24 |" in lines
        assert "standard error of 4.8." in out
        assert "Fewer than" not in out
        assert "Not alike" not in out

    def test_what_is_not_clear_is_not_bold(self, call):
        text = call("pyramid", "window", "--where", "template=where_now")[1]
        row = next(line for line in text.splitlines() if line.startswith("| window 6"))
        assert "**" not in row
        assert row.split(" | ")[3][0] in "+-"
        assert "|  | visual tokens | all questions | difference |" in text.splitlines()

    @pytest.mark.parametrize(("num_templates", "columns"), [(8, 8), (9, 2)])
    def test_many_templates_give_way_to_answer_types(self, tmp_path, num_templates, columns):
        make_set(tmp_path, num_videos=num_templates)
        rows = json.loads((tmp_path / "set.json").read_text("utf-8"))
        for number, row in enumerate(rows):
            for one in row["questions"]:
                one["template"] = f"t{number}"
        write_set(tmp_path / "set.json", rows)
        folders = [make_run(tmp_path, "one", 1.0), make_run(tmp_path, "two", 1.0, protocol=WINDOW)]
        head = next(line for line in render_comparison(compare_runs(folders)).splitlines() if "visual tokens" in line)
        assert head.count("|") == 5 + columns
        assert ("PastMemory" in head) == (columns == 2)

    def test_runs_of_a_model(self, tmp_path, tiny_model, capsys):
        annotations = folder_set(tmp_path, num_videos=2)
        run(make_config(annotations, tmp_path / "pyramid"), tiny_model)
        run(make_config(annotations, tmp_path / "window", protocol=WINDOW), tiny_model)
        folders = [str(tmp_path / name) for name in ("pyramid", "window")]
        assert main(["compare", *folders, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [run["label"] for run in found["runs"]] == ["pyramid 2/2/12", "window 6"]
        assert "by_evidence_age_s" not in found["runs"][0]
        assert (
            main(["compare", *folders, "--plot", str(tmp_path / "ages.png"), "--output", str(tmp_path / "x.md")]) == 2
        )
        out, err = capsys.readouterr()
        assert out == ""
        assert "expected questions with evidence_age_s, found none" in err
        assert not (tmp_path / "ages.png").exists()
        assert not (tmp_path / "x.md").exists()


class TestPlot:
    def test_a_line_for_each_run(self, root):
        compared = compare_runs([root / name for name in ("pyramid", "window", "blind")])
        (axes,) = accuracy_by_age(compared.runs).axes
        assert len(axes.containers) == 3
        offsets = []
        for drawn, run_ in zip(axes.containers, compared.runs, strict=True):
            line, _, (bars,) = drawn.lines
            scores = [figures.score for figures in run_.groups["evidence_age_s"].values()]
            assert drawn.get_label() == run_.label
            assert list(line.get_ydata()) == [score.accuracy for score in scores]
            ends = [tuple(segment[:, 1]) for segment in bars.get_segments()]
            assert ends == [pytest.approx((score.low, score.high)) for score in scores]
            offsets.append(line.get_xdata()[0])
            assert [round(x) for x in line.get_xdata()] == [0, 1, 2, 3]
        assert len(set(offsets)) == 3
        assert sum(offsets) == pytest.approx(0)
        assert len({drawn.lines[0].get_color() for drawn in axes.containers}) == 3

    def test_chance_bands_and_names(self, root):
        figure = accuracy_by_age(compare_runs([root / "pyramid", root / "window"], labels=["x", "y"]).runs)
        (axes,) = figure.axes
        (dashed,) = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert list(dashed.get_xdata()) == [-0.5, 0.5, 0.5, 1.5, 1.5, 2.5, 2.5, 3.5]
        assert list(dashed.get_ydata()) == [50, 50, 50, 50, 25, 25, 25, 25]
        names = [label.get_text() for label in axes.get_xticklabels()]
        assert names == [f"{band}\n24 questions" for band in ("0-2", "2-8", "8-32", "32-128")]
        assert "seconds" in axes.get_xlabel()
        assert "%" in axes.get_ylabel()
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["x", "y", "chance"]

    def test_labels_are_shown_as_they_are(self, root):
        labels = ["_hidden", r"$\frac$ \$x$"]
        figure = accuracy_by_age(compare_runs([root / "pyramid", root / "window"], labels=labels).runs)
        figure.draw_without_rendering()  # a formula that is none fails here
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == [*labels, "chance"]
        assert not any(text.get_parse_math() for text in legend.get_texts())
        (axes,) = figure.axes
        colours = [to_rgba(drawn.lines[0].get_color()) for drawn in axes.containers]
        assert [tuple(handle.get_color()[0]) for handle in legend.legend_handles[:2]] == colours

    def test_a_file(self, call, tmp_path):
        from PIL import Image

        path = tmp_path / "plots" / "ages.png"
        status, out, err = call("pyramid", "window", "blind", "sliding", "--across_protocols", "--plot", path)
        assert (status, err) == (0, "")
        assert out.startswith("# 4 runs side by side")
        assert path.stat().st_size < 100_000
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.size == (800, 500)

    def test_matplotlib_is_not_needed_for_tables(self, call, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        assert "accuracy_by_age" in runpy.run_path(plots.__file__)
        assert call("pyramid", "window")[0] == 0
        status, _, err = call("pyramid", "window", "--plot", "x.png")
        assert (status, "matplotlib" in err) == (1, True)


class TestFlips:
    def test_all_of_them_and_no_other(self, call, root, tmp_path):
        """Of each run the questions whose verdict is not the baseline's, in all three kinds of file."""
        paths = [tmp_path / f"flips{ending}" for ending in (".jsonl", ".csv", ".md")]
        for path in paths:
            assert call("window", "pyramid", "blind", "--baseline", "window 6", "--flips", path)[0] == 0
        lines, table = ([json.loads(line) for line in paths[0].read_text().splitlines()], paths[1].read_text())
        rows = {name: {row["id"]: row for row in rows_of(root / name)} for name in ("window", "pyramid", "blind")}
        for label, name in (("pyramid 2/2/12", "pyramid"), ("blind", "blind")):
            expected = {i for i, row in rows[name].items() if row["correct"] != rows["window"][i]["correct"]}
            found = [line for line in lines if line["run"] == label]
            assert {line["id"] for line in found} == expected
            assert len(found) == len(expected) > 3
            for line in found:
                here, there = rows[name][line["id"]], rows["window"][line["id"]]
                assert (line["correct"], line["baseline_correct"]) == (here["correct"], there["correct"])
                right = there["answer_index"]
                assert line["answer"] == f"{'ABCD'[right]}. {there['options'][right]}"
                assert (line["question"], line["time_s"], line["reply"]) == (there["question"], there["time_s"], "")
        assert list(csv.DictReader(table.splitlines())) == [
            {name: str(value) for name, value in line.items()} for line in lines
        ]
        assert len(paths[2].read_text().splitlines()) == len(lines) + 2
        assert "| right | wrong |" in paths[2].read_text()

    def test_narrowed_down_and_with_replies(self, call, root, tmp_path):
        copy = clone(root / "window", tmp_path / "copy")
        rows = rows_of(copy)
        rows[0] |= {"correct": not rows[0]["correct"], "text": "(A)\nred | or blue"}
        (copy / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        path = tmp_path / "flips.md"
        assert call("window", copy, "--flips", path, "--where", f"id={rows[0]['id']},{rows[1]['id']}")[0] == 0
        table = path.read_text().splitlines()
        assert len(table) == 3
        assert table[2].endswith(" |  | (A) red \\| or blue |")

    def test_another_ending(self, call, tmp_path):
        status, _, err = call("window", "pyramid", "--flips", tmp_path / "flips.txt")
        assert (status, "--flips: expected a file that ends in .jsonl, .csv, .md, got" in err) == (2, True)
