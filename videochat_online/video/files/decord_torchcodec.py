"""Fast paths by name: decord and torchcodec, which fetch single frames by number.

Times, rotation and declared numbers come from PyAV; these libraries only deliver pixels. They are trusted where a file
is of a kind on which they cannot be wrong (`frame_table`), and where their pictures are PyAV's: of a sample when a file
is opened, and of each key frame before the first frame that is counted from it. Every other file is refused.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from videochat_online.errors import VideoError
from videochat_online.video.files.frame_table import FrameTable, read_frame_table, refused
from videochat_online.video.files.pyav_comparison import MAX_DIFFERENCE, Witness, largest_difference, sampled_groups
from videochat_online.video.files.pyav_reader import PyavReader
from videochat_online.video.reader import DecodeReport, FrameReader, LazyFrame, LoadedFrame, Pixels

WHOLE_PICTURE_CODECS = frozenset({"h264", "hevc", "mjpeg", "prores"})
"""Codecs that give one frame for each packet, and change the size of their pictures at key frames only."""

TIMED_CODECS = WHOLE_PICTURE_CODECS | {"av1", "vp9"}
"""Codecs for a library that tells the time of each frame and keeps its size."""

MAX_TIME_DIFFERENCE_S = 1e-3
"""Largest difference of two libraries' times of one frame, in seconds: decord has 24 bits for them."""


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """A file as one of the libraries sees it: number of frames, frame i, and what it raises."""

    num_frames: int
    fetch: Callable[[int], Pixels]
    errors: tuple[type[Exception], ...]


class IndexedReader(FrameReader):
    """A video file whose frame i is fetched by number; the order of numbers is that of the times.

    Nothing is looked at that is not asked for: `finish` goes nowhere.
    """

    def __init__(
        self, path: Path, backend: str, codecs: frozenset[str], open_file: Callable[[Path, str, FrameTable], _OpenFile]
    ) -> None:
        """VideoError where the file cannot be read, or the backend may be wrong about it."""
        source = self._source = f"{path} with backend {backend!r}"
        facts = PyavReader(path)
        self.info, warning = facts.info, facts.report().warning
        facts.close()
        if warning is not None:
            raise refused(source, "a file that is whole, with one clock", warning)
        self._table = read_frame_table(path, source, self.info, codecs)
        opened = open_file(path, source, self._table)
        num_frames = len(self._table.ticks)
        if opened.num_frames != num_frames:
            raise refused(source, f"{num_frames} frames as in the file", f"{opened.num_frames} by this backend")
        self._fetch, self._errors = opened.fetch, opened.errors
        self._num_decoded = 0
        self._confirmed: set[int] = set()
        self._witness = Witness(path, self._table, source)
        try:
            for group in sampled_groups(self._table, self.info.width, self.info.height):
                self._confirm(group)
        except VideoError:
            self.close()
            raise

    def frames(self, start_s: float | None = None) -> Iterator[LazyFrame]:
        """All frames; only sampled ones are fetched."""
        times_s = self._table.times_s
        ends_s = (*times_s[1:], self._table.end_s)
        for i, (time_s, end_s) in enumerate(zip(times_s, ends_s, strict=True)):
            yield LazyFrame(time_s, end_s, lambda i=i: self._load(i))  # type: ignore[misc]

    def times_s(self) -> tuple[float, ...]:
        """Start of each frame."""
        return self._table.times_s

    def report(self) -> DecodeReport:
        """Frames fetched; what these libraries skip or repair is not known."""
        return DecodeReport(num_decoded=self._num_decoded)

    def close(self) -> None:
        """Let go of the decoders."""
        self._fetch = _closed
        self._witness.close()

    def _load(self, i: int) -> LoadedFrame:
        key = self._table.keys[bisect_right(self._table.keys, i) - 1]
        pixels_HWC = None
        if key not in self._confirmed:
            pixels_HWC = self._confirm(range(key, key + 1))
        if pixels_HWC is None or i != key:
            pixels_HWC = self._decode(i)
        self._num_decoded += 1
        return LoadedFrame(self._table.times_s[i], pixels_HWC)

    def _confirm(self, group: range) -> Pixels:
        """Compare frames from a key frame on with PyAV's; the last of them."""
        expected = self._witness.pictures(group)
        # As readers ask: a jump that leaves frames out, one back, and on from frame to frame.
        order = [*group] if len(group) == 1 else [group[-1], *group]
        for i in order:
            pixels_HWC = self._decode(i)
            difference = largest_difference(pixels_HWC, expected[i - group[0]])
            if difference > MAX_DIFFERENCE:
                raise refused(
                    self._source,
                    f"PyAV's picture at {self._table.times_s[i]:.3f} s",
                    f"another one ({difference} levels of 255 apart)",
                )
        self._confirmed.add(group[0])
        return pixels_HWC

    def _decode(self, i: int) -> Pixels:
        try:
            return self._fetch(i)
        except self._errors as error:
            failure = refused(self._source, f"frame {i} to decode", _cause(error))

            def fail_again(i: int) -> Pixels:
                raise failure

            # Where such a library stands after a failure is not known: nothing more is asked of it.
            self._fetch = fail_again
            raise failure from error


