#!/usr/bin/env python
r"""The second stage's training mix for a comparison of memories: each of them at each budget, in equal shares.

    python scripts/experiments/memories/memory_mixture.py --data outputs/quickstart/data \
        --output outputs/memories/mixture [--memories NAME ...] [--budgets 4/4/16 2/2/8] [--seed 0]

A memory that is compared without having been trained with would lose for that. The output gets `registry.json`, to be
trained with in place of the quickstart's `stage2.json`, and what that has not: rows about a picture that was shown for
one to three seconds, `needles.jsonl`, for `needle_in_a_haystack.py`. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from haystacks import HAYSTACKS, QUESTION, SIDE, drawn_needles, synthetic_haystack
from memory_budgets import Capacities, add_memories, check_memories, options_at, shown
from videochat_online.errors import InputError
from videochat_online.synthetic.files.question_rows import Row, json_document, online_row, to_json_lines, turn_at
from videochat_online.synthetic.files.video_files import write_bytes, write_jpeg
from videochat_online.synthetic.scene.even_draws import random_of
from videochat_online.synthetic.scene.words import SINGLE_SHAPES

DIALOGUE_REPEATS = 0.4
"""Repeats of the dialogues, as in the quickstart."""
REPEATS = 0.15
"""Repeats of the rows for each memory at each budget: together they take four times the quickstart's second stage."""
NUM_NEEDLES = 600
MIN_FRAMES, MAX_FRAMES = 8, 47
"""Frames of a clip, as in the quickstart's recalls."""
MOST_SHOWN = 3


def registry(data: Path, output: Path, names: Sequence[str], budgets: Sequence[Capacities]) -> dict[str, Any]:
    """Entries by name; paths are relative to `output`, where the registry is to lie."""

    def entry(annotation: Path, data_root: Path, repeat_time: float, **more: Any) -> dict[str, Any]:
        paths = {"annotation": annotation, "data_root": data_root}
        relative = {key: os.path.relpath(path.resolve(), output.resolve()) for key, path in paths.items()}
        return {**relative, "repeat_time": repeat_time, **more}

    videos, annotations = data / "videos" / "train", data / "annotations"
    memories: dict[str, dict[str, Any]] = {
        f"{name}_{shown(capacities).replace('/', '_')}": {"name": name, **options_at(name, capacities)}
        for capacities in budgets
        for name in names
    }
    memories["keep_all"] = {"name": "keep_all"}
    entries = {"dialogues": entry(annotations / "dialogues.jsonl", videos, DIALOGUE_REPEATS)}
    for label, memory in memories.items():
        entries[f"recalls_{label}"] = entry(annotations / "recalls.jsonl", videos, REPEATS, memory=memory)
        needles = entry(output / "needles.jsonl", output / "haystacks", REPEATS, fps=1, memory=memory)
        entries[f"needles_{label}"] = needles
    return entries


def needle_rows(output: Path, seed: int) -> Iterator[Row]:
    """Write the clips; a row for each."""
    random = random_of("needles", seed)
    for number, needle in enumerate(drawn_needles(NUM_NEEDLES, f"needles/{seed}")):
        name, length = f"{number:05d}", random.randint(MIN_FRAMES, MAX_FRAMES)
        haystack = synthetic_haystack(random.choice(HAYSTACKS), length, f"train/{seed}/{number}")
        num_shown = random.randint(1, MOST_SHOWN)
        place = random.randrange(length - num_shown + 1)
        for index in range(length):
            is_needle = place <= index < place + num_shown
            pixels_HWC = needle.pixels_HWC if is_needle else haystack[index % len(haystack)]
            write_jpeg(output / "haystacks" / name / f"{index}.jpg", pixels_HWC)
        asked = turn_at(QUESTION, needle.answer, length - 1, SINGLE_SHAPES)
        yield online_row(name, 0, length, [asked])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write clips, rows and registry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="of videochat-online synthesize, preset quickstart")
    parser.add_argument("--output", type=Path, required=True, help="folder of the mix")
    add_memories(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the needles")
    options = parser.parse_args(arguments)
    try:
        check_memories(options)
        if not (options.data / "annotations" / "recalls.jsonl").is_file():
            raise InputError(f"--data: expected the output of videochat-online synthesize, got {options.data}")
        entries = registry(options.data, options.output, options.memories, options.budgets)
        write_bytes(options.output / "needles.jsonl", to_json_lines(list(needle_rows(options.output, options.seed))))
        write_bytes(options.output / "registry.json", json_document(entries))
    except (InputError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{options.output / 'registry.json'}: {len(entries)} entries, {NUM_NEEDLES} needles of {SIDE} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
