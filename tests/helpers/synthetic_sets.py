"""Small presets of both worlds, and their questions as the benchmark states them."""

from __future__ import annotations

from dataclasses import replace

from videochat_online.synthetic import PRESETS, ClipKind, Stream, StreamKind, make_streams
from videochat_online.synthetic.files.question_rows import ovbench_row

TINY_SINGLE = replace(
    PRESETS["quickstart"],
    name="tiny_single",
    train=(StreamKind(seconds=48, count=3),),
    val=(StreamKind(seconds=48, count=1),),
    test=(StreamKind(seconds=48, count=5),),
    clips=(ClipKind(name="clips_of_6", min_s=2, max_s=6, per_stream=4),),
    dialogues_per_stream=3,
    num_images=7,
    folder_share=0.4,
    variable_share=0.4,
)
TINY_SEVERAL = replace(
    PRESETS["full"],
    name="tiny_several",
    train=(StreamKind(seconds=24, count=3, num_questions=2),),
    val=(StreamKind(seconds=24, count=1, num_questions=2),),
    test=(StreamKind(seconds=24, count=5, num_questions=2), StreamKind(seconds=72, count=1, num_questions=3)),
    num_images=4,
    folder_share=0.4,
    variable_share=0.4,
    busy_share=0.4,
)
# 368 is a multiple of 16, the most cards that a deck of this world has.
MANY_SINGLE = replace(
    TINY_SINGLE,
    name="many_single",
    train=(StreamKind(seconds=48, count=368),),
    test=(StreamKind(seconds=48, count=368),),
)
MANY_SEVERAL = replace(
    TINY_SEVERAL,
    name="many_several",
    train=(StreamKind(seconds=60, count=1000, num_questions=5),),
    test=(StreamKind(seconds=60, count=1000, num_questions=5),),
)
LONG_SEVERAL = replace(
    TINY_SEVERAL, name="long_several", test=(StreamKind(seconds=960, count=8, num_questions=12),), busy_share=0.0
)


def benchmark_questions(stream: Stream) -> list[dict]:
    """The stream's questions as they are written."""
    return ovbench_row(stream.file, stream.scene, stream.questions, None)["questions"]


def all_streams(preset, split="test", seed=0) -> list[Stream]:
    return list(make_streams(preset, seed, split))
