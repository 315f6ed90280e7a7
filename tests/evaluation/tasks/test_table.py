"""A benchmark from one's own table: what its rows mean, in every format, and what is said of wrong ones."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from evaluation_sets import question as ovbench_row
from evaluation_sets import write_frames, write_set
from videochat_online.errors import InputError
from videochat_online.evaluation import get_task
from videochat_online.evaluation.check.benchmark_check import inspect_benchmark
from videochat_online.evaluation.media.protocol_frames import VideoFrames
from videochat_online.evaluation.protocol import PROTOCOLS
from videochat_online.evaluation.tasks.ovbench import load_ovbench
from videochat_online.evaluation.tasks.table import COLUMNS, load_table

HEAD = ["video", "question", "time", "answer", "options", "type", "group", "id"]
ROWS = [
    ["a.mp4", "Where, then?", "0:05", "B", "on the table|on the floor", "", "Places", "q1"],
    ["a.mp4", 'Is "it"\nopen?', "12.5", "no", "", "", "States", ""],
    ["a.mp4", "How many?", "1:02:30", "1,200", "", "", "", ""],
    ["b.mp4", "What?", "7", "a cup", '["a cup", "a jar", "3"]', "multiple choice", "Things", ""],
    ["b.mp4", "What is it?", "7", "a red cup", "", "", "Things", ""],
    ["b.mp4", "How warm?", "7", "-2.5", "", "number", "Things", ""],
    ["b.mp4", "Seen?", "7", "TRUE", "", "Yes/No", "Things", ""],
]
MEANT = [  # time, kind, options, index, text, scorer, group
    (5.0, "choice", ("on the table", "on the floor"), 1, None, None, "Places"),
    (12.5, "yes_no", ("Yes", "No"), 1, None, None, "States"),
    (3750.0, "count", (), 1200, None, None, "number"),
    (7.0, "choice", ("a cup", "a jar", "3"), 0, None, None, "Things"),
    (7.0, "open", (), 0, "a red cup", None, "Things"),
    (7.0, "open", (), 0, "-2.5", "number", "Things"),
    (7.0, "yes_no", ("Yes", "No"), 0, None, None, "Things"),
]


def as_csv(head, rows, delimiter=","):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([head, *rows])
    return text.getvalue()


def as_json_lines(head, rows):
    return "\n".join(json.dumps(dict(zip(head, row, strict=True))) for row in rows)


def table(tmp_path, content, name="my.csv"):
    """The set of a file, with its content as text or bytes."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_table([path])


def one(tmp_path, **cells):
    """The question of one row of JSON."""
    row = {"video": "a.mp4", "question": "What?", "answer": "red", **cells}
    return table(tmp_path, json.dumps({name: value for name, value in row.items() if value is not ...}))


def meant(content):
    """What a set says, but for where it stands in its file."""
    return [
        (one.time_s, one.kind, one.options, one.answer_index, one.answer_text, one.scorer, one.answer_type)
        for one in content.questions
    ]


@pytest.mark.parametrize(
    "content",
    [
        *(as_csv(HEAD, ROWS, delimiter) for delimiter in ",;\t|"),
        b"\xef\xbb\xbf" + as_csv(HEAD, ROWS).encode(),
        as_csv(HEAD, ROWS).replace("\r\n", "\n") + "\n\n",
        as_csv(["", *HEAD], [[str(index), *row] for index, row in enumerate(ROWS)]),
        as_csv([name.upper() for name in HEAD], ROWS),
        "sep=;\r\n" + as_csv([*HEAD, ""], [[*row, ""] for row in [*ROWS, len(HEAD) * [""]]], ";"),
        as_csv(["Video-ID", "query", "time s", "GT", "choices", "kind", "Question type", "qid"], ROWS),
        as_json_lines(HEAD, ROWS) + "\n",
        json.dumps([dict(zip(HEAD, row, strict=True)) for row in ROWS]),
    ],
    ids=[
        "comma",
        "semicolon",
        "tab",
        "bar",
        "bom",
        "line_feeds",
        "index",
        "capitals",
        "sep",
        "names",
        "json_lines",
        "json",
    ],
)
def test_all_formats_say_the_same(tmp_path, content):
    found = table(tmp_path, content)
    assert found.problems == ()
    assert sorted(meant(found), key=str) == sorted(MEANT, key=str)
    assert [video.name for video in found.videos] == ["a.mp4", "b.mp4"]
    by_text = {question.question: question for question in found.questions}
    assert by_text["Where, then?"].id == "q1"
    assert by_text['Is "it"\nopen?'].id.startswith("a.mp4@12.5s-")
    assert [by_text[row[1]].source.row for row in ROWS] == list(range(len(ROWS)))


