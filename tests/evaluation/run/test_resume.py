"""The output folder: runs that are killed, go on, are refused, and are shared out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from evaluation_sets import Shard, folder_set, make_config, noise, question, rows_of, run, write_frames, write_set
from processes import start
from videochat_online.errors import InputError
from videochat_online.evaluation import EvaluationFolder, evaluate, make_plan, resolve_protocol
from videochat_online.evaluation import config as evaluation_config
from videochat_online.evaluation.compare.finished_runs import read_run
from videochat_online.evaluation.run import plan as evaluation_plan
from videochat_online.evaluation.run.plan import estimated_cost, settled, share_of
from videochat_online.evaluation.tasks.ovbench import load_ovbench
from videochat_online.model import load_model
from videochat_online.runs.row_file import RowFile

SETTINGS = ("streaming", "sliding_window")


def run_slowly(annotations: Path, output: Path, model: Path) -> None:
    """A run that takes its time after every answer, so that it can be killed in the middle."""
    torch.set_num_threads(1)
    run(make_config(annotations, output), load_model(model, device="cpu"), lambda progress: time.sleep(0.3))


class Stop(Exception):  # noqa: N818
    """Ends a run from inside."""


def stop_after(num_answers):
    def on_progress(progress):
        if progress.questions_done >= num_answers:
            raise Stop

    return on_progress


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model):
    """A set with runs over it that nothing interrupted, by their setting. Not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    annotations = folder_set(folder)
    for setting in SETTINGS:
        run(make_config(annotations, folder / setting, setting=setting), tiny_model)
    return folder


@pytest.fixture
def annotations(finished, tmp_path):
    """Of a copy of that set."""
    shutil.copytree(finished / "media", tmp_path / "media")
    return Path(shutil.copy(finished / "set.json", tmp_path))


@pytest.fixture
def whole(finished, annotations, tmp_path):
    """Rows of a run over the copy that nothing interrupted."""
    shutil.copytree(finished / "streaming", tmp_path / "whole")
    return rows_of(tmp_path / "whole")


