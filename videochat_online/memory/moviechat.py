"""MovieChat: a short buffer of frames that is merged to a few as often as it is full, and a long memory of those.

Source: MovieChat (arXiv 2307.16449). From the paper and its code: the buffer's size and the 2 frames it is merged to,
merging the neighbours of highest inner product by plain averaging, the modes of reading "global" (long memory) and
"breakpoint" (long memory, buffer and current frame). Our decisions:

- The paper merges when the whole clip is in; a stream is asked at any moment. So "global" reads the long memory as it
  would be if the buffer were merged now, and the buffer is merged when the next frame comes, not when it is full: the
  current frame is always one of the buffer's.
- The long memory has a hard limit, too. Beyond it its neighbours merge by the same rule. (The released code reads at
  most 256 frames, and drops the oldest of the buffer first.)
- A frame is a small grid of tokens, where the paper has the 32 tokens of a Q-Former.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from videochat_online.memory.merging import MergingStore, merge_neighbours
from videochat_online.memory.options import QUARTER, OneGridOptions
from videochat_online.memory.schedule import Count
from videochat_online.memory.slots import FrameStore
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.parts import option
from videochat_online.types import FrameTokens


class MovieChatMemoryBank(TieredMemoryBank):
    """A buffer of the newest frames, and a long memory of merged ones; all on one grid.

    When a frame comes and the buffer is full, the buffer's most similar neighbours (see `merge_neighbours`) merge
    until `merged_frames` are left; these join the long memory, whose neighbours merge until `long_frames` are left.

    A merged frame has its newest member's index and time. Its content id is negative and made of its members' ids
    and the number of resets: what is merged for a reading has the same id at each reading, and no reading changes
    the memory.
    """

    kind = "moviechat"

    @dataclass(frozen=True, kw_only=True)
    class Options(OneGridOptions):
        """Options of the memory; its grid is a quarter of the full one in each direction unless another is given.

        Budget: the grid's tokens times `long_frames`, in "breakpoint" times `long_frames + short_frames`.
        """

        ratio = 4
        short_frames: Count = option(18, "frames of the buffer")
        long_frames: Count = option(256, "frames of the long memory")
        merged_frames: Count = option(2, "what a full buffer is merged to")
        reading: Literal["global", "breakpoint"] = option(
            "global", "global: the long memory as if the buffer were merged now; breakpoint: both as they are"
        )

        @classmethod
        def sizes_within(cls, budget: float, given: Mapping[str, Any]) -> dict[str, int]:
            """Frames of a sixteenth of the tokens; the buffer as published, smaller where the budget is small."""
            num_frames = int(budget / QUARTER)
            long = given.get("long_frames", num_frames)
            short = given.get("short_frames", max(1, min(cls.short_frames, num_frames // 2)))
            if given.get("reading") == "breakpoint" and "long_frames" not in given:
                long = num_frames - short
            return {"short_frames": short, "long_frames": long}

    options: Options

    @property
    def _reads_short(self) -> bool:
        return self.options.reading == "breakpoint"

    @property
    def max_tokens(self) -> int:
        """Hard budget of visual tokens, by the way of reading."""
        num_frames = self.options.long_frames + (self.options.short_frames if self._reads_short else 0)
        return num_frames * self._grid[0] * self._grid[1]

    def reset(self) -> None:
        """As `TieredMemoryBank.reset`; ids made before are made no more."""
        super().reset()
        self._new_content_id()

    def read(self) -> tuple[FrameTokens, ...]:
        """Return copies of the frames that this way of reading shows, in time order."""
        with torch.no_grad():
            return tuple(frame for frame, _ in self._numbered())

    def _empty_stores(self) -> list[FrameStore]:
        return [FrameStore(self.options.short_frames, self._grid), MergingStore(self.options.long_frames, self._grid)]

    def _admit(self, level: int, frame: FrameTokens) -> None:
        short = self.stores[0]
        fitted = self._fit(frame, short)
        if short.is_full:
            merged = self._consolidated()
            for store in self.stores:
                while len(store):
                    store.remove(0)
            for past, clip in merged:
                cast(MergingStore, self.stores[1]).insert(len(self.stores[1]), past, clip)
        short.insert(len(short), fitted)

    def _numbered(self) -> list[tuple[FrameTokens, int]]:
        """What a reading without a question shows: frames, and which consolidation (clip) each came out of, from 1.

        Frames of the buffer that are not merged have number 0.
        """
        if not self._reads_short:
            return self._consolidated()
        return self._long() + [(frame, 0) for frame in self.stores[0].frames()]

    def _long(self) -> list[tuple[FrameTokens, int]]:
        long = cast(MergingStore, self.stores[1])
        return list(zip(long.frames(), long.numbers, strict=True))

    def _consolidated(self) -> list[tuple[FrameTokens, int]]:
        """The long memory with the buffer merged into it, and the number of the clip of each frame."""
        long = self._long()
        clip = 1 + max((number for _, number in long), default=0)
        short = merge_neighbours(self.stores[0].frames(), self.options.merged_frames, self._merged_id)
        # A merged frame has its newest member's index, and so its newest member's clip.
        clips = {frame.index: number for frame, number in long} | {frame.index: clip for frame in short}
        frames = merge_neighbours([frame for frame, _ in long] + short, self.options.long_frames, self._merged_id)
        return [(frame, clips[frame.index]) for frame in frames]

    def _merged_id(self, older: FrameTokens, newer: FrameTokens) -> int:
        """An id below 0 that only the plain average of these two contents has."""
        text = f"{self._next_content_id} {older.content_id} {newer.content_id}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return -1 - (int.from_bytes(digest, "big") >> 2)
