"""Open questions: their scorers, a judge behind an endpoint, and what counts where there is neither."""

from __future__ import annotations

import json
import socket
from base64 import b64encode
from dataclasses import replace

import pytest

from evaluation_sets import Shard, make_config, question, rows_of, write_set
from judge_stub import judge_server
from videochat_online.cli.main import main
from videochat_online.errors import InputError
from videochat_online.evaluation import EvaluationFolder, compare_runs, make_plan
from videochat_online.evaluation.run.runner import _question_row
from videochat_online.evaluation.run.summarize import summarize
from videochat_online.evaluation.scoring.judge import KEY_VARIABLE, Judge, parse_verdict
from videochat_online.evaluation.scoring.open_answers import SCORERS, parse_number
from videochat_online.runs.row_file import RowFile

EMPTY = {"frames_used": [], "num_visual_tokens": 0, "first_token_s": None, "answer_s": 0.1, "predicted_index": None}
COST = {"num_encoded": 0, "watch_s": 0.1, "answer_s": 0.1, "peak_memory_bytes": None, "problem": None, "is_bad": False}


def open_question(time_s, answer, **more):
    """A question of the nested layout without options."""
    asked = question(time_s, answer, text=f"What is there at {time_s:g}?", **more)
    del asked["options"]
    return asked


def open_set(path, questions=None, num_videos=2, **more):
    """Open questions, and one with options, about each of some videos."""
    if questions is None:
        questions = [open_question(1.0, "a red cup"), open_question(2.0, "two"), question(3.0, "B")]
    return write_set(path, [{"video_id": f"v{n}", "questions": questions, **more} for n in range(num_videos)])


def config_of(path, output, **changes):
    return make_config(path, output, blind=True, **changes)


def answer(config, replies, shard=None):
    """Write replies by time of the question, as a run does; then sum up."""
    config = replace(config, shard=shard or config.shard)
    plan = make_plan(config)
    folder = EvaluationFolder(config.output, config.settings(), {"counts": {}}, config.shard)
    done = {row["id"] for row in folder.predictions.rows()}
    with folder.predictions.appending() as (predictions, _), folder.videos.appending() as (videos, _):
        for video in (place.video for place in plan.share):
            for one in (one for one in video.questions if one.id not in done):
                row = _question_row(one, video.name) | EMPTY | {"text": replies[one.time_s]}
                if one.options:
                    row |= {"predicted_index": 1, "correct": one.answer_index == 1}
                RowFile.append(predictions, row | ({} if one.options else {"correct": None}))
            RowFile.append(videos, {"video": video.name, **COST})
    return summarize(config, plan, folder)


REPLIES = {1.0: "There is a red cup.", 2.0: "I see two.", 3.0: "(B)"}


@pytest.fixture
def quick(monkeypatch):
    """No waiting between tries."""
    monkeypatch.setattr("videochat_online.evaluation.scoring.judge.sleep", lambda seconds: None)


@pytest.mark.parametrize(
    ("scorer", "answer", "right", "wrong"),
    [
        (
            "exact",
            "red cup",
            ["A red cup.", "the RED  cup", "red-cup"],
            ["red", "red cups", "a big red cup", "", "..."],
        ),
        ("exact", "A", ["a", "A."], ["B", ""]),
        ("contains", "red cup", ["It is a red cup, I think.", "RED CUP"], ["a cup that is red", "red", "redcup", ""]),
        (
            "number",
            "2",
            ["2", "two", "There are 2 (two).", "2.0", "+2"],
            ["3", "2 or 3", "two or three", "-2", "12", ""],
        ),
        ("number", "three", ["3 cups", "three"], ["2", "none at all?"]),
        ("number", "1,200.5 m", ["1200.5", "about 1,200.5 metres"], ["1200", "1.2005"]),
        ("number", "-3", ["-3", "\u22123 degrees"], ["3"]),
    ],
)
def test_scorers(scorer, answer, right, wrong):
    assert [text for text in right if not SCORERS[scorer](text, answer)] == []
    assert [text for text in wrong if SCORERS[scorer](text, answer)] == []


def test_numbers_that_are_none():
    found = [parse_number(text) for text in ("v2", "1.2.3", "1,20,0", "3,4,5", "two or three, 5", "5 and 6", "")]
    assert found == [None] * 7


