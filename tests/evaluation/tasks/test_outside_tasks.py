"""A benchmark in one file outside the package: found by its import path or entry point, in every command."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from evaluation_sets import folder_set, rows_of
from videochat_online.cli.main import main
from videochat_online.errors import InputError
from videochat_online.evaluation import get_task
from videochat_online.evaluation.tasks import TASKS

ROOT = Path(__file__).resolve().parents[3]
OUTSIDE = """
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from videochat_online.evaluation import EvalQuestion, EvalSet, EvalVideo, Task
from videochat_online.parts import option


def question(time_s, **more):
    return EvalQuestion(
        **{
            **dict(id=f"{time_s}", time_s=time_s, question="Which?", options=("red", "blue"), answer_index=1),
            **dict(answer_type="Colours", sub_answer_type="Colours"),
            **more,
        }
    )


def load(paths, every_s=2.0, **more):
    names = [row["video_id"] for path in paths for row in json.loads(path.read_text())]
    times_s = [every_s * step for step in (1, 2)]
    return EvalSet(
        tuple(
            EvalVideo(
                name=name,
                id=name,
                clip_s=(0.0, 6.0),
                fps=4.0,
                dataset=None,
                questions=tuple(question(time_s, **{"id": f"{name}-{time_s}", **more}) for time_s in times_s),
            )
            for name in names
        )
    )


def prompt(question):
    return f"MINE {question.question}"


PLAIN = Task(name="anything", load=load, prompt=prompt)


class Every:
    @dataclass(frozen=True, kw_only=True)
    class Options:
        every_s: float = option(2.0, "seconds between questions")
        word: str = option("MINE", "first word of each prompt")
        file: str = option("", "its annotations")

    def __init__(self, options):
        self.options = options

    def task(self):
        files = (Path(self.options.file),) if self.options.file else ()
        read = partial(load, every_s=self.options.every_s)
        return Task(name="every", load=read, prompt=lambda asked: f"{self.options.word} {asked.question}", files=files)


class NoTask:
    Options = Every.Options


class Wrong(Every):
    def task(self):
        return "a task"


