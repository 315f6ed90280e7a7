"""OVO-Bench: its published file, odd rows, prompts of every kind, and what its totals are."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmark_sets import ovo_choice, ovo_forward, ovo_rows
from evaluation_sets import write_set
from videochat_online.errors import InputError
from videochat_online.evaluation import get_task
from videochat_online.evaluation.tasks.ovobench import load_ovobench

PUBLISHED = {
    "backward / EPM": 297, "backward / ASI": 148, "backward / HLD": 186, "realtime / OCR": 149,
    "realtime / ACR": 109, "realtime / ATR": 116, "realtime / STU": 178, "realtime / FPD": 101,
    "realtime / OJR": 184, "forward / REC": 698, "forward / SSR": 629, "forward / CRR": 240,
}  # fmt: skip
TASK = get_task("ovobench")


class TestPublishedFile:
    @pytest.fixture(scope="class")
    def content(self, shared_dir):
        return load_ovobench([shared_dir / "benchmarks" / "ovo" / "ovo_bench_new.json"])

    def test_every_row_can_be_used(self, content):
        assert (len(content.videos), len(content.questions), content.problems) == (644, 3035, ())
        assert (
            Counter(" / ".join(TASK.cell(asked.answer_type, asked.dataset)) for asked in content.questions) == PUBLISHED
        )
        assert len({asked.id for asked in content.questions}) == 3035
        assert {asked.dataset for asked in content.questions} >= {"ego4d", "coin", "autoevalmetadata", "movienet"}

    def test_right_answers(self, content):
        by_id = {asked.id: asked for asked in content.questions}
        # `answer` is worded otherwise than the option that `gt` points at.
        assert (by_id["1109"].answer_index, by_id["1109"].extra["answer"]) != (0, by_id["1109"].options[1])
        assert by_id["1109"].options[by_id["1109"].answer_index] == "The person is going to drill a hole."
        assert [by_id[f"1559-{place}"].answer_index for place in (1, 2, 3, 4)] == [1, 2, 3, 3]
        first, second = by_id["1516-1"], by_id["1516-3"]
        assert (first.options[first.answer_index], second.options[second.answer_index]) == ("Yes", "No")
        assert Counter(asked.answer_index for asked in content.questions if asked.answer_type == "CRR") == {
            0: 144,
            1: 96,
        }
        # Equal options, of which one is right: taken as annotated.
        assert by_id["831"].options[:2] == ("A wooden bridge.", "A wooden bridge.")
        assert by_id["831"].answer_index == 0

    def test_questions_of_a_video_come_in_time_order(self, content):
        for video in content.videos:
            times_s = [asked.time_s for asked in video.questions]
            assert times_s == sorted(times_s)
        video = next(video for video in content.videos if video.id == "COIN/xZecGPPhbHE.mp4")
        # Its tests are annotated step by step: 27, 30, 26, 29, ...
        assert [asked.id for asked in video.questions][:4] == ["1516-3", "1516-1", "1516-4", "1516-2"]


def load(tmp_path, *rows):
    return load_ovobench([write_set(tmp_path / "rows.json", list(rows))])


class TestOddRows:
    def test_rows_of_one_video_are_one_stream(self, tmp_path):
        content = load(tmp_path, *ovo_rows())
        assert [(video.id, video.dataset, len(video.questions)) for video in content.videos] == [
            ("COIN/a.mp4", "coin", 6), ("Ego4D/clips/b.mp4", "ego4d", 3),
        ]  # fmt: skip
        assert [(asked.id, asked.kind, asked.answer_index) for asked in content.questions] == [
            ("4-2", "yes_no", 1), ("3-1", "count", 1), ("0", "choice", 1), ("1", "choice", 0), ("4-1", "yes_no", 0),
            ("3-2", "count", 3), ("5-1", "yes_no", 1), ("2", "choice", 2), ("5-2", "yes_no", 0),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            (ovo_choice(9, "XYZ", 1.0), "task: expected one of EPM, ASI"),
            (ovo_choice(9, "EPM", -1), "realtime: expected a number of at least 0, found -1"),
            (ovo_choice(9, "EPM", "1"), "realtime: expected a number, found '1'"),
            (ovo_choice(9, "EPM", 1, gt=3), "gt: expected a whole number from 0 to 2, found 3"),
            (ovo_choice(9, "EPM", 1, gt=True), "gt: expected a whole number, found True"),
            (ovo_choice(9, "EPM", 1, gt=None), "gt: expected a whole number"),
            (ovo_choice(9, "EPM", 1, options=["red", ""]), "options[1]: expected a text, found ''"),
            (
                ovo_choice(9, "EPM", 1, question="a\ud800"),
                "question: expected Unicode text, without halves of surrogate",
            ),
            (ovo_choice(9, "EPM", 1, video=""), "video: expected a text"),
            (ovo_choice(None, "EPM", 1), "id: expected a whole number or a text, found none"),
            (ovo_choice(0, "EPM", 1), "id: expected one that no row before has, found 0"),
            (ovo_forward(9, "REC", []), "test_info: expected at least 1 of them, found []"),
            (ovo_forward(9, "REC", [(1, 2.5)]), "test 1: count: expected a whole number, found 2.5"),
            (ovo_forward(9, "REC", [(1, 2)], activity=" "), "test 1: activity: expected a text"),
            (ovo_forward(9, "SSR", [(1, 2, "cut")]), "test 1: type: expected a number of at most 1, found 2"),
            (ovo_forward(9, "CRR", [(1, 0)], test_info=["x"]), "test 1: expected an object, found 'x'"),
        ],
    )
    def test_a_bad_row_is_named_and_left_out(self, tmp_path, row, words):
        content = load(tmp_path, ovo_choice(0, "EPM", 1.0), row)
        assert len(content.questions) == 1
        (problem,) = content.problems
        assert problem.startswith("rows.json row 2")
        assert words in problem

    def test_a_bad_test_leaves_the_others(self, tmp_path):
        content = load(tmp_path, ovo_forward(7, "REC", [(1, 0), (2, -1), (3, 2)]))
        assert [asked.id for asked in content.questions] == ["7-1", "7-3"]
        assert content.problems == ("rows.json row 1 test 2: count: expected a number of at least 0, found -1",)

    def test_a_file_without_questions_is_an_error(self, tmp_path):
        with pytest.raises(InputError, match=r"rows.json: expected a JSON list of rows, found in it list"):
            load(tmp_path, ovo_rows())
        with pytest.raises(InputError, match=r"expected questions of OVO-Bench, found none; the first row: rows.json"):
            load(tmp_path, ovo_choice(0, "EPM", None))


def test_prompts(tmp_path):
    by_id = {asked.id: TASK.prompt(asked) for asked in load(tmp_path, *ovo_rows()).questions}
    assert by_id["0"] == "Question at 2.5s: Question 0?\nOptions:\n(A) red\n(B) blue\n(C) none"
    assert by_id["3-1"].startswith("Question at 2.0s: ")
    assert by_id["3-1"].endswith("How often has this been done: long jump?")
    assert "One of the steps is: fry." in by_id["4-1"]
    assert "at the end of this video: What is next? Does the video" in by_id["5-2"]
    assert not any("Options" in by_id[name] or "(A)" in by_id[name] for name in ("3-1", "4-1", "5-1"))
