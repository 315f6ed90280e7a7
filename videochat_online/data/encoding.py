"""A validated sample -> what the model is trained on: ids, labels, pixels, and how each frame is pooled.

Knows tokenizer, template, token grid and schedule as it is given them; knows nothing of networks, registries
or batches.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from videochat_online.data.checks import check_boxes, check_within_video
from videochat_online.data.frames import FrameSampling, PixelReader, Pixels, SampledClip, Tiling
from videochat_online.data.layout import (
    frames_until,
    image_turns,
    last_turns,
    online_turns,
    text_turns,
    tracking_turns,
    video_turns,
)
from videochat_online.data.records import Sample
from videochat_online.data.remembered import MemoryLayout
from videochat_online.errors import InputError
from videochat_online.memory import Grid, TokenSchedule
from videochat_online.text import ChatTemplate, layout_prompt, truncate_layout
from videochat_online.types import FrameUse, Turn
from videochat_online.video import TIME_TOLERANCE_S, uniform_subset

JPEG_QUALITIES = (75, 100)
"""Of the degradation by `data_augment`, both ends included."""

TRIMMING_TEMPLATES = frozenset({"internlm2-chat"})
"""Whose checkpoints were trained on texts without blanks and line breaks around them."""


@dataclass(frozen=True, slots=True)
class Example:
    """One sample, ready for a batch.

    Attributes:
        input_ids: the prompt, with the image token where a visual token stands.
        labels: as long; IGNORE_INDEX where nothing is learned. Not shifted.
        pixels_TCSS: normalised frames or tiles in order of appearance; None for a text.
        pool_ratios: by how much each of the T is pooled.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    pixels_TCSS: Tensor | None
    pool_ratios: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleEncoder:
    """Everything that turns samples into examples.

    Attributes:
        tokenizer: of `load_tokenizer`, with the image tokens.
        template: the checkpoint's.
        system_message: None takes the template's own.
        reader: reads frames and tiles.
        full_grid: tokens of a full-size frame or tile, rows and columns.
        schedule: which frame is pooled by how much.
        sampling: which frames of a video.
        tiling: of still images.
        max_length: longest prompt, in tokens.
        max_overrun_s: how far a row's times may lie beyond its video: they are rounded, and files often say less than
            they hold.
    """

    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    system_message: str | None
    reader: PixelReader
    full_grid: Grid
    schedule: TokenSchedule
    sampling: FrameSampling
    tiling: Tiling
    max_length: int
    max_overrun_s: float = 1.0

    def encode(
        self,
        sample: Sample,
        rng: random.Random,
        *,
        tiling: Tiling | None = None,
        fps: float | None = None,
        augment: bool = False,
        memory: MemoryLayout | None = None,
    ) -> Example:
        """Read what the sample shows and lay its dialogue out.

        Args:
            sample: validated.
            rng: of all draws for this sample in this epoch.
            tiling: of the sample's set, instead of the run's.
            fps: frame rate of the set's frame folders, where the sample does not say.
            augment: degrade pictures by JPEG compression.
            memory: shows what it would hold at the last question, instead of all frames.

        Raises:
            InputError: unreadable media, placeholders that do not fit, or a prompt that is too long to keep its
                frames and something to learn; a memory for a sample that is not a video with questions.
        """
        pixels: Pixels | None = None
        ratios: tuple[int, ...] = ()
        if memory is not None and sample.kind not in ("video", "online"):
            raise InputError(f"memory: expected a video with questions, found a sample of kind {sample.kind}")
        if sample.kind == "text":
            turns = text_turns(sample.turns)
        elif sample.kind == "image":
            turns, pixels, ratios = self._image(sample, tiling or self.tiling)
        else:
            turns, pixels, ratios = self._video(sample, rng, fps, memory)
        layout = layout_prompt(
            [trimmed(turn) for turn in turns] if self.template.name in TRIMMING_TEMPLATES else turns,
            tokenizer=self.tokenizer,
            template=self.template,
            system_message=self.system_message if sample.system_message is None else sample.system_message,
        )
        layout = truncate_layout(layout, self.max_length)
        if pixels is None or not len(pixels):
            return Example(layout.input_ids, layout.labels, None, ())
        if augment:
            pixels = _degrade(pixels, rng)
        return Example(layout.input_ids, layout.labels, self.reader.transform(pixels), ratios)

    def _image(self, sample: Sample, tiling: Tiling) -> tuple[tuple[Turn, ...], Pixels, tuple[int, ...]]:
        tiling = tiling.for_images(len(sample.media))
        images = [self.reader.tiles(path, tiling) for path in sample.media]
        tokens_per_tile = self.full_grid[0] * self.full_grid[1]
        turns = image_turns(sample.turns, [tokens_per_tile * len(tiles) for tiles in images])
        pixels = np.concatenate(images)
        return turns, pixels, (1,) * len(pixels)

    def _video(
        self, sample: Sample, rng: random.Random, fps: float | None, memory: MemoryLayout | None
    ) -> tuple[tuple[Turn, ...], Pixels, tuple[int, ...]]:
        turns = sample.turns
        if sample.kind == "tracking":
            places = uniform_subset(range(len(sample.media)), self.sampling.max_num_frames)
            pixels = self.reader.images([sample.media[place] for place in places])
            check_boxes(sample, places)
            clip = SampledClip(pixels, tuple(round(sample.boxes[place].time_s, 1) for place in places), math.inf)
            turns = tracking_turns(sample, places, rng)
        else:
            clip = self.reader.clip(
                sample.media[0], self.sampling, fps=sample.fps or fps, clip_s=sample.clip_s, rng=rng
            )
            check_within_video(sample, clip.duration_s, self.max_overrun_s)
        times_s: Sequence[float] = clip.times_s
        if sample.reset_times:
            times_s = [round(time_s - times_s[0], 1) for time_s in times_s]
        if memory is None:
            frames, ratios = self._scheduled(times_s)
        else:
            turns = last_turns(turns)
            last_s = turns[-1].time_s
            seen_s = times_s if last_s is None else [t for t in times_s if t <= last_s + TIME_TOLERANCE_S]
            frames, ratios = self._remembered(clip.pixels_TSSC[: len(seen_s)], seen_s, memory)
        if sample.kind == "video":
            laid_out = video_turns(turns, frames)
        else:
            laid_out = online_turns(turns, frames)
            frames = list(frames_until(frames, turns[-1].time_s or 0.0))
        return laid_out, clip.pixels_TSSC[[frame.index for frame in frames]], tuple(ratios[: len(frames)])

    def _scheduled(self, times_s: Sequence[float]) -> tuple[list[FrameUse], list[int]]:
        """The frames that cost tokens, and by how much each is pooled; the schedule may leave some out."""
        counts = self.schedule.num_tokens(range(len(times_s)), self.full_grid)
        frames = [
            FrameUse(index, time_s, count)
            for index, (time_s, count) in enumerate(zip(times_s, counts, strict=True))
            if count
        ]
        return frames, [self.schedule.ratio(frame.index) or 1 for frame in frames]

    def _remembered(
        self, pixels_TSSC: Pixels, times_s: Sequence[float], memory: MemoryLayout
    ) -> tuple[list[FrameUse], list[int]]:
        """The same of what a memory would hold after these frames."""
        left = memory.remembered(pixels_TSSC, times_s, self.full_grid, self.schedule.intervals)
        frames = [FrameUse(frame.place, times_s[frame.place], frame.num_tokens) for frame in left]
        return frames, [frame.ratio for frame in left]


