"""One viewer's stream: frames and questions come in from any thread, one thread puts them to the session in order.

The flow of a frame: `receive` -> inbox -> batch -> `session.push` -> trace of the memory. The flow of a question:
`ask` -> the same inbox, so that it is answered from the frames that came before it and no later one -> snapshot ->
a thread of its own that generates, while frames go on arriving.

When the model is slower than the frames, the newest are kept: the oldest waiting frame is dropped and counted.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from videochat_online.errors import InputError
from videochat_online.memory import MemoryBank, make_model_memory
from videochat_online.model import VideoChatModel
from videochat_online.serving.streams.fair_lock import ModelGate
from videochat_online.serving.streams.image_bytes import THUMBNAIL_PX, VIEW_PX, check_picture, to_jpeg
from videochat_online.serving.streams.live_answer import (
    SECONDS_TO_END,
    ConflictError,
    LiveAnswer,
    LiveDialogue,
)
from videochat_online.serving.streams.memory_trace import MemoryView
from videochat_online.serving.streams.stream_options import ENCODE_BATCH, StreamOptions
from videochat_online.serving.streams.stream_status import StreamStatus
from videochat_online.streaming import StreamingSession

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Frame:
    pixels_HWC: npt.NDArray[np.uint8]
    time_s: float


class LiveStream(LiveDialogue):
    """A stream being watched by one viewer; see the module's docstring.

    Args:
        model: model that all streams share.
        options: options by which the stream is watched.
        gate: gate that says whose turn it is at the model.
    """

    noun = "stream"

    def __init__(self, model: VideoChatModel, options: StreamOptions, gate: ModelGate) -> None:
        super().__init__(options, gate)
        memory = make_stream_memory(model, options)
        self.session = StreamingSession(
            model,
            memory,
            system_message=options.system_message,
            settings=options.generation,
            encode_batch=ENCODE_BATCH,
            strategy=options.make_strategy(),
        )
        self._max_tokens = memory.max_tokens
        self._inbox: deque[_Frame | LiveAnswer] = deque()
        self._memory = MemoryView()
        self._time_s = self._last_slot = -math.inf
        self._picture: npt.NDArray[np.uint8] | None = None
        self._num_in = self._num_dropped = self._num_busy = self._num_pictures = 0
        self._seconds_a_frame: deque[float] = deque(maxlen=32)
        self._problem: str | None = None
        self._ingest_thread = threading.Thread(target=self._ingest, name="ingest", daemon=True)
        self._ingest_thread.start()

    def receive(self, pixels_HWC: npt.NDArray[np.uint8], time_s: float) -> bool:
        """Take a frame of any rate: show it, and let the model see the first of every 1 / fps seconds.

        Returns:
            Whether the model is to see it.

        Raises:
            InputError: pixels that are no picture, a time that is not finite, below 0 or goes backwards, or a closed
                stream.
        """
        check_picture(pixels_HWC)
        with self._changed:
            self._check_open()
            if not math.isfinite(time_s) or time_s < 0:
                raise InputError(f"expected a time of at least 0 s, got {time_s}")
            if time_s < self._time_s:
                raise InputError(f"time goes backwards, from {self._time_s:g} s to {time_s:g} s")
            self._time_s, self._picture = time_s, pixels_HWC
            self._num_pictures += 1
            slot = math.floor(time_s * self.options.fps + 1e-6)
            is_for_model = slot > self._last_slot
            if is_for_model:
                self._last_slot = slot
                self._num_in += 1
                self._inbox.append(_Frame(pixels_HWC, time_s))
                waiting = [item for item in self._inbox if isinstance(item, _Frame)]
                if len(waiting) > self.options.max_waiting:
                    self._inbox.remove(waiting[0])
                    self._num_dropped += 1
            self._changed.notify_all()
        return is_for_model

    def _check_open(self) -> None:
        super()._check_open()
        if self._problem is not None:
            raise ConflictError(self._problem)

    def ask(self, question: str) -> LiveAnswer:
        """Ask now: about the frames that have arrived, and none that comes later.

        Raises:
            InputError: an empty question, an answer is still being given, or the stream is closed.
        """
        with self._changed:
            self._check_open()
            answer = self._add_question(question, max(self._time_s, 0.0))
            self._inbox.append(answer)
            self._changed.notify_all()
        return answer

    def status(self) -> StreamStatus:
        """How the stream is doing now."""
        with self._changed:
            waiting = sum(isinstance(item, _Frame) for item in self._inbox) + self._num_busy
            costs = self._seconds_a_frame
            begun = [answer.first_token_s for answer in self._answers if answer.first_token_s is not None]
            return StreamStatus(
                time_s=max(self._time_s, 0.0),
                num_frames_in=self._num_in,
                num_frames_seen=self.session.num_frames,
                num_frames_dropped=self._num_dropped,
                num_frames_waiting=waiting,
                real_time_factor=sum(costs) / len(costs) * self.options.fps if costs else None,
                first_token_s=begun[-1] if begun else None,
                num_tokens=self._memory.num_tokens,
                max_tokens=self._max_tokens,
                is_answering=self._is_answering(),
                problem=self._problem,
            )

    def memory(self) -> MemoryView:
        """What is remembered now."""
        return self._memory

    def pictures(self, timeout_s: float = 5.0) -> Iterator[bytes]:
        """The frame being shown, as JPEG, again whenever there is a newer one; ends when the stream is closed.

        The same picture comes again when there was no newer one for a while, so that a reader that has gone away is
        noticed. Pictures that come faster than they are read are left out.
        """
        number = 0
        while True:
            with self._changed:
                if self._num_pictures == number and not self.is_closed:
                    self._changed.wait(timeout_s)
                if self.is_closed:
                    return
                picture, number = self._picture, self._num_pictures
            if picture is not None:
                yield to_jpeg(picture, VIEW_PX)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until everything that has arrived was taken in; False if it is not by then."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._inbox and not self._num_busy, timeout_s)

    def close(self) -> None:
        """Stop the answer and the threads, forget the frames."""
        with self._changed:
            self.is_closed = True
            questions = [item for item in self._inbox if isinstance(item, LiveAnswer)]
            self._inbox.clear()
            self._changed.notify_all()
        self.stop_answer()
        for question in questions:
            question.end()
        self._ingest_thread.join(SECONDS_TO_END)  # the last that could begin to speak
        if self._speaker is not None:
            self._speaker.join(SECONDS_TO_END)
        self._picture = None
        self._memory = MemoryView(version=self._memory.version)
        if not self._ingest_thread.is_alive() and (self._speaker is None or not self._speaker.is_alive()):
            self.session.reset()

    def forget_dialogue(self) -> None:
        """Begin a new dialogue about the same stream.

        Raises:
            InputError: an answer is still being given.
        """
        with self._changed:
            self._check_silent()
            self.session.forget_dialogue()
            self._answers.clear()

    def _ingest(self) -> None:
        item: list[_Frame] | LiveAnswer | None = None
        try:
            while (item := self._take()) is not None:
                if isinstance(item, LiveAnswer):
                    self._begin(item)
                else:
                    self._push(item)
                with self._changed:
                    self._num_busy = 0
                    self._changed.notify_all()
        except Exception as error:  # the thread's last resort: the viewer has to be told, whatever it was
            logger.exception("a stream failed")
            with self._changed:
                self._problem = (
                    f"the stream has failed: {error if isinstance(error, InputError) else type(error).__name__}"
                )
                waiting = [item, *self._inbox]
                self._inbox.clear()
                self._num_busy = 0
                self._changed.notify_all()
            for each in waiting:
                if isinstance(each, LiveAnswer):
                    each.end(self._problem)

    def _take(self) -> list[_Frame] | LiveAnswer | None:
        """The next question, or the next frames up to a batch or a question; None when the stream is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self.is_closed)
            if self.is_closed:
                return None
            first = self._inbox.popleft()
            if isinstance(first, LiveAnswer):
                return first
            frames = [first]
            while len(frames) < ENCODE_BATCH and self._inbox and isinstance(following := self._inbox[0], _Frame):
                frames.append(following)
                self._inbox.popleft()
            self._num_busy = len(frames)
            return frames

    def _push(self, frames: list[_Frame]) -> None:
        first, start = self.session.num_frames, time.perf_counter()
        with self._gate.turn():
            # A camera may change its size in the middle of a stream.
            for _, of_one_size in itertools.groupby(frames, key=lambda frame: frame.pixels_HWC.shape):
                run = list(of_one_size)
                self.session.push(np.stack([frame.pixels_HWC for frame in run]), [frame.time_s for frame in run])
            cost = (time.perf_counter() - start) / len(frames)
        thumbnails = {index: to_jpeg(frame.pixels_HWC, THUMBNAIL_PX) for index, frame in enumerate(frames, start=first)}
        remembered = self.session.remembered()
        with self._changed:
            self._seconds_a_frame.append(cost)
            self._memory = self._memory.after(remembered, frames[-1].time_s, thumbnails)

    def _begin(self, answer: LiveAnswer) -> None:
        """Take the snapshot that a question is answered from, and let another thread answer it."""
        if answer.is_stopping:
            answer.end()
            return
        try:
            with self._gate.turn():
                prepared = self.session.prepare(answer.question, at_s=answer.asked_at_s)
        except InputError as error:
            answer.end(str(error))
            return
        self._speak(answer, lambda: self.session.stream_prepared(prepared))


def make_stream_memory(model: VideoChatModel, options: StreamOptions) -> MemoryBank:
    """An empty memory as the options say.

    Raises:
        InputError: an unknown memory, or options that it does not take.
    """
    frames = model.frames
    return make_model_memory(options.memory, frames.grid, frames.memory_intervals, options.memory_options)
