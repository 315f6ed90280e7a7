"""What a container promises about its length, as far as such promises can be kept.

Owns which formats write their length down and from where they count. Decodes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from videochat_online.video.files.timestamps import WRAPPING_FORMATS, frame_rate

MP4_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2"})

INDEXED_FORMATS = MP4_FORMATS | {"matroska,webm"}
"""Containers with an index of keyframes and true times after a seek."""

DECLARING_FORMATS = INDEXED_FORMATS | {"avi", "flv", "asf"}
"""Containers that write their length down; for others FFmpeg estimates it."""

FROM_ZERO_FORMATS = frozenset({"matroska,webm", "asf"})
"""Containers whose declared length counts from time 0, wherever the first frame starts."""

MIN_LATE_S = 0.5
"""Encoders that hold frames back leave an empty slot or two at the beginning of an AVI, which are no late start."""

MAX_DECLARED_S = 1e6
"""A declared end beyond this (11 days) is a number that a live stream begins with."""

MAX_ODDS = 2.0
"""A declared number of frames that differs from length x rate by more than this factor is no promise either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredLength:
    """What a container promises; None where it promises nothing that can be kept.

    Attributes:
        num_frames: frames in the video stream.
        duration_s: seconds from the first frame to the end.
        end_s: end in the file's own time; None also where it is FFmpeg's estimate.
    """

    num_frames: int | None = None
    duration_s: float | None = None
    end_s: float | None = None

    def without_start(self, start_s: float, fps: float | None) -> DeclaredLength:
        """The same without the empty slots before a first frame that starts late: AVI counts from time 0."""
        if start_s < MIN_LATE_S or not (self.num_frames and self.duration_s and fps):
            return self
        num_frames, duration_s = self.num_frames - round(start_s * fps), self.duration_s - start_s
        return replace(self, num_frames=max(1, num_frames), duration_s=max(0.0, duration_s))


def declared_length(container: InputContainer, stream: VideoStream, num_bytes: int) -> DeclaredLength:
    """Number of frames, length and end as a container of so many bytes declares them.

    What was written to a pipe may have placeholders. More frames than bytes: nothing else in the header is known
    either. A number that has nothing to do with length and rate is none by itself.
    """
    name, rate = container.format.name, frame_rate(stream)
    if stream.frames > num_bytes:
        return DeclaredLength()
    # FFmpeg's estimate from the last packet, which a clock that jumps leads astray.
    is_known = container.duration is not None and name not in WRAPPING_FORMATS
    duration_s = (container.duration or 0) / av.time_base if is_known else None
    start_s = (container.start_time or 0) / av.time_base
    end_s = None
    if duration_s and name in DECLARING_FORMATS:
        end_s = duration_s if name in FROM_ZERO_FORMATS else start_s + duration_s
    if name in FROM_ZERO_FORMATS and end_s is not None:
        duration_s = end_s - start_s
    elif stream.duration and stream.time_base and is_known:
        duration_s = float(stream.duration * stream.time_base)
    if duration_s is not None and not 0 < duration_s <= MAX_DECLARED_S:
        duration_s = end_s = None
    num_frames = stream.frames or None
    if num_frames and duration_s and rate:
        odds = (num_frames + 1) / (duration_s * float(rate) + 1)
        num_frames = num_frames if 1 / MAX_ODDS <= odds <= MAX_ODDS else None
    return DeclaredLength(num_frames=num_frames, duration_s=duration_s, end_s=end_s)


def is_cut_mp4(path: Path, *, is_fragmented: bool) -> bool:
    """Whether a fragmented MP4 or MOV ends inside a box, or before a fragment's frames: nothing else tells of it.

    Args:
        path: the file.
        is_fragmented: it is known to be; else it is if a fragment is met.
    """
    num_bytes, position, name = path.stat().st_size, 0, b""
    with path.open("rb") as file:
        while num_bytes - position >= 8:
            file.seek(position)
            head = file.read(16)
            length, name = int.from_bytes(head[:4], "big"), head[4:8]
            is_fragmented = is_fragmented or name == b"moof"
            if length == 1:  # the length stands behind the name
                length = int.from_bytes(head[8:], "big")
            if length < 8:  # up to the end, or no box
                return False
            position += length
    return is_fragmented and (position != num_bytes or name == b"moof")