def test_verdicts():
    """One word, signs around it and thoughts before it; nothing is read into a sentence."""
    assert [parse_verdict(text) for text in ("Yes", " **yes**.\n", "<think>no?</think>\nYes", "'YES'")] == [True] * 4
    assert [parse_verdict(text) for text in ("no", "No!", "_No_")] == [False] * 3
    assert {parse_verdict(text) for text in ("", "yes, but", "yes no", "I say yes", "ja", "true", "<think>yes")} == {
        None
    }


class TestLoading:
    def test_open_questions_of_both_layouts(self, tmp_path):
        rows = [
            {"video_id": "v", "scorer": "exact", "questions": [open_question(1.0, "red"), question(2.0)]},
            {"video_id": "w", **open_question(1.0, "two", scorer="number")},
            {"video_id": "w", **open_question(3.0, "blue")},
        ]
        config = config_of(write_set(tmp_path / "set.json", rows), tmp_path / "out")
        found = make_plan(config).content
        assert found.problems == ()
        read = [(one.kind, one.answer_text, one.scorer, config.scorer_of(one)) for one in found.questions]
        assert read == [
            ("open", "red", "exact", "exact"), ("choice", None, None, None),
            ("open", "two", "number", "number"), ("open", "blue", None, None),
        ]  # fmt: skip
        of_the_run = [replace(config, scorer="contains").scorer_of(one) for one in found.questions]
        assert of_the_run == ["exact", None, "number", "contains"]
        of_the_task = replace(config, task=replace(config.task, scorer="contains"))
        assert [of_the_task.scorer_of(one) for one in found.questions] == of_the_run

    def test_rows_that_cannot_be_used(self, tmp_path):
        asked = open_question(1.0, "red")
        rows = [
            {**asked, "answer": " "}, {**asked, "answer": 3}, {**asked, "scorer": "bleu"}, {**asked, "options": []},
            {**asked, "end": 4.0}, {**question(1.0), "scorer": "exact"}, {**asked, "answer": "\ud800"}, asked,
        ]  # fmt: skip
        path = write_set(tmp_path / "set.json", [{"video_id": "v", "questions": rows}])
        found = make_plan(config_of(path, tmp_path / "out", max_bad_fraction=1.0)).content
        said = [line.partition(": ")[2] for line in found.problems]
        starts = [
            "answer: expected a text, found ' '", "answer: expected a text, found 3", "scorer: expected one of exact, ",
            "options: expected at least 2", "candidates: expected a list", "scorer: expected none", "answer: ",
        ]  # fmt: skip
        assert len(found.questions) == 1
        assert [line.startswith(start) for line, start in zip(said, starts, strict=True)] == [True] * 7

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"scorer": "bleu"}, "--scorer: expected one of exact, contains, number, judge, found 'bleu'"),
            ({"scorer": "number"}, "scorer number: expected a number as answer, got 'a red cup'"),
            ({"scorer": "judge"}, "scorer judge: expected --judge_url, got none"),
            ({"judge": Judge(url="http://j/v1", model="m")}, "--judge_url: expected questions with scorer judge"),
        ],
    )
    def test_scorers_without_a_meaning(self, tmp_path, changes, said):
        with pytest.raises(InputError, match=said):
            make_plan(config_of(open_set(tmp_path / "set.json"), tmp_path / "out", **changes))

    def test_a_scorer_for_no_open_question(self, tmp_path):
        path = open_set(tmp_path / "set.json", [question(1.0)])
        with pytest.raises(InputError, match="--scorer exact: expected open questions in the set, found none"):
            make_plan(config_of(path, tmp_path / "out", scorer="exact"))

    @pytest.mark.parametrize("url", [
        "localhost:8000", "ftp://j/v1", "http://", "", "http://user:hidden@:80x/v1", "user:hidden@j/v1",
        "http://user:hid/hidden@j/v1", "ftp://j/v1?key=hidden", "http://[::1/v1?key=a@hidden", "j/v1#hidden",
    ])  # fmt: skip
    def test_addresses_that_are_none(self, url):
        with pytest.raises(InputError, match="--judge_url: expected an address") as caught:
            Judge(url=url, model="m")
        assert "hidden" not in str(caught.value)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"timeout_s": 0.0}, "--judge_timeout_s: expected a number above 0, found 0.0"),
            ({"timeout_s": float("nan")}, "--judge_timeout_s: expected a finite number, found nan"),
            ({"model": " "}, "--judge_model: expected the name of a model, got ' '"),
            ({"key": "ge\nheim"}, f"{KEY_VARIABLE}: expected a key of printable ASCII characters, got another"),
            ({"num_tries": 0}, "--judge_num_tries: expected a number of at least 1, found 0"),
        ],
    )
    def test_values_that_are_none(self, given, said):
        with pytest.raises(InputError) as caught:
            Judge(**({"url": "http://j/v1", "model": "m"} | given))
        assert str(caught.value).startswith(said)


