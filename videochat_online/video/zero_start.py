"""A source whose times count from its first frame, whatever its own clock says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from videochat_online.video.reader import DecodeReport, FrameReader, LazyFrame, LoadedFrame


class ZeroStartReader(FrameReader):
    """Another reader's frames, all times shifted so that its first frame starts at 0.

    A first frame that does not decode is the first one nevertheless: players count from there.
    """

    def __init__(self, reader: FrameReader) -> None:
        self._reader = reader
        info = reader.info
        self._shift_s = info.start_s if info.clock_start_s is None else info.clock_start_s
        self.info = replace(info, start_s=info.start_s - self._shift_s, clock_start_s=None)

    def frames(self, start_s: float | None = None) -> Iterator[LazyFrame]:
        """Begin a pass."""
        for frame in self._reader.frames(None if start_s is None else start_s + self._shift_s):
            yield LazyFrame(frame.time_s - self._shift_s, frame.end_s - self._shift_s, partial(self._load, frame))

    def skip(self, time_s: float) -> None:
        """A hint for the pass."""
        self._reader.skip(time_s + self._shift_s)

    def times_s(self) -> tuple[float, ...]:
        """Start of each frame."""
        return tuple(time_s - self._shift_s for time_s in self._reader.times_s())

    def finish(self, max_decode_s: float) -> None:
        """Go through what the pass has not reached."""
        self._reader.finish(max_decode_s)

    def report(self) -> DecodeReport:
        """The account, its ends on the shifted clock; what it says in words is in the file's own times."""
        report = self._reader.report()
        if report.ends_at_s is None or report.declared_end_s is None:
            return report
        ends_at_s, declared_end_s = (end_s - self._shift_s for end_s in (report.ends_at_s, report.declared_end_s))
        return replace(report, ends_at_s=ends_at_s, declared_end_s=declared_end_s)

    def close(self) -> None:
        """Release files and decoders."""
        self._reader.close()

    def _load(self, frame: LazyFrame) -> LoadedFrame | None:
        loaded = frame.load()
        return None if loaded is None else LoadedFrame(loaded.time_s - self._shift_s, loaded.pixels_HWC)
