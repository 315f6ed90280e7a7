#!/usr/bin/env python
r"""A needle in a haystack: is a picture that was shown for a moment still remembered, and can it be asked about?

    python scripts/experiments/memories/needle_in_a_haystack.py --model DIR --output OUT [--memory NAME ...] \
        [--haystack streams|static|busy] [--lengths 64 256 1024 4096 10000] [--depths 0 0.25 0.5 0.75 1] \
        [--needles 8] [--shown 1] [--beside FILE ...]
    python scripts/experiments/memories/needle_in_a_haystack.py --model DIR --output OUT --video CLIP \
        [--needle PICTURE PICTURE ...]

A stream of each length is watched, in which a needle stands at each depth: 0 is the first frame, 1 the last. The
needles of a cell stand a frame later each, so that the beat of a token schedule does not favour a depth. Haystacks are
drawn, or a clip that begins again and again; a needle is a white shape, or a picture whose file name is its answer.
At the end a multiple-choice question asks which it was. For each cell: the share of needles of which a frame is still
in memory by its number (exact, and also of a model that has learned nothing), and the share that is answered rightly.
A frame that was merged into a later one counts as lost, though some of it may be left in the average.

Each picture goes through the vision tower once. Memories are sized as `videochat-online evaluate` does. Prints
Markdown; OUT gets `needle.json` and `needle.png`, with the results of `--beside` in the same picture. Exit status 2:
the input is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from haystacks import (
    HAYSTACKS,
    PICTURE_QUESTION,
    QUESTION,
    Needle,
    Pixels,
    clip_haystack,
    drawn_needles,
    picture_needles,
    synthetic_haystack,
)
from needle_map import draw, read_result, render
from videochat_online.cli.main import normalise_flags
from videochat_online.cli.options import add_memory_arguments, add_model_arguments, load_model_of, memory_options_of
from videochat_online.cli.parser import Parser
from videochat_online.errors import InputError
from videochat_online.evaluation import EvalProtocol, resolve_protocol
from videochat_online.evaluation.report.plots import save_figure
from videochat_online.evaluation.run.answering import LETTER_PREFIX, answer_by_likelihood, answer_by_text_likelihood
from videochat_online.model import VideoChatModel
from videochat_online.streaming import StreamingSession
from videochat_online.text.questions import STREAMING_SUFFIX, ovbench_question

ENCODE_BATCH = 32
ANSWER_BY = ("likelihood", "text_likelihood", "nothing")


@dataclass(frozen=True)
class CachedModel(VideoChatModel):
    """A model whose pictures went through the tower before: a frame is the number of its features."""

    features: Tensor = field(kw_only=True)

    def encode(self, pixels_THWC: npt.NDArray[Any]) -> Tensor:
        """Features of numbers [T]."""
        return self.features[torch.as_tensor(pixels_THWC, device=self.features.device)]


def cached(model: VideoChatModel, pictures: Sequence[Pixels]) -> CachedModel:
    """The model with the features of pictures uint8 [H, W, 3], which may be of several sizes."""
    squares = [model.transform.resized(picture[None])[0] for picture in pictures]
    starts = range(0, len(squares), ENCODE_BATCH)
    features = torch.cat([model.encode(np.stack(squares[start : start + ENCODE_BATCH])) for start in starts])
    return CachedModel(**{part.name: getattr(model, part.name) for part in fields(model)}, features=features)


@dataclass(frozen=True)
class Search:
    """What is looked for in what.

    Attributes:
        model: model with the features of the haystack's frames, then of the needles'.
        num_frames: frames of the haystack, before it begins again.
        needles: needles in the order of their features.
        question: question without options.
        options: options in the order of their letters.
        shown: frames for which a needle is on view.
        fps: frames a second, for the times that a model is told.
        answer_by: one of `ANSWER_BY`.
    """

    model: CachedModel
    num_frames: int
    needles: Sequence[Needle]
    question: str
    options: Sequence[str]
    shown: int
    fps: float
    answer_by: str

    def watch(self, session: StreamingSession, until: int) -> None:
        """Go on with the haystack up to a frame's number, excluded."""
        self._push(session, np.arange(session.num_frames, until) % self.num_frames)

    def show(self, session: StreamingSession, needle: int) -> None:
        """The needle, in place of the haystack."""
        self._push(session, np.full(self.shown, self.num_frames + needle))

    def is_found(self, session: StreamingSession, needle: int) -> bool:
        """Whether the question is answered rightly."""
        at_s = session.last_time_s or 0.0
        by_letter = self.answer_by == "likelihood"
        text = ovbench_question(self.question, self.options if by_letter else (), asked_at_s=at_s) + STREAMING_SUFFIX
        prompt = session.prepare(text, at_s=at_s, generation_prefix=LETTER_PREFIX if by_letter else "").prompt
        if by_letter:
            reply = answer_by_likelihood(self.model, prompt, len(self.options), session.settings)
        else:
            reply = answer_by_text_likelihood(self.model, prompt, self.options)
        return reply.option == self.options.index(self.needles[needle].answer)

    def _push(self, session: StreamingSession, numbers_T: npt.NDArray[np.int64]) -> None:
        first = session.num_frames
        session.push(numbers_T, [(first + step) / self.fps for step in range(len(numbers_T))])


