"""MovieChat+: MovieChat whose past is read by what the question is about.

Source: MovieChat+ (arXiv 2404.17176), question-aware consolidation: a clip that has little to do with the question is
merged to fewer frames. From the paper: the cosine of question and clip decides how far a clip is merged. Our
decisions: a stream is written before it is asked, so merging by the question happens at reading, on top of MovieChat's
memory and without changing it; of the clips, those less relevant than the median are merged to one frame (the released
code's weights, a softmax over one value, are constant); the clips are the consolidations of MovieChat; frames of the
buffer in "breakpoint" are the present, and stay.

A question and the frames must be compared in one space: see `QuestionAware`. Nothing has trained an InternVL model to
make the cosine of text and projected tokens mean relevance; how well it does is to be measured, not taken for granted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from videochat_online.errors import InputError, NonFiniteError
from videochat_online.memory.base import question_relevance
from videochat_online.memory.merging import merge_neighbours
from videochat_online.memory.moviechat import MovieChatMemoryBank
from videochat_online.types import FrameTokens


class MovieChatPlusMemoryBank(MovieChatMemoryBank):
    """A `MovieChatMemoryBank` that merges the clips a question is not about to one frame each.

    Options, budget and reading without a question are those of `MovieChatMemoryBank`. A clip's relevance is the mean,
    over its frames, of the cosine similarity (fp32) of the question and the frame's mean token. Clips below the
    (upper) median of all clips are merged; clips of equal relevance all stay.
    """

    kind = "moviechat_plus"

    def read_for(self, query_D: Tensor, project: Callable[[FrameTokens], Tensor]) -> tuple[FrameTokens, ...]:
        """As `QuestionAware.read_for`.

        Raises:
            InputError: the question's embedding is not of the frames' width.
            NonFiniteError: it is NaN or infinite.
        """
        if query_D.ndim != 1 or not query_D.is_floating_point():
            raise InputError(f"query: expected floating-point [D], got {query_D.dtype} {tuple(query_D.shape)}")
        if not bool(query_D.isfinite().all()):
            raise NonFiniteError("query: expected a finite embedding, got NaN or infinite values")
        with torch.no_grad():
            numbered = self._numbered()
            clips: dict[int, list[FrameTokens]] = {}
            for frame, clip in numbered:
                clips.setdefault(clip, []).append(frame)
            relevance = {
                clip: statistics.fmean(question_relevance(query_D, project(frame)) for frame in frames)
                for clip, frames in clips.items()
                if clip
            }
            # The median is one of the values: equal relevances compare as equal, whatever rounding does.
            limit = statistics.median_high(relevance.values()) if relevance else 0.0
            read: list[FrameTokens] = []
            for clip, frames in clips.items():
                is_irrelevant = relevance.get(clip, limit) < limit
                read += merge_neighbours(frames, 1, self._merged_id) if is_irrelevant else frames
        return tuple(sorted(read, key=lambda frame: frame.index))
