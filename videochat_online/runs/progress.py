"""How far long work is, on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class Tell(Protocol):
    """What is told how far the work is."""

    def __call__(self, done: int, total: int | None, note: str = "") -> None:
        """So many of so many are done; the note, such as a rate, is shown beside them."""


@contextmanager
def progress(label: str, *, show: bool = True) -> Iterator[Tell]:
    """Yield a function that is to be told how many of how many are done.

    Args:
        label: word for what is counted, in the plural.
        show: whether anything is shown.
    """
    console, started = Console(stderr=True, highlight=False), time.monotonic()
    told = started
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    is_bar = show and console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not is_bar) as bar:
        task = bar.add_task("", total=None)

        def tell(done: int, total: int | None, note: str = "") -> None:
            nonlocal told
            bar.update(task, completed=done, total=total, description=note)
            now = time.monotonic()
            if show and not is_bar and now - told > SECONDS_BETWEEN_LINES:
                told = now
                left = f"{(now - started) * (total - done) / done:.0f} s left" if total and 0 < done < total else ""
                console.print(", ".join(filter(None, (f"{done}/{total or '?'} {label}", note, left))))

        yield tell
