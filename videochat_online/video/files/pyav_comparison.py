"""PyAV's pictures of a file, with which those of another library are compared.

Owns which frames are compared and how. Decodes a bounded number of frames: what lies between is `frame_table`'s part.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from videochat_online.video.files.container import open_container, reason
from videochat_online.video.files.frame_table import FrameTable, refused
from videochat_online.video.files.pyav_reader import to_pixels
from videochat_online.video.reader import Pixels

MAX_DIFFERENCE = 4
"""Levels of 255 by which two conversions of one decoded frame may differ in a pixel (rounding; 0 or 1 were seen).

The largest difference counts, not the mean: two frames of a video that differ by no more than this in any pixel show
the same, while a clock's digit that changes in a still picture is far above it.
"""

MAX_PIXELS = 16_000_000
"""Compared when a file is opened: 17 frames of 720p."""

MIN_FRAMES, MAX_FRAMES = 16, 512
"""Frames compared at least, where there are so many, and at most."""

MAX_GROUPS = 8
"""Key frames around which a long file is looked at: the first, the last, and some spread between them."""


class Witness:
    """A file opened with PyAV, for pictures at given positions."""

    def __init__(self, path: Path, table: FrameTable, source: str) -> None:
        """`source` is the file's name in errors."""
        self._container, self._stream = open_container(path)
        self._stream.codec_context.thread_count = 1
        self._reformatter = VideoReformatter()
        self._table, self._source = table, source

    def pictures(self, positions: Sequence[int]) -> list[Pixels]:
        """PyAV's frames at ascending positions within one group of pictures.

        Raises:
            VideoError: they do not decode, or a seek to the key frame before them does not find it.
        """
        ticks = self._table.ticks
        key = self._table.keys[bisect_right(self._table.keys, positions[0]) - 1]
        wanted = {ticks[position] for position in positions}
        found: dict[int, Pixels] = {}
        try:
            self._container.seek(ticks[key], backward=True, stream=self._stream)
            for frame in self._container.decode(self._stream):
                if frame.pts in wanted:
                    if frame.is_corrupt:  # what it shows depends on where decoding began
                        raise refused(self._source, "a file that is whole", "a damaged frame")
                    found[frame.pts] = to_pixels(frame, self._reformatter)
                if frame.pts is None or frame.pts >= ticks[positions[-1]]:
                    break
        except av.error.FFmpegError as error:
            raise refused(self._source, "a file that is whole", f"a failure ({reason(error)})") from error
        for position in positions:
            if ticks[position] not in found:
                raise refused(self._source, f"a frame at {self._table.times_s[position]:.3f} s", "none that decodes")
        return [found[ticks[position]] for position in positions]

    def close(self) -> None:
        """Close the file."""
        self._container.close()


def sampled_groups(table: FrameTable, width: int, height: int) -> list[range]:
    """Positions to compare, in runs that each begin with a key frame, in the order of a fixed shuffle.

    A small file is compared whole: every frame of a picture of `width` x `height`, as long as `MAX_PIXELS` allows.
    """
    groups = [range(first, last) for first, last in pairwise((*table.keys, len(table.ticks)))]
    num_frames = min(max(MAX_PIXELS // (width * height), MIN_FRAMES), MAX_FRAMES)
    if len(table.ticks) > num_frames:
        count = min(MAX_GROUPS, len(groups))
        spread = {round(i * (len(groups) - 1) / max(1, count - 1)) for i in range(count)}
        groups = [groups[i][: num_frames // count] for i in sorted(spread)]
    random.Random(0).shuffle(groups)
    return groups


def largest_difference(picture_HWC: Pixels, other_HWC: Pixels) -> int:
    """Levels by which two pictures differ where they differ most; 255 where their sizes differ."""
    if picture_HWC.shape != other_HWC.shape:
        return 255
    return int(np.abs(picture_HWC.astype(np.int16) - other_HWC).max())
