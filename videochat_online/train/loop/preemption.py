"""Saving when asked: signals, a file in the run's folder, a clock; agreed over all processes at the end of a step.

Knows nothing of what a checkpoint holds. A step is the grain: what is asked in the middle of one is done at its end.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState

from videochat_online.train.distributed import is_joined

logger = logging.getLogger(__name__)

NOTHING, SAVE, STOP = 0, 1, 2
"""Requests that can be made: to save and go on, or to save and end. The largest number of all processes counts."""

SAVE_FILE = "SAVE"
"""File in the run's folder that asks to save, or to stop where it says `stop`. It goes when it is heeded."""

SAVE_FILE_VARIABLE = "SAVE_FILE"
"""Names one more such file: a batch script does not know the run's folder."""

SIGNALS = {"SIGTERM": STOP, "SIGINT": STOP, "SIGUSR1": SAVE}


class Requests:
    """What is asked of a run; inside a `with`, signals ask instead of ending the process.

    Handlers only note it. A second SIGINT raises KeyboardInterrupt at once, unless something is being written. One
    that was ignored stays so, and outside the main thread, where Python allows no handlers, all stay as they are.

    Args:
        folder: the run's folder.
        rank: rank of this process; the first one looks at files and at the clock.
        save_minutes: minutes without a checkpoint after which one is asked for; 0 for never.
    """

    def __init__(self, folder: Path, *, rank: int, save_minutes: float = 0.0) -> None:
        named = os.environ.get(SAVE_FILE_VARIABLE)
        self.files = (folder / SAVE_FILE, *([Path(named)] if named else []))
        self.is_writing = False
        self._is_first = rank == 0
        self._interval_s = save_minutes * 60
        self._since_s = time.monotonic()
        self._signalled: set[int] = set()
        self._num_interrupts = 0
        self._stale: dict[Path, int] = {}
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Requests:
        if self._is_first:
            self._stale = {file: file.stat().st_mtime_ns for file in self.files if file.is_file()}
        if threading.current_thread() is not threading.main_thread():
            logger.warning("training outside the main thread: signals are not heeded, the file %s is", self.files[0])
            return self
        for name in SIGNALS:
            number = getattr(signal, name, None)  # Windows has no SIGUSR1
            # Jobs in the background of a script ignore SIGINT; our Slurm script has torchrun ignore SIGTERM, not us.
            if number is not None and (name != "SIGINT" or signal.getsignal(number) is not signal.SIG_IGN):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not Python's
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._signalled.add(SIGNALS[signal.Signals(number).name])
        if number == signal.SIGINT:
            self._num_interrupts += 1
            if self._num_interrupts > 1 and not self.is_writing:
                raise KeyboardInterrupt

    def forget_earlier(self) -> None:
        """Remove files from before the launch: they were meant for another, and would end this one, time and again.

        To be called when the folder is known to be the run's own.
        """
        for file, time_ns in self._stale.items():
            if file.is_file() and file.stat().st_mtime_ns == time_ns:
                logger.warning("%s: removed; it is from before this launch", file)
                file.unlink(missing_ok=True)

    def agreed(self, device: torch.device) -> int:
        """What was asked of any process since the last call; every process has to call.

        Args:
            device: device of the tensor that is sent around.
        """
        asked = NOTHING
        while self._signalled:  # one at a time: another may come meanwhile
            asked = max(asked, self._signalled.pop())
        seen = []
        if self._is_first:
            if 0 < self._interval_s <= time.monotonic() - self._since_s:
                asked = max(asked, SAVE)
            for file in self.files:
                with suppress(OSError):
                    asked = max(asked, STOP if _word(file) == "stop" else SAVE)
                    seen.append(file)
        if is_joined():
            largest = torch.tensor(asked, device=device)
            distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
            asked = int(largest)
        for file in seen:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("%s: cannot be removed (%s), and is not looked at again", file, error.strerror)
                self.files = tuple(other for other in self.files if other != file)
        if asked and self._is_first:
            logger.warning("asked to save%s", " and to end" if asked == STOP else "")
        return asked

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Nothing interrupts what is done inside."""
        self.is_writing = True
        try:
            yield
        finally:
            self.is_writing = False

    def saved(self) -> None:
        """There is a new checkpoint: the clock begins again."""
        self._since_s = time.monotonic()


def _word(file: Path) -> str:
    """What a file says; one that is empty may be about to be written."""
    for wait_s in (0.0, 0.2):
        time.sleep(wait_s)
        word = file.read_text(encoding="utf-8", errors="replace").strip().lower()
        if word:
            break
    return word


class SaveWhenAsked(TrainerCallback):
    """Heeds requests at the end of a step.

    Where an epoch ends with that step, or is left after it, saving waits for transformers' end of the epoch, which
    follows at once and may save or evaluate as well: no checkpoint is written twice. After the run's last step there is
    nothing to ask for.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._is_due = self._is_cut = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Loading is not counted."""
        self._requests.saved()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Comes after transformers' own callback, which asks for regular checkpoints."""
        asked = self._requests.agreed(args.device)
        if not asked or state.global_step >= state.max_steps:
            return
        is_whole = float(state.epoch or 0.0).is_integer()
        self._is_due = is_whole or asked == STOP
        self._is_cut = not is_whole and asked == STOP
        control.should_save = not self._is_due
        control.should_training_stop |= asked == STOP

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Of a whole epoch; or of one that is left in its middle, which is no time for what epochs end with."""
        control.should_save |= self._is_due
        if self._is_cut:
            control.should_log = control.should_evaluate = False
        self._is_due = self._is_cut = False

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A regular checkpoint counts as well; one of the best step, too, where the step ends the run in an epoch."""
        self._requests.saved()
        self._is_due &= not self._is_cut


def ignore_signals_to_all(worker_init: Any, worker: int) -> None:
    """Of a process that loads data: Slurm and torchrun send signals to the processes of a job, all of them.

    One that died of it would end the run before its step's end. Those that load go when the one that trains does.

    Args:
        worker_init: start function of the loader's processes, called as well.
        worker: number of the process among those of the loader.
    """
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if worker_init is not None:
        worker_init(worker)