class TestScores:
    def test_without_a_scorer_they_are_in_no_figure(self, tmp_path):
        """Accuracy, cells, chance and counts are those of the questions with options; every summary says how many."""
        config = config_of(open_set(tmp_path / "set.json"), tmp_path / "out")
        metrics = answer(config, REPLIES).metrics
        only = config_of(open_set(tmp_path / "only.json", [question(3.0, "B")]), tmp_path / "only")
        bare = answer(only, REPLIES).metrics
        for name in ("accuracy", "chance", "cells", "micro_average", "cell_average", "answer_types", "num_correct",
                     "datasets", "num_unparsed", "unreadable_share"):  # fmt: skip
            assert metrics[name] == bare[name], name
        assert (metrics["num_answered"], metrics["num_without_scorer"], metrics["num_without_verdict"]) == (6, 4, 0)
        assert bare["num_without_scorer"] == 0
        assert (metrics["scorers"], metrics["judge"]) == ({}, None)
        assert bare["notes"] == []
        report = (tmp_path / "out" / "report.md").read_text()
        assert "4 open questions without a scorer: in no figure" in report
        assert [row["correct"] for row in rows_of(tmp_path / "out")] == [None, None, True] * 2
        results = json.loads((tmp_path / "out" / "result.json").read_text())["results"]
        assert [(one["answer"], one["correct"]) for one in results[:3]] == [
            ("a red cup", None), ("two", None), ("B", True)
        ]  # fmt: skip

    def test_only_open_questions_without_a_scorer(self, tmp_path):
        config = config_of(open_set(tmp_path / "set.json", [open_question(1.0, "red")]), tmp_path / "out")
        metrics = answer(config, REPLIES).metrics
        assert (metrics["accuracy"], metrics["num_without_scorer"]) == (None, 2)

    def test_a_scorer_may_come_later_and_stays(self, tmp_path):
        """Answers are kept; another scorer than the one there was is refused."""
        config = config_of(open_set(tmp_path / "set.json"), tmp_path / "out")
        assert answer(config, REPLIES).metrics["num_without_scorer"] == 4
        metrics = answer(replace(config, scorer="contains"), {}).metrics
        assert (metrics["num_without_scorer"], metrics["micro_average"]["accuracy"]) == (0, 100.0)
        rows = rows_of(tmp_path / "out")
        assert [(row.get("scorer"), row["correct"]) for row in rows[:3]] == [
            ("contains", True), ("contains", True), (None, True)
        ]  # fmt: skip
        assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["scorer"] == "contains"
        for other in (None, "exact"):
            with pytest.raises(InputError, match='scorer was "contains", now'):
                answer(replace(config, scorer=other), {})

    def test_what_was_not_answered_is_wrong(self, tmp_path):
        config = config_of(open_set(tmp_path / "set.json"), tmp_path / "out", scorer="contains")
        metrics = answer(config, {**REPLIES, 1.0: " "}).metrics
        assert metrics["micro_average"]["accuracy"] == pytest.approx(66.667)