def trimmed(turn: Turn) -> Turn:
    """A turn without blanks and line breaks around each side."""
    user = [segment for segment in turn.user if segment != ""]
    if user and isinstance(user[0], str):
        user[0] = user[0].lstrip()
    if user and isinstance(user[-1], str):
        user[-1] = user[-1].rstrip()
    return Turn(tuple(user), turn.assistant.strip() if turn.assistant is not None else None)


def _degrade(pixels_TSSC: Pixels, rng: random.Random) -> Pixels:
    """Each picture through JPEG of a random quality."""
    degraded = np.empty_like(pixels_TSSC)
    for place, pixels_SSC in enumerate(pixels_TSSC):
        buffer = io.BytesIO()
        Image.fromarray(pixels_SSC).save(buffer, format="JPEG", quality=rng.randint(*JPEG_QUALITIES))
        degraded[place] = np.asarray(Image.open(buffer))
    return degraded


def check_encoder(encoder: SampleEncoder) -> None:
    """Fail before the first epoch on settings under which every sample would fail.

    Raises:
        InputError: an unknown sampling method, fewer than one frame, or a schedule the token grid cannot hold.
    """
    method, count = encoder.sampling.method, encoder.sampling.max_num_frames
    if count < 1:
        raise InputError(f"max_num_frame: expected at least 1, found {count}")
    if method not in ("rand", "middle"):
        rate = method.removeprefix("fps")
        if rate == method or not rate.replace(".", "", 1).isdigit() or float(rate) <= 0:
            raise InputError(f"sampling_method: expected fpsN (such as fps1), rand or middle, found {method!r}")
    encoder.schedule.grids(encoder.full_grid)