def test_a_row_says_what_one_of_ovbench_says(tmp_path):
    """Same prompt, same frames, same right answer as the question in the nested layout."""
    row = {"video_id": "a.mp4", "clip": [1.0, 9.0], "questions": [ovbench_row(4.0, "B")]}
    (expected,) = load_ovbench([write_set(tmp_path / "nested.json", [row])]).videos
    content = one(tmp_path, start=1, end="0:09", time=4, answer="B", options=["A. red", "B. blue"], group="PastMemory")
    (found,) = content.videos
    assert (found.name, found.clip_s, found.fps, found.dataset) == ("a.mp4", (1.0, 9.0), None, None)
    (question,), (theirs,) = found.questions, expected.questions
    assert get_task("table").prompt(question) == get_task("ovbench").prompt(theirs)
    assert (question.id, question.options, question.answer_index) == (theirs.id, theirs.options, theirs.answer_index)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"answer": True}, ("yes_no", ("Yes", "No"), 0)),
        ({"answer": 3}, ("count", (), 3)),
        ({"answer": "3", "type": "open"}, ("open", (), 0)),
        ({"answer": "three", "type": "number"}, ("count", (), 3)),
        ({"answer": "2.5"}, ("open", (), 0)),
        ({"answer": "yes", "options": "yes|no"}, ("choice", ("yes", "no"), 0)),
        ({"answer": "b)", "options": [1, 2]}, ("choice", ("1", "2"), 1)),
        ({"answer": 2, "options": [1, 2]}, ("choice", ("1", "2"), 1)),
        ({"answer": "B. blue", "options": "(A) red|(B) blue"}, ("choice", ("red", "blue"), 1)),
        *(({"answer": word}, ("yes_no", ("Yes", "No"), 0)) for word in ("Yes.", "TRUE", "true", "yes!")),
        *(({"answer": word}, ("yes_no", ("Yes", "No"), 1)) for word in ("No.", "False", False)),
        ({"answer": "1,500"}, ("count", (), 1500)),
        ({"answer": "1.500"}, ("open", (), 0)),
        ({"answer": "B", "options": "A. red|C. blue|B. green"}, ("choice", ("red", "green", "blue"), 1)),
        ({"answer": "blue", "options": "A. red|C. blue|B. green"}, ("choice", ("red", "green", "blue"), 2)),
        ({"answer": "A. Lebrun", "options": "I. Newton|A. Lebrun"}, ("choice", ("I. Newton", "A. Lebrun"), 1)),
        ({"answer": "B", "options": "A. Lebrun|Xu"}, ("choice", ("A. Lebrun", "Xu"), 1)),
        ({"answer": "c", "option_a": "x", "Option B": "y", "option-c": "z"}, ("choice", ("x", "y", "z"), 2)),
        ({"answer": "y", "A": "x", "B": "y", "C": ""}, ("choice", ("x", "y"), 1)),
        ({"answer": "A", "choice_1": "x", "choice_2": "y"}, ("choice", ("x", "y"), 0)),
        ({"answer": "A", "option_0": "x", "option_1": "y"}, ("choice", ("x", "y"), 0)),
        ({"answer": "C", "option 0": "x", "option 1": "y", "option 2": "z"}, ("choice", ("x", "y", "z"), 2)),
        ({"answer": "B", "option_a": "x", "option_b": "y", "option_c": math.nan}, ("choice", ("x", "y"), 1)),
    ],
)
def test_answers_and_options(tmp_path, cells, expected):
    found = one(tmp_path, **cells)
    assert found.problems == ()
    (question,) = found.questions
    assert (question.kind, question.options, question.answer_index) == expected


