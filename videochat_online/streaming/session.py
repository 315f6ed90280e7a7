"""One user watching one stream: frames in, questions at any moment, answers from what was seen so far.

The flow of a frame: `push` -> encode (once, ever) -> `memory.write`. The flow of a question: `memory.read` ->
project what was not projected before -> one sequence in time order, each earlier turn at the place where it
was asked -> compute what the question before it has not left in the KV cache -> generate.

All state of a stream lives here and in its memory; the model holds none. Frames may arrive from one thread
while another asks: a question is answered from a snapshot taken when its answer begins.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from videochat_online.errors import InputError
from videochat_online.memory import MemoryBank, QuestionAware, make_model_memory
from videochat_online.model.loading import VideoChatModel
from videochat_online.streaming.entries import Entries
from videochat_online.streaming.generate import GenerationSettings, prefill, result_of, stream_text
from videochat_online.streaming.kv.background import BackgroundPrefill, Foreground
from videochat_online.streaming.kv.kv_budget import KvBudget, default_budget
from videochat_online.streaming.kv.movable import BlockCache
from videochat_online.streaming.kv.prefix import make_prefix_cache
from videochat_online.streaming.question_prompt import (
    FrameSelection,
    PreparedQuestion,
    ProjectedFrames,
    Prompt,
    QuestionLayout,
    Snapshot,
    check_given,
    frame_uses,
)
from videochat_online.streaming.session_file import (
    Exchange,
    SessionState,
    check_history,
    load_state,
    save_state,
    to_model,
)
from videochat_online.streaming.strategies import Direct, Strategy
from videochat_online.streaming.stream_clock import StreamClock
from videochat_online.text import check_text
from videochat_online.types import Answer, FrameUse

logger = logging.getLogger(__name__)


class StreamingSession:
    """A stream being watched.

    Args:
        model: model, which any number of sessions may share.
        memory: keeps what matters; the checkpoint's pyramid with capacities 2/2/12 by default.
        system_message: None takes the checkpoint's own.
        with_times: write "Frame3 at 1.0s:" rather than "Frame3:" before a frame's tokens.
        history: dialogue from before the stream, as text.
        settings: settings by which answers are generated, unless a question says otherwise.
        encode_batch: frames that go through the vision tower at once.
        reuse_prefix: keep the last prompt's and answer's KV cache for the next prompt; the weights must stay.
        kv_budget: budget of these caches, shared with other sessions; the process's own by default.
        prefill_in_background: call `prefill` from a thread, in pieces, while nothing else is going on, until `close`.
        kv_memory: the language model reads each frame as it arrives, and what it computed of a frame is kept as long as
            the frame is remembered (`kv/movable.py`). Experimental: answers are not those of a fresh prefill.
        strategy: strategy at question time, for the frames that the memory gives; all are shown by default.
    """

    def __init__(
        self,
        model: VideoChatModel,
        memory: MemoryBank | None = None,
        *,
        system_message: str | None = None,
        with_times: bool = True,
        history: Sequence[Exchange] = (),
        settings: GenerationSettings | None = None,
        encode_batch: int = 8,
        reuse_prefix: bool = True,
        kv_budget: KvBudget | None = None,
        prefill_in_background: bool = False,
        kv_memory: bool = False,
        strategy: Strategy | None = None,
    ) -> None:
        if encode_batch < 1:
            raise InputError(f"encode_batch: expected at least 1 frame, got {encode_batch}")
        if (prefill_in_background or kv_memory) and not reuse_prefix:
            name = "kv_memory" if kv_memory else "prefill_in_background"
            raise InputError(f"{name}: expected reuse_prefix=True with it, got False")
        apart = {
            "prefill_in_background": prefill_in_background,
            f"strategy {type(strategy).__name__}": not isinstance(strategy or Direct(), Direct),
            f"memory {type(memory).__name__}": isinstance(memory, QuestionAware),
        }
        if kv_memory and any(apart.values()):
            found = ", ".join(name for name, is_there in apart.items() if is_there)
            raise InputError(f"kv_memory reads frames before a question is known: expected it without {found}")
        if system_message is not None:
            check_text(system_message, "system message")
        check_history(history)
        self.model = model
        if memory is None:
            memory = make_model_memory("pyramid", model.frames.grid, model.frames.memory_intervals, {})
        self.memory: MemoryBank = memory
        self.settings = settings or GenerationSettings()
        self._strategy: Strategy = Direct() if strategy is None else strategy
        self._layout = QuestionLayout(model=model, system_message=system_message, with_times=with_times)
        self._encode_batch = encode_batch
        self._initial_history, self._history = tuple(history), list(history)
        self._clock = StreamClock()
        self._entries = Entries(model)
        self._projected = ProjectedFrames(model)
        # A push keeps its frames together, an answer its dialogue; the third is held while memory and history change.
        self._push_lock, self._answer_lock, self._state_lock = (threading.Lock() for _ in range(3))
        self._answering_thread: int | None = None
        self._epoch = 0  # how often frames and dialogue were forgotten: what was prepared before is not answered
        budget = kv_budget or default_budget(model.device)
        make_kept = BlockCache if kv_memory else make_prefix_cache
        self.kept_prefix = make_kept(model.language_model, budget) if reuse_prefix else None
        """Prefix of the last prompt and what was computed of it, None where nothing is to be reused."""
        self.foreground = Foreground()
        """Pushes and answers that are under way: background work makes way for them."""
        self._background = None
        if prefill_in_background:
            self._background = BackgroundPrefill(self._prefill_if_free, self.foreground, model.device)

    @property
    def num_frames(self) -> int:
        """Frames that have arrived since the start or the last reset."""
        return self._clock.num_frames

    @property
    def last_time_s(self) -> float | None:
        """Start time of the newest frame; None before the first."""
        return self._clock.last_time_s if self._clock.num_frames else None

    @property
    def history(self) -> tuple[Exchange, ...]:
        """Questions and answers so far, the oldest first."""
        with self._state_lock:
            return tuple(self._history)

    def remembered(self) -> tuple[FrameUse, ...]:
        """What the memory holds now, in time order; a question also sees a frame that waits for others of its entry."""
        with self._state_lock:
            return frame_uses(self.model, self.memory.read())

    def push(self, pixels_THWC: npt.ArrayLike, times_s: Sequence[float]) -> None:
        """Take frames in: each is encoded here, once, and remembered as the memory decides.

        Args:
            pixels_THWC: RGB frames, uint8 [T, H, W, 3].
            times_s: start time of each, in order.

        Raises:
            InputError: counts that differ, or a time that is not finite or precedes the last: no frame is taken.
            NonFiniteError: the model's features of a frame are NaN or infinite. The batches before its own are taken.
        """
        pixels_THWC = np.asarray(pixels_THWC)
        times = [float(time) for time in times_s]
        if len(times) != len(pixels_THWC):
            raise InputError(f"push: got {len(pixels_THWC)} frames and {len(times)} times")
        with self.foreground.busy(), self._push_lock:
            self._clock.check(times)
            for start in range(0, len(times), self._encode_batch):
                batch = slice(start, start + self._encode_batch)
                made = self._entries.of(pixels_THWC[batch], times[batch], self._clock.num_frames)
                for entry, waiting, num_frames, last_s in made:
                    with self._state_lock:
                        if entry is not None:
                            self.memory.write(entry)
                        self._entries.waiting = waiting
                        self._clock.advance(num_frames, last_s)
                    if isinstance(self.kept_prefix, BlockCache):
                        self._prefill_if_free()

    def ask(
        self,
        question: str,
        *,
        at_s: float | None = None,
        settings: GenerationSettings | None = None,
        generation_prefix: str = "",
    ) -> Answer:
        """Answer from what has been seen so far, and remember the exchange.

        Args:
            question: text; it stands after the remembered frames.
            at_s: stream time of the question in seconds; the newest frame's by default.
            settings: generation settings for this answer only.
            generation_prefix: words that the answer is made to begin with; not part of `Answer.text`.

        Raises:
            NoFrameError: nothing has arrived yet, or nothing before `at_s`.
            InputError: a frame later than `at_s` has arrived, or half of a surrogate pair in question or prefix.
        """
        return result_of(self.stream(question, at_s=at_s, settings=settings, generation_prefix=generation_prefix))

    def stream(
        self,
        question: str,
        *,
        at_s: float | None = None,
        settings: GenerationSettings | None = None,
        generation_prefix: str = "",
    ) -> Generator[str, None, Answer]:
        """Like `ask`, piece by piece. Closing the iterator stops; what was said so far is then the answer.

        The question is asked, and refused, when the first piece is taken. Until the iterator is exhausted or
        closed, the same thread cannot ask, save or reset; frames may be pushed.
        """
        with self._alone():
            prepared = self._prepare(question, at_s, generation_prefix)
            return (yield from self._generate(prepared, settings))

    def stream_prepared(
        self, prepared: PreparedQuestion, *, settings: GenerationSettings | None = None
    ) -> Generator[str, None, Answer]:
        """Like `stream`, from the snapshot that `prepare` took: frames may have arrived since.

        Raises:
            InputError: the session was reset since, or another question was answered.
        """
        with self._alone():
            with self._state_lock:
                num_exchanges, epoch = len(self._history), self._epoch
            if num_exchanges != prepared.num_exchanges or epoch != prepared.epoch:
                raise InputError(
                    f"{prepared.question!r} was prepared for another state of the dialogue: prepare it again"
                )
            return (yield from self._generate(prepared, settings))

    def _generate(
        self, prepared: PreparedQuestion, settings: GenerationSettings | None
    ) -> Generator[str, None, Answer]:
        prompt, record = self.reusing(prepared), partial(self._record, prepared)
        return stream_text(self.model, prompt, settings or self.settings, record)

    def reusing(self, prepared: PreparedQuestion) -> Prompt:
        """Its prompt, with what this session has computed of it. One may be answered at a time."""
        return replace(prepared.prompt, reuse=self.kept_prefix)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the answer lock; InputError where this thread holds it already, by an answer it is streaming."""
        if self._answering_thread == threading.get_ident():
            raise InputError("an answer is still being streamed in this thread: exhaust or close its iterator first")
        with self.foreground.busy(), self._answer_lock:
            self._answering_thread = threading.get_ident()
            try:
                yield
            finally:
                self._answering_thread = None

    def _record(self, prepared: PreparedQuestion, text: str) -> Answer:
        asked = (prepared.question, text, prepared.asked_at_s)
        with self._state_lock:
            self._history.append(Exchange(*asked, prepared.num_frames_seen))
        return Answer(*asked, prepared.frames)

    def prepare(
        self,
        question: str,
        *,
        at_s: float | None = None,
        generation_prefix: str = "",
        system_message: str | None = None,
    ) -> PreparedQuestion:
        """Take a snapshot of memory and dialogue and lay out the prompt, without answering.

        The arguments are those of `ask`, and a system message other than the session's, for this question alone.

        Raises:
            NoFrameError, InputError: errors of `ask`; another system message after `kv_memory` has read frames.
        """
        with self._alone():
            return self._prepare(question, at_s, generation_prefix, system_message)

    def _prepare(self, question: str, at_s: float | None, prefix: str, message: str | None = None) -> PreparedQuestion:
        check_text(question, "question")  # before a memory or a strategy reads it
        check_text(prefix, "generation prefix")
        layout = self._layout.with_message(message, is_read=isinstance(self.kept_prefix, BlockCache))
        return layout.prepare(self._snapshot(at_s, question), question, prefix)

    def prefill(self) -> int:
        """Compute what the next question's prompt begins with, up to the question; the answer then begins sooner.

        For idle moments. It pays as long as the memory stays as it is; of a frame that changes, what stands
        before it remains.

        Returns:
            Tokens that had to be computed. 0 where nothing was new, nothing has been seen yet, nothing is reused,
            the strategy chooses frames by the question, or the KV budget is too small.

        Raises:
            PromptTooLongError: the memory is larger than the language model's context.
        """
        with self._alone():
            return self._prefill(None)

    def _prefill_if_free(self, next_size: Callable[[], int] | None = None) -> None:
        """Unless an answer is under way: its end wakes the background, and what comes next reads what is lacking."""
        if self._answer_lock.acquire(blocking=False):
            try:
                self._prefill(next_size)
            except InputError as error:  # frames are remembered all the same; a question will say so, too
                logger.info("nothing is prefilled: %s", error)
            finally:
                self._answer_lock.release()

    def _prefill(self, next_size: Callable[[], int] | None) -> int:
        if self.kept_prefix is None or self._clock.num_frames == 0 or not isinstance(self._strategy, Direct):
            return 0
        tokens, num_prompt = self._layout.prefix(self._snapshot(None, None))
        max_length = num_prompt + self.settings.max_new_tokens
        return prefill(self.model.language_model, tokens, self.kept_prefix, max_length, next_size)

    def _snapshot(self, at_s: float | None, question: str | None) -> Snapshot:
        with self._state_lock:
            asked_at_s = self._clock.asking_time(at_s)
            remembered = self._entries.read(self.memory, self._clock.num_frames, question, self._projected)
            history, num_frames, epoch = tuple(self._history), self._clock.num_frames, self._epoch
        # Only what was remembered for this question is kept for the next one.
        self._projected.keep(remembered)
        selections: tuple[FrameSelection, ...] = (FrameSelection(remembered),)
        if question is not None:
            chosen = self._strategy.read(remembered, question, self.model, self._projected)
            selections = check_given(chosen or None, FrameSelection, f"strategy {type(self._strategy).__name__}")
        visuals = [[self._projected.of_shown(frame) for frame in selection.frames] for selection in selections]
        return Snapshot(selections, visuals, history, num_frames, asked_at_s, epoch)

    def reset(self) -> None:
        """Forget frames and dialogue (but not the text the session was opened with)."""
        with self._alone(), self._push_lock, self._state_lock:
            self.memory.reset()
            self._forget_computed()
            self._history = list(self._initial_history)
            self._clock = StreamClock()
            self._entries.forget()

    def _forget_computed(self) -> None:
        self._epoch += 1
        self._projected.clear()
        if self.kept_prefix is not None:
            self.kept_prefix.drop()

    def close(self) -> None:
        """End the background thread and release the KV cache. Frames and dialogue stay, and can be asked about."""
        if self._background is not None:
            self._background.stop()
        with self._alone():
            if self.kept_prefix is not None:
                self.kept_prefix.drop()

    def forget_dialogue(self) -> None:
        """Forget the questions asked so far, and keep the frames."""
        with self._alone(), self._state_lock:
            num_frames = self._clock.num_frames
            asked = [each.num_frames_seen for each in self._history if each.asked_at_s is not None]
            if isinstance(self.kept_prefix, BlockCache) and min(asked, default=num_frames) < num_frames:
                self.kept_prefix.drop()  # what was computed of a frame knows of the questions before it
            self._history = list(self._initial_history)

    def save(self, path: str | Path) -> None:
        """Write frames, dialogue and counters to one file, from which `restore` goes on identically."""
        with self._alone(), self._push_lock, self._state_lock:
            clock = self._clock
            state = SessionState(clock.num_frames, clock.last_time_s, tuple(self._history), self._entries.waiting)
            save_state(Path(path), state, self.memory.state_dict())

    def restore(self, path: str | Path) -> None:
        """Go on from a saved file; what this session held is forgotten.

        Raises:
            InputError: a file of another kind, memory or model, or one at odds with itself; nothing changes then.
        """
        state, tensors = load_state(Path(path), self.model)
        with self._alone(), self._push_lock, self._state_lock:
            # A bank without a device of its own stays where its state is: the frames belong beside the model.
            before = self.memory.state_dict()
            self.memory.load_state_dict({key: to_model(tensor, self.model) for key, tensor in tensors.items()})
            per_entry = self.model.frames.frames_per_entry
            num_whole = state.num_frames - len(state.waiting)
            frames = self.memory.read()
            if any((f.index + 1) * per_entry > num_whole or f.time_s > state.last_time_s for f in frames):
                self.memory.load_state_dict(before)
                raise InputError(f"{path}: expected a memory of {state.num_frames} frames, found later ones")
            self._forget_computed()
            self._history = list(state.history)
            self._clock, self._entries.waiting = StreamClock(state.num_frames, state.last_time_s), state.waiting