class TestResume:
    def test_after_sigkill(self, annotations, tmp_path, tiny_model, tiny_dir, whole):
        output = tmp_path / "out"
        log = tmp_path / "log"
        process = start(run_slowly, annotations, output, tiny_dir(), variables=os.environ, folder=tmp_path, log=log)
        try:
            predictions = output / "predictions.jsonl"
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and process.exitcode is None:
                if predictions.exists() and predictions.read_bytes().count(b"\n") >= 4:
                    break
                time.sleep(0.02)
        finally:
            process.kill()
            process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text()
        written = predictions.read_bytes()
        assert 4 <= written.count(b"\n") < 9
        # And as if it had been killed in the middle of a line.
        predictions.write_bytes(written + written.splitlines(keepends=True)[0][:50])
        outcome = run(make_config(annotations, output), tiny_model)
        assert predictions.read_bytes().startswith(written)
        assert rows_of(output) == whole
        assert outcome.num_answered == 9

    @pytest.mark.parametrize("setting", SETTINGS)
    @pytest.mark.parametrize("num_answers", [1, 3, 5])
    def test_after_any_answer(self, finished, annotations, tmp_path, tiny_model, setting, num_answers):
        config = make_config(annotations, tmp_path / "out", setting=setting)
        with pytest.raises(Stop):
            run(config, tiny_model, stop_after(num_answers))
        assert len(rows_of(tmp_path / "out")) == num_answers
        run(config, tiny_model)
        assert rows_of(tmp_path / "out") == rows_of(finished / setting)
        # The cost of a video counts once, however often it was begun.
        ours, theirs = (
            json.loads((folder / "metrics.json").read_text())["cost"]
            for folder in (tmp_path / "out", finished / setting)
        )
        assert ours["num_frames_encoded"] == theirs["num_frames_encoded"]

    def test_a_finished_run_loads_no_model(self, annotations, tmp_path, whole):
        before = (tmp_path / "whole" / "predictions.jsonl").read_bytes()
        (tmp_path / "whole" / "metrics.json").unlink()
        run(make_config(annotations, tmp_path / "whole"), None)
        assert (tmp_path / "whole" / "predictions.jsonl").read_bytes() == before
        assert (tmp_path / "whole" / "metrics.json").exists()

    @pytest.mark.parametrize("shard", [Shard(), Shard(1, 2)])
    def test_what_is_there_is_read_once(self, annotations, tmp_path, tiny_model, monkeypatch, shard):
        for index in range(shard.count):
            config = make_config(annotations, tmp_path / "out", shard=Shard(index, shard.count))
            with pytest.raises(Stop):
                run(config, tiny_model, stop_after(2))
        read, read_bytes = Counter(), Path.read_bytes

        def counting(path):
            read.update([path.name] if path.parent in (tmp_path / "out", tmp_path / "out" / "shards") else ())
            return read_bytes(path)

        def load():
            raise Stop

        plan = make_plan(config)
        config = settled(config, plan.content)
        folder = EvaluationFolder(config.output, config.settings(), {}, shard)
        monkeypatch.setattr(Path, "read_bytes", counting)
        with pytest.raises(Stop):
            evaluate(config, plan, folder, load)
        parts = [f"{index}-of-{shard.count}." for index in range(shard.count)] if shard.count > 1 else [""]
        assert read == {f"{part}{name}.jsonl": 1 for part in parts for name in ("predictions", "videos")}

    @pytest.mark.parametrize("num_lost", [1, 2, 30, 150])
    def test_a_half_written_line_is_dropped(self, tmp_path, num_lost):
        file = RowFile(tmp_path / "rows.jsonl", key="id")
        with file.appending() as (opened, _):
            for number in range(3):
                file.append(opened, {"id": str(number), "text": "ä\n" * 40})
        data = file.path.read_bytes()
        file.path.write_bytes(data[:-num_lost])
        assert [row["id"] for row in file.rows()] == ["0", "1"]
        with file.appending() as (opened, _):
            file.append(opened, {"id": "2", "text": "ä\n" * 40})
        assert file.path.read_bytes() == data

    def test_a_broken_line_before_others_is_an_error(self, annotations, tmp_path, tiny_model, whole):
        path = tmp_path / "whole" / "predictions.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([lines[0], lines[1][:40] + b"\n", *lines[2:]]))
        with pytest.raises(InputError, match=r"predictions.jsonl line 2: expected a JSON object with 'id'"):
            run(make_config(annotations, tmp_path / "whole"), tiny_model)

    def test_two_processes_do_not_write_one_file(self, tmp_path):
        with RowFile(tmp_path / "rows.jsonl", key="id").appending():
            second = RowFile(tmp_path / "rows.jsonl", key="id")
            with pytest.raises(InputError, match="another process"), second.appending():
                pass