NO_LOAD = Task(name="x", load="load", prompt=prompt)
LISTS = Task(name="x", load=lambda paths: [], prompt=prompt)
NO_TEXT = Task(name="x", load=load, prompt=lambda question: None)
NUMBERS = Task(name="mine", load=partial(load, options=(1, 2)), prompt=prompt)
EMPTY = Task(name="mine", load=lambda paths: EvalSet(()), prompt=prompt)
SAME = Task(name="mine", load=lambda paths: EvalSet(load(paths).videos[:1] * 2), prompt=prompt)
NO_CLIP = Task(
    name="mine",
    load=lambda paths: EvalSet(tuple(replace(one, clip_s=None) for one in load(paths).videos)),
    prompt=prompt,
)
TWICE = Task(name="x", load=partial(load, id="same"), prompt=prompt)
ODD_KIND = Task(name="x", load=partial(load, kind="essay"), prompt=prompt)
NO_OPTION = Task(name="x", load=partial(load, answer_index=2), prompt=prompt)
NO_TIME = Task(name="x", load=partial(load, every_s=float("nan")), prompt=prompt)
UNGROUPED = Task(name="x", load=load, prompt=prompt, type_groups={"Shapes": "all"})
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder where commands are called, with the file, videos and annotations."""
    (tmp_path / "my_tasks.py").write_text(OUTSIDE)
    (tmp_path / "broken_tasks.py").write_text("import nothing_of_that_name")
    folder_set(tmp_path, num_videos=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("my_tasks", None)


@pytest.fixture
def call(place, tiny_dir, capsys):
    """A command; gives status, stdout and stderr. `evaluate` gets what every run needs."""

    def run(command, *arguments):
        given = ["--model", tiny_dir(), "--data_root", "media", "--max_new_tokens", 2] if command == "evaluate" else []
        status = main([command, *map(str, (*given, *arguments))])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.mark.parametrize("setting", ["streaming", "sliding_window"])
def test_an_object_in_every_command(call, place, setting):
    plain = ("--task", "my_tasks:PLAIN", "--annotations", "set.json")
    assert call("evaluate", *plain, "--setting", setting, "--output", "one")[0] == 0
    rows = rows_of(place / "one")
    assert [row["id"] for row in rows] == [f"video{number}-{time_s}" for number in (0, 1) for time_s in (2.0, 4.0)]
    settings = json.loads((place / "one/run.json").read_text())["settings"]
    assert settings["task"] == "my_tasks:PLAIN"
    assert settings["task_options"] is None
    assert json.loads((place / "one/metrics.json").read_text())["cells"].keys() == {"Colours / other"}
    assert call("evaluate", *plain, "--setting", setting, "--output", "two", "--blind")[0] == 0
    status, out, _ = call("compare", "one", "two", "--json")
    assert (status, json.loads(out)["num_questions"]) == (0, 4)
    assert json.loads(out)["runs"][0]["averages"]["cells"].keys() == {"Colours / other"}
    status, out, _ = call("evaluate", *plain, "--dry_run", 1, "--json")
    assert "MINE Which?" in json.loads(out)["shown"][0]["prompt"]
    status, out, _ = call("doctor", *plain, "--data_root", "media")
    assert (status, out) == (0, "2 videos, 4 questions: 0 videos with problems, 0 unusable rows, 0 corrupt archives\n")
    status, _, err = call("export", "--format", "ovbench", "one", "--output", "official")
    lacking = "one is one of my_tasks:PLAIN, which has no official format"
    assert (status, err) == (2, f"error: --format ovbench: expected a run of ovbench, {lacking}\n")


def test_options_decide_and_are_recorded(call, place):
    every = ("--task", "my_tasks:Every", "--task.file", "set.json")
    assert call("evaluate", *every, "--task.every_s", "1.5", "--output", "one")[0] == 0
    assert [row["time_s"] for row in rows_of(place / "one")] == [1.5, 3.0, 1.5, 3.0]
    settings = json.loads((place / "one/run.json").read_text())["settings"]
    assert settings["task_options"] == {"every_s": 1.5, "word": "MINE"}
    assert [one["file"] for one in settings["annotations"]] == ["set.json"]
    (place / "moved").mkdir()
    (place / "moved/set.json").write_bytes((place / "set.json").read_bytes())
    moved = ("--task", "my_tasks:Every", "--task.file", "./moved/set.json", "--task.every_s=1.5")
    assert call("evaluate", *moved, "--output", "one")[0] == 0
    status, _, err = call("evaluate", *every, "--output", "one")
    assert status == 2
    assert "task_options.every_s was 1.5, now 2.0" in err
    assert call("evaluate", *moved, "--task.word", "YOURS", "--output", "two")[0] == 0
    status, _, err = call("compare", "one", "two")
    assert status == 2
    assert 'task_options.word is "YOURS", not "MINE"' in err
    assert call("compare", "one", "two", "--across_protocols")[0] == 0
    status, out, _ = call("doctor", *every, "--data_root", "media")
    assert (status, out.split(":")[0]) == (0, "2 videos, 4 questions")


def test_each_rank_finds_it(call, place):
    """As torchrun starts processes: by the command line alone, in the folder where it was called."""
    given = ["evaluate", "--task", "my_tasks:PLAIN", "--annotations", "set.json", "--dry_run", "--json"]
    program = [sys.executable, "-m", "videochat_online.cli.main", *given]
    found = []
    for rank in "01":
        environment = {"PATH": "", "PYTHONPATH": str(ROOT), "RANK": rank, "WORLD_SIZE": "2", "HOME": str(place)}
        done = subprocess.run(program, cwd=place, env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout)["shard"])
    assert [(one["index"], one["count"], one["num_videos"]) for one in found] == [(0, 2, 1), (1, 2, 1)]


def test_an_entry_point(place, monkeypatch):
    package = place / "site/mine-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[videochat_online.tasks]\nmine = my_tasks:PLAIN\n")
    monkeypatch.syspath_prepend(place)
    monkeypatch.syspath_prepend(place / "site")
    assert TASKS.names()[-1] == "mine"
    assert get_task("mine").name == "mine"
    assert get_task("mine").load is import_module("my_tasks").load


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_tasks:load", "expected a Task, or a class with Options and task, found <function load"),
        ("my_tasks:NoTask", "expected a Task, or a class with Options and task, found <class"),
        ("my_tasks:Wrong", "expected task() to give a Task, found 'a task'"),
        ("my_tasks:NO_LOAD", "expected a function load, found 'load'"),
        ("my_tasks:MISSING", "expected 'MISSING' in the module my_tasks, found none"),
        ("broken_tasks:X", "expected a module broken_tasks that can be imported, found ModuleNotFoundError"),
    ],
)
def test_what_is_no_benchmark(place, name, words):
    with pytest.raises(InputError, match="task") as caught:
        get_task(name)
    assert str(caught.value).startswith(f"task {name!r}: {words}")


def test_options_that_it_does_not_take(place):
    with pytest.raises(InputError, match="task 'my_tasks:Every' does not take step: it takes every_s, word, file"):
        get_task("my_tasks:Every", {"step": 1})
    with pytest.raises(InputError, match="task 'ovbench' does not take step: it takes no options"):
        get_task("ovbench", {"step": 1})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LISTS", "expected load to give an EvalSet, found []"),
        ("TWICE", "expected an id of its own for each question, found 'same'"),
        ("ODD_KIND", "question video0-2.0: expected kind of choice, yes_no, count, open, found 'essay'"),
        (
            "NO_OPTION",
            "question video0-2.0: expected answer_index of the right option, or a number of at least 0, found 2",
        ),
        ("NO_TIME", "question video0-nan: expected time_s of at least 0 seconds, found nan"),
        ("UNGROUPED", "expected answer types of type_groups, found ['Colours']"),
        ("NO_TEXT", "expected prompt to give a text, found none"),
        ("NUMBERS", "question video0-2.0: expected options that are texts, found (1, 2)"),
        ("EMPTY", "expected questions, found none"),
        ("SAME", "expected a name of its own for each video, found 'video0'"),
        ("NO_CLIP", "video video0: expected clip_s of a start and an end, found none"),
    ],
)
def test_what_cannot_be_asked_or_scored(call, name, words):
    given = ("--task", f"my_tasks:{name}", "--annotations", "set.json", "--dry_run", 1)
    assert call("evaluate", *given) == (2, "", f"error: task 'my_tasks:{name}': {words}\n")
