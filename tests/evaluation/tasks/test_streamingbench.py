"""StreamingBench: its published files, times, options, sequential questions and polls."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from benchmark_sets import streaming_choice, streaming_files, streaming_proactive, streaming_row
from evaluation_sets import write_set
from videochat_online.errors import InputError
from videochat_online.evaluation import EvalVideo, get_task
from videochat_online.evaluation.report.run_report import headline
from videochat_online.evaluation.run.proactive import Polls
from videochat_online.evaluation.scoring.averages import averages
from videochat_online.evaluation.tasks.streamingbench import PUBLISHED_PROACTIVE_S as PUBLISHED_S
from videochat_online.evaluation.tasks.streamingbench import is_published, load_streamingbench

TASK = get_task("streamingbench")
PUBLISHED = {"real": (499, 2499, 1), "omni": (300, 1486, 14), "sqa": (50, 248, 2), "proactive": (50, 250, 0)}


class TestPublishedFiles:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_counts(self, shared_dir, name):
        content = load_streamingbench([shared_dir / "benchmarks" / "streamingbench" / f"questions_{name}.json"])
        assert (len(content.videos), len(content.questions), len(content.problems)) == PUBLISHED[name]
        assert {asked.dataset for asked in content.questions} == {name}

    def test_all_at_once(self, shared_dir):
        folder = shared_dir / "benchmarks" / "streamingbench"
        content = load_streamingbench([folder / f"questions_{name}.json" for name in PUBLISHED])
        assert (len(content.videos), len(content.questions)) == (899, 4483)
        assert len({asked.id for asked in content.questions}) == 4483
        groups = Counter(TASK.cell(asked.answer_type, asked.dataset)[0] for asked in content.questions)
        assert groups == {"real_time": 2499, "omni_source": 987, "contextual": 997}
        assert len({asked.answer_type for asked in content.questions}) == 18
        # What cannot be used: two times that are none, one that goes back, and options that lost their letters.
        assert [problem.split(": ")[1].split("[")[0] for problem in content.problems].count("options") == 14
        times = [problem for problem in content.problems if "time_stamp" in problem]
        assert [problem.split(": ")[0] for problem in times] == [
            "questions_real.json row 277 question 2",
            "questions_omni.json row 1025 question 1",
            "questions_sqa.json row 243 question 1",
        ]
        assert "found '00:12450'" in times[0]
        assert "found '05:11:00'" in times[1]
        assert "not before 644 s" in times[2]

    def test_names_that_begin_like_letters_are_options(self, shared_dir):
        content = load_streamingbench([shared_dir / "benchmarks" / "streamingbench" / "questions_sqa.json"])
        found = [asked.options for asked in content.questions if asked.options[0] == "A.Lebrun."]
        assert found == [("A.Lebrun.", "Fan Z.D.", "Xu xin.", "Ma Lin.")] * 2
        assert Counter(len(asked.context) for asked in content.questions) == {0: 50, 1: 50, 2: 50, 3: 50, 4: 48}


def load(tmp_path, *rows):
    return load_streamingbench([write_set(tmp_path / "rows.json", list(rows))])


def only(tmp_path, fields):
    content = load(tmp_path, streaming_row("sample_1_real.mp4", fields))
    assert content.problems == ()
    return content.questions[0]


class TestOddRows:
    @pytest.mark.parametrize(
        ("text", "time_s"),
        [("00:00:31", 31.0), ("0:02:03", 123.0), ("00:24", 24.0), ("00:00:8", 8.0), ("59:59", 3599.0)],
    )
    def test_times(self, tmp_path, text, time_s):
        assert only(tmp_path, streaming_choice(text)).time_s == time_s

    @pytest.mark.parametrize("options", [["A.one", "B. two", "C)  three"], ["one", "two", "three"]])
    def test_options(self, tmp_path, options):
        asked = only(tmp_path, streaming_choice("00:01", options=options, answer="B"))
        assert (asked.options, asked.answer_index) == (("one", "two", "three"), 1)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            (
                streaming_choice("00:12450"),
                "time_stamp: expected hours:minutes:seconds below an hour, found '00:12450'",
            ),
            (streaming_choice("01:00:00"), "time_stamp: expected hours:minutes:seconds below an hour"),
            (streaming_choice("00:00:61"), "time_stamp: expected hours:minutes:seconds"),
            (streaming_choice(12), "time_stamp: expected hours:minutes:seconds"),
            (streaming_choice("00:01", "Cooking"), "task_type: expected one of Object Recognition"),
            (streaming_choice("00:01", options=["A. one", "C. two", "B. three"]), "begin with A. to C., or none"),
            (streaming_choice("00:01", options=["A. one", "B. two", "and a half"]), "begin with A. to C., or none"),
            (streaming_choice("00:01", options=["A. one", ""]), "options[1]: expected a text, found ''"),
            (streaming_choice("00:01", answer="E"), "answer: expected one of the letters ABCD, found 'E'"),
            (streaming_choice("00:01", question=""), "question: expected a text"),
            (streaming_proactive("00:05", "00:04"), "ground_truth_time_stamp: expected none before 5 s, found 4.0"),
            (streaming_proactive("00:05", "00:06", ""), "ground_truth_output: expected a text"),
            ("x", "questions: expected a list of objects, found 'x'"),
        ],
    )
    def test_a_bad_row_is_named_and_left_out(self, tmp_path, fields, words):
        row = streaming_row("sample_1_real.mp4", streaming_choice("00:01"), fields)
        content = load(tmp_path, row)
        assert len(content.questions) == 1
        (problem,) = content.problems
        assert problem.startswith("rows.json row 1 question 2: ")
        assert words in problem

    def test_the_same_question_twice_gets_two_ids(self, tmp_path):
        row = streaming_row("sample_1_real.mp4", streaming_choice("00:01"), streaming_choice("00:01"))
        first, second = load(tmp_path, row).questions
        assert second.id == f"{first.id}-2"

    def test_a_file_without_questions_is_an_error(self, tmp_path):
        with pytest.raises(
            InputError, match="expected questions of StreamingBench, found none; the first row: rows.json"
        ):
            load(tmp_path, {"video_path": "x.mp4", "questions": None})


class TestSequential:
    def test_earlier_questions_and_right_answers_are_in_the_prompt(self, tmp_path):
        first, second = load(tmp_path, *streaming_files()["sqa"]).questions
        assert TASK.prompt(first).startswith("Question at 1.0s: Who is it?\nOptions:\n(A) one")
        earlier = "Earlier questions about this video and their answers:\nAt 1.0s: Who is it? (A) one\n"
        assert TASK.prompt(second).startswith(f"{earlier}Question at 5.0s: And now?\nOptions:\n(A) one")

    def test_nothing_later_and_nothing_of_others(self, tmp_path):
        chain = [streaming_choice(text, "Sequential Question Answering") for text in ("00:05", "00:03", "00:07")]
        other = streaming_choice("00:02", "Counting")
        content = load(tmp_path, streaming_row("sample_1_sqa.mp4", other, *chain))
        assert [(asked.time_s, len(asked.context)) for asked in content.questions] == [(2.0, 0), (5.0, 0), (7.0, 1)]
        assert "time_stamp: expected a time that is not before 5 s" in content.problems[0]


class TestPolls:
    def test_when_and_what_is_polled(self, tmp_path):
        asked = only(tmp_path, streaming_proactive("00:20", "00:23"))
        polls = asked.proactive.polls
        assert [poll.time_s for poll in polls] == [21.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0]
        assert [poll.options[poll.answer_index] for poll in polls] == ["Yes"] * 5 + ["No"] * 2
        assert (asked.kind, asked.answer_index, asked.options, polls[0].kind) == ("open", 23, (), "yes_no")
        assert TASK.prompt(polls[0]) == (
            'Question at 21.0s: When there are three, output "3". Is now the right time to output "3"?'
        )
        assert TASK.prompt(asked) == 'Question at 20.0s: When there are three, output "3".'
        assert {asked.starts_s, *(poll.starts_s for poll in polls)} == {20.0}
        assert only(tmp_path, streaming_choice("00:20")).starts_s is None

    def test_polls_of_two_questions_are_asked_in_turn(self, tmp_path):
        (video,) = load(tmp_path, *streaming_files()["proactive"]).videos
        assert [asked.time_s for asked, _ in video.moments] == [2.0, 3.0, 3.0, 4.0, 4.0, 5.0, 5.0, 6.0, 6.0, 7.0]
        assert [video.questions.index(question) for _, question in video.moments] == [0, 0, 1, 0, 1, 0, 1, 0, 1, 0]
        assert video.last_question_s == 7.0

    def test_nothing_that_is_asked_shares_an_id(self, tmp_path):
        twice = [
            streaming_row("sample_1_proactive.mp4", streaming_proactive("00:01", due)) for due in ("00:03", "00:04")
        ]
        (video,) = load(tmp_path, *twice).videos
        assert len({asked.id for asked, _ in video.moments}) == len(video.moments) == 13

    def test_other_questions_are_their_own_moment(self, tmp_path):
        (video,) = load(tmp_path, *streaming_files()["real"]).videos
        assert [asked is question for asked, question in video.moments] == [True, True]
        assert EvalVideo(name="v", id="v", clip_s=(0.0, 1.0), fps=None, dataset=None, questions=()).moments == ()

    def poll(self, tmp_path, *replies, says="It is 3."):
        """Replies to the polls in turn; gives the row, when it came, and what was asked."""
        question = only(tmp_path, streaming_proactive("00:20", "00:23"))
        asked = []

        def ask(part):
            asked.append(part)
            reply = replies[len(asked) - 1] if part.kind == "yes_no" else None
            text = says if part.kind == "open" else ("Yes", "No", "?")[2 if reply is None else reply]
            rest = {"frames_used": [len(asked)], "num_visual_tokens": len(asked), "first_token_s": 0.5, "answer_s": 1.0}
            return {"text": text, "time_s": part.time_s, "predicted_index": reply, **rest}

        polls = Polls(ask)
        rows = [(poll.time_s, row) for poll in question.proactive.polls if (row := polls.take(poll, question))]
        ((when_s, row),) = rows
        return when_s, row, asked

    @pytest.mark.parametrize(("yes_at", "correct"), [(1, True), (3, True), (5, True), (6, False), (7, False)])
    def test_the_first_yes_counts(self, tmp_path, yes_at, correct):
        replies = [1] * (yes_at - 1) + [0] * 7
        when_s, row, asked = self.poll(tmp_path, *replies)
        assert when_s == row["output_s"] == row["predicted_index"] == 20 + yes_at
        assert (row["correct"], row["in_time"], row["output_correct"]) == (correct, correct, True)
        assert (row["text"], row["due_s"]) == ("It is 3.", 23.0)
        # Then the question itself, of the frames of that poll; no poll after that.
        assert [part.kind for part in asked] == ["yes_no"] * yes_at + ["open"]
        assert (asked[-1].id, asked[-1].time_s) == (asked[-2].id, 20.0 + yes_at)
        assert [poll["text"] for poll in row["polls"]] == ["No"] * (yes_at - 1) + ["Yes"]
        assert (row["answer_s"], row["frames_used"]) == (yes_at + 1.0, [yes_at + 1])

    def test_a_yes_before_the_tolerance_is_wrong(self, tmp_path):
        question = only(tmp_path, streaming_proactive("00:10", "00:23"))
        fields = {"frames_used": [], "num_visual_tokens": 0, "first_token_s": None, "answer_s": 0.0}
        polls = Polls(lambda part: {"text": "Yes", "time_s": part.time_s, "predicted_index": 0, **fields})
        row = polls.take(question.proactive.polls[0], question)
        assert (row["output_s"], row["correct"]) == (11.0, False)

    def test_without_a_yes_nothing_is_put_out(self, tmp_path):
        when_s, row, asked = self.poll(tmp_path, 1, 1, None, 1, 1, 1, 1)
        assert (when_s, row["output_s"], row["predicted_index"], row["text"]) == (27.0, None, None, "")
        assert (row["correct"], row["output_correct"], len(asked), len(row["polls"])) == (False, False, 7, 7)
        assert "error" not in row

    def test_the_wrong_output_in_time(self, tmp_path):
        _, row, _ = self.poll(tmp_path, 1, 1, 0, says="It is 13.")
        assert (row["correct"], row["in_time"], row["output_correct"]) == (False, True, False)

    def test_polls_before_the_first_frame(self, tmp_path):
        question = only(tmp_path, streaming_proactive("00:00", "00:00"))
        fields = {"frames_used": [], "num_visual_tokens": 0, "first_token_s": None, "answer_s": 0.0, "text": ""}
        error = {"error": "no frame", "error_kind": "NoFrameError"}
        polls = Polls(lambda part: {**fields, "time_s": part.time_s, "predicted_index": None, **error})
        rows = [polls.take(poll, question) for poll in question.proactive.polls]
        assert rows[:-1] == [None] * 3
        assert (rows[-1]["error"], rows[-1]["error_kind"]) == ("no frame", "NoFrameError")
        # One that saw something is enough.
        replies = iter([error, {}, {}, {}])
        polls = Polls(lambda part: {**fields, "time_s": part.time_s, "predicted_index": None, **next(replies)})
        assert "error" not in [polls.take(poll, question) for poll in question.proactive.polls][-1]
        # But one that could not be answered may have been the one.
        replies = iter([error, {"error": "NaN", "error_kind": "NonFiniteError"}, {}, {}])
        polls = Polls(lambda part: {**fields, "time_s": part.time_s, "predicted_index": None, **next(replies)})
        assert [polls.take(poll, question) for poll in question.proactive.polls][-1]["error"] == "NaN"
        assert Polls(lambda part: {}).take(question, replace(question, proactive=None)) is None


MODELS = {
    "Gemini 1.5 Pro": ((1935, 678), (132, 106, 148, 23), (51.06, 70.26)),
    "GPT-4o": ((1864, 509), (126, 107, 131, 29), (49.06, 64.31)),
    "Claude 3.5 Sonnet": ((1851, 414), (90, 108, 87, 33), (39.70, 60.06)),
}
"""Right answers of the published table: of 2,500 and 1,000, then by contextual task, of which 51 are proactive."""
CONTEXTUAL = [name for name, group in TASK.type_groups.items() if group == "contextual"]


class TestPublishedAverages:
    def rows(self, model, num_proactive=250, names=lambda place, time_s: {"video": f"sample_{place}_proactive.mp4"}):
        """The 51 first among the proactive ones: they are right as published, the others all."""
        (real, omni), right, _ = MODELS[model]
        rows = []
        for group, num_right, num_all in (("real_time", real, 2500), ("omni_source", omni, 1000)):
            kinds = [name for name, found in TASK.type_groups.items() if found == group]
            rows += [(kinds[place % len(kinds)], place < num_right, {"video": "v"}) for place in range(num_all)]
        for kind, num_right in zip(CONTEXTUAL[:3], right[:3], strict=True):
            rows += [(kind, place < num_right, {"video": "v"}) for place in range(250)]
        put = [(place, time_s) for place, times_s in enumerate(PUBLISHED_S, start=1) for time_s in times_s]
        put += [(1 + place % 50, 3000.0 + place) for place in range(num_proactive - len(put))]
        for number, (place, time_s) in enumerate(put):
            is_right = number < right[3] or number >= 51
            rows.append((CONTEXTUAL[3], is_right, {"time_s": float(time_s), **names(place, time_s)}))
        common = {"dataset": None, "options": ["a", "b"], "time_s": 1.0}
        return [{**common, **more, "answer_type": kind, "correct": is_right} for kind, is_right, more in rows]

    @pytest.mark.parametrize("model", MODELS)
    def test_come_out_from_the_rows_of_three_models(self, model):
        figures = averages(self.rows(model), TASK)["averages"]
        found = [round(figures[name]["accuracy"], 2) for name in ("contextual", "overall")]
        assert tuple(found) == MODELS[model][2]
        counts = [figures[name]["num_questions"] for name in ("contextual", "overall", "contextual_250", "overall_250")]
        assert counts == [801, 4301, 1000, 4500]
        (real, omni), right, _ = MODELS[model]
        all_250 = 100 * (sum(right) + 199) / 1000
        assert figures["contextual_250"]["accuracy"] == pytest.approx(all_250, abs=1e-3)
        assert figures["overall_250"]["accuracy"] == pytest.approx(
            100 * (real + omni + sum(right) + 199) / 4500, abs=1e-3
        )

    def test_the_51_alone_have_one_name(self):
        for names in ({}, {"names": lambda place, time_s: {"video": "mine.mp4"}}):  # a set of one's own counts its own
            figures = averages(self.rows("GPT-4o", 51, **names), TASK)
            assert round(figures["averages"]["contextual"]["accuracy"], 2) == 49.06
            assert figures["averages"]["contextual_250"] is figures["averages"]["overall_250"] is None
            assert not [title for title in headline(figures) if "in place of the published 51" in title]
            assert figures["lacking"] == {}

    def test_which_they_are(self, shared_dir):
        folder = shared_dir / "benchmarks" / "streamingbench"
        found = {}
        for name in ("proactive", "proactive_50"):
            videos = load_streamingbench([folder / f"questions_{name}.json"]).videos
            rows = [{"video": video.name, "time_s": asked.time_s} for video in videos for asked in video.questions]
            found[name] = [is_published(row) for row in rows]
        assert (len(found["proactive"]), sum(found["proactive"])) == (250, 51)
        assert (len(found["proactive_50"]), sum(found["proactive_50"])) == (51, 51)
        assert not is_published({"video": "sample_1_real.mp4", "time_s": 407.0})