class TestRefusal:
    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"protocol": {"fps": 4.0}}, r"protocol.fps was 8.0, now 4.0"),
            ({"protocol": {"memory": "window"}}, r'protocol.memory was "pyramid", now "window"'),
            (
                {"protocol": {"memory_options": {"capacities": (1, 1, 1)}}},
                r"capacities was \[2, 2, 12\]",
            ),
            ({"setting": "sliding_window"}, r"protocol.setting was "),
            ({"blind": True}, "blind was false, now true"),
            ({"answer_by": "likelihood"}, "answer_by was "),
            ({"model": "another"}, 'model was "tiny", now "another"'),
            ({"max_videos": 2}, "max_videos was null, now 2"),
        ],
    )
    def test_other_settings(self, annotations, tmp_path, tiny_model, whole, changes, named):
        before = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
        with pytest.raises(InputError, match=f"holds another run.*{named}"):
            run(make_config(annotations, tmp_path / "whole", **changes), tiny_model)
        assert {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()} == before

    def test_only_what_differs_is_named(self, annotations, tmp_path, tiny_model, whole):
        with pytest.raises(InputError) as error:
            run(make_config(annotations, tmp_path / "whole", answer_by="likelihood"), tiny_model)
        assert str(error.value).count(" was ") == 1

    def test_other_questions(self, annotations, tmp_path, tiny_model, whole):
        annotations.write_text(annotations.read_text().replace("Question 0?", "Question zero?"))
        with pytest.raises(InputError, match="annotations was "):
            run(make_config(annotations, tmp_path / "whole"), tiny_model)

    def test_a_wider_limit_is_no_other_setting(self, annotations, tmp_path, tiny_model, whole):
        assert run(make_config(annotations, tmp_path / "whole", max_bad_fraction=0.9), tiny_model).num_answered == 9

    def test_where_the_videos_are_is_no_setting(self, annotations, tmp_path, tiny_model, whole):
        """It is only noted: the same questions about the same videos, moved elsewhere, go on."""
        with pytest.raises(Stop):
            run(make_config(annotations, tmp_path / "out"), tiny_model, stop_after(4))
        (tmp_path / "media").rename(tmp_path / "moved")
        run(make_config(annotations, tmp_path / "out", tmp_path / "moved"), tiny_model)
        assert rows_of(tmp_path / "out") == whole
        settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
        assert settings["data_root"] == str(tmp_path / "media")

    def test_files_are_digested_once_a_run(self, annotations, tmp_path, tiny_model, monkeypatch):
        digested = []
        monkeypatch.setattr(evaluation_config, "file_digest", lambda path: digested.append(path) or "0" * 64)
        monkeypatch.setattr(evaluation_config, "weights_digest", lambda name: digested.append(name) or "1")
        run(make_config(annotations, tmp_path / "out"), tiny_model)
        assert sorted(map(str, digested)) == [str(annotations), "tiny"]

    def test_a_run_without_answers_gives_way(self, annotations, tmp_path, tiny_model):
        """Its model did not load; what it noted of a bad video is forgotten with it, and how many shards it had."""
        output = tmp_path / "out"
        (tmp_path / "media" / "video1").rename(tmp_path / "video1")
        limit = {"max_bad_fraction": 0.5}

        def start_in_vain(**changes):
            config = make_config(annotations, output, **limit, **changes)
            folder = EvaluationFolder(config.output, config.settings(), {}, config.shard)
            with pytest.raises(Stop):
                evaluate(config, make_plan(config), folder, fail_to_load)

        def fail_to_load():
            raise Stop

        start_in_vain(model="another")
        assert (output / "videos.jsonl").stat().st_size
        start_in_vain(model="another", shard=Shard(0, 2))
        start_in_vain(shard=Shard(0, 3))
        (tmp_path / "video1").rename(tmp_path / "media" / "video1")
        assert run(make_config(annotations, output), tiny_model).num_answered == 9
        assert {row["is_bad"] for row in rows_of(output, "videos.jsonl")} == {False}
        assert json.loads((output / "run.json").read_text())["settings"]["model"] == "tiny"
        with pytest.raises(InputError, match=r'left as it is: model was "tiny", now "another"'):
            run(make_config(annotations, output, model="another"), tiny_model)

    def test_a_run_that_is_about_to_answer_does_not(self, annotations, tmp_path, tiny_model):
        """It has written nothing yet, but it holds its file."""
        config = make_config(annotations, tmp_path / "out")
        folder = EvaluationFolder(config.output, config.settings(), {}, config.shard)
        before = (tmp_path / "out" / "run.json").read_bytes()
        with folder.predictions.appending():
            for changes in ({"model": "another"}, {"shard": Shard(0, 2)}):
                with pytest.raises(InputError, match="holds a(nother)? run"):
                    run(make_config(annotations, tmp_path / "out", **changes), tiny_model)
        assert (tmp_path / "out" / "run.json").read_bytes() == before

    def test_a_finished_run_whose_videos_are_all_bad_does_not(self, annotations, tmp_path, tiny_model):
        for path in (tmp_path / "media").glob("*/*.png"):
            path.write_bytes(b"x")
        run(make_config(annotations, tmp_path / "out", max_bad_fraction=1.0), tiny_model)
        assert rows_of(tmp_path / "out") == []
        with pytest.raises(InputError, match="holds another run"):
            run(make_config(annotations, tmp_path / "out", max_bad_fraction=1.0, model="another"), tiny_model)

    def test_a_folder_that_holds_something_else(self, annotations, tmp_path, tiny_model):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match=r"expected a new or empty folder.*notes.txt"):
            run(make_config(annotations, tmp_path / "out"), tiny_model)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]

    def test_a_file_in_the_way(self, annotations, tmp_path, tiny_model):
        (tmp_path / "out").write_text("mine")
        with pytest.raises(InputError, match="expected a new or empty folder.*found a file"):
            run(make_config(annotations, tmp_path / "out"), tiny_model)

    def test_a_run_json_of_something_else(self, annotations, tmp_path, tiny_model):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "run.json").write_text('{"a": 1}')
        with pytest.raises(InputError, match="run.json: expected the settings of an evaluation"):
            run(make_config(annotations, tmp_path / "out"), tiny_model)

    def test_a_missing_data_root(self, annotations, tmp_path, tiny_model):
        with pytest.raises(InputError, match="absent: expected the folder with the videos"):
            run(make_config(annotations, tmp_path / "out", tmp_path / "absent"), tiny_model)
        assert not (tmp_path / "out").exists()