def open_decord(path: Path) -> IndexedReader:
    """decord: turns rotated videos itself; fails on files without a length."""
    return IndexedReader(path, "decord", WHOLE_PICTURE_CODECS, _open_decord)


def open_torchcodec(path: Path) -> IndexedReader:
    """torchcodec: its versions differ on turning rotated videos, which the comparison tells."""
    return IndexedReader(path, "torchcodec", TIMED_CODECS, _open_torchcodec)


def _open_decord(path: Path, source: str, table: FrameTable) -> _OpenFile:
    decord = _import("decord", path)
    errors = (decord.DECORDError, RuntimeError, IndexError)
    if table.seek_problem is not None:
        raise refused(source, "key frames from which frames can be counted", table.seek_problem)
    try:
        # Else it would give the frame before for one at the end that does not decode. 0 would mean: any number.
        reader = decord.VideoReader(str(path), num_threads=1, fault_tol="0.000001")
        starts_s = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        keys = reader.get_key_indices()
    except errors as error:
        raise refused(source, "a video", _cause(error)) from error
    if len(starts_s) == len(table.ticks):
        since_first_s = np.subtract(table.times_s, table.times_s[0])
        if not np.allclose(starts_s - starts_s[0], since_first_s, rtol=1e-6, atol=MAX_TIME_DIFFERENCE_S):
            raise refused(source, "the times that PyAV finds", "others")
        if tuple(keys) != table.keys:
            raise refused(source, f"the {len(table.keys)} key frames that PyAV finds", "others")
    return _OpenFile(len(reader), lambda i: np.asarray(reader[i].asnumpy(), dtype=np.uint8), errors)


def _open_torchcodec(path: Path, source: str, table: FrameTable) -> _OpenFile:
    decoders = _import("torchcodec.decoders", path)
    errors = (RuntimeError, ValueError, IndexError)
    try:
        decoder = decoders.VideoDecoder(str(path), dimension_order="NHWC", seek_mode="exact")
    except errors as error:
        raise refused(source, "a video", _cause(error)) from error

    def fetch(i: int) -> Pixels:
        frame = decoder.get_frame_at(i)
        if abs(frame.pts_seconds - table.times_s[i]) > MAX_TIME_DIFFERENCE_S:
            raise ValueError(f"the frame of {frame.pts_seconds:.3f} s for that of {table.times_s[i]:.3f} s")
        return np.asarray(frame.data.numpy(), dtype=np.uint8)

    return _OpenFile(len(decoder), fetch, errors)


def _cause(error: Exception) -> str:
    """First line of a library's error, without the time and the line of its source code that decord puts before it."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    return re.sub(r"\[[\d:]+\] \S+: (Check failed: )?", "", line)


def _import(module: str, path: Path) -> Any:
    """An optional library; VideoError where it is missing or cannot load its own parts."""
    try:
        return import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        name = module.partition(".")[0]
        cause = str(error).splitlines()[0]
        raise VideoError(
            f"{path}: expected backend {name!r} to be installed, found it unusable ({cause}); use backend 'pyav'"
        ) from error


def _closed(i: int) -> Pixels:
    raise VideoError(f"expected an open video, but it was closed before frame {i} was read")
