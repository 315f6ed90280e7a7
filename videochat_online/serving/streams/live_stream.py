"""One viewer's stream: frames and questions come in from any thread, one thread puts them to the session in order.

The flow of a frame: `receive` -> inbox -> batch -> `session.push` -> trace of the memory. The flow of a question:
`ask` -> the same inbox, so that it is answered from the frames that came before it and no later one -> snapshot ->
a thread of its own that generates, while frames go on arriving.

When the model is slower than the frames, the newest are kept: the oldest waiting frame is dropped and counted.
"""

from __future__ import annotations

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
from videochat_online.serving.streams.live_answer import Dialogue, LiveAnswer, Pieces, speak
from videochat_online.serving.streams.memory_trace import MemoryTrace
from videochat_online.serving.streams.stream_status import (
    ENCODE_BATCH,
    SECONDS_TO_END,
    MemoryView,
    StreamOptions,
    StreamStatus,
)
from videochat_online.streaming import StreamingSession

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Frame:
    pixels_HWC: npt.NDArray[np.uint8]
    time_s: float


class LiveStream:
    """A stream being watched by one viewer; see the module's docstring.

    Args:
        model: shared by all streams.
        options: how to watch.
        gate: whose turn it is at the model.
    """

    def __init__(self, model: VideoChatModel, options: StreamOptions, gate: ModelGate) -> None:
        memory = make_stream_memory(model, options)
        self.options = options
        self._session = StreamingSession(
            model,
            memory,
            system_message=options.system_message,
            settings=options.generation,
            encode_batch=ENCODE_BATCH,
            strategy=options.make_strategy(),
        )
        self._max_tokens = memory.max_tokens
        self._gate = gate
        self._changed = threading.Condition()
        self._inbox: deque[_Frame | LiveAnswer] = deque()
        self._dialogue = Dialogue()
        self._speakers: list[threading.Thread] = []
        self._trace = MemoryTrace()
        self._time_s = self._last_slot = -math.inf
        self._picture: npt.NDArray[np.uint8] | None = None
        self._num_in = self._num_dropped = self._num_busy = self._num_pictures = self._version = 0
        self._seconds_a_frame: deque[float] = deque(maxlen=32)
        self._is_closed = False
        self._problem: str | None = None
        self._ingest_thread = threading.Thread(target=self._ingest, name="ingest", daemon=True)
        self._ingest_thread.start()

    def receive(self, pixels_HWC: npt.NDArray[np.uint8], time_s: float) -> bool:
        """Take a frame of any rate: show it, and let the model see the first of every 1 / fps seconds.

        Returns:
            Whether the model is to see it.

        Raises:
            InputError: not a picture, a time that is not finite or goes backwards, or the stream is closed.
        """
        self.show(pixels_HWC, time_s)
        slot = math.floor(time_s * self.options.fps + 1e-6)
        if slot <= self._last_slot:
            return False
        self._last_slot = slot
        self.offer(pixels_HWC, time_s)
        return True

    def show(self, pixels_HWC: npt.NDArray[np.uint8], time_s: float) -> None:
        """Take a frame that is only looked at; stream time moves on."""
        check_picture(pixels_HWC)
        with self._changed:
            self._advance(time_s)
            self._picture = pixels_HWC
            self._num_pictures += 1
            self._changed.notify_all()

    def offer(self, pixels_HWC: npt.NDArray[np.uint8], time_s: float) -> None:
        """Take a frame for the model, whatever its rate."""
        check_picture(pixels_HWC)
        with self._changed:
            self._advance(time_s)
            self._num_in += 1
            self._inbox.append(_Frame(pixels_HWC, time_s))
            waiting = [item for item in self._inbox if isinstance(item, _Frame)]
            if len(waiting) > self.options.max_waiting:
                self._inbox.remove(waiting[0])
                self._num_dropped += 1
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._is_closed:
            raise InputError("the stream is closed")
        if self._problem is not None:
            raise InputError(self._problem)

    def _advance(self, time_s: float) -> None:
        self._check_open()
        if not math.isfinite(time_s) or time_s < 0:
            raise InputError(f"expected a time of at least 0 s, got {time_s}")
        if time_s < self._time_s:
            raise InputError(f"time goes backwards, from {self._time_s:g} s to {time_s:g} s")
        self._time_s = time_s

    def ask(self, question: str) -> LiveAnswer:
        """Ask now: about the frames that have arrived, and none that comes later.

        Raises:
            InputError: an empty question, an answer is still being given, or the stream is closed.
        """
        with self._changed:
            self._check_open()
            answer = self._dialogue.begin(question, max(self._time_s, 0.0))
            self._inbox.append(answer)
            self._changed.notify_all()
        return answer

    @property
    def answers(self) -> tuple[LiveAnswer, ...]:
        """All that was asked, the oldest first."""
        with self._changed:
            return self._dialogue.answers

    def stop_answer(self) -> None:
        """End the answer that is being given, if there is one."""
        for answer in self.answers[-1:]:
            answer.stop()

    def status(self) -> StreamStatus:
        """How the stream is doing now."""
        with self._changed:
            waiting = sum(isinstance(item, _Frame) for item in self._inbox) + self._num_busy
            costs = self._seconds_a_frame
            begun = [answer.first_token_s for answer in self._dialogue.answers if answer.first_token_s is not None]
            return StreamStatus(
                time_s=max(self._time_s, 0.0),
                num_frames_in=self._num_in,
                num_frames_seen=self._session.num_frames,
                num_frames_dropped=self._num_dropped,
                num_frames_waiting=waiting,
                real_time_factor=sum(costs) / len(costs) * self.options.fps if costs else None,
                first_token_s=begun[-1] if begun else None,
                num_tokens=self._trace.num_tokens,
                max_tokens=self._max_tokens,
                is_answering=self._dialogue.is_answering,
                problem=self._problem,
            )

    def memory(self) -> MemoryView:
        """What is remembered now."""
        with self._changed:
            trace = self._trace
            return MemoryView(
                remembered=trace.remembered,
                forgotten=trace.forgotten,
                num_forgotten=trace.num_forgotten,
                num_demotions=trace.num_demotions,
                version=self._version,
            )

    def pictures(self, timeout_s: float = 5.0) -> Iterator[bytes]:
        """The frame being shown, as JPEG, again whenever there is a newer one; ends when the stream is closed.

        The same picture comes again when there was no newer one for a while, so that a reader that has gone away is
        noticed. Pictures that come faster than they are read are left out.
        """
        number = 0
        while True:
            with self._changed:
                if self._num_pictures == number and not self._is_closed:
                    self._changed.wait(timeout_s)
                if self._is_closed:
                    return
                picture, number = self._picture, self._num_pictures
            if picture is not None:
                yield to_jpeg(picture, VIEW_PX)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until everything that has arrived was taken in; False if it is not by then."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._inbox and not self._num_busy, timeout_s)

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is taken in."""
        return self._is_closed

    def close(self) -> None:
        """Stop the answer and the threads, forget the frames."""
        with self._changed:
            self._is_closed = True
            questions = [item for item in self._inbox if isinstance(item, LiveAnswer)]
            self._inbox.clear()
            self._changed.notify_all()
        self.stop_answer()
        for question in questions:
            question.end()
        self._ingest_thread.join(SECONDS_TO_END)
        for thread in self._speakers:
            thread.join(SECONDS_TO_END)
        self._picture = None
        self._trace = MemoryTrace()
        if not any(thread.is_alive() for thread in (self._ingest_thread, *self._speakers)):
            self._session.reset()

    def forget_dialogue(self) -> None:
        """Begin a new dialogue about the same stream.

        Raises:
            InputError: an answer is still being given.
        """
        with self._changed:
            self._dialogue.check_silent()
            self._session.forget_dialogue()
            self._dialogue.forget()

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
            self._changed.wait_for(lambda: self._inbox or self._is_closed)
            if self._is_closed:
                return None
            first = self._inbox.popleft()
            if isinstance(first, LiveAnswer):
                self._num_busy = 0
                return first
            frames = [first]
            while self._inbox and len(frames) < ENCODE_BATCH and isinstance(self._inbox[0], _Frame):
                following = self._inbox.popleft()
                assert isinstance(following, _Frame)
                frames.append(following)
            self._num_busy = len(frames)
            return frames

    def _push(self, frames: list[_Frame]) -> None:
        first, start = self._session.num_frames, time.perf_counter()
        with self._gate.turn():
            for run in _same_size(frames):
                pixels_THWC = np.stack([frame.pixels_HWC for frame in run])
                self._session.push(pixels_THWC, [frame.time_s for frame in run])
            cost = (time.perf_counter() - start) / len(frames)
        thumbnails = {first + place: to_jpeg(frame.pixels_HWC, THUMBNAIL_PX) for place, frame in enumerate(frames)}
        remembered = self._session.remembered()
        with self._changed:
            self._seconds_a_frame.append(cost)
            self._trace.update(remembered, frames[-1].time_s, thumbnails)
            self._version += 1

    def _begin(self, answer: LiveAnswer) -> None:
        """Take the snapshot that a question is answered from, and let another thread answer it."""
        if answer.is_stopping:
            answer.end()
            return
        try:
            with self._gate.turn():
                prepared = self._session.prepare(answer.question, at_s=answer.asked_at_s)
        except InputError as error:
            answer.end(str(error))
            return

        def begin() -> Pieces:
            return self._session.stream_prepared(prepared)

        speaker = threading.Thread(target=speak, args=(answer, begin, self._gate), name="answer", daemon=True)
        self._speakers = [thread for thread in self._speakers if thread.is_alive()] + [speaker]
        speaker.start()


def make_stream_memory(model: VideoChatModel, options: StreamOptions) -> MemoryBank:
    """An empty memory as the options say.

    Raises:
        InputError: an unknown memory, or options that it does not take.
    """
    config = model.config
    return make_model_memory(options.memory, config.grid, config.memory_intervals, options.memory_options)


def _same_size(frames: list[_Frame]) -> Iterator[list[_Frame]]:
    """Runs of frames of one size: a camera may change its own in the middle of a stream."""
    run: list[_Frame] = []
    for frame in frames:
        if run and frame.pixels_HWC.shape != run[-1].pixels_HWC.shape:
            yield run
            run = []
        run.append(frame)
    yield run
