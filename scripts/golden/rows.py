"""Training rows said again slowly: which frames a row shows, and what its dialogue becomes.

Once as the reference has it and once as ours should. All is derived from the row; where the two differ, a reason is
given.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from golden.harness import Case
from videochat_online.data import Sample

Dialogue = list[tuple[str, str]]
Row = Mapping[str, Any]


@dataclass
class Told:
    """What one of the two makes of a row.

    Attributes:
        dialogue: dialogue with `<image>` where a picture is.
        frames: places in the row's `pictures`; None for still images.
        asked_s: seconds at which each turn is asked, as the reference notes them; empty where turns have no times.
    """

    dialogue: Dialogue
    frames: list[int] | None = None
    asked_s: list[float] = field(default_factory=list)


@dataclass
class RowTold:
    """A row as the reference has it, as ours should, and why the two differ."""

    theirs: Told
    ours: Told
    reasons: list[str] = field(default_factory=list)

    @property
    def are_same(self) -> bool:
        """Whether there is no difference."""
        return (self.theirs.dialogue, self.theirs.frames) == (self.ours.dialogue, self.ours.frames)


def tell(case: Case, sample: Sample) -> RowTold:
    """A row's dialogue and frames, twice."""
    row, settings = case.params["sample"], case.params["settings"]
    if sample.kind == "text":
        return RowTold(Told(_pairs(row)), Told(_pairs(row)))
    if sample.kind == "image":
        return _still(row, len(sample.media))
    if sample.kind == "tracking":
        places = _subset(list(range(len(sample.media))), settings["max_num_frame"])
        times_s = [round(sample.boxes[place].time_s, 1) for place in places]
        asked = random.Random(case.params["random_seed"]).randint(0, len(places) - 1)
        turns = _tracked(row, places, times_s, asked)
        return _timed(turns, (places, times_s), (places, times_s), [])
    chosen, reasons = _chosen(sample, settings)
    if sample.kind == "video":
        return _untimed(row, *chosen, reasons)
    _, fps = pictures(sample)
    seen = tuple((places, [round(place / fps, 1) for place in places]) for places in chosen)
    pairs = _pairs(row)
    turns = [(*pair, turn.time_s or 0.0) for pair, turn in zip(pairs, sample.turns, strict=True)]
    return _timed(turns, *seen, reasons, reset=sample.reset_times)


def pictures(sample: Sample) -> tuple[Sequence[Image.Image], float]:
    """All frames of a video, a folder or a track in their order, and how many are a second."""
    if sample.kind == "tracking":
        return [Image.open(path) for path in sample.media], 1.0
    path = Path(str(sample.media[0]))
    if path.is_dir():
        return [Image.open(file) for file in sorted(path.iterdir())], sample.fps or 1.0
    return _decoded(path)


