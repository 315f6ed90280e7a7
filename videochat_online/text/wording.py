"""How a family of models writes pictures and frames into a prompt.

Owns the tokens around a picture and the words before it, and how a turn during a video is put together. Knows nothing
of tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from videochat_online.constants import IMAGE_CONTEXT_TOKEN, IMAGE_END_TOKEN, IMAGE_START_TOKEN
from videochat_online.types import FrameUse, Segment, Visual


@dataclass(frozen=True)
class Wording:
    """InternVL's way; other families change what is theirs.

    Attributes:
        opens: control token before a picture; "" for none.
        token: token that stands for each visual token.
        closes: control token after a picture.
    """

    opens: str = IMAGE_START_TOKEN
    token: str = IMAGE_CONTEXT_TOKEN
    closes: str = IMAGE_END_TOKEN

    def frames(self, frames: Iterable[FrameUse], *, with_times: bool) -> tuple[Segment, ...]:
        """The lines that stand before a question: `Frame3 at 1.0s: <image>`, or `Frame3: <image>`.

        Frames are numbered by their index in the stream, from 1; times have one decimal. Each line ends in a
        newline.
        """
        segments: list[Segment] = []
        for frame in frames:
            time = f" at {frame.time_s:.1f}s" if with_times else ""
            segments += [f"Frame{frame.index + 1}{time}: ", Visual(frame.num_tokens), "\n"]
        return tuple(segments)

    def turn(self, frames: Iterable[FrameUse], text: str, *, with_times: bool) -> tuple[Segment, ...]:
        """The human side of a turn during a video: the frames that came since the turn before, then its text.

        As in the published training data, a turn of a stream whose frames carry times starts with an empty line where
        none came; one about a video whose frames carry none is its text alone.
        """
        lines = self.frames(frames, with_times=with_times)
        return (*(lines or (("\n",) if with_times else ())), text)

    def images(self, counts: Sequence[int]) -> tuple[Segment, ...]:
        """Images before the first question about them: one stands alone, several are numbered, as in training.

        Args:
            counts: visual tokens of each.
        """
        if len(counts) == 1:
            return (Visual(counts[0]), "\n")
        numbered = enumerate(counts, start=1)
        return tuple(segment for n, count in numbered for segment in (f"Image-{n}: ", Visual(count), "\n"))


INTERNVL = Wording()
