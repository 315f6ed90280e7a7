"""The batches of the next step are fetched while one is computed; and what ends the processes that load them.

Works in the machine's memory only: the thread moves nothing to a device and talks to no other process of the run. Knows
nothing of what a batch holds.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import get_worker_info

from videochat_online.errors import InputError
from videochat_online.video import read_ahead

SHARED_MEMORY = "/dev/shm"
"""Folder in which loader processes leave their batches."""

Batch = dict[str, Any]


class SharedMemoryError(InputError):
    """Too little of it. torch makes the error of a loader process anew, from its traceback; the last line is ours."""

    def __init__(self, text: str) -> None:
        super().__init__(text.rpartition(f"{type(self).__name__}: ")[2].strip())


@dataclass(frozen=True, slots=True)
class SharedCollator:
    """A collator that puts a batch into shared memory, where it is called in a loader process.

    Otherwise torch does so in a thread of that process: where there is no room it prints that, and the run waits for
    ever.

    Attributes:
        collate: the collator.
    """

    collate: Callable[[Sequence[Any]], Batch]

    def __call__(self, items: Sequence[Any]) -> Batch:
        """The batch; SharedMemoryError where there is no room for it."""
        batch = self.collate(items)
        tensors = [value for value in batch.values() if isinstance(value, Tensor)] if get_worker_info() else []
        size = sum(tensor.nbytes for tensor in tensors)
        try:
            for tensor in tensors:
                tensor.share_memory_()
        except RuntimeError as error:
            raise SharedMemoryError(_no_room(f"the next batch, {size / 2**20:.1f} MiB")) from error
        return batch


class BatchesAhead:
    """The batches of an epoch's iterator, read by a thread as far ahead as a step goes; one epoch after the other.

    A context: on the way out the thread and the loader processes end. Where one of these was killed, wherever this
    process was by then, the error says what likely did it.

    Attributes:
        waited_s: seconds that were waited for batches so far.
    """

    def __init__(self) -> None:
        self.waited_s = 0.0
        self._source: Iterator[Batch] | None = None
        self._batches: Generator[Batch, None, None] | None = None

    def of(self, source: Iterator[Batch], ahead: int) -> BatchesAhead:
        """An iterator over the rest of `source`, of which up to `ahead` batches are fetched before they are asked for.

        The thread begins after the first of them: with it accelerate may talk to other processes of the run, and torch
        starts loader processes and draws a random number.
        """
        if source is not self._source:
            self.close()
            self._source, self._batches = source, _fetched(source, ahead)
        return self

    def __iter__(self) -> BatchesAhead:
        return self

    def __next__(self) -> Batch:
        """The next batch; raises what fetching it raised."""
        assert self._batches is not None
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.waited_s += time.perf_counter() - start

    def close(self) -> None:
        """End the thread, once it has the batch that it fetches, and the loader processes of the epoch."""
        for iterator in (self._batches, self._source):
            if isinstance(iterator, Generator):
                iterator.close()
        self._source = self._batches = None

    def __enter__(self) -> BatchesAhead:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.close()
        # By its text: torch has no type for it.
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
            told = error.__cause__ if isinstance(error.__cause__, RuntimeError) else error  # which signal it was
            raise InputError(_why_ended(str(told))) from error


def _fetched(source: Iterator[Batch], ahead: int) -> Generator[Batch, None, None]:
    for first in source:
        yield _owned(first)
        del first
        yield from read_ahead(map(_owned, source), ahead)


def _owned(batch: Batch) -> Batch:
    """Without shared memory, which is scarce, and whose every tensor is an open file."""
    return {k: v.clone() if isinstance(v, Tensor) and v.is_shared() else v for k, v in batch.items()}


def _why_ended(text: str) -> str:
    """What likely ended a loader process, by what torch says of it."""
    if "Bus error" in text:
        return f"{_no_room('batches')}; a loader process was killed by SIGBUS"
    if "Killed" in text:
        return (
            "dataloader_num_workers: a loader process was killed, as the system does when memory runs out: take fewer"
            " of them, fewer frames (max_num_frame) or a smaller cache_frames_mb"
        )
    return f"dataloader_num_workers: expected loader processes that go on, found: {text}"


def _no_room(what: str) -> str:
    usage = shutil.disk_usage(SHARED_MEMORY)
    return (
        f"dataloader_num_workers: expected room in {SHARED_MEMORY} for {what}, found {usage.free / 2**20:.1f} of"
        f" {usage.total / 2**20:.1f} MiB free: give the container more (--shm-size 16g, --ipc host), or take fewer"
        " loader processes"
    )