class TestJudge:
    def config(self, tmp_path, url, **changes):
        judge = Judge(url=url, model="m", timeout_s=0.4, **changes)
        return config_of(open_set(tmp_path / "set.json"), tmp_path / "out", scorer="judge", judge=judge)

    def test_right_and_wrong(self, tmp_path):
        """Prompt, replies and verdict are in the rows; nobody is asked again when the command is given again."""

        def reply(number, body):
            return "Yes." if "red cup" in body["messages"][0]["content"] else "No"

        with judge_server(reply) as (url, requests):
            config = self.config(tmp_path, url, key="geheim")
            metrics = answer(config, REPLIES).metrics
            assert answer(config, {}).metrics == metrics
        assert metrics["micro_average"]["accuracy"] == pytest.approx(66.667)
        assert len(requests) == 4
        path, headers, body = requests[0]
        assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer geheim")
        assert (body["model"], body["temperature"]) == ("m", 0)
        row = rows_of(tmp_path / "out")[0]
        assert (row["scorer"], row["correct"], row["judge"]["replies"]) == ("judge", True, ["Yes."])
        prompt = row["judge"]["prompt"]
        assert prompt == body["messages"][0]["content"]
        assert all(text in prompt for text in ("What is there at 1?", "a red cup", "There is a red cup."))
        assert rows_of(tmp_path / "out")[1]["correct"] is False
        written = "".join(path.read_text() for path in (tmp_path / "out").glob("*.*") if path.suffix != ".png")
        assert "geheim" not in written
        settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
        assert settings["judge"] == {"url": url, "model": "m", "prompt_sha256": settings["judge"]["prompt_sha256"]}
        result = json.loads((tmp_path / "out" / "result.json").read_text())
        for summary in (metrics, result):
            assert (summary["scorers"], summary["judge"]) == ({"judge": 4}, settings["judge"])
        assert '| scorers | {"judge": 4} |' in (tmp_path / "out" / "report.md").read_text()

    def test_nonsense_is_no_verdict(self, tmp_path, quick):
        """It is told what to say; after that the question is out of all figures, and said to be."""
        with judge_server(lambda number, body: "Yes, I think so") as (url, requests):
            metrics = answer(self.config(tmp_path, url), REPLIES).metrics
        assert (metrics["num_without_verdict"], metrics["num_without_scorer"]) == (4, 0)
        assert metrics["micro_average"]["num_questions"] == 2
        assert len(requests) == 4 * 3
        assert [one["role"] for one in requests[2][2]["messages"]] == ["user", "assistant", "user", "assistant", "user"]
        row = rows_of(tmp_path / "out")[0]
        assert (row["correct"], row["judge"]["replies"]) == (None, ["Yes, I think so"] * 3)
        assert (
            "4 open questions without a verdict of the judge: in no figure"
            in (tmp_path / "out" / "report.md").read_text()
        )
        with judge_server(lambda number, body: "yes") as (again, requests):
            metrics = answer(self.config(tmp_path, again), {}).metrics
        assert (metrics["num_without_verdict"], len(requests)) == (0, 4)

    @pytest.mark.parametrize("first", [500, 429, 9.0, (200, "<html>"), (200, '{"choices": []}')])
    def test_a_failure_that_passes(self, tmp_path, quick, first):
        with judge_server(lambda number, body: first if number == 0 else "yes") as (url, requests):
            metrics = answer(self.config(tmp_path, url), REPLIES).metrics
        assert (metrics["num_without_verdict"], metrics["num_correct"], len(requests)) == (0, 6, 5)

    @pytest.mark.parametrize(("always", "said"), [(9.0, "no reply within 0.4 s"), (503, "status 503")])
    def test_a_failure_that_stays(self, tmp_path, quick, always, said):
        """Of three answers in a row, the run ends; what is there is kept, and the next run judges the rest."""
        match = rf"{said}.*; every answer is kept, 3 of 4 are not judged: the same command"
        server = judge_server(lambda number, body: "yes" if number == 0 else always)
        with server as (url, requests), pytest.raises(InputError, match=match) as caught:
            answer(self.config(tmp_path, url, num_tries=1), REPLIES)
        assert "\n" not in str(caught.value)
        assert len(requests) == 4
        assert len(RowFile(tmp_path / "out" / "predictions.jsonl", key="id").rows()) == 6

    def test_a_missing_judge_loses_nothing(self, tmp_path, quick):
        """Nothing was judged yet, so that it may also turn up elsewhere; a judge with verdicts may not be another."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            nowhere = f"http://me:geheim@127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(InputError, match="every answer is kept, 4 of 4 are not judged") as caught:
            answer(self.config(tmp_path, nowhere), REPLIES)
        assert "geheim" not in str(caught.value)
        assert len(RowFile(tmp_path / "out" / "predictions.jsonl", key="id").rows()) == 6
        with judge_server(lambda number, body: "yes") as (url, requests):
            config = self.config(tmp_path, url)
            assert answer(config, {}).metrics["num_correct"] == 6
        with pytest.raises(InputError, match='judge.model was "m", now "n"'):
            answer(replace(config, judge=Judge(url=url, model="n")), {})

    @pytest.mark.parametrize("status", [401, 404])
    def test_a_judge_that_refuses(self, tmp_path, status):
        server = judge_server(lambda number, body: (status, "wrong key geheim"))
        match = rf"found status {status}: 'wrong key \*\*\*'"
        with server as (url, requests), pytest.raises(InputError, match=match):
            answer(self.config(tmp_path, url, key="geheim"), REPLIES)
        assert len(requests) == 1

    @pytest.mark.parametrize("status", [200, 500])
    def test_nothing_of_the_address_is_written(self, tmp_path, quick, status):
        """A server that repeats all that it was sent; a secret that is cut where the line ends, too."""
        basic = b64encode(b"MYTOKEN:ver/borgen").decode()
        said = f"ver/borgen ver%2Fborgen MYTOKEN {basic} QUERY%2BKEY QUERY+KEY ".ljust(190, "x") + "QUERY%2BKEY"
        reply = (lambda number, body: said) if status == 200 else (lambda number, body: (status, said))
        with judge_server(reply) as (url, requests):
            config = self.config(tmp_path, url.replace("//", "//MYTOKEN:ver%2Fborgen@") + "?key=QUERY%2BKEY&v=1")
            try:
                answer(config, REPLIES)
                error = ""
            except InputError as failure:
                error = str(failure)
        assert requests[0][1]["Authorization"] == f"Basic {basic}"
        texts = [path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix != ".png"]
        secrets = ("MYTOKEN", "borgen", basic, "QUERY")
        assert not [secret for secret in secrets if any(secret in text for text in (*texts, error))]
        assert ("***" in error) is (status == 500)

    def test_a_reply_that_drips(self, tmp_path, quick):
        """The wait is for the whole reply, however often something comes."""
        with judge_server(lambda number, body: -2.0 if number == 0 else "yes") as (url, requests):
            assert answer(self.config(tmp_path, url), REPLIES).metrics["num_correct"] == 6
        rows = [json.loads(line) for line in (tmp_path / "out" / "judge.jsonl").read_text().splitlines()]
        assert (len(requests), rows[0]["is_right"]) == (5, True)

    def test_a_key_that_is_a_verdict(self, tmp_path):
        """What is written is covered; what is read is what was said."""
        with judge_server(lambda number, body: "yes") as (url, _):
            metrics = answer(self.config(tmp_path, url, key="yes"), REPLIES).metrics
        assert (metrics["num_correct"], metrics["num_without_verdict"]) == (6, 0)
        assert rows_of(tmp_path / "out")[0]["judge"]["replies"] == ["***"]

    def test_one_answer_that_it_does_not_take(self, tmp_path):
        with judge_server(lambda number, body: 400 if number == 0 else "yes") as (url, requests):
            metrics = answer(self.config(tmp_path, url), REPLIES).metrics
        assert (metrics["num_without_verdict"], metrics["num_correct"], len(requests)) == (1, 5, 4)

    def test_shards(self, tmp_path):
        """The one that finishes last has all of them judged, once."""
        with judge_server(lambda number, body: "yes") as (url, requests):
            config = self.config(tmp_path, url)
            assert answer(config, REPLIES, Shard(0, 2)).metrics is None
            assert len(requests) == 0
            metrics = answer(config, REPLIES, Shard(1, 2)).metrics
        assert (metrics["num_correct"], len(requests)) == (6, 4)
        assert [row["correct"] for row in rows_of(tmp_path / "out")] == [True] * 6

    def test_a_reply_that_changed_is_judged_anew(self, tmp_path):
        with judge_server(lambda number, body: "yes") as (url, requests):
            config = self.config(tmp_path, url)
            answer(config, REPLIES)
            (tmp_path / "out" / "predictions.jsonl").unlink()
            answer(config, {**REPLIES, 1.0: "a blue cup"})
        assert len(requests) == 4 + 2


class TestCompare:
    @pytest.fixture
    def runs(self, tmp_path):
        path = open_set(tmp_path / "set.json")
        return [config_of(path, tmp_path / name) for name in ("one", "two")]

    def test_what_one_of_them_has_no_score_for_is_left_out(self, runs):
        for config in runs:
            answer(config, REPLIES)
        found = compare_runs([config.output for config in runs])
        assert (found.num_questions, found.num_unscored, found.as_dict()["num_unscored"]) == (2, 4, 4)
        assert [run.num_left_out for run in found.runs] == [0, 0]
        assert found.runs[0].averages["micro_average"]["num_questions"] == 2

    def test_another_scorer_is_named(self, runs):
        answer(replace(runs[0], scorer="contains"), REPLIES)
        answer(replace(runs[1], scorer="exact"), REPLIES)
        with pytest.raises(InputError, match='scorer is "exact", not "contains"'):
            compare_runs([config.output for config in runs])
        found = compare_runs([config.output for config in runs], across_protocols=True)
        assert [run.overall.score.accuracy for run in found.runs] == [100.0, pytest.approx(100 / 3)]


def test_the_command_with_a_judge(tmp_path, tiny_dir, capsys, monkeypatch):
    """From the model to the verdicts; neither the key nor what else is secret in the address is in a file."""
    monkeypatch.setenv(KEY_VARIABLE, "geheim ")
    path = open_set(tmp_path / "set.json", num_videos=1)
    with judge_server(lambda number, body: "no") as (url, requests):
        secret = url.replace("//", "//me:verborgen@") + "?token=verborgen"
        flags = ["--model", tiny_dir(), "--annotations", path, "--output", tmp_path / "out", "--max_new_tokens", 4]
        flags += ["--blind", "--judge_url", secret]
        arguments = ["evaluate", *map(str, flags)]
        monkeypatch.setattr("sys.argv", ["videochat-online", *arguments])
        assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert requests
    assert requests[0][0] == "/v1/chat/completions?token=verborgen"
    assert requests[0][1]["Authorization"] == "Bearer geheim"
    texts = [file.read_text() for file in (tmp_path / "out").iterdir() if file.suffix != ".png"]
    assert not [text for text in (*texts, out, err) if "geheim" in text or "verborgen" in text]
    rows = rows_of(tmp_path / "out")
    assert [(row["scorer"], row["correct"]) for row in rows[:2]] == [("judge", False)] * 2


@pytest.mark.parametrize(("models", "name"), [(["only"], "only"), ([], "default"), (None, "default")])
def test_a_model_that_is_not_named_is_the_only_one(models, name):
    with judge_server(lambda number, body: body["model"], models) as (url, _):
        for given in (url, f"{url}/", f"{url}/chat/completions"):
            assert Judge.from_environment(given, None, 5.0).model == name
    assert Judge.from_environment(url, None, 5.0).model == "default"  # nobody is there


def test_several_models_are_to_be_chosen_from():
    with (
        judge_server(lambda number, body: "no", ["big", "small"]) as (url, _),
        pytest.raises(InputError, match="--judge_model: expected one of 'big, small', got none"),
    ):
        Judge.from_environment(url, None, 5.0)


def test_a_judge_needs_an_address(tmp_path, capsys):
    path = open_set(tmp_path / "set.json")
    status = main(["evaluate", "--annotations", str(path), "--dry_run", "--scorer", "judge", "--judge_model", "m"])
    assert status == 2
    assert "--judge_url: expected one" in capsys.readouterr().err


class TestUnreadable:
    """Replies to questions with options that name none: above half of them, every summary says what else to try."""

    def metrics(self, tmp_path, num_read, answer_by="generation"):
        asked = [question(float(t), "A", text=f"Question {t}?") for t in range(4)]
        path = open_set(tmp_path / "set.json", [*asked, open_question(9.0, "red")], num_videos=1)
        config = config_of(path, tmp_path / "out", answer_by=answer_by)
        plan = make_plan(config)
        folder = EvaluationFolder(config.output, config.settings(), {"counts": {}}, config.shard)
        with folder.predictions.appending() as (predictions, _), folder.videos.appending() as (videos, _):
            for place, one in enumerate(plan.content.questions):
                index = 0 if place < num_read else None
                row = _question_row(one, "v0") | EMPTY | {"text": "Hm.", "predicted_index": index}
                failed = {"error": "no frame", "error_kind": "NoFrameError"} if place == 3 else {}
                RowFile.append(predictions, row | {"correct": None if place == 4 else index == 0} | failed)
            RowFile.append(videos, {"video": "v0", **COST})
        return summarize(config, plan, folder).metrics

    @pytest.mark.parametrize(("num_read", "share", "is_said"), [(0, 1.0, True), (1, 0.6667, True), (2, 0.3333, False)])
    def test_is_said_above_half(self, tmp_path, num_read, share, is_said):
        """Of the replies that there are: one question had no frame, and one has no options."""
        metrics = self.metrics(tmp_path, num_read)
        assert (metrics["unreadable_share"], metrics["num_unparsed"]) == (share, 4 - num_read)
        said = [note for note in metrics["notes"] if "--answer_by likelihood" in note]
        assert [
            note.startswith(f"{share:.0%} of the replies to questions with options name none") for note in said
        ] == [True] * is_said
        assert ("--answer_by likelihood" in (tmp_path / "out" / "report.md").read_text()) is is_said

    def test_not_where_letters_are_compared(self, tmp_path):
        metrics = self.metrics(tmp_path, 0, answer_by="likelihood")
        assert not [note for note in metrics["notes"] if "--answer_by" in note]