class TestRowsPutTogether:
    """Files that were concatenated by hand."""

    def append(self, output, change=lambda row: row, name="predictions.jsonl"):
        """A line of the file once more, changed."""
        row = json.loads((output / name).read_text().splitlines()[1])
        with (output / name).open("a") as file:
            file.write(json.dumps(change(row)) + "\n")
        return row

    def test_the_same_answers_twice_are_left_out(self, annotations, tmp_path, whole, caplog):
        output = tmp_path / "whole"
        self.append(output)
        self.append(output, lambda row: row | {"answer_s": 9.0})
        outcome = run(make_config(annotations, output), None)
        assert f"{output}: 2 rows of answers that are there already are left out" in caplog.text
        assert (outcome.num_answered, outcome.metrics["num_answered"]) == (9, 9)
        assert rows_of(output) == whole
        assert len(read_run(output).rows) == 9
        caplog.clear()
        run(make_config(annotations, output), None)
        assert caplog.text == ""

    def test_in_several_shards(self, annotations, tmp_path, tiny_model, whole, caplog):
        output = tmp_path / "out"
        run(make_config(annotations, output, shard=Shard(0, 2)), tiny_model)
        first, second = (output / "shards" / f"{index}-of-2.predictions.jsonl" for index in range(2))
        second.write_bytes(first.read_bytes())
        run(make_config(annotations, output, shard=Shard(1, 2)), tiny_model)
        assert rows_of(output) == whole
        assert "6 rows of answers" in caplog.text

    def test_different_answers_are_refused(self, annotations, tmp_path, whole):
        output = tmp_path / "whole"
        row = self.append(output, lambda row: row | {"text": "B", "predicted_index": None})
        with pytest.raises(InputError) as error:
            run(make_config(annotations, output), None)
        path = output / "predictions.jsonl"
        assert str(error.value).startswith(
            f"{path} line 10: expected one answer to {row['id']}, found another than in {path} line 2: "
        )
        assert f'text was {json.dumps(row["text"])}, now "B"' in str(error.value)

    @pytest.mark.parametrize(("name", "key"), [("predictions.jsonl", "id"), ("videos.jsonl", "video")])
    def test_rows_of_another_set_are_refused(self, annotations, tmp_path, whole, name, key):
        output = tmp_path / "whole"
        before = (output / name).read_bytes()
        for odd, words in (("elsewhere", "'elsewhere'"), (["x"], r"\['x'\]")):
            self.append(output, lambda row, odd=odd: row | {key: odd}, name)
            with pytest.raises(InputError, match=rf"{name} line \d+: expected .* of this set, found {key} {words}"):
                run(make_config(annotations, output), None)
            (output / name).write_bytes(before)


