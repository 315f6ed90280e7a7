"""Parts of strangers that are broken: one line that names the part, and nobody else is kept from theirs."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from videochat_online.data.rows.row_formats import ROW_FORMATS, RowParser
from videochat_online.errors import InputError
from videochat_online.evaluation.tasks import get_task
from videochat_online.memory import MEMORIES, make_memory
from videochat_online.parts import PartKind
from videochat_online.serving.api.schemas import ApiLimits, options_of
from videochat_online.streaming import StreamingSession, make_strategy

PARTS = '''
import sys
from dataclasses import dataclass, field
from videochat_online.memory import WindowMemoryBank


class Kept(WindowMemoryBank):
    """Works; the others are made of it."""

    def __init__(self, options=None, *, full_grid, device=None):
        super().__init__(full_grid=full_grid, device=device)


class Reserved(Kept):
    @dataclass(frozen=True, kw_only=True)
    class Options:
        full_grid: int = 3


class EmptyTuple(Kept):
    @dataclass(frozen=True, kw_only=True)
    class Options:
        sizes: tuple[()] = ()


class MixedTuple(Kept):
    @dataclass(frozen=True, kw_only=True)
    class Options:
        sizes: tuple[int, str] = (1, "a")


class Factory(Kept):
    @dataclass(frozen=True, kw_only=True)
    class Options:
        size: int = field(default_factory=lambda: 1 / 0)


class NotSet(Kept):
    @dataclass(frozen=True, kw_only=True)
    class Options:
        size: int = field(default=1, init=False)


class Exits(Kept):
    def __init__(self, options=None, *, full_grid, device=None):
        sys.exit(0)


class NoDevice(Kept):
    def __init__(self, options=None, *, full_grid):
        super().__init__(full_grid=full_grid)


class MaxRaises(Kept):
    @property
    def max_tokens(self):
        raise RuntimeError("later")


class MaxText(Kept):
    max_tokens = "many"


class ReadsNone(Kept):
    def read(self):
        return None


class Large:
    @dataclass(frozen=True, kw_only=True)
    class Options:
        size: int = 1

    def __init__(self, options, *, full_grid, device=None):
        self.max_tokens = 256 * options.size

    write = read = reset = state_dict = load_state_dict = print


class Nothing:
    def read(self, frames, question, model, project):
        return ()


class Task:
    @dataclass(frozen=True, kw_only=True)
    class Options:
        size: int = 1

    def __init__(self, options):
        pass

    def task(self):
        raise KeyError("x")

    load = prompt = None


class Rows:
    keys = {}

    def claims(self, row):
        raise KeyError("video")

    def parse(self, row, root):
        return None
'''


@pytest.fixture(autouse=True)
def broken(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("broken", None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Reserved", "expected options with names of their own, found full_grid"),
        ("EmptyTuple", "expected sizes to be an int, float"),
        ("MixedTuple", "expected sizes to be an int, float"),
        ("Factory", "default of size: ZeroDivisionError"),
        ("NotSet", "expected size to be one that can be set, found init=False"),
        ("Exits", "expected to be made of its options, found SystemExit"),
        ("NoDevice", "expected a class that is made of"),
        ("MaxRaises", "expected one with max_tokens, found RuntimeError: later"),
        ("MaxText", "expected max_tokens to be a number of tokens, or None, found 'many'"),
    ],
)
def test_a_memory(name, said):
    with pytest.raises(InputError, match=said) as caught:
        make_memory(f"broken:{name}")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_part_gives(tiny_model, frames):
    session = StreamingSession(tiny_model, make_memory("broken:ReadsNone", full_grid=(4, 4)))
    session.push(frames(1), [0.0])
    with pytest.raises(InputError, match="memory ReadsNone: read: expected a sequence of FrameTokens, found none"):
        session.ask("What?")

    memory = make_memory("broken:Kept", full_grid=(4, 4))
    session = StreamingSession(tiny_model, memory, strategy=make_strategy("broken:Nothing"))
    session.push(frames(1), [0.0])
    with pytest.raises(InputError, match="strategy Nothing: read: expected a sequence of FrameSelection"):
        session.ask("What?")


def test_a_benchmark():
    with pytest.raises(InputError, match="task 'broken:Task': expected task\\(\\) to give a Task, found KeyError"):
        get_task("broken:Task")


def test_those_that_are_installed_and_broken_are_left_out(monkeypatch, caplog):
    """A server and a training run whoever uses other parts."""
    names = ("Kept", "Reserved", "Factory", "Exits", "NoDevice", "MaxRaises")
    of_kind = {MEMORIES.group: {name.lower(): f"broken:{name}" for name in names}}
    monkeypatch.setattr(PartKind, "_installed", lambda self: of_kind.get(self.group, {}))
    with caplog.at_level(logging.WARNING):
        limits = ApiLimits()
    assert "kept" in limits.memories
    assert not {"reserved", "factory", "exits", "nodevice", "maxraises"} & set(limits.memories)
    assert all(name.lower() in caplog.text.lower() for name in names[1:])


def test_a_row_format_that_cannot_look_at_a_row_is_named(monkeypatch):
    monkeypatch.setattr(PartKind, "_installed", lambda self: {"odd": "broken:Rows"} if self is ROW_FORMATS else {})
    with pytest.raises(InputError, match="row_format 'odd': expected to say whether a row is its own, found KeyError"):
        RowParser().parse({"video": "a.mp4"}, Path())


def test_the_limit_of_what_is_remembered_is_one_of_tokens():
    limits = ApiLimits(memories=("broken:Large",))
    given = {"memory": "broken:Large", "memory_options": {"size": limits.max_remembered}}
    assert options_of(given, limits).memory == "broken:Large"
    given["memory_options"]["size"] += 1
    with pytest.raises(InputError, match=f"memory_options: expected at most {limits.max_remembered} frames"):
        options_of(given, limits)
