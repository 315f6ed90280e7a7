"""Cuts of videos as files of their own, for models that can only be handed a whole file: writing and keeping them."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from videochat_online.errors import VideoError
from videochat_online.runs.files import PARTIAL, written_whole

TICKS = 90_000
"""A second in units of the file: rates such as 30000/1001 come out exact."""
NUM_HELD = 256
"""Clips in a folder of its own: more than any model asks for in one batch."""


class ClipStore:
    """Where clips lie. Threads may share one.

    Args:
        folder: holds every clip for the next run; without it, the newest in a folder that goes with this object.
        num_held: number of the newest clips that are held.
    """

    def __init__(self, folder: Path | None = None, *, num_held: int = NUM_HELD) -> None:
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="clips_")
        self.folder = folder or Path(self._temporary.name if self._temporary else "")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._num_held, self._lock = num_held, threading.Lock()

    def get(self, name: str, write: Callable[[Path], object]) -> Path:
        """Path of a clip; `write` is called with it where it is not there."""
        path = self.folder / name
        if not path.exists():
            write(path)
            if self._temporary is not None:
                self._drop_old()
        return path

    def _drop_old(self) -> None:
        with self._lock:
            clips = [path for path in self.folder.iterdir() if not path.name.endswith(PARTIAL)]
            for old in sorted(clips, key=lambda path: path.stat().st_mtime_ns)[: -self._num_held]:
                old.unlink()


def write_clip(path: Path, frames: Iterable[tuple[float, npt.NDArray[np.uint8]]], *, fps: float) -> int:
    """Write frames to an mp4 file (H.264, no loss that is seen); an odd last row or column is left out.

    The file appears when it is whole, so that several may write the same one at the same time.

    Args:
        path: file to be written.
        frames: start of each in seconds, ascending, and its pixels, RGB uint8 [H, W, 3], all of the first one's size.
        fps: their rate, as the file declares it.

    Returns:
        Number of frames.

    Raises:
        VideoError: no frames, or frames of several sizes.
    """
    num_frames, first_s, size = 0, 0.0, (0, 0)
    with written_whole(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "18", "preset": "veryfast"}
        )
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        for time_s, pixels_HWC in frames:
            height, width = (side - side % 2 for side in pixels_HWC.shape[:2])
            if num_frames == 0:
                first_s, size = time_s, (height, width)
                stream.height, stream.width = size
            elif size != (height, width):
                raise VideoError(f"{path.name}: expected frames of one size, found {size} and {(height, width)}")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HWC[:height, :width]), format="rgb24")
            frame.pts, frame.time_base = round((time_s - first_s) * TICKS), Fraction(1, TICKS)
            container.mux(stream.encode(frame))
            num_frames += 1
        if num_frames == 0:
            raise VideoError(f"{path.name}: expected frames to write, got none")
        container.mux(stream.encode(None))
    return num_frames