@cache
def _decoded(path: Path) -> tuple[list[Image.Image], float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        return [frame.to_image() for frame in container.decode(stream)], float(stream.average_rate)


def _subset(items: list[int], most: int) -> list[int]:
    """Evenly spread, the first and the last among them."""
    if not 0 < most < len(items):
        return items
    return [items[int(position)] for position in np.linspace(0, len(items) - 1, most)]


def sampled_places(num_frames: int, fps: float, method: str, most: int) -> list[int]:
    """Centres of intervals, or middles of segments."""
    if method == "middle":
        edges = [int(edge) for edge in np.linspace(0, num_frames, min(most, num_frames) + 1)]
        return [(start + stop - 1) // 2 for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    interval_s = 1 / float(method.removeprefix("fps"))
    centres_s = np.arange(interval_s / 2, num_frames / fps + interval_s / 2, interval_s)
    return _subset([round(time_s * fps) for time_s in centres_s.tolist() if round(time_s * fps) < num_frames], most)


def _chosen(sample: Sample, settings: Row) -> tuple[tuple[list[int], list[int]], list[str]]:
    """Frames of a video as the reference takes them, and as ours does."""
    (frames, fps), method, most = pictures(sample), settings["sampling_method"], settings["max_num_frame"]
    num_frames = len(frames)
    if Path(str(sample.media[0])).is_dir():
        theirs = sampled_places(num_frames, 1.0, method, most) if num_frames > most else list(range(num_frames))
        ours = sorted(set(sampled_places(num_frames, fps, method, most)))
        if method == f"fps{fps:g}":
            ours = _subset(list(range(num_frames)), most)
        return (theirs, ours), [] if theirs == ours else ["images of a folder are a second apart, each shown once"]
    if sample.clip_s is None:
        places = sampled_places(num_frames, fps, method, most)
        return (places, places), []
    first, wanted = int(sample.clip_s[0] * fps), int((sample.clip_s[1] - sample.clip_s[0]) * fps)
    first = min(first, num_frames - wanted)
    theirs = [first + place for place in sampled_places(wanted, fps, method, most)]
    if first >= 0 and theirs:
        return (theirs, theirs), []
    if first >= 0:
        return ([], [min(first, num_frames - 1) + wanted // 2]), ["a clip without the centre of an interval"]
    return (theirs, sampled_places(num_frames, fps, method, most)), ["a clip longer than the video begins before it"]


def _pairs(row: Row) -> Dialogue:
    """Questions and answers, placeholders still in them."""
    if "QA" in row:
        asked = [f"{pair.get('i', '')} {pair.get('q', '')}".strip() for pair in row["QA"]]
        return list(zip(asked, [pair["a"].strip() for pair in row["QA"]], strict=True))
    said = [message["value"] for message in row["conversations"] if message["from"] != "system"]
    return list(zip(said[::2], said[1::2], strict=True))


def _still(row: Row, num_images: int) -> RowTold:
    """Images where the text has them, or before it."""
    theirs, ours = _pairs(row), _pairs(row)
    if num_images == 1 and not isinstance(row["image"], list) and "<image>" not in theirs[0][0]:
        theirs[0] = (f"<image>\n{theirs[0][0]}", theirs[0][1])
    if not any("<image>" in user for user, _ in ours):
        ours[0] = ("<image>\n" * num_images + ours[0][0], ours[0][1])
    reasons = [] if theirs == ours else ["images whose places the text does not give stand before it"]
    return RowTold(Told(theirs), Told(ours), reasons)


def _untimed(row: Row, theirs: list[int], ours: list[int], reasons: list[str]) -> RowTold:
    """All frames at the first turn's placeholder, or before it."""
    (user, reply), *later = _pairs(row)
    before, placeholder, after = user.replace("<image>", "<video>").rpartition("<video>")
    told = []
    for places, has_break in ((theirs, after.startswith("\n") or not placeholder), (ours, True)):
        lines = "\n".join(f"Frame{place + 1}: <image>" for place in range(len(places)))
        opened = f"{before}{lines}" + "\n" * has_break + after.removeprefix("\n")
        told.append(Told([(opened, reply), *later], places))
    if told[0].dialogue != told[1].dialogue and theirs == ours:
        reasons = [*reasons, "the frames' lines end in a line break"]
    return RowTold(told[0], told[1], reasons)


def _tracked(row: Row, places: Sequence[int], times_s: Sequence[float], asked: int) -> list[tuple[str, str, float]]:
    """One frame's box is asked; each later frame becomes a turn."""
    boxes = [row["image_bboxes"][place]["bbox"] for place in places]
    lines = [f"At {time_s}s, {box}" for time_s, box in zip(times_s, boxes, strict=True)]
    query = row["query_template"]["value"].replace("<bbox>", str(boxes[asked]))
    later = [("<video>\n", lines[place], times_s[place]) for place in range(asked + 1, len(lines))]
    return [(query, "\n".join(lines[: asked + 1]), times_s[asked]), *later]


def _timed(
    turns: Sequence[tuple[str, str, float]],
    seen_there: tuple[list[int], list[float]],
    seen_here: tuple[list[int], list[float]],
    reasons: list[str],
    *,
    reset: bool = False,
) -> RowTold:
    """Each turn has the frames since the turn before."""
    (places, times_s), (our_places, our_times_s) = seen_there, seen_here
    if reset:
        times_s = [time_s - times_s[0] for time_s in times_s]
        our_times_s = [round(time_s - our_times_s[0], 1) for time_s in our_times_s]
    theirs, stops = Told([]), [0]
    for user, reply, at_s in turns:
        until_s = min(round(times_s[-1], 1) + 0.1, at_s) if times_s else at_s
        theirs.asked_s.append(until_s)
        start = stops[-1]
        # The last of all frames is where the search ends, and never one that it finds.
        stop = next((i for i in range(start, len(times_s)) if times_s[i] > until_s), max(start, len(times_s) - 1))
        stops.append(stop)
        text = user.replace("<image>", "<video>")
        text = text if "<video>" in text else f"<video>\n{text}"
        theirs.dialogue.append((text.replace("<video>", _lines(times_s, start, stop)), reply))
    theirs.frames = places[: stops[-1]]
    ours, first = Told([]), 0
    for user, reply, at_s in turns:
        stop = max(first, sum(time_s <= at_s + 1e-6 for time_s in our_times_s))
        text = user.replace("<image>", "<video>").replace("<video>\n", "").replace("<video>", "")
        ours.dialogue.append((f"{_lines(our_times_s, first, stop)}\n{text}", reply))
        first = stop
    ours.frames = our_places[:first]
    told = RowTold(theirs, ours, reasons)
    if not reasons and not told.are_same:
        lost = theirs.frames == ours.frames[:-1]
        lines = [[line for user, _ in one.dialogue for line in user.split("\n") if "<image>" in line]
                 for one in (theirs, ours)]  # fmt: skip
        told.reasons = ["the reference never uses the last sampled frame; ours has it, in its place"] if lost else []
        if not lost or lines[0] != lines[1][:-1]:
            told.reasons.append("times are compared as prompts print them, and frames stand before what is said")
    return told


def _lines(times_s: Sequence[float], start: int, stop: int) -> str:
    return "\n".join(f"Frame{place + 1} at {round(times_s[place], 1)}s: <image>" for place in range(start, stop))
