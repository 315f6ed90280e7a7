"""Times that people write, and what is refused rather than cut in two."""

from __future__ import annotations

import pytest

from videochat_online.errors import InputError
from videochat_online.text.times import TimedQuestion, clock_time, seconds_of, timed_question


@pytest.mark.parametrize(
    ("line", "time_s", "text"),
    [
        ("12.5:what?", 12.5, "what?"),
        (".5:what?", 0.5, "what?"),
        (" 5 : what? ", 5, "what?"),
        ("5:what is 3:30?", 5, "what is 3:30?"),
        ("5: 3 people?", 5, "3 people?"),
        ("5:\n(A) 3:30", 5, "(A) 3:30"),
        ("5:...and then?", 5, "...and then?"),
        ("1:05:what?", 65, "what?"),
        ("1:05 what?", 65, "what?"),
        ("1:05 : what?", 65, "what?"),
        ("1:05.5:what?", 65.5, "what?"),
        ("00:07 what?", 7, "what?"),
        ("5:30 people came, why?", 330, "people came, why?"),
        ("12:30 30 people?", 750, "30 people?"),
        ("90:00:what?", 5400, "what?"),
        ("0:01:05 what?", 65, "what?"),
        ("1:02:05.25:what?", 3725.25, "what?"),
        ("１：０５：什么？", 65, "什么？"),
        ("5：什么？", 5, "什么？"),
        ("1:05\u3000什么？", 65, "什么？"),
    ],
)
def test_a_time_and_a_question(line, time_s, text):
    assert timed_question(line) == TimedQuestion(time_s, text)


@pytest.mark.parametrize(
    "line", ["3 people are here?", "12 what?", "What is at 1:05?", "Info: what?", "nano: what?", "", ":", "(A) or (B)?"]
)
def test_a_question_alone(line):
    assert timed_question(line) is None


@pytest.mark.parametrize(
    "line",
    [
        "0:75 what?", "1:60:what?", "1:90:00:what?", "1:2:what?", "1:02:5:what?", "1:5:30 what?", "1:02:03:04:what?",
        "1::05 what?", "1:05:3 people?", "5:3 people?", "5:2024 was?", "5:3D?", "5:30pm what?", "16:9 or 4:3?",
        "1 : 05 what?", "1 :05 what?", "1: 05 what?", "1: 05:what?", "1:05 :30 what?", "1:05 30:what?", "5:-3:what?",
        "1.5:05:what?", "1:05. what?", "1:05,5 what?", "12,5:what?", "12s:what?", "1:05;what?", "5;what?", "5.:what?",
        "-5:what?", "-1:05 what?", "−5:what?", "+5:what?", "1e3:what?", "1_000:what?", "inf:what?", "-Infinity:what?",
        "nan:what?", "٣:what?", "4٣:what?", "[0:07] > what?", "(1:05) what?", "\u200b5:what?",
        "9" * 400 + ":what?", "9" * 400 + ":00 what?",
    ],
)  # fmt: skip
def test_what_is_meant_as_a_time_and_is_none(line):
    with pytest.raises(InputError, match="expected (a time of at least 0 seconds, as in )?SECONDS:QUESTION such as"):
        timed_question(line)


@pytest.mark.parametrize("line", ["12", "12.5", "1:05", "1:05:", "5 :", "0:01:05  "])
def test_a_time_without_a_question(line):
    with pytest.raises(InputError, match="expected a question after the time"):
        timed_question(line)


@pytest.mark.parametrize(
    ("written", "expected"),
    [("90", 90), (" 1:30 ", 90), ("1:02:30", 3750), ("0:05.5", 5.5), ("12.25", 12.25), ("１：３０", 90)],
)
def test_a_time_alone(written, expected):
    assert seconds_of(written) == expected


@pytest.mark.parametrize("written", ["", "soon", "-3", "1:", "1:75", "1:2:3:4", "1e3", "nan", "1 : 30", "9" * 400])
def test_no_time(written):
    with pytest.raises(InputError, match="expected a time such as 90, 1:30 or 1:02:30"):
        seconds_of(written)


def test_times_as_players_show_them():
    shown = {0: "0:00", -1: "0:00", 7.5: "0:07.5", 65.05: "1:05.05", 59.999: "1:00", 3725: "1:02:05", 1 / 3: "0:00.33"}
    assert {time_s: clock_time(time_s) for time_s in shown} == shown
