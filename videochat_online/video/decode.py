"""One way to read any video: frames at asked times, with their true times, in bounded chunks.

A video is a file (mp4, mkv, webm, avi, mov, gif ...), a folder of frames, an ordered list of image files, an
array or tensor, or an iterator of frames such as a webcam. Times are the source's own, in seconds: the presentation
times of a file, i / fps for frames that have none, shifted only where `zero_start` asks for it. A bare time asks for
the last frame that starts at or before it.

Owns what can be asked of a video. The formats live in `files/`, `still_images`, `animation`
and `arrays`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from videochat_online.errors import InputError, VideoError
from videochat_online.types import FrameChunk
from videochat_online.video.ahead import read_ahead
from videochat_online.video.animation import AnimationReader, is_animation
from videochat_online.video.arrays import ArrayReader, IteratorReader
from videochat_online.video.files.decord_torchcodec import open_decord, open_torchcodec
from videochat_online.video.files.pyav_reader import PyavReader
from videochat_online.video.frames_at_times import (
    frames_at_rate,
    frames_at_times,
    frames_between,
    group_frames,
    regular_times,
)
from videochat_online.video.reader import DEFAULT_FRAME_RATE, DecodeReport, FrameReader, VideoInfo
from videochat_online.video.sampling_rules import TIME_TOLERANCE_S, check_rate
from videochat_online.video.still_images import IMAGE_EXTENSIONS, ImageSequenceReader, is_url, list_frame_files
from videochat_online.video.zero_start import ZeroStartReader

Source: TypeAlias = "str | os.PathLike[str] | np.ndarray[Any, Any] | torch.Tensor | Iterable[Any]"
"""Path of a file or folder; ordered paths of images; uint8 [T,H,W,3] (a tensor also [T,3,H,W]); frames uint8
[H,W,3] or (time_s, frame) pairs, one after another."""

BACKENDS: dict[str, Callable[[Path], FrameReader]] = {
    "pyav": PyavReader,
    "decord": open_decord,
    "torchcodec": open_torchcodec,
}


MAX_GRID_FPS = 10_000.0
"""A rate above any video's: every frame is shown, rather than a grid walked through in vain."""


