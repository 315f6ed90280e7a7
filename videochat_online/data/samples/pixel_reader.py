"""Frames and tiles of a sample, as uint8 squares of the vision tower's size, with a bounded cache.

Owns which frames of a video are read for training, and that only those are. Knows nothing of prompts.

Shape legend: `T` frames or tiles, `S` side of the square in pixels.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from videochat_online.data.rows.storage import Location, local_copy
from videochat_online.errors import VideoError
from videochat_online.video import (
    DEFAULT_FRAME_RATE,
    TIME_TOLERANCE_S,
    FrameTransform,
    SampledFrames,
    VideoInfo,
    VideoSource,
    open_video,
    read_image,
    sample_clip,
    stack_images,
    tile_image,
    uniform_subset,
)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SampledClip:
    """Frames of a video as training sees them.

    Attributes:
        pixels_TSSC: uint8, resized, not normalised.
        times_s: start of each frame, rounded to 0.1 s as prompts print it.
        duration_s: length of the whole video.
    """

    pixels_TSSC: Pixels
    times_s: tuple[float, ...]
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSampling:
    """Which frames of a video a sample gets.

    Attributes:
        method: "fpsN" (one frame every 1/N s), "rand" or "middle" (of equal segments).
        max_num_frames: largest number of frames; "rand" and "middle" take exactly so many where the video has them.
    """

    method: str = "fps1"
    max_num_frames: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How a still image is cut; with `dynamic` off it is one square."""

    dynamic: bool = True
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True

    def for_images(self, num_images: int) -> Tiling:
        """The images of one sample share the tiles."""
        return replace(self, max_tiles=max(self.min_tiles, self.max_tiles // num_images))


@dataclass(frozen=True, slots=True)
class _Facts:
    """What choosing frames needs to know about a video."""

    num_frames: int
    fps: float
    start_s: float
    is_folder: bool

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.fps


class PixelCache:
    """Decoded pixels of the samples used last, up to a number of bytes; one per loader process."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._held: OrderedDict[Hashable, Pixels] = OrderedDict()

    def get(self, key: Hashable) -> Pixels | None:
        """The pixels stored under a key, which counts as used now."""
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key]

    def put(self, key: Hashable, pixels: Pixels) -> None:
        """Store, and drop what has not been used for longest; what is larger than the cache is not stored."""
        if pixels.nbytes > self.max_bytes or key in self._held:
            return
        self._held[key] = pixels
        self.num_bytes += pixels.nbytes
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= self._held.popitem(last=False)[1].nbytes


class PixelReader:
    """Reads what a sample shows.

    Args:
        transform: transform that gives size, padding and resizing.
        backend: backend that `open_video` is to take.
        cache_mb: MiB of decoded pixels that are kept for the next epoch, where data are few; 0 keeps none.

    Attributes:
        notes: remarks on what was odd about the video read last, and how it was read nevertheless.
    """

    def __init__(self, transform: FrameTransform, *, backend: str = "auto", cache_mb: float = 0.0) -> None:
        self.transform = transform
        self.backend = backend
        self._cache = PixelCache(int(cache_mb * 2**20))
        self._facts: dict[tuple[Location, float | None], _Facts] = {}
        self.notes: tuple[str, ...] = ()

    def clip(
        self,
        path: Location,
        sampling: FrameSampling,
        *,
        fps: float | None = None,
        clip_s: tuple[float, float] | None = None,
        rng: random.Random | None = None,
    ) -> SampledClip:
        """The sampled frames of a video file or a folder of frames; no other frame is handed out.

        Args:
            path: the file or folder.
            sampling: rule for the frames that are taken.
            fps: frame rate of a folder; without one its images are a second apart.
            clip_s: start and end of the part that counts.
            rng: the generator of "rand".

        Raises:
            VideoError: a video that is unreadable or breaks off before the last frame that is needed, or a needed frame
                that does not decode.
        """
        facts, chosen = self._facts.get((path, fps)), None
        if facts is not None:
            chosen = _choose(facts, sampling, clip_s, rng)
            cached = self._cache.get((path, chosen.indices))
            if cached is not None:
                return SampledClip(cached, chosen.times_s, facts.duration_s)
        with local_copy(path) as copy, open_video(copy, fps=fps, backend=self.backend) as video:
            facts = facts or _facts(video)
            chosen = chosen or _choose(facts, sampling, clip_s, rng)
            pixels_TSSC = self._decode(video, facts, chosen.indices)
        if self._cache.max_bytes:
            self._facts[path, fps] = facts
        self._cache.put((path, chosen.indices), pixels_TSSC)
        return SampledClip(pixels_TSSC, chosen.times_s, facts.duration_s)

    def images(self, files: Sequence[Location]) -> Pixels:
        """Image files as they are, one square each."""
        return np.concatenate([self.tiles(file, Tiling(dynamic=False)) for file in files])

    def tiles(self, path: Location, tiling: Tiling) -> Pixels:
        """One still image, cut into tiles.

        Raises:
            VideoError: unreadable.
        """
        pixels = self._cache.get((path, tiling))
        if pixels is None:
            with local_copy(path) as copy:
                image = read_image(copy)
            if tiling.dynamic:
                parts = tile_image(
                    image,
                    min_tiles=tiling.min_tiles,
                    max_tiles=tiling.max_tiles,
                    size=self.transform.size,
                    thumbnail=tiling.thumbnail,
                )
                pixels = stack_images(parts)
            else:
                pixels = self.transform.resized(np.asarray(image, dtype=np.uint8)[None])
            self._cache.put((path, tiling), pixels)
        return pixels

    def _decode(self, video: VideoSource, facts: _Facts, indices: Sequence[int]) -> Pixels:
        # The middle of a frame's time, so that rounded time stamps cannot give its neighbour.
        asked_s = [facts.start_s + (index + 0.5) / facts.fps for index in indices]
        squares: list[Pixels] = []
        shown_s: list[float] = []
        for chunk in video.read(times_s=asked_s):
            squares.append(self.transform.resized(chunk.pixels_THWC))
            shown_s += chunk.times_s
        self.notes = video.report.notes
        _check_shown(video, [time_s - facts.start_s for time_s in asked_s], shown_s)
        ends_at_s = video.report.ends_at_s
        if ends_at_s is not None and asked_s[-1] > ends_at_s:
            raise VideoError(f"{video.info.source}: a frame at {asked_s[-1]:.1f} s is needed; {video.report.problem}")
        return np.concatenate(squares)


def _check_shown(video: VideoSource, asked_s: Sequence[float], shown_s: Sequence[float]) -> None:
    """VideoError where a wanted frame does not decode: the one before it would be shown instead.

    Args:
        video: video after reading.
        asked_s: times that were asked for, from the first frame on.
        shown_s: start of the frame that came for each. One may come twice: a still part of a video is no fault.
    """
    if not video.report.num_errors:
        return
    # A first frame that does not decode moves the start of all that was asked for: count from the first packet.
    starts_s = video.frame_times_s()
    wanted_s = {starts_s[bisect_right(starts_s, starts_s[0] + time_s + TIME_TOLERANCE_S) - 1] for time_s in asked_s}
    num_missing = len(wanted_s - set(shown_s))
    if num_missing:
        raise VideoError(
            f"{video.info.source}: expected {len(wanted_s)} frames of it, found {num_missing} of them unreadable;"
            f" {video.report.problem}"
        )


def _facts(video: VideoSource) -> _Facts:
    info: VideoInfo = video.info
    fps, num_frames = info.average_fps, info.num_frames_declared
    if fps is None or not num_frames:
        # Not the length times the rate: in Matroska, it is that of the longest stream, from 0 on.
        video.finish(max_decode_s=0.0)
        if video.report.ends_at_s is not None and info.duration_s and fps is not None:
            # It breaks off: what it should have is asked for, and missed.
            return _Facts(int(info.duration_s * fps), fps, info.start_s, is_folder=False)
        starts_s = video.frame_times_s()
        num_frames = len(starts_s)
        span_s = starts_s[-1] - starts_s[0]
        fps = (num_frames - 1) / span_s if span_s > 0 else DEFAULT_FRAME_RATE
    return _Facts(num_frames, fps, info.start_s, info.kind == "frame_folder")


def _choose(
    facts: _Facts,
    sampling: FrameSampling,
    clip_s: tuple[float, float] | None,
    rng: random.Random | None,
) -> SampledFrames:
    if facts.is_folder and sampling.method == f"fps{facts.fps:g}":
        # Sampled already. The centre of each interval lies between two images: rounded, it would take every
        # other image twice.
        every = sample_clip(facts.num_frames, facts.fps, "middle", max_num_frames=facts.num_frames, clip_s=clip_s)
        return _subset(every, uniform_subset(range(len(every.indices)), sampling.max_num_frames))
    chosen = sample_clip(
        facts.num_frames,
        facts.fps,
        sampling.method,
        max_num_frames=sampling.max_num_frames,
        clip_s=clip_s,
        rng=rng,
    )
    if facts.is_folder:  # below the rate that is asked for: each image once, as in training
        return _subset(chosen, [chosen.indices.index(index) for index in sorted(set(chosen.indices))])
    return chosen


def _subset(sampled: SampledFrames, chosen: Sequence[int]) -> SampledFrames:
    """Some of the sampled frames, by their positions among them."""
    return SampledFrames(tuple(sampled.indices[n] for n in chosen), tuple(sampled.times_s[n] for n in chosen))
