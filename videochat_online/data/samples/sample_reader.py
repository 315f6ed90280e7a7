"""A validated sample -> the pictures it shows, and its dialogue with a visual segment where each of them stands.

Knows token grid and schedule as it is given them; knows nothing of tokenizers, templates or registries.

Shape legend: `T` frames or tiles, `S` pixels a side.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from videochat_online.data.rows.sample import Sample
from videochat_online.data.rows.storage import Location, local_copy
from videochat_online.data.samples.pixel_reader import FrameSampling, PixelReader, Pixels, SampledClip, Tiling
from videochat_online.data.samples.simulated_memory import SimulatedMemory
from videochat_online.data.samples.turn_layout import (
    frames_until,
    image_turns,
    last_turns,
    online_turns,
    text_turns,
    tracking_turns,
    video_turns,
)
from videochat_online.errors import InputError
from videochat_online.memory import Grid, TokenSchedule
from videochat_online.types import FrameUse, Turn, Visual
from videochat_online.video import TIME_TOLERANCE_S, read_image, uniform_subset


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOptions:
    """What a set says of how its samples are read.

    Attributes:
        data_augment: degrade pictures by JPEG compression of random quality.
        max_dynamic_patch: most tiles of a still image in this set, instead of the run's.
        fps: frames per second of its frame folders, where a row does not say.
        memory: memory whose content at the last question, which alone is kept, is shown of each video; None shows all
            frames.
    """

    data_augment: bool = False
    max_dynamic_patch: int | None = None
    fps: float | None = None
    memory: SimulatedMemory | None = None

    def tiling(self, default: Tiling) -> Tiling:
        """How still images of this set are cut, where a run cuts others so."""
        return default if self.max_dynamic_patch is None else replace(default, max_tiles=self.max_dynamic_patch)


AS_THE_RUN = SetOptions()
"""Of a set that says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaidOutSample:
    """A sample whose frames are chosen and read: what it shows, and its dialogue around it.

    Attributes:
        turns: dialogue, with a visual segment for each picture.
        pixels_TSSC: frames or tiles in order of appearance, uint8 [T, S, S, 3], not normalised; None for a text.
        ratios: pooling of each of the T.
    """

    turns: tuple[Turn, ...]
    pixels_TSSC: Pixels | None = None
    ratios: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReader:
    """Everything that reads samples; needs no tokenizer.

    Attributes:
        reader: reader of frames and tiles.
        full_grid: tokens of a full-size frame or tile, rows and columns.
        schedule: token schedule, which says by how much each frame is pooled.
        sampling: rule for the frames of a video that are taken.
        tiling: rule by which still images are cut into tiles.
        max_overrun_s: seconds that a row's times may lie beyond its video: they are rounded, and files often say less
            than they hold.
    """

    reader: PixelReader
    full_grid: Grid
    schedule: TokenSchedule
    sampling: FrameSampling
    tiling: Tiling
    max_overrun_s: float = 1.0

    def read(self, sample: Sample, rng: random.Random, of_set: SetOptions = AS_THE_RUN) -> LaidOutSample:
        """Read what a sample shows and put it into its dialogue.

        Args:
            sample: validated sample.
            rng: generator of all draws for this sample in this epoch.
            of_set: options of the sample's set.

        Raises:
            InputError: unreadable media, placeholders or times that do not fit; a memory for a sample that is not a
                video with questions.
        """
        check_memory(sample, of_set.memory)
        if sample.kind == "text":
            return LaidOutSample(turns=text_turns(sample.turns))
        if sample.kind == "image":
            return self._image(sample, of_set.tiling(self.tiling))
        return self._video(sample, rng, of_set)

    def _image(self, sample: Sample, tiling: Tiling) -> LaidOutSample:
        tiling = tiling.for_images(len(sample.media))
        images = [self.reader.tiles(path, tiling) for path in sample.media]
        turns = image_turns(sample.turns, [math.prod(self.full_grid) * len(tiles) for tiles in images])
        pixels_TSSC = np.concatenate(images)
        return LaidOutSample(turns=turns, pixels_TSSC=pixels_TSSC, ratios=(1,) * len(pixels_TSSC))

    def _video(self, sample: Sample, rng: random.Random, of_set: SetOptions) -> LaidOutSample:
        turns, memory = sample.turns, of_set.memory
        if sample.kind == "tracking":
            indices = uniform_subset(range(len(sample.media)), self.sampling.max_num_frames)
            pixels_TSSC = self.reader.images([sample.media[index] for index in indices])
            check_boxes(sample, indices)
            clip = SampledClip(pixels_TSSC, tuple(round(sample.boxes[index].time_s, 1) for index in indices), math.inf)
            turns = tracking_turns(sample, indices, rng.randint(0, len(indices) - 1))
        else:
            fps = sample.fps or of_set.fps
            clip = self.reader.clip(sample.media[0], self.sampling, fps=fps, clip_s=sample.clip_s, rng=rng)
            check_within_video(sample, clip.duration_s, self.max_overrun_s)
        times_s: Sequence[float] = clip.times_s
        if sample.reset_times:
            times_s = [round(time_s - times_s[0], 1) for time_s in times_s]
        if memory is None:
            frames, ratios = self.scheduled(times_s)
        else:
            turns = last_turns(turns)
            last_s = turns[-1].time_s
            seen_s = times_s if last_s is None else [t for t in times_s if t <= last_s + TIME_TOLERANCE_S]
            pixels_TSSC = clip.pixels_TSSC[: len(seen_s)]
            frames, ratios = memory.kept_frames(pixels_TSSC, seen_s, self.full_grid, self.schedule.intervals)
        if sample.kind != "video" and not frames_until(frames, turns[-1].time_s or 0.0):
            raise InputError(f"expected a turn at {times_s[0]:g} s, the first frame, or later, found none")
        if sample.kind == "video":
            laid_out = video_turns(turns, frames)
        else:
            laid_out = online_turns(turns, frames)
            frames = list(frames_until(frames, turns[-1].time_s or 0.0))
        num_visual = sum(isinstance(segment, Visual) for turn in laid_out for segment in turn.user)
        if num_visual != len(frames):
            raise InputError(f"expected as many frames as places for them, found {len(frames)} and {num_visual}")
        pixels_TSSC = clip.pixels_TSSC[[frame.index for frame in frames]]
        return LaidOutSample(turns=laid_out, pixels_TSSC=pixels_TSSC, ratios=tuple(ratios[: len(frames)]))

    def scheduled(self, times_s: Sequence[float]) -> tuple[list[FrameUse], list[int]]:
        """The frames that cost tokens, and by how much each is pooled; the schedule may leave some out."""
        counts = self.schedule.num_tokens(range(len(times_s)), self.full_grid)
        frames = [
            FrameUse(index, time_s, count)
            for index, (time_s, count) in enumerate(zip(times_s, counts, strict=True))
            if count
        ]
        return frames, [self.schedule.ratio(frame.index) or 1 for frame in frames]


