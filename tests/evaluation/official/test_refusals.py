"""Exports and official scores of runs that have none, or not all: refused in a line that names what is in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark_sets import streaming_choice, streaming_proactive, streaming_row
from evaluation_sets import write_set
from official_sets import made_run, mixed_rows, write_run
from videochat_online.cli.main import main
from videochat_online.evaluation import get_task


@pytest.fixture
def call(capsys):
    """The command line; gives status, stdout and stderr."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


class TestBadInput:
    def refused(self, call, tmp_path, *arguments):
        status, out, err = call(*arguments)
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        assert not (tmp_path / "out").exists() or (tmp_path / "out" / "mine.txt").exists()
        return err

    def export(self, call, tmp_path, run, *more, task="ovobench"):
        return self.refused(call, tmp_path, "export", "--format", task, run, "--output", tmp_path / "out", *more)

    def test_a_run_that_is_not_finished(self, call, tmp_path):
        run = made_run(tmp_path, "ovobench")
        (run / "metrics.json").unlink()
        assert "the run is not finished: no metrics.json, 84 answers" in self.export(call, tmp_path, run)
        assert "the run is not finished" in self.refused(call, tmp_path, "compare", run, "--score", "official")

    def test_a_run_that_lacks_videos(self, call, tmp_path):
        run = made_run(tmp_path, "ovobench", bad=("COIN/1.mp4", "COIN/3.mp4"))
        lines = (run / "predictions.jsonl").read_text("utf-8").splitlines()
        err = self.export(call, tmp_path, run)
        assert f"not whole: {84 - len(lines)} of 84 questions have no answer, since 2 videos could not be used" in err
        assert "COIN/1.mp4, COIN/3.mp4 (--partial exports the others)" in err
        given = ("export", "--format", "ovobench", run, "--output", tmp_path / "out", "--partial")
        status, out, err = call(*given)
        assert (status, "the official code counts them as wrong" in err) == (0, True)
        results = json.loads(Path(out.strip()).read_text("utf-8"))
        replies = [(one["video"], one["response"]) for one in results["backward"]]
        assert {video for video, reply in replies if reply is None} >= {"COIN/1.mp4"} & {v for v, _ in replies}
        _, out, _ = call("compare", run, "--score", "official")
        assert f"Not in these figures: {84 - len(lines)} questions about videos that could not be used" in out

    def test_another_format(self, call, tmp_path):
        run = made_run(tmp_path, "ovobench")
        err = self.export(call, tmp_path, run, task="streamingbench")
        assert "--format streamingbench: expected a run of streamingbench" in err
        assert f"{run} is one of ovobench" in err

    def test_a_folder_that_holds_something(self, call, tmp_path):
        run = made_run(tmp_path, "ovobench")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        assert "expected a new or empty folder, found 1 entries in it, such as mine.txt" in self.export(
            call, tmp_path, run
        )
        status, _, err = call("export", "--format", "ovobench", run, "--output", tmp_path / "ovo.json")
        assert (status, "expected a new or empty folder, found a file" in err) == (2, True)

    def test_a_folder_within_the_run(self, call, tmp_path):
        run = made_run(tmp_path, "ovobench")
        there = sorted(run.iterdir())
        for output in (run / "official", run / "a" / ".." / "b"):
            status, out, err = call("export", "--format", "ovobench", run, "--output", output)
            assert (status, out) == (2, "")
            assert f"--output: expected a folder outside the run, got {output} in {run}" in err
        assert sorted(run.iterdir()) == there

    def test_a_run_twice(self, call, tmp_path):
        run = made_run(tmp_path, "ovobench")
        err = self.refused(call, tmp_path, "compare", run, run / ".", "--score", "official")
        assert "expected each run once, got it 2 times" in err
        err = self.refused(call, tmp_path, "compare", run, "--score", "official", "--labels", "a", "b")
        assert "--labels: expected 1, one for each run, got 2" in err

    def test_other_annotations(self, call, tmp_path):
        run = made_run(tmp_path, "ovobench")
        rows = json.loads((tmp_path / "ovo.json").read_text("utf-8"))
        other = write_set(tmp_path / "other.json", rows[1:])
        err = self.export(call, tmp_path, run, "--annotations", other)
        assert f"--annotations: expected ovo.json as {run} answered it (sha256 " in err

    @pytest.mark.parametrize("name", ["", "a/b", ".."])
    def test_a_name_that_no_file_can_have(self, call, tmp_path, name):
        run = made_run(tmp_path, "ovobench")
        assert "--model_name: expected a name" in self.export(call, tmp_path, run, "--model_name", name)

    def test_a_name_that_is_a_field(self, call, tmp_path):
        run = made_run(tmp_path, "streamingbench")
        err = self.export(call, tmp_path, run, "--model_name", "answer", task="streamingbench")
        assert "expected a name that no question has as a field, got 'answer'" in err

    def test_a_file_of_both_kinds(self, call, tmp_path):
        both = [streaming_choice("00:00:02"), streaming_proactive("00:00:01", "00:00:03")]
        path = write_set(tmp_path / "mixed.json", [streaming_row("a.mp4", *both)])
        rows = mixed_rows(get_task("streamingbench").load([path]), 0)
        run = write_run(tmp_path, "run", "streamingbench", [path], rows)
        err = self.export(call, tmp_path, run, task="streamingbench")
        assert "mixed.json: expected proactive questions in a file of their own, found others with them" in err

    @pytest.mark.parametrize("answer_by", ["likelihood", "text_likelihood"])
    def test_replies_that_nobody_wrote(self, call, tmp_path, answer_by):
        run = made_run(tmp_path, "ovbench", answer_by=answer_by)
        words = f"official scores need what the model wrote (--answer_by generation), got '{answer_by}'"
        assert words in self.refused(call, tmp_path, "compare", run, "--score", "official")
        assert words in self.export(call, tmp_path, run, task="ovbench")

    def test_questions_of_ones_own(self, call, tmp_path):
        run = made_run(tmp_path, "ovbench")
        path = run / "predictions.jsonl"
        path.write_text(path.read_text("utf-8").replace('"dataset": "tao"', '"dataset": "synthetic"'), "utf-8")
        err = self.refused(call, tmp_path, "compare", run, "--score", "official")
        assert "expected questions of ovbench, which have official scores, found 18 others, such as v" in err

    def test_a_task_without_official_scores(self, call, tmp_path):
        run = made_run(tmp_path, "ovbench")
        facts = json.loads((run / "run.json").read_text("utf-8"))
        facts["settings"]["task"] = "mine"
        (run / "run.json").write_text(json.dumps(facts))
        err = self.refused(call, tmp_path, "compare", run, "--score", "official")
        assert "expected a run of ovbench, ovobench, streamingbench, which have official scores, got 'mine'" in err

    def test_a_proactive_row_without_its_output(self, call, tmp_path):
        run = made_run(tmp_path, "streamingbench")
        path = run / "predictions.jsonl"
        path.write_text(path.read_text("utf-8").replace('"output": ', '"was": '), "utf-8")
        err = self.refused(call, tmp_path, "compare", run, "--score", "official")
        assert "expected its row to say `output`, found none" in err

    def test_flags_that_want_pairs(self, call, tmp_path):
        run = made_run(tmp_path, "ovbench")
        err = self.refused(call, tmp_path, "compare", run, "--score", "official", "--where", "a=b", "--baseline", "x")
        assert "--score official: expected none of --baseline, --where: each run is scored by itself" in err