class TestShards:
    def test_together_they_are_the_whole(self, annotations, tmp_path, tiny_model, whole):
        output = tmp_path / "out"
        outcomes = [run(make_config(annotations, output, shard=Shard(i, 2)), tiny_model) for i in (1, 0)]
        assert outcomes[0].metrics is None
        assert outcomes[0].num_open + outcomes[0].num_answered == 9
        assert rows_of(output) == whole
        metrics = json.loads((output / "metrics.json").read_text())
        expected = json.loads((tmp_path / "whole" / "metrics.json").read_text())
        assert metrics["cells"] == expected["cells"]
        assert metrics["cost"]["num_frames_encoded"] == expected["cost"]["num_frames_encoded"]

    def test_what_another_shard_has_answered_is_not_answered_again(
        self, annotations, tmp_path, tiny_model, whole, monkeypatch
    ):
        output = tmp_path / "out"
        run(make_config(annotations, output, shard=Shard(0, 2)), tiny_model)
        monkeypatch.setattr(  # as a version that estimates costs otherwise may do
            evaluation_plan,
            "share_of",
            lambda videos, protocol, shard, **_: share_of(videos, protocol, Shard(1 - shard.index, 2)),
        )
        run(make_config(annotations, output, shard=Shard(1, 2)), None)
        run(make_config(annotations, output, shard=Shard(0, 2)), tiny_model)
        assert rows_of(output) == whole

    def test_more_shards_than_videos(self, annotations, tmp_path, tiny_model, whole):
        for index in range(5):
            run(make_config(annotations, tmp_path / "out", shard=Shard(index, 5)), tiny_model)
        assert rows_of(tmp_path / "out") == whole

    def test_bad_videos_of_all_shards_count(self, annotations, tmp_path, tiny_model):
        for number in (0, 2):
            for path in (tmp_path / "media" / f"video{number}").iterdir():
                path.write_bytes(b"x")
        configs = [
            make_config(annotations, tmp_path / "out", shard=Shard(index, 3), max_bad_fraction=0.4)
            for index in range(3)
        ]
        run(configs[0], tiny_model)
        run(configs[1], tiny_model)
        with pytest.raises(InputError, match="2 of 3 videos cannot be used"):
            run(configs[2], tiny_model)

    def test_another_count_is_refused(self, annotations, tmp_path, tiny_model, whole):
        with pytest.raises(InputError, match="holds a run in 1 shards: expected to go on with as many, got 2"):
            run(make_config(annotations, tmp_path / "whole", shard=Shard(0, 2)), tiny_model)
        run(make_config(annotations, tmp_path / "out", shard=Shard(0, 2)), tiny_model)
        with pytest.raises(InputError, match="holds a run in 2 shards: expected to go on with as many, got 3"):
            run(make_config(annotations, tmp_path / "out", shard=Shard(0, 3)), tiny_model)

    def test_shares_are_even_and_complete(self, tmp_path):
        rows = [
            {"video_id": f"v{number}", "fps": 8, "questions": [question(float(length))]}
            for number, length in enumerate((100, 3, 50, 49, 7, 98, 1))
        ]
        videos = load_ovbench([write_set(tmp_path / "set.json", rows)]).videos
        protocol = resolve_protocol("streaming")
        shares = [share_of(videos, protocol, Shard(index, 3)) for index in range(3)]
        assert sorted(video.id for share in shares for video in share) == [f"v{number}" for number in range(7)]
        costs = [sum(estimated_cost(video, protocol) for video in share) for share in shares]
        assert max(costs) < 1.1 * min(costs)

    @pytest.mark.parametrize("text", ["1", "2/2", "-1/2", "a/b", "1/", "0/0"])
    def test_bad_shards(self, text):
        with pytest.raises(InputError, match="--shard: expected INDEX/COUNT"):
            Shard.parse(text)

    def test_missing_videos_are_found_before_the_model_is_loaded(self, tmp_path):
        write_frames(tmp_path / "media" / "v", noise(3))
        rows = [{"video_id": name, "fps": 1, "questions": [question(1.0)]} for name in ("v", "absent")]
        config = make_config(write_set(tmp_path / "set.json", rows), tmp_path / "out")
        assert [place.video.id for place in make_plan(config).missing] == ["absent"]
        with pytest.raises(InputError, match="1 of 2 videos cannot be used"):
            run(config, None)
