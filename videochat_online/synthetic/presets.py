"""What a data set holds: its world, its streams, its training clips. All counts are here."""

from __future__ import annotations

from dataclasses import dataclass

from videochat_online.errors import InputError

WORLDS = ("single", "several")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamKind:
    """Streams of one length.

    Attributes:
        seconds: length of each, in seconds.
        count: number of streams.
        num_questions: questions to each in the world "several"; "single" has a fixed set.
    """

    seconds: int
    count: int
    num_questions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipKind:
    """Offline training clips cut from the training streams.

    Attributes:
        name: name of the annotation and the registry entry.
        min_s: length of the shortest, in seconds; at 1 frame per second also the number of frames.
        max_s: length of the longest, in seconds.
        per_stream: clips from each stream; in the world "several", from each 24 s of it.
    """

    name: str
    min_s: int
    max_s: int
    per_stream: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A data set to generate.

    Attributes:
        name: name on the command line.
        world: "single": one shape at a time in four cells, options in a fixed order. "several": up to three
            shapes on a grid of sixteen, with patterns, flashes and actions; shuffled options.
        video_fps: frames per second of the videos.
        train: streams for training.
        val: streams for watching a training run.
        test: streams of the benchmark.
        clips: offline training clips.
        dialogues_per_stream: online training rows of two kinds cut from each training stream, as many of each;
            in the world "several", from each 24 s of it.
        num_images: training images.
        folder_share: part of the val and test streams that are folders of JPEG frames.
        variable_share: part of them that are videos of variable frame rate.
        busy_share: part of all streams that have a drifting background, in the world "several".
        size_px: width and height of a frame, in pixels.
    """

    name: str
    world: str
    video_fps: int
    train: tuple[StreamKind, ...]
    val: tuple[StreamKind, ...]
    test: tuple[StreamKind, ...]
    clips: tuple[ClipKind, ...] = ()
    dialogues_per_stream: int = 0
    num_images: int = 0
    folder_share: float = 0.1
    variable_share: float = 0.1
    busy_share: float = 0.0
    size_px: int = 64

    def __post_init__(self) -> None:
        if self.world not in WORLDS:
            raise InputError(f"world: expected one of {', '.join(WORLDS)}, got {self.world!r}")
        if self.world == "several" and self.video_fps != 8:
            raise InputError(
                f"video_fps: expected 8 in the world 'several' (its actions need it), got {self.video_fps}"
            )
        step = 12 if self.world == "several" else 48
        shortest_s = min((kind.seconds for kind in self.train), default=step)
        for clip in self.clips:
            if not (1 <= clip.min_s <= clip.max_s and clip.min_s < shortest_s and clip.per_stream >= 0):
                raise InputError(
                    f"clips: expected 1 <= min_s <= max_s, min_s below the {shortest_s} s of the shortest training"
                    f" stream and per_stream of at least 0, got {clip}"
                )
        for kind in (*self.train, *self.val, *self.test):
            if self.world == "several" and kind.num_questions and kind.seconds < 2 * step:
                raise InputError(f"world 'several': expected streams of at least {2 * step} s to ask about, got {kind}")
            wrong_length = kind.seconds % step or (self.world == "single" and kind.seconds != step)
            if kind.seconds < step or kind.count < 0 or wrong_length:
                lengths = "48 s" if self.world == "single" else "a multiple of 12 s"
                raise InputError(f"world {self.world!r}: expected streams of {lengths}, got {kind}")

    @property
    def cells_per_side(self) -> int:
        """Cells a side of the grid that shapes rest in."""
        return 2 if self.world == "single" else 4

    def streams(self, split: str) -> tuple[StreamKind, ...]:
        """The streams of one of `SPLITS`."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


QUICKSTART = Preset(
    name="quickstart",
    world="single",
    video_fps=2,
    train=(StreamKind(seconds=48, count=360),),
    val=(StreamKind(seconds=48, count=16),),
    test=(StreamKind(seconds=48, count=160),),
    clips=(
        ClipKind(name="clips_of_2", min_s=1, max_s=2, per_stream=6),
        ClipKind(name="clips_of_6", min_s=2, max_s=6, per_stream=6),
        ClipKind(name="clips_of_8", min_s=3, max_s=8, per_stream=8),
    ),
    dialogues_per_stream=6,
    num_images=3000,
)
"""Preset that a tiny word-level model learns on two CPU cores in minutes."""

FULL = Preset(
    name="full",
    world="several",
    video_fps=8,
    train=(
        StreamKind(seconds=24, count=2700, num_questions=2),
        StreamKind(seconds=60, count=200, num_questions=5),
        StreamKind(seconds=240, count=50, num_questions=12),
    ),
    val=(StreamKind(seconds=24, count=200, num_questions=2),),
    test=(
        StreamKind(seconds=24, count=600, num_questions=2),
        StreamKind(seconds=60, count=100, num_questions=5),
        StreamKind(seconds=240, count=100, num_questions=12),
        StreamKind(seconds=960, count=100, num_questions=12),
    ),
    clips=(
        ClipKind(name="clips_of_4", min_s=1, max_s=4, per_stream=4),
        ClipKind(name="clips_of_24", min_s=5, max_s=24, per_stream=6),
    ),
    dialogues_per_stream=4,
    num_images=9000,
    folder_share=0.1,
    variable_share=0.05,
    busy_share=0.25,
)
"""All six types, details of two sizes, evidence up to minutes old."""

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (QUICKSTART, FULL)}