def search(
    what: Search, protocol: EvalProtocol, lengths: Sequence[int], depths: Sequence[float]
) -> list[dict[str, Any]]:
    """A record for each length and depth, in that order.

    What comes before a needle does not depend on it or on the length: the haystack is watched once, and the session is
    saved wherever a needle is to stand.
    """
    config = what.model.config
    memory = protocol.make_memory(config.grid, tuple(config.memory_intervals))
    message = protocol.system_message_of("open" if what.answer_by == "text_likelihood" else "choice")
    session = StreamingSession(what.model, memory, system_message=message, reuse_prefix=False)
    room = what.shown + len(what.needles) - 1
    cells = {(length, depth): round(depth * (length - room)) for length in lengths for depth in depths}
    with tempfile.TemporaryDirectory() as folder:
        saved = {place: Path(folder, str(place)) for place in sorted(set(cells.values()))}
        for place, path in saved.items():
            what.watch(session, place)
            session.save(path)
        return [
            {"length": length, "depth": depth, "first_place": place, **_cell(what, session, saved[place], length)}
            for (length, depth), place in cells.items()
        ]


def _cell(what: Search, session: StreamingSession, before: Path, length: int) -> dict[str, Any]:
    is_asked = what.answer_by != "nothing"
    kept, tokens, right = [], [], []
    for needle in range(len(what.needles)):
        session.restore(before)
        place = session.num_frames + needle
        what.watch(session, place)
        what.show(session, needle)
        what.watch(session, length)
        held = [frame for frame in session.remembered() if place <= frame.index < place + what.shown]
        kept.append(bool(held))
        tokens += [frame.num_tokens for frame in held]
        right += [what.is_found(session, needle)] if is_asked else []
    return {
        "num_needles": len(kept),
        "num_kept": sum(kept),
        "tokens_a_frame": round(fmean(tokens), 2) if tokens else None,
        "num_right": sum(right) if is_asked else None,
    }


def check(options: argparse.Namespace) -> None:
    """InputError for numbers out of range."""
    for name, values in (("lengths", options.lengths), ("depths", options.depths)):
        if len(set(values)) < len(values):
            raise InputError(f"--{name}: expected each once, got {' '.join(map(str, values))}")
    room = options.shown + options.needles - 1
    rules = {
        "shown": (options.shown >= 1, "at least 1 frame", options.shown),
        "depths": (all(0 <= depth <= 1 for depth in options.depths), "numbers from 0 to 1", options.depths),
        "fps": (math.isfinite(options.fps) and options.fps > 0, "a number above 0", options.fps),
        "needles": (options.needles >= 2, "at least 2", options.needles),
        "answer_by": (options.answer_by in ANSWER_BY, " or ".join(ANSWER_BY), options.answer_by),
        "lengths": (min(options.lengths) >= room, f"at least the {room} frames of all needles", min(options.lengths)),
    }
    for name, (holds, expected, found) in rules.items():
        if not holds:
            raise InputError(f"--{name}: expected {expected}, got {found}")