@pytest.mark.parametrize(("first", "second"), [("time", "timestamp"), ("options", "choices"), ("answer", "gt")])
def test_two_names_of_one_column_are_refused(tmp_path, first, second):
    with pytest.raises(InputError, match=f"expected one column of {first}, found {first} and {second}"):
        one(tmp_path, **{"answer": "yes", first: "yes", second: "no"})


def test_times_have_many_names(tmp_path):
    found = one(tmp_path, answer="yes", timestamps=5, start_time="0:01", end_time=9)
    assert found.videos[0].clip_s == (1.0, 9.0)
    assert found.questions[0].time_s == 5.0


def test_what_is_not_known_is_kept(tmp_path):
    found = one(tmp_path, time=9, evidence="0:04", detail="fine", colour="", b="alone", fps=2, source="Mine")
    (question,) = found.questions
    assert question.extra == {"evidence_age_s": 5.0, "detail": "fine", "b": "alone"}
    assert (found.videos[0].fps, found.videos[0].dataset, question.dataset) == (2.0, "mine", "mine")
    (question,) = table(tmp_path, as_csv([*HEAD[:4], "evidence_age_s"], [[*ROWS[1][:4], "3"]])).questions
    assert question.extra == {"evidence_age_s": 3.0}


def test_columns_that_nobody_reads_are_named(tmp_path):
    found = one(tmp_path, time=9, detail="fine", colour="blue", b="alone", note="")
    assert found.notes == ("my.csv: columns that are kept with the questions and not read: colour, b, note",)
    assert one(tmp_path, evidence_age_s=1, template="x").notes == ()


def test_one_question_has_one_answer(tmp_path):
    rows = [["a.mp4", "Open?", "1", answer] for answer in ("yes", "TRUE", "no")]
    rows += [["a.mp4", "Open?", "2", "no"], ["b.mp4", "Open?", "1", "no"]]
    found = table(tmp_path, as_csv(HEAD[:4], rows))
    assert found.problems == (
        "my.csv:4: answer: expected 'Yes' as in my.csv:2, which asks the same at the same time, found 'No'",
    )
    assert [(video.id, len(video.questions)) for video in found.videos] == [("a.mp4", 3), ("b.mp4", 1)]


def test_a_name_of_a_second_stream_is_free(tmp_path):
    rows = [[name, "What?", "1", "red", end] for name, end in (("a.mp4", ""), ("a.mp4", "5"), ("a.mp4#2", ""))]
    found = table(tmp_path, as_csv(["video", "question", "time", "answer", "end"], rows))
    assert [(video.name, video.id) for video in found.videos] == [
        ("a.mp4", "a.mp4"),
        ("a.mp4#3", "a.mp4"),
        ("a.mp4#2", "a.mp4#2"),
    ]


