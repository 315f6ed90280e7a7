"""Frames that are already in memory, or arrive one by one: arrays, tensors, webcam-like iterators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from videochat_online.errors import VideoError
from videochat_online.video.reader import (
    DecodeReport,
    FrameReader,
    LazyFrame,
    LoadedFrame,
    Pixels,
    RegularReader,
    VideoInfo,
)


class ArrayReader(RegularReader):
    """Reader of uint8 [T,H,W,3] (numpy or torch) or [T,3,H,W] (torch); frame i starts at i / fps."""

    def __init__(self, frames: np.ndarray[Any, Any] | torch.Tensor, fps: float) -> None:
        """VideoError for another shape or type, or without any frame."""
        self._pixels_THWC = _channels_last(frames)
        num_frames, height, width, _ = self._pixels_THWC.shape
        super().__init__(f"array of {num_frames} frames", "array", num_frames, fps, (height, width))

    def _load(self, i: int) -> LoadedFrame:
        return LoadedFrame(i / self._fps, self._pixels_THWC[i])

    def finish(self, max_decode_s: float) -> None:
        """Count all frames as read: nothing in memory can turn out to be broken."""
        self._num_passed = self._num_frames

    def report(self) -> DecodeReport:
        """Frames that passes have reached."""
        return DecodeReport(num_decoded=self._num_passed)


class IteratorReader(FrameReader):
    """Reader of frames as they arrive: uint8 [H,W,3], or (time_s, frame) pairs; may never end.

    Without times frame i starts at i / fps. At most one frame ahead is taken from the iterator, and copied:
    a camera may fill the same buffer again. It can be read once, its rest is not waited for, and closing it is the
    caller's part.
    """

    def __init__(self, frames: Iterable[Any], fps: float) -> None:
        """Wait for the first frame; VideoError if there is none."""
        self._items = iter(frames)
        self._fps = fps
        self._num_read = 0
        self._last_s: float | None = None
        self._is_taken = False
        self._first = self._next()
        if self._first is None:
            raise VideoError("stream of frames: expected at least one frame, found none")
        height, width, _ = self._first.pixels_HWC.shape
        self.info = VideoInfo(
            source="stream of frames",
            kind="stream",
            average_fps=None if self._has_times else fps,
            width=width,
            height=height,
            start_s=self._first.time_s,
        )

    def frames(self, start_s: float | None = None) -> Iterator[LazyFrame]:
        """All frames; VideoError for a second pass, a bad frame, or a time before the previous one's."""
        if self._is_taken:
            raise VideoError("stream of frames: expected one pass, got a second: its frames are gone")
        self._is_taken = True
        frame, self._first = self._first, None
        while frame is not None:
            yield LazyFrame(frame.time_s, frame.time_s + 1 / self._fps, lambda frame=frame: frame)  # type: ignore[misc]
            frame = self._next()

    def times_s(self) -> tuple[float, ...]:
        """Unknown in advance: always a VideoError."""
        raise VideoError("stream of frames: expected a source whose frame times are known, got a live one")

    def report(self) -> DecodeReport:
        """Frames that have arrived."""
        return DecodeReport(num_decoded=self._num_read)

    def _next(self) -> LoadedFrame | None:
        try:
            item = next(self._items)
        except StopIteration:
            return None
        i = self._num_read
        self._has_times = isinstance(item, tuple)
        if self._has_times and len(item) != 2:
            raise VideoError(f"stream of frames: expected (time, frame) pairs, got {len(item)} items at frame {i}")
        time_s, pixels_HWC = item if self._has_times else (i / self._fps, item)
        if self._last_s is not None and not float(time_s) >= self._last_s:
            raise VideoError(
                f"stream of frames: expected times that never go back, got {time_s} s after {self._last_s} s"
            )
        self._last_s = float(time_s)
        self._num_read += 1
        return LoadedFrame(self._last_s, _check_frame(pixels_HWC, i))


def _channels_last(frames: np.ndarray[Any, Any] | torch.Tensor) -> Pixels:
    """View as uint8 [T,H,W,3]."""
    shape = tuple(frames.shape)
    is_tensor = isinstance(frames, torch.Tensor)
    expected = "uint8 [T,H,W,3] or [T,3,H,W]" if is_tensor else "uint8 [T,H,W,3]"
    has_last = len(shape) == 4 and shape[3] == 3
    has_first = is_tensor and len(shape) == 4 and shape[1] == 3
    if has_last and has_first:
        raise VideoError(f"array of frames: expected {expected}, got {list(shape)}, which can be read as either")
    if not (has_last or has_first) or 0 in shape or frames.dtype not in (torch.uint8, np.dtype(np.uint8)):
        raise VideoError(f"array of frames: expected {expected}, got {frames.dtype} {list(shape)}")
    if isinstance(frames, torch.Tensor):
        frames = (frames.permute(0, 2, 3, 1) if has_first else frames).detach().cpu().numpy()
    return np.asarray(frames)


def _check_frame(frame: Any, i: int) -> Pixels:
    pixels_HWC: np.ndarray[Any, Any] = np.array(frame)
    if pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3 or pixels_HWC.dtype != np.uint8 or 0 in pixels_HWC.shape:
        raise VideoError(
            f"stream of frames: expected uint8 [H,W,3], got {pixels_HWC.dtype} {list(pixels_HWC.shape)} at frame {i}"
        )
    return pixels_HWC
