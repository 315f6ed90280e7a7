"""Haystacks and needles: long streams of frames in which a picture is shown for a moment.

Shape legend: `N` frames, `S` side in pixels, `H` height, `W` width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt

from videochat_online.errors import InputError
from videochat_online.synthetic.scene.even_draws import Decks, random_of
from videochat_online.synthetic.scene.one_shape import CELLS, STREAM_S, SingleStreams
from videochat_online.synthetic.scene.render import Renderer
from videochat_online.synthetic.scene.scene import Entity, Event, Scene
from videochat_online.synthetic.scene.words import SINGLE_SHAPES, Cell
from videochat_online.video import read_image, read_video

Pixels = npt.NDArray[np.uint8]

HAYSTACKS = ("static", "busy", "streams")
"""A still background, one that drifts, and streams of shapes of other colours than the needle's."""
NEEDLE_COLOUR = "white"
QUESTION = f"Which shape was {NEEDLE_COLOUR}?"
"""The template `shape_of_colour`; no shape of a haystack has this colour."""
PICTURE_QUESTION = "Which of these was shown?"
SIDE = 64
DRIFT_PERIOD = 64
"""Frames after which the drifting background comes back."""
NUM_STREAMS = 40
"""Different streams in a haystack: 32 minutes before they begin again."""


@dataclass(frozen=True)
class Needle:
    """A picture uint8 [H, W, 3], and the option that is right when it was shown."""

    answer: str
    pixels_HWC: Pixels


def synthetic_haystack(kind: str, num_frames: int, seed: str) -> Pixels:
    """The frames of a haystack up to where it begins again, at most `num_frames`: one a second, uint8 [N, S, S, 3].

    Raises:
        InputError: an unknown kind.
    """
    if kind not in HAYSTACKS:
        raise InputError(f"haystack: expected one of {', '.join(HAYSTACKS)}, got {kind!r}")
    if kind == "streams":
        streams = SingleStreams(0, seed)
        count = min(NUM_STREAMS, -(-num_frames // STREAM_S))
        renderers = [Renderer(_without_needles(streams.make(f"{seed}_{i}")[0]), SIDE) for i in range(count)]
        times = min(num_frames, count * STREAM_S)
        return np.stack([renderers[second // STREAM_S].frame(second % STREAM_S) for second in range(times)])
    is_busy = kind == "busy"
    scene = Scene(seed, STREAM_S, 2, (), (), random_of(seed).getrandbits(32), is_busy)
    renderer = Renderer(scene, SIDE)
    return np.stack([renderer.frame(second) for second in range(min(num_frames, DRIFT_PERIOD if is_busy else 1))])


def _without_needles(scene: Scene) -> Scene:
    """What is as white as a needle is black instead."""
    colours = {NEEDLE_COLOUR: "black"}
    entities = (replace(one, colour=colours.get(one.colour, one.colour)) for one in scene.entities)
    return replace(scene, entities=tuple(entities))


def drawn_needles(count: int, seed: str) -> list[Needle]:
    """White shapes on a background of their own; shapes, and shapes with places, come equally often."""
    random, needles = Random(seed), []
    places: Decks[Cell] = Decks(seed)
    for number in range(count):
        shape = SINGLE_SHAPES[number % len(SINGLE_SHAPES)]
        events = (Event("appear", 0, 0.0, 0.0, places.draw(shape, CELLS)),)
        scene = Scene(seed, 1.0, 2, (Entity(NEEDLE_COLOUR, shape),), events, random.getrandbits(32))
        needles.append(Needle(shape, Renderer(scene, SIDE).frame(0.0)))
    return needles


def clip_haystack(path: Path, fps: float, num_frames: int) -> list[Pixels]:
    """The frames of a clip, uint8 [H, W, 3] each, at most `num_frames`.

    Raises:
        VideoError: no such clip, or one that cannot be read.
    """
    found: list[Pixels] = []
    for frames in read_video(path, fps=fps, end_s=num_frames / fps):
        found += list(frames.pixels_THWC)
    return found[:num_frames]


def picture_needles(paths: Sequence[Path]) -> list[Needle]:
    """Pictures of any size; what a file is called is its answer.

    Raises:
        InputError: fewer than two, or two of one name.
        VideoError: a file that is no picture, or a broken one.
    """
    names = Counter(path.stem for path in paths)
    if len(paths) < 2 or len(names) < len(paths):
        raise InputError(
            f"--needle: expected two or more pictures of different names, got {', '.join(map(str, paths))}"
        )
    return [Needle(path.stem, np.asarray(read_image(path), dtype=np.uint8)) for path in paths]
