"""Dataclasses that cross module boundaries.

Shape legend: `T` frames, `C` channels, `H` `W` rows and columns (of pixels or of the token grid).
`index` is always the absolute number of a frame in its stream, from 0; times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor


@dataclass(frozen=True, slots=True)
class FrameChunk:
    """Consecutive frames of a video, as they are shown (rotation applied).

    Attributes:
        pixels_THWC: RGB, uint8.
        times_s: start of each frame in the video's own time.
    """

    pixels_THWC: npt.NDArray[np.uint8]
    times_s: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.times_s)


NO_FRAMES = FrameChunk(np.empty((0, 0, 0, 3), np.uint8), ())


@dataclass(frozen=True, slots=True)
class FrameTokens:
    """One remembered frame.

    Attributes:
        tokens_CHW: visual features before the projector, on a grid of H x W tokens.
        index: absolute in the stream, from 0 (a merged frame carries its newest member's).
        time_s: start time of the frame.
        content_id: unique per content within a session. Whoever encodes frames gives ids >= 0; a bank that
            changes a frame's content (demotion, merging) gives it a new, negative one.
    """

    tokens_CHW: Tensor
    index: int
    time_s: float
    content_id: int

    @property
    def num_tokens(self) -> int:
        """Tokens this frame costs in the prompt."""
        return int(self.tokens_CHW.shape[-2] * self.tokens_CHW.shape[-1])


@dataclass(frozen=True, slots=True)
class Visual:
    """One picture or frame in a turn: `num_tokens` visual tokens between what opens and closes it."""

    num_tokens: int


@dataclass(frozen=True, slots=True)
class Mark:
    """Characters that a family of models puts among pictures, not a user: control tokens in them are meant."""

    text: str


Segment = str | Visual | Mark


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange of a dialogue.

    Attributes:
        user: text and pictures of the human side, in order.
        assistant: the reply; None where the model is to generate it (the last turn only).
    """

    user: tuple[Segment, ...]
    assistant: str | None = None


@dataclass(frozen=True, slots=True)
class FrameUse:
    """A frame that an answer was given from, and the visual tokens it cost."""

    index: int
    time_s: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a session answered, when it was asked, and from which frames."""

    question: str
    text: str
    asked_at_s: float
    frames_used: tuple[FrameUse, ...]

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens in the prompt of this answer."""
        return sum(frame.num_tokens for frame in self.frames_used)
