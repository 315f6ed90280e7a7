"""How a question gets its frames: from a memory of the stream, from a window, or not at all.

A context goes through one video once, forwards; each frame is encoded once for all questions. It never holds a
frame later than the question when it builds the question's prompt: that is what makes an evaluation causal. Only
under `--protocol reference` it does, as the published scripts do.

Shapes: `T` frames, `C` channels, `H` `W` token grid, `L` tokens, `D` width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import numpy as np
from torch import Tensor

from videochat_online.errors import NoFrameError
from videochat_online.evaluation.benchmark import EvalQuestion
from videochat_online.evaluation.media.decoder_process import RemoteVideoFrames
from videochat_online.evaluation.media.protocol_frames import READ_CHUNK, LabelledFrame, VideoFrames
from videochat_online.evaluation.protocol import EvalProtocol
from videochat_online.memory import TokenSchedule, pool_to_grid
from videochat_online.model import VideoChatModel
from videochat_online.model.backbones import VisualTokens
from videochat_online.streaming import GenerationSettings, StreamingSession
from videochat_online.streaming.question_prompt import Prompt, build_prompt
from videochat_online.types import FrameUse, Turn

Frames: TypeAlias = "VideoFrames | RemoteVideoFrames"


@dataclass(frozen=True, slots=True)
class QuestionContext:
    """What a question is answered from: the frames as the prompt numbers them, and the prompt."""

    frames: tuple[FrameUse, ...]
    prompt: Prompt


class StreamingContext:
    """A session that is asked without its history: what it answers leaves no trace."""

    def __init__(
        self, model: VideoChatModel, video_frames: Frames, protocol: EvalProtocol, questions: Sequence[EvalQuestion]
    ) -> None:
        self._model, self._protocol = model, protocol
        memory = protocol.make_memory(model.frames.grid, model.frames.memory_intervals)
        self.session = StreamingSession(
            model,
            memory,
            system_message=protocol.system_message,
            with_times=protocol.with_times,
            settings=GenerationSettings(max_new_tokens=protocol.max_new_tokens),
            strategy=protocol.make_strategy(),
            kv_memory=protocol.kv_memory,
        )
        indices = video_frames.streaming_indices()
        self._groups = video_frames.read(indices)
        self._last_index = indices[-1] if indices else -1
        self._last_question = questions[-1].id if questions else None
        self._held: list[LabelledFrame] = []

    @property
    def num_encoded(self) -> int:
        """Frames that went through the vision tower."""
        return self.session.num_frames

    def advance_to(self, question: EvalQuestion) -> None:
        """Push every frame that the question may see; later ones wait."""
        while True:
            group = self._held or next(self._groups, [])
            seen = [frame for frame in group if self._may_see(question, frame)]
            self._held = group[len(seen) :]
            if seen:
                pixels_THWC = np.stack([frame.pixels_HWC for frame in seen])
                self.session.push(pixels_THWC, [frame.time_s for frame in seen])
            if self._held or not group:
                return

    def prepare(self, question: EvalQuestion, text: str, generation_prefix: str = "") -> QuestionContext:
        """The prompt from what the session remembers."""
        # Without a time the session does not mind that frames come after the question.
        at_s = question.time_s if self._protocol.causal else None
        message = self._protocol.system_message_of(question.kind)
        prepared = self.session.prepare(
            text,
            at_s=at_s,
            generation_prefix=generation_prefix,
            system_message=self._model.system_message if message is None else message,
        )
        # Otherwise each question is computed from its start: a figure of one depends on no other.
        return QuestionContext(
            prepared.frames, self.session.reusing(prepared) if self._protocol.kv_memory else prepared.prompt
        )

    def _may_see(self, question: EvalQuestion, frame: LabelledFrame) -> bool:
        is_last = question.id == self._last_question
        return may_see(self._protocol, question.time_s, frame.time_s, is_last, frame.index == self._last_index)


class WindowContext:
    """Each question has its own window of frames, numbered and sized from the window's first frame on.

    A frame is decoded and encoded once and at once handed to every window that it belongs to, pooled as it is
    there; only projected tokens wait for their questions.
    """

    def __init__(
        self, model: VideoChatModel, video_frames: Frames, protocol: EvalProtocol, questions: Sequence[EvalQuestion]
    ) -> None:
        self._model, self._protocol, self._size = model, protocol, model.frames.frames_per_entry
        self._schedule = TokenSchedule(model.frames.memory_intervals)
        self._entries = {
            question.id: _entries(video_frames.window_indices(question.time_s, question.starts_s), self._size)
            for question in questions
        }
        self._windows: dict[str, list[tuple[FrameUse, VisualTokens]]] = {question.id: [] for question in questions}
        every = {entry for entries in self._entries.values() for entry in entries}
        # By the frame that completes them, in the order of these.
        self._completed: dict[int, list[tuple[int, ...]]] = {}
        for entry in sorted(every, key=lambda entry: entry[::-1]):
            self._completed.setdefault(entry[-1], []).append(entry)
        self._held: dict[int, LabelledFrame] = {}
        self._num_seen = dict.fromkeys(self._windows, 0)
        self._frames = chain.from_iterable(video_frames.read(sorted({index for entry in every for index in entry})))
        self._next: LabelledFrame | None = next(self._frames, None)
        self._answered: EvalQuestion | None = None
        self.num_encoded = 0

    def advance_to(self, question: EvalQuestion) -> None:
        """Encode the frames up to the end of the question's window; the window before it is forgotten."""
        if self._answered is not None:
            self._windows[self._answered.id] = []
        self._answered = question
        last = max((entry[-1] for entry in self._entries[question.id]), default=-1)
        batch: list[LabelledFrame] = []
        while self._next is not None and self._next.index <= last:
            batch.append(self._next)
            self._next = next(self._frames, None)
            size_changes = self._next is not None and self._next.pixels_HWC.shape != batch[0].pixels_HWC.shape
            if len(batch) == READ_CHUNK or size_changes:
                self._share(batch, batch[-1].index)
                batch = []
        self._share(batch, last)

    def prepare(self, question: EvalQuestion, text: str, generation_prefix: str = "") -> QuestionContext:
        """The prompt from the question's window."""
        window = self._windows[question.id]
        if not window:
            own = "" if question.starts_s is None else f", and not before {question.starts_s} s"
            where = f"at or before {question.time_s} s{own}"
            raise NoFrameError(f"question {question.id}: no frame that decodes starts {where}")
        frames = tuple(frame for frame, _ in window)
        turn = Turn(self._model.backbone.wording.turn(frames, text, with_times=self._protocol.with_times))
        visual, message = [tokens for _, tokens in window], self._protocol.system_message_of(question.kind)
        prompt = build_prompt(self._model, [turn], visual, system_message=message, generation_prefix=generation_prefix)
        return QuestionContext(frames, prompt)

    def _shown(self, entry: tuple[int, ...]) -> list[LabelledFrame]:
        """Frames of an entry that could be decoded; the last one stands for those that lack."""
        held = [self._held[index] for index in entry if index in self._held]
        return [*held, *held[-1:] * (self._size - len(held))]

    def _share(self, frames: Sequence[LabelledFrame], reached: int) -> None:
        """Hand the entries up to the frame that was reached to every window that has them."""
        self._held |= {frame.index: frame for frame in frames}
        self.num_encoded += len(frames)
        done = [last for last in self._completed if last <= reached]
        shown = {entry: self._shown(entry) for last in done for entry in self._completed.pop(last)}
        shown = {entry: held for entry, held in shown.items() if held}
        if shown:
            pixels = [frame.pixels_HWC for held in shown.values() for frame in held]
            if self._size > 1:
                pixels = [self._model.transform.resized(one[None])[0] for one in pixels]
            for (entry, held), tokens_CHW in zip(shown.items(), self._model.encode(np.stack(pixels)), strict=True):
                self._place(entry, sum(frame.time_s for frame in held) / self._size, tokens_CHW)
        needed = {index for entries in self._completed.values() for entry in entries for index in entry}
        self._held = {index: frame for index, frame in self._held.items() if index in needed}

    def _place(self, entry: tuple[int, ...], time_s: float, tokens_CHW: Tensor) -> None:
        projected: dict[int, VisualTokens] = {}
        for name, entries in self._entries.items():
            if entry not in entries:
                continue
            number = self._num_seen[name]
            self._num_seen[name] = number + 1
            ratio = self._schedule.ratio(number)
            if ratio is None:
                continue
            if ratio not in projected:
                rows, columns = tokens_CHW.shape[-2:]
                pooled_CHW = pool_to_grid(tokens_CHW, (rows // ratio, columns // ratio))
                projected[ratio] = self._model.project(pooled_CHW)
            use = FrameUse(number * self._size, time_s, len(projected[ratio]))
            self._windows[name].append((use, projected[ratio]))


def _entries(indices: Sequence[int], size: int) -> dict[tuple[int, ...], None]:
    """Frames of a window as a model takes them together, in order; the last entry may have fewer."""
    ordered = sorted(indices)
    return dict.fromkeys(tuple(ordered[start : start + size]) for start in range(0, len(ordered), size))


class BlindContext:
    """No frames at all: what can be answered from the text of question and options."""

    num_encoded = 0

    def __init__(self, model: VideoChatModel, protocol: EvalProtocol) -> None:
        self._model, self._protocol = model, protocol

    def advance_to(self, question: EvalQuestion) -> None:
        """Take in nothing: there are no frames."""

    def prepare(self, question: EvalQuestion, text: str, generation_prefix: str = "") -> QuestionContext:
        """The prompt of text alone."""
        message, turn = self._protocol.system_message_of(question.kind), Turn((text,))
        prompt = build_prompt(self._model, [turn], [], system_message=message, generation_prefix=generation_prefix)
        return QuestionContext((), prompt)


Context: TypeAlias = StreamingContext | WindowContext | BlindContext
"""What goes through one video, question by question: `advance_to` the question, then `prepare` its prompt.

`num_encoded` frames went through the vision tower. Times of questions must not go down. `prepare` remembers nothing,
and raises `NoFrameError` where no frame comes at or before the question.
"""


def make_context(
    model: VideoChatModel, video_frames: Frames | None, protocol: EvalProtocol, questions: Sequence[EvalQuestion]
) -> Context:
    """The context of a protocol; a blind one without frames.

    A question's prompt has the system message of its kind. The published scripts do not trim what they ask.
    """
    if protocol.is_scripted:
        model = model.untrimmed()
    if video_frames is None:
        return BlindContext(model, protocol)
    if protocol.memory is not None:
        return StreamingContext(model, video_frames, protocol, questions)
    return WindowContext(model, video_frames, protocol, questions)


def may_see(
    protocol: EvalProtocol, question_s: float, label_s: float, is_last_question: bool, is_last_frame: bool
) -> bool:
    """Whether a memory has a frame by a question: one labelled with a time up to it, or before the end of its clip.

    As scripted, the last question of a video sees all of the clip, and no other one the clip's last frame.
    """
    if protocol.is_scripted and is_last_question:
        return True
    return protocol.shows(label_s, question_s) and not (protocol.is_scripted and is_last_frame)
