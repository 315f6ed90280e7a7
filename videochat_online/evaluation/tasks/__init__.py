"""The benchmarks: one file each, and those from outside.

A benchmark is a `Task`. One of which something can be set is a class with `Options` instead: it is made as
`Name(options)`, and its method `task` gives the `Task`. Both are found by name, entry point or import path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from videochat_online.errors import InputError, expect
from videochat_online.evaluation.task import Task
from videochat_online.parts import PartKind, check_names, options_of

_ROOM = "videochat_online.evaluation.tasks"

TASKS = PartKind(
    name="task",
    group="videochat_online.tasks",
    built_in={
        "ovbench": f"{_ROOM}.ovbench:OVBENCH",
        "ovobench": f"{_ROOM}.ovobench:OVOBENCH",
        "streamingbench": f"{_ROOM}.streamingbench:STREAMINGBENCH",
        "table": f"{_ROOM}.table:TableTask",
    },
)


def get_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """A benchmark by its name in `TASKS`, which is the task's `name` from then on.

    Args:
        name: built-in name, entry point, or `package.module:Name`.
        options: fields of its `Options`; one that is None counts as not given. The task's `options` are all of them but
            those that name one of its files: a file is known by its content, wherever it lies.

    Raises:
        InputError: an unknown name, something that is no benchmark, or an option that it does not take.
    """
    what, found = f"task {name!r}", TASKS.find(name)
    given = {option: value for option, value in (options or {}).items() if value is not None}
    if isinstance(found, Task):
        check_names({}, given, what)
        return _checked(found, name, what)
    is_class = isinstance(found, type) and hasattr(found, "Options") and hasattr(found, "task")
    expect(is_class, what, "a Task, or a class with Options and task", found)
    part = TASKS.make(name, given)
    try:
        made = part.task()
    except InputError:
        raise
    except Exception as error:
        if name in TASKS.built_in:
            raise
        raise InputError(f"{what}: expected task() to give a Task, found {type(error).__name__}: {error}") from error
    expect(isinstance(made, Task), what, "task() to give a Task", made)
    expect(isinstance(made.files, list | tuple | None), what, "files to be a list of paths, or None", made.files)
    values = {option: one.default for option, one in options_of(found).items()} | given
    of_files = [
        option for option, value in values.items() if isinstance(value, str) and Path(value) in (made.files or ())
    ]
    recorded = {option: value for option, value in values.items() if option not in of_files}
    return _checked(replace(made, options=recorded), name, what)


def _checked(task: Task, name: str, what: str) -> Task:
    for part in ("load", "prompt"):
        expect(callable(getattr(task, part)), what, f"a function {part}", getattr(task, part))
    return task if task.name == name else replace(task, name=name)


__all__ = ["TASKS", "get_task"]