def check_memory(sample: Sample, memory: SimulatedMemory | None) -> None:
    """Fail where a memory is to show what is no video with questions.

    Raises:
        InputError: names the kind of sample.
    """
    if memory is not None and sample.kind not in ("video", "online"):
        raise InputError(f"memory: expected a video with questions, found a sample of kind {sample.kind}")


def check_reader(reader: SampleReader) -> None:
    """Fail before the first epoch on settings under which every sample would fail.

    Raises:
        InputError: an unknown sampling method, fewer than one frame, or a schedule the token grid cannot hold.
    """
    method, count = reader.sampling.method, reader.sampling.max_num_frames
    if count < 1:
        raise InputError(f"max_num_frame: expected at least 1, found {count}")
    if method not in ("rand", "middle"):
        rate = method.removeprefix("fps")
        if rate == method or not rate.replace(".", "", 1).isdigit() or float(rate) <= 0:
            raise InputError(f"sampling_method: expected fpsN (such as fps1), rand or middle, found {method!r}")
    reader.schedule.grids(reader.full_grid)


MIN_PIXELS = 2
"""A coordinate from here on is in pixels."""


def check_within_video(sample: Sample, duration_s: float, max_overrun_s: float) -> None:
    """Fail where a clip or a turn ends more than so many seconds after the video.

    Raises:
        InputError: names the clip or the turn. Frames of another time would be shown for it.
    """
    limit_s = duration_s + max_overrun_s
    if sample.clip_s is not None and sample.clip_s[1] > limit_s:
        raise InputError(
            f"clip: expected an end within the video, which has {duration_s:.1f} s, found {sample.clip_s[1]:g}"
        )
    start_s = sample.clip_s[0] if sample.clip_s is not None and sample.reset_times else 0.0
    for number, turn in enumerate(sample.turns, start=1):
        if turn.time_s is not None and start_s + turn.time_s > limit_s:
            raise InputError(
                f"conversations: turn {number}: timestamps: expected a time within the video, which ends"
                f" {duration_s - start_s:.1f} s after the clip's start, found {turn.time_s:g}"
            )


def check_boxes(sample: Sample, indices: Sequence[int]) -> None:
    """Fail where a box of a track is none, or lies outside its image.

    Boxes are four numbers, of two corners or of a corner and a size: they are written as they stand, and which it is
    cannot be told. They are parts of the image from 0 to 1 or pixels, all of a track in one unit. A coordinate
    of at least 2 says pixels: one between 1 and 2 is rather a part beyond the image's edge. A box of zeros and ones,
    which stands for an object out of view, fits both.

    Args:
        sample: a track.
        indices: indices of the images that are used.

    Raises:
        InputError: names the box.
    """
    boxes = [box.box for box in sample.boxes]
    in_pixels = any(value >= MIN_PIXELS for box in boxes for value in box)
    if in_pixels:
        for index, box in enumerate(boxes):
            if max(box) < MIN_PIXELS and not all(value in (0, 1) for value in box):
                raise InputError(f"image_bboxes {index}: expected pixels, as in other boxes, found {list(box)}")
    for index in indices:
        box = boxes[index]
        width, height = _size(sample.media[index]) if in_pixels else (1, 1)
        if not all(0 <= value <= limit for value, limit in zip(box, (width, height) * 2, strict=True)):
            unit = f"{width} x {height} pixels" if in_pixels else "0 to 1"
            raise InputError(f"image_bboxes {index}: expected a box within {unit}, found {list(box)}")


def _size(path: Location) -> tuple[int, int]:
    with local_copy(path) as copy:
        return read_image(copy).size
