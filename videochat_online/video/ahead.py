"""Taking from an iterator ahead of who consumes it: decoding goes on while a model works.

Knows nothing of videos. Pillow and PyAV work without the interpreter's lock, so a thread is enough.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from videochat_online.errors import InputError

_Item = TypeVar("_Item")


def read_ahead(items: Iterable[_Item], ahead: int) -> Generator[_Item, None, None]:
    """The same items in the same order, of which up to `ahead` are made in a thread before they are asked for.

    The thread begins with the first item that is asked for. It ends with the items, with an error, which is raised
    where the item would have come, and when this iterator is closed: nothing touches `items` any more after that.

    Args:
        items: taken from in the thread only.
        ahead: items that wait at most, the one being made included; 0 makes each when it is asked for, without a
            thread.

    Raises:
        InputError: `ahead` below 0.
    """
    if ahead < 0:
        raise InputError(f"ahead: expected at least 0, got {ahead}")
    return _read_ahead(items, ahead)


def _read_ahead(items: Iterable[_Item], ahead: int) -> Generator[_Item, None, None]:
    if not ahead:
        yield from items
        return
    rest = iter(items)
    end = object()
    thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        waiting = deque(thread.submit(next, rest, end) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, rest, end))
            yield item  # type: ignore[misc]
            del item  # or it would stay alive while the next one is waited for
    finally:
        thread.shutdown(cancel_futures=True)
