"""Frames as they come, and entries as a memory keeps them: of one frame, or of as many as the tower takes together.

A frame waits until its entry is whole. A question in between sees what there is of it, the last frame standing for
those that lack, as the processors of such models do; what is shown so is replaced when the entry is whole.

Shapes: `T` frames, `H` `W` pixels.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from videochat_online.memory import MemoryBank, QuestionAware
from videochat_online.memory.slots import check_finite
from videochat_online.model.loading import VideoChatModel
from videochat_online.streaming.question_prompt import check_given
from videochat_online.types import NO_FRAMES, FrameChunk, FrameTokens

_FIRST_PROVISIONAL = 1 << 48
"""Content id from which those of entries are counted that are not whole."""


@dataclass
class _Provisional:
    """What there is of an entry that is not whole.

    Attributes:
        waiting: Frames that it is made of.
        entry: As the memory will never have it.
        ids: Content ids under which its questions see frames, by those that a copy of the memory gives.
    """

    waiting: FrameChunk
    entry: FrameTokens
    ids: dict[int, int]


class Entries:
    """Entries of one stream in the making.

    Args:
        model: model that encodes them.

    Attributes:
        waiting: Frames that lack others of their entry.
    """

    def __init__(self, model: VideoChatModel) -> None:
        self._model, self._size = model, model.frames.frames_per_entry
        self._provisional_ids = itertools.count(_FIRST_PROVISIONAL)
        self.waiting = NO_FRAMES
        self._provisional: _Provisional | None = None

    def forget(self) -> None:
        """Wait for nothing any more."""
        self.waiting = NO_FRAMES

    def of(
        self, pixels_THWC: npt.NDArray[np.uint8], times_s: Sequence[float], num_frames: int
    ) -> Iterator[tuple[FrameTokens | None, FrameChunk, int, float]]:
        """Encode frames that come after `num_frames` others.

        Yields:
            Each entry that is whole now, or at the end None where frames are left; the frames that wait from then on;
            and how many frames have come by then, and the time of the last.

        Raises:
            NonFiniteError: features that are NaN or infinite.
        """
        size, times = self._size, [*self.waiting.times_s, *times_s]
        first = num_frames - len(self.waiting)
        if size > 1:
            pixels_THWC = self._model.transform.resized(pixels_THWC)
            if len(self.waiting):
                pixels_THWC = np.concatenate((self.waiting.pixels_THWC, pixels_THWC))
        num_whole = len(times) // size * size
        left = FrameChunk(pixels_THWC[num_whole:], tuple(times[num_whole:]))
        if num_whole:
            features_ECHW = self._model.encode(pixels_THWC[:num_whole])
            check_finite(features_ECHW, first // size)
            for number, tokens_CHW in enumerate(features_ECHW, start=first // size):
                own = times[number * size - first :][:size]
                entry = FrameTokens(tokens_CHW, number, sum(own) / size, content_id=number)
                yield entry, NO_FRAMES, (number + 1) * size, own[-1]
        if len(left):
            yield None, left, first + len(times), times[-1]

    def read(
        self,
        memory: MemoryBank,
        num_frames: int,
        question: str | None = None,
        project: Callable[[FrameTokens], Tensor] | None = None,
    ) -> tuple[FrameTokens, ...]:
        """What a memory gives for a question, with what there is of the entry that is not whole.

        Args:
            memory: memory of the stream, which is not changed.
            num_frames: frames that have come.
            question: its text; None for one that is not known yet.
            project: what gives a frame's embeddings [N, D], for memories that choose by the question.
        """
        if not len(self.waiting):
            return self._given(memory, question, project)
        if self._provisional is None or self._provisional.waiting is not self.waiting:
            times = [*self.waiting.times_s, *[self.waiting.times_s[-1]] * (self._size - len(self.waiting))]
            (tokens_CHW,) = self._model.encode(self.waiting.pixels_THWC)
            number, id_ = num_frames // self._size, next(self._provisional_ids)
            entry = FrameTokens(tokens_CHW, number, sum(times) / self._size, id_)
            self._provisional = _Provisional(self.waiting, entry, {id_: id_})
        entry, ids = self._provisional.entry, self._provisional.ids
        shown = copy.deepcopy(memory)
        shown.write(entry)
        # What the copy has made anew has ids that the memory may give to something else later.
        ids |= {frame.content_id: frame.content_id for frame in memory.read()}
        found = self._given(shown, question, project)
        for frame in found:
            if frame.content_id not in ids:
                ids[frame.content_id] = next(self._provisional_ids)
        return tuple(replace(frame, content_id=ids[frame.content_id]) for frame in found)

    def _given(
        self, memory: MemoryBank, question: str | None, project: Callable[[FrameTokens], Tensor] | None
    ) -> tuple[FrameTokens, ...]:
        if question is not None and project is not None and isinstance(memory, QuestionAware):
            found = memory.read_for(self._model.embed_text(question), project)
        else:
            found = memory.read()
        return check_given(found, FrameTokens, f"memory {type(memory).__name__}")