class VideoSource:
    """An opened video. Use as a context manager, or call `close`.

    Frames are decoded as they are read, never ahead (see `read_ahead`). A source can be read again from the start,
    except an iterator of frames; one pass at a time.
    """

    def __init__(self, reader: FrameReader) -> None:
        self._reader = reader

    @property
    def info(self) -> VideoInfo:
        """Facts about the video."""
        return self._reader.info

    @property
    def report(self) -> DecodeReport:
        """What could be read so far; `report.problem` is None or one line about what is missing or broken."""
        return self._reader.report()

    def read(
        self,
        *,
        fps: float | None = None,
        times_s: Sequence[float] | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
        chunk: int = 8,
        may_begin_late: bool = False,
    ) -> Iterator[FrameChunk]:
        """Frames in time order, at most `chunk` at a time.

        Args:
            fps: ask for the times start + i / fps, where start is `start_s` or the first frame's time, while
                the video lasts. A frame comes once and with its own start, which may lie before the asked time
                (and before `start_s`): a video with fewer frames than asked gives each frame it has.
            times_s: ask for these times (ascending): exactly one frame for each, a frame again where it is
                still shown; after the last frame's end, the last frame.
            start_s: frames (asked times) from here on.
            end_s: frames (asked times) up to and including here. Nothing later is handed out, and decoding
                stops with the frame that proves to be later.
            chunk: most frames per chunk; one chunk is held at a time.
            may_begin_late: whether those of `times_s` before the first readable frame give no frame, not an error.

        With neither `fps` nor `times_s`: every frame that starts within [start_s, end_s].

        Raises:
            InputError: `fps` and `times_s` together, times that are not ascending, not finite, negative (but
                where the video begins before 0) or outside [start_s, end_s], `fps` or `chunk` not above 0.
            VideoError: while reading, a time before the first readable frame, or a pass overtaken by another.
        """
        if chunk < 1:
            raise InputError(f"chunk: expected at least 1 frame, got {chunk}")
        _check_range(start_s, end_s)
        reader, info = self._reader, self.info
        if times_s is not None and fps is not None:
            raise InputError("expected fps or times_s, got both")
        if times_s is not None:
            # A clock may begin below 0.
            first_s = max(min(0.0, info.start_s), -math.inf if start_s is None else start_s)
            asked_s = _check_times(times_s, first_s, end_s)
            frames = reader.frames(asked_s[0] if asked_s else None)
            found = frames_at_times(frames, asked_s, reader.skip, info, may_begin_late=may_begin_late)
            return group_frames(found, chunk)
        frames = reader.frames(start_s)
        if fps is not None:
            check_rate("fps", fps)
        if fps is None or fps > MAX_GRID_FPS:
            return group_frames(frames_between(frames, start_s, end_s), chunk)
        first_s = info.start_s if start_s is None else start_s
        return group_frames(frames_at_rate(frames, regular_times(first_s, fps, end_s), reader.skip), chunk)

    def frame_times_s(self) -> tuple[float, ...]:
        """Start of every frame, found without decoding (a file is read through once).

        Raises:
            VideoError: a stream, or a file whose packets carry no times.
        """
        return self._reader.times_s()

    def finish(self, max_decode_s: float = 120.0) -> None:
        """Go through what was not read, so that `report` tells of a file that breaks off or is broken later.

        Decodes at most `max_decode_s` seconds of video; of a longer rest only the frames are counted. Streams
        are not waited for, and the fast paths do not look.
        """
        self._reader.finish(max_decode_s)

    def close(self) -> None:
        """Release the file."""
        self._reader.close()

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_video(
    source: Source, *, fps: float | None = None, backend: str = "auto", zero_start: bool = False
) -> VideoSource:
    """Open a video of any kind and decode its first frame.

    Args:
        source: see `Source`. A file may be a single image. A folder is read in natural order (img2 before
            img10), hidden and other files left out; a list of paths in the given order.
        fps: frame rate of a source without times of its own: folder, list of images, array, bare frames.
            Frame i starts at i / fps. Default 1 frame per second; ignored where frames have times.
        backend: decoder of files, a name in `BACKENDS`; "auto" is PyAV.
        zero_start: times count from the first frame, whatever the file's clock says: recordings cut out of a longer
            one, and MPEG-TS, seldom begin at 0.

    Raises:
        InputError: an unknown backend, `fps` not above 0, a source of another type.
        VideoError: no source, or one that is unreadable, without a picture, or refused by the backend.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise InputError(f"backend: expected one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    rate = DEFAULT_FRAME_RATE if fps is None else float(fps)
    check_rate("fps", rate)
    reader = _open(source, rate, backend)
    return VideoSource(ZeroStartReader(reader) if zero_start else reader)


def _open(source: Source, rate: float, backend: str) -> FrameReader:
    if isinstance(source, (str, os.PathLike)):
        return _open_path(source, rate, backend)
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return ArrayReader(source, rate)
    if isinstance(source, Sequence) and source and all(isinstance(item, (str, os.PathLike)) for item in source):
        files = [Path(item) for item in source]
        return ImageSequenceReader(files, rate, f"list of {len(files)} images")
    if isinstance(source, Iterable):
        return IteratorReader(source, rate)
    raise InputError(f"video: expected a path, images, an array or an iterator, got {type(source).__name__}")


def read_video(
    source: Source,
    *,
    fps: float | None = None,
    times_s: Sequence[float] | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    chunk: int = 8,
    source_fps: float | None = None,
    backend: str = "auto",
    zero_start: bool = False,
    ahead: int = 0,
) -> Iterator[FrameChunk]:
    """Open a video, read it, close it: `for frames in vco.read_video("match.mp4", fps=2)`.

    `source_fps` is `open_video`'s `fps` (the rate of a folder or array), `zero_start` its own. Up to `ahead` chunks are
    decoded in a thread before they are asked for; it ends with the iterator. The rest as in `VideoSource.read`.
    Opens and checks at once; a file that is damaged further on raises nothing here (see `open_video` and
    `report`).
    """
    video = open_video(source, fps=source_fps, backend=backend, zero_start=zero_start)
    try:
        chunks = video.read(fps=fps, times_s=times_s, start_s=start_s, end_s=end_s, chunk=chunk)
        chunks = read_ahead(chunks, ahead)
    except InputError:
        video.close()
        raise
    return _read_and_close(video, chunks)


def _read_and_close(video: VideoSource, chunks: Iterator[FrameChunk]) -> Iterator[FrameChunk]:
    with video:
        yield from chunks  # closed before the video is: a thread must not meet a closed file


def _open_path(source: str | os.PathLike[str], rate: float, backend: str) -> FrameReader:
    path = Path(source)
    if len(os.fsencode(path.name)) > 255:
        raise VideoError(f"{path}: expected a video file or a folder of frames, found a name too long to be one")
    if path.is_dir():
        return ImageSequenceReader(list_frame_files(path), rate, str(path))
    if not path.exists():
        found = "a URL, which is not read here: download it first" if is_url(source) else "no such file"
        raise VideoError(f"{os.fspath(source)}: expected a video file or a folder of frames, found {found}")
    if path.suffix.lower() in IMAGE_EXTENSIONS:
        return AnimationReader(path, rate) if is_animation(path) else ImageSequenceReader([path], rate, str(path))
    return BACKENDS["pyav" if backend == "auto" else backend](path)


def _check_range(start_s: float | None, end_s: float | None) -> None:
    if start_s is not None and not math.isfinite(start_s):
        raise InputError(f"start_s: expected a finite time, got {start_s}")
    if end_s is not None and math.isnan(end_s):
        raise InputError("end_s: expected a time, got nan")
    if start_s is not None and end_s is not None and start_s > end_s:
        raise InputError(f"expected start_s <= end_s, got {start_s} and {end_s}")


def _check_times(times_s: Sequence[float], first_s: float, end_s: float | None) -> tuple[float, ...]:
    """The asked times as floats; InputError names the first bad one."""
    checked = tuple(float(time_s) for time_s in times_s)
    last_s = math.inf if end_s is None else end_s
    for i, time_s in enumerate(checked):
        if not math.isfinite(time_s) or not first_s - TIME_TOLERANCE_S <= time_s <= last_s + TIME_TOLERANCE_S:
            raise InputError(f"times_s[{i}]: expected a time within [{first_s:g}, {last_s:g}] s, got {time_s}")
        if i and time_s < checked[i - 1]:
            raise InputError(f"times_s[{i}]: expected ascending times, got {time_s} after {checked[i - 1]}")
    return checked
