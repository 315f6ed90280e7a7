"""Conversations: lines from a pipe or a terminal, questions at the present time, commands, Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import signal

import pytest
from PIL import Image

from clips import write_clip
from videochat_online.cli.dialogue.dialogue import Command, command_of
from videochat_online.cli.main import main
from videochat_online.errors import InputError, VideoError
from videochat_online.streaming import StreamingSession
from videochat_online.streaming.generate import generate_ids
from videochat_online.streaming.question_prompt import build_prompt
from videochat_online.video import VideoSource


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Four seconds, ten frames a second."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


class Terminal(io.StringIO):
    """Lines that are typed."""

    def isatty(self):
        return True


@pytest.fixture
def converse(tiny_dir, capsys, monkeypatch):
    """Run `chat` with these lines as its input; status, what came on stdout and on stderr."""

    def run(lines, *arguments, stdin=io.StringIO, tokens="8"):
        monkeypatch.setattr("sys.stdin", stdin("".join(f"{line}\n" for line in lines)))
        status = main(["chat", "--model", str(tiny_dir()), "--max_new_tokens", tokens, *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def converse_json(converse):
    """The same with `--json`: status, rows, stderr."""

    def run(lines, *arguments, **options):
        status, out, err = converse(lines, "--json", *arguments, **options)
        return status, [json.loads(line) for line in out.splitlines()], err

    return run


def times(row):
    return [frame["time_s"] for frame in row["frames_used"]]


class TestVideo:
    def test_questions_see_what_has_been_watched(self, converse_json, clip):
        lines = [
            "What?",
            "0:01 One?",
            "",
            "And now?",
            ":play 0:02.5",
            "3 things?",
            "/play",
            "All?",
            "99:Late?",
            "\ufeffquit",
            "x",
        ]
        status, rows, err = converse_json(lines, "--video", clip)
        assert status == 0
        assert [row.get("question", row.get("command")) for row in rows] == [
            "What?", "One?", "And now?", "play", "3 things?", "play", "All?", "Late?",
        ]  # fmt: skip
        assert [row.get("asked_at_s", row.get("position_s")) for row in rows] == pytest.approx(
            [0, 1, 1, 2.5, 2.5, 4, 4, 99]
        )
        assert [times(row) for row in rows if "question" in row] == [
            [0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0],
        ]  # fmt: skip
        assert [row.get("late") for row in rows[:-1]] == [None] * 7
        assert err.splitlines() == [
            "note: only the first frame has been seen: ':play' watches to the end, ':play 1:05' up to there",
            f"warning: {rows[-1]['late']}",
        ]

    def test_going_back_is_beginning_again(self, converse_json, clip):
        lines = [
            "3:What?",
            "1:Before?",
            ":rewind 0:01",
            "What?",
            ":rewind",
            ":play 1",
            "What?",
            ":rewind 2",
            ":play 0:00",
        ]
        status, rows, err = converse_json(lines, "--video", clip)
        assert status == 0
        asked = [row for row in rows if "question" in row]
        assert [times(row) for row in asked] == [[0.0, 1.0, 2.0, 3.0], [0.0, 1.0], [0.0, 1.0]]
        assert rows[1] == {
            "line": "1:Before?",
            "error": "expected a time from 0:03 on, got 0:01: ':rewind 0:01' begins again",
        }
        done = [(row["position_s"], row.get("num_forgotten")) for row in rows if "command" in row]
        assert done == [(1.0, 1), (0.0, 1), (1.0, None)]
        assert err.splitlines()[1:] == [
            "error: :rewind: expected a time up to 0:01, got '2': ':play' goes on",
            "error: :play: expected a time from 0:01 on, got '0:00': ':rewind' goes back",
        ]

    def test_dialogue_and_memory(self, converse_json, clip):
        lines = ["2:What?", "And?", ":reset", "What?", ":memory", ":reset", ":memory 3"]
        _, rows, _ = converse_json(lines, "--video", clip)
        assert [rows[i] for i in (2, 5)] == [
            {"command": "reset", "position_s": 2.0, "num_forgotten": number} for number in (2, 1)
        ]
        assert times(rows[0]) == times(rows[3]) == [0.0, 1.0, 2.0]
        assert rows[4]["frames"] == rows[0]["frames_used"]
        assert (rows[4]["num_visual_tokens"], rows[4]["position_s"]) == (18, 2.0)
        assert "expected nothing behind it" in rows[6]["error"]

    def test_errors_do_not_end_it(self, converse_json, clip):
        lines = ["0:75 What?", "1:05", "-5:What?", ":sing", ":play soon", "memory", "\udcff", "What?"]
        status, rows, err = converse_json(lines, "--video", clip)
        assert (status, rows[-1]["question"]) == (0, "What?")
        assert [row["line"] for row in rows[:-1]] == lines[:-1]
        assert [f"error: {row['error']}" for row in rows[:-1]] == err.splitlines()[:-1]
        for row, word in zip(
            rows, ("SECONDS:", "a question", "at least 0", ":play [T]", ":play: ", "':memory'", "UTF-8"), strict=False
        ):
            assert word in row["error"]

    def test_what_comes_after_a_frame_that_failed_is_not_watched(self, converse_json, clip, monkeypatch):
        push, failures = StreamingSession.push, ["broken"]

        def failing(session, pixels_THWC, times_s):
            if session.num_frames and failures:
                raise InputError(failures.pop())
            push(session, pixels_THWC, times_s)

        monkeypatch.setattr(StreamingSession, "push", failing)
        lines = [":play 2", "3:What?", "What?", ":rewind", ":play 2", "What?"]
        _, rows, _ = converse_json(lines, "--video", clip)
        assert [row.get("error") for row in rows] == ["broken", "broken", None, None, None, None]
        assert [times(rows[i]) for i in (2, 5)] == [[0.0], [0.0, 1.0, 2.0]]

    def test_the_end_of_a_video_without_times_is_that_of_its_last_sample(self, converse_json, clip, monkeypatch):
        def refuse(source):
            raise VideoError("no times")

        monkeypatch.setattr(VideoSource, "frame_times_s", refuse)
        _, rows, _ = converse_json([":play", "0:05 What?", "5.1:What?"], "--video", clip)
        assert rows[0]["position_s"] == 4.0
        assert ["late" in row for row in rows] == [False, False, True]

    def test_nothing_answered_is_bad_input(self, converse_json, clip, tmp_path):
        status, _, err = converse_json(["0:75 What?", ":play", "1:"], "--video", clip)
        assert (status, err.splitlines()[-1][:46]) == (2, "error: no question was answered; refused: 2, t")
        assert converse_json([":play"], "--video", clip)[0] == 0
        late = write_clip(tmp_path / "late.mkv", start_s=2.0)
        status, rows, _ = converse_json(["1:Early?", ":rewind 1"], "--video", late)
        assert (status, rows[0]["asked_at_s"]) == (2, 1.0)
        assert all("before the first frame, which is at 2 s" in row["error"] for row in rows[:2])

    def test_a_terminal_shows_how_far_has_been_watched(self, converse, clip):
        status, out, err = converse(["?", "1.5:What?", ":memory", ":rewind"], "--video", clip, stdin=Terminal)
        assert status == 0
        assert err.splitlines()[-1] == "[0:00] > [0:00] > [0:01.5] > [0:01.5] > [0:00] > "
        said = out.splitlines()
        assert said[0].split()[0] == ":help"
        assert "[1.5 s] What?" in said
        assert "[0:01.5] remembered: 2 frames, 17 visual tokens" in said
        assert "[0:00] begun again, 1 frames seen; forgotten: what came later, 1 questions and their answers" in said


class TestInterrupted:
    def test_an_answer(self, converse_json, clip, monkeypatch):
        presses = [1, 2]

        def interrupted(*arguments):
            for _ in range(presses.pop(0) if presses else 0):
                os.kill(os.getpid(), signal.SIGINT)
            yield from generate_ids(*arguments)

        monkeypatch.setattr("videochat_online.streaming.generate.generate_ids", interrupted)
        before = signal.getsignal(signal.SIGINT)
        lines = ["1:What?", ":reset", "What?", "What?"]
        assert converse_json(lines, "--video", clip, tokens="60")[0] == 130  # twice ends the program
        presses[:] = [1]
        _, rows, _ = converse_json(lines, "--video", clip, tokens="60")
        assert [row.get("stopped") for row in rows] == [True, None, None, None]
        assert rows[2]["text"].startswith(rows[0]["text"])
        assert 0 < len(rows[0]["text"]) < len(rows[2]["text"])
        assert signal.getsignal(signal.SIGINT) == before

    def test_watching(self, converse_json, clip, monkeypatch):
        pushed, push = [], StreamingSession.push

        def interrupting(session, pixels_THWC, times_s):
            push(session, pixels_THWC, times_s)
            pushed.extend(times_s)
            if len(pushed) == 16:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(StreamingSession, "push", interrupting)
        lines = ["4:What?", "What?", ":play", "What?"]
        status, rows, _ = converse_json(lines, "--video", clip, "--fps", 10, "--memory", "keep_all")
        assert status == 0
        assert rows[0]["error"] == "stopped at 0:01.5, before 0:04"
        # Nothing is lost, and nothing comes twice.
        assert times(rows[1]) == pytest.approx([i / 10 for i in range(16)])
        assert times(rows[3]) == pytest.approx([i / 10 for i in range(40)])


def test_images(converse_json, tmp_path, monkeypatch):
    num_turns = []

    def counted(model, turns, *arguments, **options):
        num_turns.append(len(turns))
        return build_prompt(model, turns, *arguments, **options)

    monkeypatch.setattr("videochat_online.streaming.image_chat.build_prompt", counted)
    Image.new("RGB", (100, 100), (9, 99, 200)).save(tmp_path / "a.png")
    lines = ["", "12:30 or later?", "And?", ":reset", "12:30 or later?", ":play 3", ":help", "exit"]
    status, rows, err = converse_json(lines, "--image", tmp_path / "a.png")
    assert status == 0
    assert num_turns == [1, 2, 1]
    assert [row.get("question", row.get("command")) for row in rows] == [
        "12:30 or later?", "And?", "reset", "12:30 or later?", None, "help",
    ]  # fmt: skip
    assert "(others are about videos)" in rows[4]["error"]
    assert len(err.splitlines()) == 1


COMMANDS = {name: Command(f":{name}", "", None) for name in ("help", "play", "memory", "quit")}


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("help", ["help", "Help!", "?", "？", "/help", ":h", ": help", "--help", "-h", "\\?"]),
        ("quit", ["quit", "EXIT", "exit()", "q", ":q", "/quit", "：quit", ":exit", "quit;"]),
        ("play", [":play", "/play 1:05", ":PLAY soon"]),
        (None, ["help me", "play with what?", "memory?", "- what?", "-what?", "yes", "quit smoking?", "..."]),
    ],
)
def test_what_is_a_command(name, lines):
    assert [(command_of(line, COMMANDS) or [None])[0] for line in lines] == [name] * len(lines)


@pytest.mark.parametrize(
    "line", [":sing", "/what is it?", ":play1:05", ":30 what?", ":", "/dev/null?", "play", "Play 1:05", "memory"]
)
def test_what_is_neither_a_command_nor_a_question(line):
    with pytest.raises(InputError, match="expected a question"):
        command_of(line, COMMANDS)