def prepare(options: argparse.Namespace) -> tuple[list[Pixels], list[Needle], str]:
    """Frames of the haystack, needles with answers that come equally often, and the question."""
    longest = max(options.lengths)
    if options.video is None:
        haystack = list(synthetic_haystack(options.haystack, longest, f"haystack/{options.seed}"))
    else:
        haystack = clip_haystack(options.video, options.fps, longest)
    if options.needle is None:
        pictures, question = drawn_needles(options.needles, f"needle/{options.seed}"), QUESTION
    else:
        pictures, question = picture_needles(options.needle), PICTURE_QUESTION
    needles = [pictures[number % len(pictures)] for number in range(options.needles)]
    num_answers = len({needle.answer for needle in pictures})
    if options.needles % num_answers:
        raise InputError(f"--needles: expected a multiple of the {num_answers} answers, got {options.needles}")
    return haystack, needles, options.question or question


def run(options: argparse.Namespace) -> None:
    """Look for needles, write and print."""
    check(options)
    protocol = resolve_protocol("streaming", memory=options.memory, memory_options=memory_options_of(options))
    beside = [read_result(path) for path in options.beside]
    haystack, needles, question = prepare(options)
    options.output.mkdir(parents=True, exist_ok=True)
    what = Search(
        model=cached(load_model_of(options), [*haystack, *(needle.pixels_HWC for needle in needles)]),
        num_frames=len(haystack),
        needles=needles,
        question=question,
        options=list(dict.fromkeys(needle.answer for needle in needles)),
        shown=options.shown,
        fps=options.fps,
        answer_by=options.answer_by,
    )
    config = what.model.config
    result = {
        "label": options.label or str(protocol.memory),
        "memory": protocol.memory,
        "memory_options": dict(protocol.memory_options),
        "max_tokens": protocol.make_memory(config.grid, tuple(config.memory_intervals)).max_tokens,
        "model": options.model,
        "haystack": options.haystack if options.video is None else str(options.video),
        "haystack_frames": len(haystack),
        "shown": options.shown,
        "fps": options.fps,
        "seed": options.seed,
        "question": question,
        "options": what.options,
        "answer_by": what.answer_by,
        "cells": search(what, protocol, options.lengths, options.depths),
    }
    (options.output / "needle.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    save_figure(draw([*beside, result]), options.output / "needle.png")
    print(render(result), end="")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for needle.json and needle.png")
    parser.add_argument("--label", metavar="TEXT", help="name in the picture (default: the memory's)")
    parser.add_argument("--beside", nargs="+", type=Path, default=[], metavar="FILE", help="needle.json of other runs")
    group = parser.add_argument_group("haystack and needle")
    group.add_argument("--haystack", default="streams", choices=HAYSTACKS, help="(default: streams)")
    group.add_argument("--video", type=Path, metavar="PATH", help="a clip as haystack, over and over")
    group.add_argument("--needle", nargs="+", type=Path, metavar="PICTURE", help="pictures (default: white shapes)")
    group.add_argument("--question", metavar="TEXT", help=f"(default: {QUESTION} {PICTURE_QUESTION})")
    group.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024, 4096, 10000], metavar="N")
    group.add_argument("--depths", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1], metavar="X")
    group.add_argument("--needles", type=int, default=8, metavar="N", help="in each cell (default: 8)")
    group.add_argument("--shown", type=int, default=1, metavar="N", help="frames of a needle (default: 1)")
    group.add_argument("--fps", type=float, default=1.0, metavar="X", help="frames a second (default: 1)")
    group.add_argument("--seed", type=int, default=0, help="of what is drawn")
    group.add_argument("--answer_by", default="likelihood", help=f"{' or '.join(ANSWER_BY)} (default: likelihood)")
    add_model_arguments(parser)
    add_memory_arguments(parser)
    try:
        run(parser.parse_args(normalise_flags(sys.argv[1:] if arguments is None else arguments)))
    except (InputError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
