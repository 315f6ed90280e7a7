"""Strategies in an evaluation: they answer in every way, are part of what a run is, and compared like memories."""

from __future__ import annotations

import json

import pytest

from comparison_sets import make_run, make_set
from evaluation_sets import folder_set, make_config, rows_of, run
from videochat_online.cli.main import main
from videochat_online.errors import InputError
from videochat_online.evaluation import resolve_protocol
from videochat_online.evaluation.compare.compare import compare_runs
from videochat_online.evaluation.config import ANSWER_BY
from videochat_online.streaming.strategies import chain_of_shot

RETRIEVAL = {"strategy": "retrieval", "strategy_options": {"retrieved_frames": 2}}
COS = {"strategy": "chain_of_shot"}


@pytest.fixture
def call(tiny_dir, tmp_path, capsys):
    annotations = folder_set(tmp_path, num_videos=1)

    def evaluate(name, *more):
        files = ["--annotations", annotations, "--data-root", tmp_path / "media", "--model", tiny_dir()]
        arguments = ["evaluate", *files, "--output", tmp_path / name, "--max_new_tokens", 4, *more]
        status = main([str(argument) for argument in arguments])
        return status, capsys.readouterr()

    return evaluate


class TestAnswers:
    @pytest.mark.parametrize("answer_by", ANSWER_BY)
    def test_retrieval(self, tiny_model, tmp_path, answer_by):
        annotations = folder_set(tmp_path, num_videos=1)
        run(make_config(annotations, tmp_path / "out", protocol=RETRIEVAL, answer_by=answer_by), tiny_model)
        rows = rows_of(tmp_path / "out")
        assert [len(row["frames_used"]) for row in rows] == [2, 2, 2]
        assert all("error" not in row for row in rows)

    @pytest.mark.parametrize("answer_by", ANSWER_BY)
    def test_chain_of_shot(self, tiny_model, tmp_path, monkeypatch, answer_by):
        """A contrast changes what is answered by; with nothing relevant the answers are the plain ones."""
        annotations = folder_set(tmp_path, num_videos=1)
        judged = {"some": lambda count: [i % 2 == 0 for i in range(count)], "none": lambda count: [False] * count}
        rows, asked = {}, []
        for name, judge in judged.items():
            monkeypatch.setattr(
                chain_of_shot,
                "are_relevant",
                lambda model, frames, text, judge=judge: asked.append(text) or judge(len(frames)),
            )
            run(make_config(annotations, tmp_path / name, protocol=COS, answer_by=answer_by), tiny_model)
            rows[name] = rows_of(tmp_path / name)
        run(make_config(annotations, tmp_path / "plain", answer_by=answer_by), tiny_model)
        plain = rows_of(tmp_path / "plain")
        assert rows["none"] == plain
        assert [row["frames_used"] for row in rows["some"]] == [row["frames_used"] for row in plain]
        said = "text" if answer_by == "generation" else "option_probabilities"
        assert [row[said] for row in rows["some"]] != [row[said] for row in plain]
        assert all(f"Question {number}?" in text for number, text in zip((0, 1, 2, 0, 1, 2), asked, strict=True))


class TestProtocol:
    def test_all_options_are_recorded(self):
        assert resolve_protocol("streaming").strategy == "direct"
        resolved = resolve_protocol("streaming", strategy="retrieval", strategy_options={"retrieved_frames": None})
        assert (resolved.strategy, resolved.strategy_options) == ("retrieval", {"retrieved_frames": 8})
        with pytest.raises(InputError, match="unknown strategy 'none'"):
            resolve_protocol("streaming", strategy="none")
        with pytest.raises(InputError, match="'direct' does not take retrieved_frames"):
            resolve_protocol("streaming", strategy_options={"retrieved_frames": 2})

    def test_a_window_has_none(self):
        with pytest.raises(InputError, match="'sliding_window' does not use --strategy, --strategy.retrieved_frames"):
            resolve_protocol("sliding_window", **RETRIEVAL)
        assert resolve_protocol("sliding_window", strategy_options={"retrieved_frames": None}).strategy == "direct"


class TestRuns:
    def test_it_is_recorded_and_a_run_goes_on_with_its_own(self, call, tmp_path):
        flags = ["--strategy", "retrieval", "--strategy.retrieved_frames", "3"]
        assert call("out", *flags)[0] == 0
        protocol = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["protocol"]
        assert (protocol["strategy"], protocol["strategy_options"]) == ("retrieval", {"retrieved_frames": 3})
        assert '| strategy_options | {"retrieved_frames": 3} |' in (tmp_path / "out" / "report.md").read_text()
        assert call("out", *flags)[0] == 0
        status, written = call("out", "--strategy", "retrieval", "--strategy.retrieved_frames", "4")
        assert status == 2
        assert "protocol.strategy_options.retrieved_frames was 3, now 4" in written.err
        status, written = call("out")
        assert status == 2
        assert 'protocol.strategy was "retrieval", now "direct"' in written.err

    @pytest.mark.parametrize(
        ("flags", "says"),
        [
            (["--strategy", "x"], "unknown strategy 'x': expected one of ['chain_of_shot', 'direct', 'retrieval']"),
            (["--strategy", ""], "unknown strategy ''"),
            (["--memory", ""], "unknown memory ''"),
            (["--strategy.retrieved_frames", "2"], "expected an option of strategy direct, which has none"),
            (
                ["--strategy", "retrieval", "--strategy.retrieved_frames", "0"],
                "--strategy.retrieved_frames: expected a whole number of at least 1, got '0'",
            ),
            (
                ["--strategy", "chain_of_shot", "--blind"],
                "--blind: expected no strategy or KV memory, as there are no frames",
            ),
            (["--strategy", "direct", "--setting", "sliding_window"], "'sliding_window' does not use --strategy"),
        ],
    )
    def test_refusals_come_before_the_model(self, call, tmp_path, flags, says):
        status, written = call("out", "--model", "nowhere", *flags)
        assert (status, written.err.count("\n")) == (2, 1)
        assert says in written.err
        assert not (tmp_path / "out").exists()

    def test_a_dry_run_without_videos_is_not_a_blind_one(self, call):
        assert call("out", "--strategy", "retrieval", "--dry_run")[0] == 0


class TestComparison:
    def test_runs_of_several_strategies_are_compared_by_name(self, tmp_path):
        make_set(tmp_path)
        plain = make_run(tmp_path, "plain", 0.5)
        found = make_run(tmp_path, "found", 0.9, protocol=RETRIEVAL)
        cos = make_run(tmp_path, "cos", 0.9, protocol=COS)
        compared = compare_runs([plain, found, cos])
        labels = [one.label for one in compared.runs]
        assert labels == ["pyramid 2/2/12", "pyramid 2/2/12 + retrieval 2", "pyramid 2/2/12 + chain_of_shot"]
        assert compared.protocol_differences == ()

    def test_a_strategy_of_another_type_is_named(self, tmp_path):
        make_set(tmp_path)
        plain, other = make_run(tmp_path, "plain", 0.5), make_run(tmp_path, "other", 0.5)
        settings = json.loads((other / "run.json").read_text())
        settings["settings"]["protocol"]["strategy"] = 7
        (other / "run.json").write_text(json.dumps(settings))
        with pytest.raises(InputError, match="protocol.strategy: expected a text, found 7"):
            compare_runs([plain, other])