def test_a_video_with_two_clips_is_two_streams(tmp_path):
    rows = [["a.mp4", "What?", time, "red", end] for time, end in (("3", ""), ("2", "5"), ("1", ""))]
    found = table(tmp_path, as_csv(["video", "question", "time", "answer", "end"], rows))
    assert [(video.name, video.clip_s, [one.time_s for one in video.questions]) for video in found.videos] == [
        ("a.mp4", (0.0, math.inf), [1.0, 3.0]),
        ("a.mp4#2", (0.0, 5.0), [2.0]),
    ]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"video": ...}, "video: expected a text, found none"),
        ({"time": "5;3"}, "time: expected a time such as 90, 1:30 or 1:02:30, got '5;3'"),
        ({"time": -1}, "time: expected a time such as 90, 1:30 or 1:02:30, got '-1'"),
        ({"time": [5]}, "time: expected a time such as 90, 1:30 or 1:02:30, found [5]"),
        ({"time": 9, "end": 5}, "time: expected one within the clip, 0 to 5 s, found 9.0"),
        ({"start": 5, "end": 5}, "end: expected a time after the start, 5 s, found 5.0"),
        ({"type": "essay"}, "type: expected choice, yes/no, number or open, found 'essay'"),
        ({"type": "choice"}, "options: expected 2 to 26 texts, found []"),
        ({"type": "open", "options": "a|b"}, "options: expected none with open, found ['a', 'b']"),
        ({"type": "number"}, "answer: expected a number such as 3, 1,200 or 2.5, found 'red'"),
        ({"type": "number", "answer": "2 or 3"}, "answer: expected a number such as 3, 1,200 or 2.5, found '2 or 3'"),
        ({"type": "yes/no"}, "answer: expected Yes or No, found 'red'"),
        ({"answer": ["red"]}, "answer: expected a text, found ['red']"),
        ({"options": "a|b"}, "answer: expected one of the letters AB, or the text of one option, found 'red'"),
        (
            {"options": "B|A", "answer": "A"},
            "answer: expected one of the letters AB, or the text of one option, found 'A'",
        ),
        (
            {"options": "A. red|C. blue|D. green", "answer": "C"},
            "answer: expected the text of one option, as their letters are not A to C, each once, found 'C'",
        ),
        ({"options": "A. red|B. blue", "answer": "B. red"}, "answer: expected one of the letters AB, or the text of"),
        ({"options": {"A": "red"}}, "options: expected 2 to 26 texts, as in red|green|blue, found {'A': 'red'}"),
        ({"answer": "1,5"}, "answer: expected a number such as 3, 1,200 or 2.5, found '1,5'"),
        ({"answer": "1,20,000"}, "answer: expected a number such as 3, 1,200 or 2.5, found '1,20,000'"),
        ({"options": "red"}, "options: expected 2 to 26 texts, as in red|green|blue, found ['red']"),
        ({"options": '["red", '}, "options: expected a JSON list, found one that cannot be read: "),
        ({"options": "a|b", "option_a": "x", "option_b": "y"}, "options: expected one list, or columns of their own"),
        (
            {"option_a": "", "option_b": "red"},
            "options[0]: expected a text, found none",
        ),
        ({"scorer": "fuzzy"}, "scorer: expected one of exact, contains, number, judge, found 'fuzzy'"),
        ({"scorer": "exact", "answer": "no"}, "scorer: expected none, as the question is not open, found 'exact'"),
        ({"scorer": "number"}, "answer: expected a number such as 3, 1,200 or 2.5, found 'red'"),
        ({"evidence": 5}, "evidence: expected none, as the question has no time, found 5.0"),
        ({"evidence": 5, "time": 4}, "evidence: expected a time up to the question's, 4 s, found 5.0"),
        ({"fps": 0}, "fps: expected a number above 0, found 0.0"),
        ({"question": "\ud800?"}, "question: "),
    ],
)
def test_a_wrong_row_is_named_with_its_line(tmp_path, cells, words):
    row = {"video": "a.mp4", "question": "What?", "answer": "red", **cells}
    wrong = json.dumps({name: value for name, value in row.items() if value is not ...})
    good = json.dumps({"video": "b.mp4", "question": "What?", "answer": "red", "option_a": None})
    found = table(tmp_path, f"{good}\n\n{wrong}\n", "my.jsonl")
    (problem,) = found.problems
    assert problem.startswith(f"my.jsonl:3: {words}")
    assert [video.id for video in found.videos] == ["b.mp4"]


def test_lines_of_csv_are_those_of_the_file(tmp_path):
    rows = [["a.mp4", "One\nof\nthree lines?", "late", "x"], ["a.mp4", "Short?", "1"], ["a.mp4", "Good?", "1", "x"]]
    assert table(tmp_path, as_csv(HEAD[:4], rows)).problems == (
        "my.csv:2: time: expected a time such as 90, 1:30 or 1:02:30, got 'late'",
        "my.csv:5: expected 4 cells, as the first row has, found 3",
    )


