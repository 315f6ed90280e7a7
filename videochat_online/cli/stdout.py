"""Whose stdout it is: ours. What libraries print goes to stderr, whichever they are and whenever they do it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

OURS = ("videochat_online", "argparse", "transformers.trainer_callback", "tqdm")
"""Modules whose lines are ours: our own, the one that prints our help, and the two that print a run's log entries."""


class _Stdout:
    """Told by who writes: a reader of our JSON must not meet a line of somebody else's."""

    def __init__(self, ours: TextIO, others: TextIO) -> None:
        self._ours, self._others = ours, others

    def write(self, text: str) -> int:
        writer = sys._getframe(1).f_globals.get("__name__", "")
        is_ours = any(writer == name or writer.startswith(f"{name}.") for name in OURS)
        return (self._ours if is_ours else self._others).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ours, name)


@contextmanager
def own_stdout() -> Iterator[None]:
    """Keep stdout to ourselves for as long as this lasts.

    Python code is told apart by its module. What is not Python code (a library in C, another program) writes to the
    descriptor, which is that of stderr meanwhile.
    """
    before, others = sys.stdout, sys.stderr
    if before is None or others is None or before.isatty():
        # Closed by whoever started us; or a terminal, whose user reads both, and edits lines only where it is stdout.
        yield
        return
    before.flush()
    ours, descriptor = before, None
    if _descriptor(before) == 1 and _descriptor(others) == 2:
        descriptor = os.dup(1)
        os.dup2(2, 1)
        ours = open(  # noqa: SIM115
            os.dup(descriptor), "w", encoding=before.encoding, errors="backslashreplace", buffering=1
        )
    sys.stdout = cast(TextIO, _Stdout(ours, others))
    try:
        yield
        ours.flush()
    finally:
        sys.stdout = before
        if descriptor is not None:
            with suppress(OSError):  # the reader of our output went away
                ours.close()
            os.dup2(descriptor, 1)
            os.close(descriptor)


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # a stream that is no file, as of a test
        return None
