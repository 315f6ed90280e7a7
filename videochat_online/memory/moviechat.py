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
from typing import cast

import torch

from videochat_online.errors import InputError
from videochat_online.memory.merging import MergingStore, merge_neighbours
from videochat_online.memory.schedule import (
    DEFAULT_FULL_GRID,
    Grid,
    check_count,
    check_grid,
    coarser_grid,
)
from videochat_online.memory.slots import FrameStore
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.types import FrameTokens

READINGS = ("global", "breakpoint")


class MovieChatMemoryBank(TieredMemoryBank):
    """A buffer of the newest frames, and a long memory of merged ones; all on one grid.

    When a frame comes and the buffer is full, the buffer's most similar neighbours (see `merge_neighbours`) merge
    until `merged_frames` are left; these join the long memory, whose neighbours merge until `long_frames` are left.

    A merged frame has its newest member's index and time. Its content id is negative and made of its members' ids
    and the number of resets: what is merged for a reading has the same id at each reading, and no reading changes
    the memory.

    Args:
        short_frames: frames of the buffer.
        long_frames: frames of the long memory.
        merged_frames: frames that a full buffer is merged to.
        reading: "global" reads the long memory as if the buffer were merged now, "breakpoint" both as they are.
        full_grid: rows and columns of tokens of a full-size frame; only the default of `grid` needs it.
        grid: token grid of each frame; default: a quarter of `full_grid` in each direction. Budget: its tokens times
            `long_frames`, in "breakpoint" times `long_frames + short_frames`.
        device: device that frames are kept on; None for that of the first frame.

    Raises:
        InputError: a count is no whole number of at least 1, an unknown reading, or a grid is none.
    """

    kind = "moviechat"

    def __init__(
        self,
        *,
        short_frames: int = 18,
        long_frames: int = 256,
        merged_frames: int = 2,
        reading: str = "global",
        full_grid: Grid = DEFAULT_FULL_GRID,
        grid: Grid | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._num_short = check_count(short_frames, f"short_frames of a {self.kind} memory", 1)
        self._num_long = check_count(long_frames, f"long_frames of a {self.kind} memory", 1)
        self._num_merged = check_count(merged_frames, f"merged_frames of a {self.kind} memory", 1)
        if reading not in READINGS:
            raise InputError(f"unknown reading {reading!r} of a {self.kind} memory: expected one of {list(READINGS)}")
        self._reads_short = reading == "breakpoint"
        self._grid = coarser_grid(full_grid, 4) if grid is None else check_grid(grid, "grid")
        super().__init__(
            options={
                "short_frames": self._num_short,
                "long_frames": self._num_long,
                "merged_frames": self._num_merged,
                "reading": reading,
                "grid": self._grid,
            },
            device=device,
        )

    @property
    def max_tokens(self) -> int:
        """Hard budget of visual tokens, by the way of reading."""
        num_frames = self._num_long + (self._num_short if self._reads_short else 0)
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
        return [FrameStore(self._num_short, self._grid), MergingStore(self._num_long, self._grid)]

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
        short = merge_neighbours(self.stores[0].frames(), self._num_merged, self._merged_id)
        # A merged frame has its newest member's index, and so its newest member's clip.
        clips = {frame.index: number for frame, number in long} | {frame.index: clip for frame in short}
        frames = merge_neighbours([frame for frame, _ in long] + short, self._num_long, self._merged_id)
        return [(frame, clips[frame.index]) for frame in frames]

    def _merged_id(self, older: FrameTokens, newer: FrameTokens) -> int:
        """An id below 0 that only the plain average of these two contents has."""
        text = f"{self._next_content_id} {older.content_id} {newer.content_id}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return -1 - (int.from_bytes(digest, "big") >> 2)
