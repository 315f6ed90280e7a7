"""How many tokens a sample has, without opening its media: for packing, grouping by length and planning.

Text is counted as it is laid out, by the functions that lay it out. Where a row does not tell how long a video or how
large an image is, or at which tenth of a second a frame is shown, the most that its settings allow is assumed. So no
sample is longer than is said here, but where a row is wrong about its media (sizes of an image, a clip that ends after
its video), or a video has fewer frames a second than are sampled. `batches.packing` sees to those.

Shape legend: `T` frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videochat_online.data.rows.sample import DialogueTurn, Sample
from videochat_online.data.samples.encoding import SampleEncoder
from videochat_online.data.samples.pixel_reader import Tiling
from videochat_online.data.samples.sample_reader import AS_THE_RUN, SetOptions, check_memory
from videochat_online.data.samples.simulated_memory import SimulatedMemory
from videochat_online.data.samples.turn_layout import (
    image_turns,
    last_turns,
    online_turn,
    online_turns,
    text_turns,
    tracking_query,
    tracking_turns,
    video_turns,
)
from videochat_online.text import INTERNVL, PromptCounter, PromptOutline
from videochat_online.types import FrameUse, Turn
from videochat_online.video import TIME_TOLERANCE_S, choose_tile_grid, uniform_subset

ROUNDING_S = 0.1
"""Step, in seconds, to which times of frames are rounded; that of the first one, too, where they count from it."""


@dataclass(frozen=True, slots=True)
class EstimatedSample:
    """What a sample's prompt holds at most.

    Attributes:
        tokens: number of all tokens.
        visual_tokens: number of tokens of pictures among them.
        pictures: number of frames and tiles.
    """

    tokens: int
    visual_tokens: int = 0
    pictures: int = 0


@dataclass(frozen=True, slots=True)
class OutlinedSample:
    """A sample, ready to be counted.

    Attributes:
        prompt: rendered dialogue.
        variants: a part of the dialogue, and what may stand instead of it.
        more: number of tokens beside those of the dialogue.
        visual_tokens: number of tokens of all pictures.
        pictures: number of frames and tiles.
    """

    prompt: PromptOutline
    variants: tuple[PromptOutline, ...] = ()
    more: int = 0
    visual_tokens: int = 0
    pictures: int = 0


class LengthCounter:
    """Counts the tokens of samples.

    Args:
        encoder: encoder of the samples.
    """

    def __init__(self, encoder: SampleEncoder) -> None:
        self.encoder = encoder
        self._prompts = PromptCounter(encoder.tokenizer, encoder.template)
        self._lines = FrameLines(self._prompts)
        self._visual_T = np.zeros(0, dtype=np.int64)
        self._kept: dict[SimulatedMemory, list[tuple[int, int]]] = {}

    def outline(self, sample: Sample, of_set: SetOptions = AS_THE_RUN) -> OutlinedSample:
        """A sample, ready to be counted.

        Args:
            sample: validated sample.
            of_set: options of the sample's set.

        Raises:
            InputError: errors of the encoder that the row alone tells.
        """
        check_memory(sample, of_set.memory)
        if sample.kind == "text":
            return OutlinedSample(self._outline(sample, text_turns(sample.turns)))
        if sample.kind == "image":
            tiles = self._tiles(sample, of_set.tiling(self.encoder.tiling).for_images(len(sample.media)))
            counts = [math.prod(self.encoder.full_grid) * count for count in tiles]
            prompt = self._outline(sample, image_turns(sample.turns, counts))
            return OutlinedSample(prompt, visual_tokens=sum(counts), pictures=sum(tiles))
        if sample.kind == "tracking":
            return self._track(sample)
        return self._video(sample) if of_set.memory is None else self._simulated(sample, of_set.memory)

    def count(self, outlined: Sequence[OutlinedSample]) -> list[EstimatedSample]:
        """Sizes of samples, cut as the encoder cuts them; faster for many at a time.

        Raises:
            InputError: errors of the encoder that the prompts alone tell.
        """
        counted = iter(self._prompts.count([prompt for one in outlined for prompt in (one.prompt, *one.variants)]))
        found = []
        for one in outlined:
            num_tokens = next(counted) + one.more
            variants = [next(counted) for _ in one.variants]
            num_tokens += max(variants) - variants[0] if variants else 0
            found.append(EstimatedSample(min(num_tokens, self.encoder.max_length), one.visual_tokens, one.pictures))
        return found

    def _outline(self, sample: Sample, turns: Sequence[Turn]) -> PromptOutline:
        system = self.encoder.system_message if sample.system_message is None else sample.system_message
        return self._prompts.outline(turns, system)

    def _tiles(self, sample: Sample, tiling: Tiling) -> list[int]:
        """Tiles of each image."""
        if not tiling.dynamic:
            return [1] * len(sample.media)
        counts = [tiling.max_tiles] * len(sample.media)
        if sample.sizes:
            limits = {"min_tiles": tiling.min_tiles, "max_tiles": tiling.max_tiles}
            side = self.encoder.reader.transform.size
            counts = [math.prod(choose_tile_grid(*image, **limits, size=side)) for image in sample.sizes]
        return [count + (tiling.thumbnail and count > 1) for count in counts]

    def _track(self, sample: Sample) -> OutlinedSample:
        """All is known but which box is asked about; with the first one there are the most turns."""
        indices = uniform_subset(range(len(sample.media)), self.encoder.sampling.max_num_frames)
        frames, _ = self.encoder.scheduled([round(sample.boxes[index].time_s, 1) for index in indices])
        queries = dict.fromkeys(tracking_query(sample, index) for index in indices)
        return OutlinedSample(
            self._outline(sample, online_turns(tracking_turns(sample, indices, 0), frames)),
            variants=tuple(self._outline(sample, text_turns([DialogueTurn(query, "")])) for query in queries),
            visual_tokens=sum(frame.num_tokens for frame in frames),
            pictures=len(frames),
        )

    def _video(self, sample: Sample) -> OutlinedSample:
        earliest_T, latest_T = self._sampled(sample)
        visual_T = self._visual(len(earliest_T))
        used = np.flatnonzero(visual_T)  # the schedule may leave frames out
        earliest_T, latest_T = earliest_T[used], latest_T[used]
        if sample.kind == "video":
            num_frames, visual = len(used), int(visual_T.sum())
            lines_T = self._lines.tokens(used)
            turns = video_turns(sample.turns, [self._lines.frame(int(index)) for index in used[:1]])
            more = int(lines_T[1:].sum()) + visual - 1
            return OutlinedSample(self._outline(sample, turns), more=more, visual_tokens=visual, pictures=num_frames)
        asked_s = np.array([turn.time_s or 0.0 for turn in sample.turns])
        stops = np.searchsorted(earliest_T, asked_s + TIME_TOLERANCE_S, side="right")
        surely = np.searchsorted(latest_T, asked_s + TIME_TOLERANCE_S, side="right")
        num_frames, visual = int(stops[-1]), int(visual_T[used[: stops[-1]]].sum())
        latest_T = np.minimum(latest_T, asked_s[-1])
        lines_T = self._lines.tokens(used[:num_frames], latest_T[:num_frames])
        laid_out, first, more = list[Turn](), 0, int(lines_T.sum()) + visual
        for number, (turn, stop) in enumerate(zip(sample.turns, stops.tolist(), strict=True)):
            shown = [self._lines.frame(int(used[first]), float(latest_T[first]))] if first < stop else []
            laid_out.append(online_turn(turn, shown))
            if shown:  # its line and its one visual token are in the dialogue
                more -= int(lines_T[first]) + 1
            # A frame that comes sooner or later leaves an empty line in one turn, or takes it from another.
            is_at_once = number > 0 and turn.time_s == sample.turns[number - 1].time_s
            more += not (is_at_once or surely[number] > first)
            first = max(first, stop)
        return OutlinedSample(self._outline(sample, laid_out), more=more, visual_tokens=visual, pictures=num_frames)

    def _simulated(self, sample: Sample, memory: SimulatedMemory) -> OutlinedSample:
        """What is left of the frames that come before the last question; which of them these are is not known."""
        (earliest_T, latest_T), turns = self._sampled(sample), last_turns(sample.turns)
        num_frames, shown_T = len(earliest_T), None
        fewest = 1 if sample.clip_s is None else num_frames - 1
        if sample.kind == "online":
            until_s = (asked_s := turns[-1].time_s or 0.0) + TIME_TOLERANCE_S
            num_frames = max(1, int(np.searchsorted(earliest_T, until_s, side="right")))
            fewest = min(num_frames, int(np.searchsorted(latest_T, until_s, side="right")))
            shown_T = np.minimum(latest_T, asked_s)[:num_frames]
        lines_T = self._lines.tokens(np.arange(num_frames), shown_T)
        num_kept, visual = self._most_kept(memory, max(1, fewest), num_frames)
        longest = int(lines_T.argmax())
        shown = [self._lines.frame(longest, None if shown_T is None else float(shown_T[longest]))]
        if sample.kind == "video":
            laid_out = video_turns(turns, shown)
        else:
            laid_out = (online_turn(turns[0], shown), *(online_turn(turn, ()) for turn in turns[1:]))
        more = (num_kept - 1) * int(lines_T[longest]) + visual - 1
        return OutlinedSample(self._outline(sample, laid_out), more=more, visual_tokens=visual, pictures=num_kept)

    def _sampled(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """When the frames come that `video.sample_clip` takes at most, of a video with all that the row speaks of.

        Returns:
            The earliest time of each, and the latest.
        """
        limit, method = self.encoder.sampling.max_num_frames, self.encoder.sampling.method
        start_s, end_s = (0.0, math.inf) if sample.clip_s is None else sample.clip_s
        first_s = 0.0 if sample.reset_times else start_s
        if not method.startswith("fps"):
            # Anywhere in the clip.
            return np.full(limit, first_s), np.full(limit, first_s + end_s - start_s)
        rate = float(method.removeprefix("fps"))
        centres_T = np.arange(limit)
        if end_s < math.inf:
            # Centres of intervals of 1 / rate that lie in the clip, half a frame before its end or sooner.
            num_centres = max(1, math.ceil(min((end_s - start_s) * rate * (1 + 1e-6) - 0.5, 2**40)))
            centres_T = np.arange(min(num_centres, limit))
            if num_centres > limit:  # as `uniform_subset` spreads them
                centres_T = np.linspace(0, num_centres - 1, limit).astype(np.int64)
        times_T = first_s + (centres_T + (0.0 if sample.reset_times else 0.5)) / rate
        # A frame begins up to half of its length before or after the centre, and is no longer than an interval; those
        # of a folder count from the one that is shown at the start.
        either_s = 0.5 / rate + ROUNDING_S
        before_s = 0.0 if sample.reset_times else (start_s * rate) % 1 / rate
        return times_T - either_s - before_s, times_T + either_s

    def _visual(self, num_frames: int) -> np.ndarray:
        """Visual tokens of so many frames, by the token schedule."""
        if len(self._visual_T) < num_frames:
            counts = self.encoder.schedule.num_tokens(range(2 * num_frames), self.encoder.full_grid)
            self._visual_T = np.array(counts, dtype=np.int64)
        return self._visual_T[:num_frames]

    def _most_kept(self, memory: SimulatedMemory, fewest: int, most: int) -> tuple[int, int]:
        """The most frames that a memory keeps of `fewest` to `most`, and the most tokens."""
        known = self._kept.get(memory, [])
        if len(known) < most:
            encoder = self.encoder
            known = memory.kept_counts(
                min(2 * most, encoder.sampling.max_num_frames), encoder.full_grid, encoder.schedule.intervals
            )
            self._kept[memory] = known
        nums, tokens = zip(*known[fewest - 1 : most], strict=True)
        return max(nums), max(tokens)


MAX_DIGITS = 8
"""Digits of whole seconds: more than three years."""

NUM_TIMES = 1000
"""Number of times of as many digits that are tried for the one with the most tokens."""

_POWERS = 10.0 ** np.arange(1, MAX_DIGITS)


class FrameLines:
    """Lines such as `Frame12 at 11.5s: <img></img>` and `Frame12: <img></img>`.

    A time is known about: of all that have as many digits it is taken for the one with the most tokens.

    Args:
        prompts: counts.
    """

    def __init__(self, prompts: PromptCounter) -> None:
        self._prompts = prompts
        self._by_index = {with_times: np.zeros(0, dtype=np.int64) for with_times in (False, True)}
        self._longest: list[tuple[float, int]] = []

    def tokens(self, indices_T: np.ndarray, times_T: np.ndarray | None = None) -> np.ndarray:
        """Tokens of lines without their visual ones, where each follows another line.

        Args:
            indices_T: numbers of frames, from 0.
            times_T: seconds; without them lines have no time.
        """
        if not len(indices_T):
            return np.zeros(0, dtype=np.int64)
        by_index = self._of_indices(int(indices_T.max()) + 1, times_T is not None)[indices_T]
        if times_T is None:
            return by_index
        digits_T = np.searchsorted(_POWERS, times_T, side="right")
        more = [self._longest_of(digits)[1] for digits in range(int(digits_T.max()) + 1)]
        return by_index + np.array(more)[digits_T]

    def frame(self, index: int, time_s: float | None = None) -> FrameUse:
        """A frame of one visual token, with the time that `tokens` takes."""
        if time_s is None:
            return FrameUse(index, 0.0, 1)
        return FrameUse(index, self._longest_of(int(np.searchsorted(_POWERS, time_s, side="right")))[0], 1)

    def _of_indices(self, num: int, with_times: bool) -> np.ndarray:
        known = self._by_index[with_times]
        if len(known) < num:
            more = [FrameUse(index, 0.0, 1) for index in range(len(known), 2 * num)]
            known = self._by_index[with_times] = np.append(known, self._count(more, with_times))
        return known

    def _longest_of(self, digits: int) -> tuple[float, int]:
        while len(self._longest) <= digits:
            self._longest.append(self._find_longest(len(self._longest)))
        return self._longest[digits]

    def _find_longest(self, digits: int) -> tuple[float, int]:
        """Of times with so many digits after the first: the one of the most tokens, and how many more than 0.0 has."""
        lowest, count = (10 ** (digits + 1) if digits else 0), (9 * 10 ** (digits + 1) if digits else 100)
        step = 1 if count <= NUM_TIMES else 9973  # spread, in all digits
        times_s = [(lowest + number * step % count) / 10 for number in range(min(count, NUM_TIMES))]
        zero, *counted = self._count([FrameUse(1, time_s, 1) for time_s in (0.0, *times_s)], True).tolist()
        longest = max(range(len(counted)), key=counted.__getitem__)
        return times_s[longest], counted[longest] - zero

    def _count(self, frames: Sequence[FrameUse], with_times: bool) -> np.ndarray:
        first = FrameUse(0, 0.0, 1)
        shown = [[first], *([first, frame] for frame in frames)]
        turns = [Turn(INTERNVL.turn(some, "x", with_times=with_times), "x") for some in shown]
        alone, *counted = self._prompts.count([self._prompts.outline([turn]) for turn in turns])
        return np.array(counted, dtype=np.int64) - alone - 1
