"""The benchmarks: one file each."""

from __future__ import annotations

from videochat_online.errors import InputError
from videochat_online.evaluation.task import Task
from videochat_online.evaluation.tasks.ovbench import OVBENCH
from videochat_online.evaluation.tasks.ovobench import OVOBENCH
from videochat_online.evaluation.tasks.streamingbench import STREAMINGBENCH

TASKS: dict[str, Task] = {task.name: task for task in (OVBENCH, OVOBENCH, STREAMINGBENCH)}


def get_task(name: str) -> Task:
    """A benchmark by its name in `TASKS`.

    Raises:
        InputError: an unknown name.
    """
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}: expected one of {sorted(TASKS)}")
    return TASKS[name]


__all__ = ["TASKS", "get_task"]