def test_an_id_comes_once(tmp_path):
    rows = [["a.mp4", "One?", "1", "x", "q1"], ["a.mp4", "Two?", "1", "x", "q1"]]
    rows += [["a.mp4", "Same?", "1", "x", ""], ["a.mp4", "Same?", "1", "x", ""]]
    found = table(tmp_path, as_csv([*HEAD[:4], "id"], rows))
    assert found.problems == ("my.csv:3: id: expected one of its own, found 'q1'",)
    first, again = [question.id for question in found.questions if question.question == "Same?"]
    assert again == f"{first}-2"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "my.csv: expected a table, found an empty file"),
        (b"\xef\xbb\xbf \n", "my.csv: expected a table, found an empty file"),
        ("video,question,answer\n", "my.csv: expected questions of a table, found none"),
        (
            "clip,question,time\na,b,1\n",
            f"my.csv: expected the columns video (or {', '.join(COLUMNS['video'])}), "
            "answer (or correct_answer, ground_truth, gt); found clip, question, time",
        ),
        ('{"clip": 1}', "my.csv: expected the columns video ("),
        ("video,question,answer,question\na,b,c,d\n", "my.csv: expected each column once, found question again"),
        ("video,question,answer,Question\na,b,c,d\n", "expected each column once, found 'question' and 'Question'"),
        (
            "video,question,answer,option_a,option_c\n",
            "expected option columns from a (or 1, or 0) on, found option_a, option_c",
        ),
        (
            "video,question,answer,option_a,option_1,option_b\n",
            "expected one column for each option, found option_a and option_1 for one",
        ),
        ("video,question,answer\na,caf\xe9,c\n".encode("latin-1"), "my.csv:2: expected text in UTF-8, found byte 0xe9"),
        ('video,question,answer\na,b,c\na,"b,c\nd,e', "my.csv:3: expected a row of CSV, found one that cannot be read"),
        ('{"video": "a"}\n{"video": \n', "my.csv:2: expected a JSON object in each line, found no JSON"),
        ('{"video": "a"}\n3\n', "my.csv:2: expected a JSON object in each line, found int"),
        ("[3]", "my.csv: expected a JSON list of rows, found in it int"),
    ],
)
def test_a_file_that_is_no_table(tmp_path, content, words):
    with pytest.raises(InputError, match="my.csv") as caught:
        table(tmp_path, content)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"absent\.csv: expected a table, found no readable file"):
        load_table([tmp_path / "absent.csv"])
    with pytest.raises(
        InputError, match="task 'table': expected options that name its file, such as --task.file, found none"
    ):
        get_task("table").annotations(None)
    with pytest.raises(InputError, match="--annotations: expected none, as the options of task 'table' say it, found"):
        get_task("table", {"file": "a.csv"}).annotations(["x"])


class TestWithoutATime:
    """Asked at the end of the video, which is known once the video is opened."""

    @pytest.fixture
    def content(self, tmp_path, frames):
        write_frames(tmp_path / "media" / "a", frames(10))
        rows = [["a", "Last?", "", "x"], ["a", "Early?", "1.5", "x"]]
        return table(tmp_path, as_csv([*HEAD[:4], "fps"], [[*row, "4"] for row in rows]))

    def test_it_is_the_end_of_the_last_frame(self, content, tmp_path):
        (video,) = content.videos
        with VideoFrames(tmp_path / "media" / "a", video, PROTOCOLS["sliding_window"]) as opened:
            assert [(one.question, one.time_s) for one in opened.video.questions] == [("Early?", 1.5), ("Last?", 2.5)]
            assert opened.streaming_indices()[-1] >= 8
            assert opened.problem is None
            assert opened.window_indices(opened.video.questions[-1].time_s)[-1] >= 8

    def test_the_check_of_a_benchmark_knows_it(self, content, tmp_path):
        found = inspect_benchmark(get_task("table"), [tmp_path / "my.csv"], tmp_path / "media")
        assert found.is_sound
        assert [one.facts.end_s for one in found.videos] == [2.5]

    def test_that_of_a_clip_is_known_at_once(self, tmp_path):
        assert [question.time_s for question in one(tmp_path, end="0:20").questions] == [20.0]
