#!/usr/bin/env python
"""Time to the first token of an answer by strategy, as a ratio to `direct`.

    python scripts/benchmarks/benchmark_strategies.py [--video PATH] [--sizes 832 9984] [--repeats 3]

For each size of the Pyramid Memory Bank, full, nothing of an earlier prompt kept. `retrieval` keeps 4 frames.
`chain_of_shot` asks the model about every mosaic, and is then told that every other frame is relevant: random weights
say Yes to all or to none, and then there is no contrast. `judging` is this asking and then the plain answer. Medians,
taken in turns in one run; model and clock are those of `benchmark_prefix.py`.

Sample record (2 shared cores of an x86-64 server, 1 thread, busy; --repeats 5):
{"832": {"visual_tokens": 832, "num_frames": 16, "prompt_tokens": 1219, "seconds": {"direct": 0.335, "retrieval": 0.069,
 "judging": 0.81, "chain_of_shot": 1.814}, "ratios": {"direct": 1.0, "retrieval": 0.21, "judging": 2.42,
 "chain_of_shot": 5.42}}, "device": "cpu", "torch": "2.13.0+cpu"}
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmark_prefix import FIRST, FPS, make_model, read_frames, seconds
from measuring import CAPACITIES
from videochat_online.memory import PyramidMemoryBank
from videochat_online.model import VideoChatModel
from videochat_online.streaming import GenerationSettings, Strategy, StreamingSession, make_strategy
from videochat_online.streaming.question_prompt import FrameSelection
from videochat_online.streaming.strategies.chain_of_shot import are_relevant, contrasted
from videochat_online.types import FrameTokens


@dataclass(frozen=True)
class HalfRelevant:
    """`ChainOfShot` whose judgement is made and then replaced: every other frame is relevant, or none."""

    has_contrast: bool

    def read(
        self,
        frames: Sequence[FrameTokens],
        question: str,
        model: VideoChatModel,
        project: Callable[[FrameTokens], Tensor],
    ) -> tuple[FrameSelection, ...]:
        """As `Strategy.read`."""
        are_relevant(model, frames, question)
        return contrasted(frames, [self.has_contrast and place % 2 == 0 for place in range(len(frames))])


STRATEGIES: dict[str, Strategy] = {
    "direct": make_strategy("direct"),
    "retrieval": make_strategy("retrieval", retrieved_frames=4),
    "judging": HalfRelevant(has_contrast=False),
    "chain_of_shot": HalfRelevant(has_contrast=True),
}


def measure(model: VideoChatModel, options: argparse.Namespace, size: int) -> dict[str, Any]:
    """All figures at one size of the memory."""
    memory = PyramidMemoryBank(capacities=CAPACITIES[size], full_grid=model.frames.grid)
    settings = GenerationSettings(max_new_tokens=1)
    frames_THWC = read_frames(options.video, 8 * CAPACITIES[size][0] + 16)
    session = StreamingSession(model, memory, settings=settings, reuse_prefix=False)
    session.push(frames_THWC, [index / FPS for index in range(len(frames_THWC))])
    with tempfile.TemporaryDirectory() as folder:
        session.save(f"{folder}/state")
        sessions = {}
        for name, strategy in STRATEGIES.items():
            empty = PyramidMemoryBank(capacities=CAPACITIES[size], full_grid=model.frames.grid)
            sessions[name] = StreamingSession(model, empty, settings=settings, reuse_prefix=False, strategy=strategy)
            sessions[name].restore(f"{folder}/state")
            sessions[name].ask(FIRST)  # projects the frames, warms up
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(options.repeats):
        for name, each in sessions.items():
            each.forget_dialogue()
            times[name].append(seconds(each.ask, FIRST))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "visual_tokens": sum(frame.num_tokens for frame in session.remembered()),
        "num_frames": len(session.remembered()),
        "prompt_tokens": len(session.prepare(FIRST).prompt.layout),
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "ratios": {name: round(value / medians["direct"], 2) for name, value in medians.items()},
    }


def main() -> None:
    """Print one JSON record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", help="of a minute or more; default: a generated stream")
    parser.add_argument("--sizes", type=int, nargs="+", choices=CAPACITIES, default=[832], help="visual tokens")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model()
    record: dict[str, Any] = {size: measure(model, options, size) for size in options.sizes}
    print(json.dumps(record | {"device": str(model.device), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
