"""Fast paths by name: decord and torchcodec, which fetch single frames by index.

Times, rotation and declared numbers come from PyAV; these libraries only deliver pixels. A file on which a
library is known to be wrong is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from videochat_online.errors import VideoError
from videochat_online.video.pyav_reader import PyavReader
from videochat_online.video.reader import DecodeReport, LazyFrame, LoadedFrame, Pixels, VideoInfo


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """A file as one of the libraries sees it: number of frames, frame i, and what it raises."""

    num_frames: int
    fetch: Callable[[int], Pixels]
    errors: tuple[type[Exception], ...]


class IndexedReader:
    """A video file whose frame i is fetched by number; the order of numbers is that of the times."""

    def __init__(self, path: Path, backend: str, open_file: Callable[[Path, VideoInfo], _OpenFile]) -> None:
        """VideoError where the file cannot be read, or the backend is wrong about it."""
        self._source = f"{path} with backend {backend!r}"
        facts = PyavReader(path)
        try:
            self._info = facts.info
            self._times_s, self._end_s = facts.starts_and_end_s()
            if self._info.start_s < 0 or facts.has_edit_list():
                raise VideoError(
                    f"{self._source}: expected a file without an edit list, found one (cut without re-encoding): "
                    f"this backend would return other frames than asked for; use backend 'pyav'"
                )
        finally:
            facts.close()
        opened = open_file(path, self._info)
        if opened.num_frames != len(self._times_s):
            raise VideoError(
                f"{self._source}: expected {len(self._times_s)} frames as in the file, "
                f"the backend finds {opened.num_frames}; use backend 'pyav'"
            )
        self._fetch, self._errors = opened.fetch, opened.errors
        self._num_decoded = 0

    @property
    def info(self) -> VideoInfo:
        """Facts about the source."""
        return self._info

    def frames(self, start_s: float | None = None) -> Iterator[LazyFrame]:
        """All frames; only sampled ones are fetched."""
        ends_s = (*self._times_s[1:], self._end_s)
        for i, (time_s, end_s) in enumerate(zip(self._times_s, ends_s, strict=True)):
            yield LazyFrame(time_s, end_s, lambda i=i: self._load(i))  # type: ignore[misc]

    def skip(self, time_s: float) -> None:
        """Frames that are not sampled cost nothing here."""

    def times_s(self) -> tuple[float, ...]:
        """Start of each frame."""
        return self._times_s

    def finish(self, max_decode_s: float) -> None:
        """The fast paths look at nothing that is not asked for."""

    def report(self) -> DecodeReport:
        """Frames fetched; what these libraries skip or repair is not known."""
        return DecodeReport(num_decoded=self._num_decoded)

    def close(self) -> None:
        """Let go of the decoder."""
        self._fetch = _closed

    def _load(self, i: int) -> LoadedFrame:
        try:
            pixels_HWC = self._fetch(i)
        except self._errors as error:
            cause = (str(error) or type(error).__name__).splitlines()[0]
            raise VideoError(
                f"{self._source}: expected frame {i} to decode, found {cause}; use backend 'pyav'"
            ) from error
        self._num_decoded += 1
        return LoadedFrame(self._times_s[i], pixels_HWC)


def open_decord(path: Path) -> IndexedReader:
    """decord: turns rotated videos itself; wrong on edit lists, fails on files without a length."""
    return IndexedReader(path, "decord", _open_decord)


def open_torchcodec(path: Path) -> IndexedReader:
    """torchcodec: rotated videos are refused, because its versions differ on turning them."""
    return IndexedReader(path, "torchcodec", _open_torchcodec)


def _open_decord(path: Path, info: VideoInfo) -> _OpenFile:
    decord = _import("decord", path)
    errors = (decord.DECORDError, RuntimeError, IndexError)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
    except errors as error:
        cause = str(error).splitlines()[0]
        raise VideoError(f"{path} with backend 'decord': expected a video, found {cause}") from error
    return _OpenFile(len(reader), lambda i: np.asarray(reader[i].asnumpy(), dtype=np.uint8), errors)


def _open_torchcodec(path: Path, info: VideoInfo) -> _OpenFile:
    decoders = _import("torchcodec.decoders", path)
    errors = (RuntimeError, ValueError, IndexError)
    if info.rotation:
        raise VideoError(
            f"{path} with backend 'torchcodec': expected no rotation, found {info.rotation} degrees; use backend 'pyav'"
        )
    try:
        decoder = decoders.VideoDecoder(str(path), dimension_order="NHWC", seek_mode="exact")
    except errors as error:
        cause = str(error).splitlines()[0]
        raise VideoError(f"{path} with backend 'torchcodec': expected a video, found {cause}") from error
    return _OpenFile(len(decoder), lambda i: np.asarray(decoder.get_frame_at(i).data.numpy(), dtype=np.uint8), errors)


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
