#!/usr/bin/env python
"""What a stream costs: per frame, per question, early and late, for any model size, on a CPU or a GPU.

    python scripts/benchmarks/benchmark_streaming.py [--size tiny|vision|published]
        [--only push|stream|late|growth|speed|live|prefill|ahead] [--minutes 1 10 60] [--fps 1] [--batch 8]
        [--frames 16] [--questions 10] [--compile PART] [--int8 PART] [--cache static] [--memory_frames 2 2 12]

`push`: `session.push` over the bare tower (`model.encode`) on the same frames in the same batches, in turns.
`stream`: at those minutes of a stream, frames one at a time as they arrive (frames/s, real-time factor), questions
after each of some new frames (time to the first token, p50 and p95: with what was computed before, and anew), tokens a
second of an answer, peak memory. What lies between the minutes goes in with features made before, so an hour takes
seconds.
`late`: a write at hour 10 over one at minute 1, features made before, in turns on two sessions.
`growth`: of the process over 100,000 frames with features made before.
`speed`: encoding and steps of an answer, before and after `--compile`, `--int8`, `--cache`, on the same weights in
turns, and how far the results lie apart. All other parts have these options on.
`live`: frames at `--live_fps` in real time: share of the time that the model is busy.
`prefill`: tokens a second of fresh prompts with 832 and 9,984 visual tokens.
`ahead`: reading `--video` with and without a thread, beside a device that is busy for `--busy_ms` a chunk (slept).

Random weights. Prints one JSON object; docs/performance.md has records with hardware and commands.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
from dataclasses import fields
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

import streaming_speed
from measuring import CAPACITIES, now
from videochat_online.errors import InputError
from videochat_online.memory import MEMORIES
from videochat_online.model import VideoChatModel
from videochat_online.model.compiling import PARTS as MODEL_PARTS
from videochat_online.model.loading import CACHES
from videochat_online.streaming import GenerationSettings, StreamingSession
from videochat_online.testing import SIZES, random_model

QUESTIONS = ("What is happening now?", "What has changed since then?", "Where is it?", "How many were there before?")
NUM_FEATURES = 67
"""Distinct features; a prime, so that they do not fall in with the tiers."""


class Stubbed(VideoChatModel):
    """A model whose features were made before: everything but the tower is real."""

    def encode(self, pixels_THWC: Any) -> Tensor:
        """As many features as frames, in turns."""
        first = getattr(self.network, "stub_place", 0)
        self.network.stub_place = first + len(pixels_THWC)
        places = [(first + step) % NUM_FEATURES for step in range(len(pixels_THWC))]
        return self.network.stub_features[places]


def stubbed(model: VideoChatModel) -> Stubbed:
    """The same model with features of a wandering scene: neighbours are alike, as in a video."""
    frames, generator = model.frames, torch.Generator().manual_seed(0)
    steps = torch.randn(NUM_FEATURES, frames.feature_dim, 1, 1, generator=generator).cumsum(0)
    noise = torch.randn(1, frames.feature_dim, *frames.grid, generator=generator)
    model.network.stub_features = (0.1 * (steps + noise)).to(model.device, model.dtype)
    return Stubbed(**{field.name: getattr(model, field.name) for field in fields(model)})


def make_frames(model: VideoChatModel, count: int) -> np.ndarray:
    """Noise of the model's own size: nothing is spent on resizing."""
    side = model.frames.shape[0]
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def push(model: VideoChatModel, options: argparse.Namespace) -> dict[str, Any]:
    """What a session adds to the tower."""
    frames_THWC, session = make_frames(model, options.batch), StreamingSession(model, encode_batch=options.batch)
    ratios, bare_s = [], []
    for turn in range(options.frames + 2):
        times = [float(turn * options.batch + place) for place in range(options.batch)]
        runs = [
            ("bare", lambda: model.encode(frames_THWC)),
            ("push", lambda times=times: session.push(frames_THWC, times)),
        ]
        seconds = {}
        for name, run in runs[:: 1 if turn % 2 else -1]:
            start = now(model.device)
            run()
            seconds[name] = now(model.device) - start
        if turn >= 2:  # the first two warm up
            ratios.append(seconds["push"] / seconds["bare"])
            bare_s.append(seconds["bare"])
    return {
        "batch": options.batch,
        "bare_frames_per_s": round(options.batch / statistics.median(bare_s), 2),
        "ratio": round(statistics.median(ratios), 4),
    }


def stream(model: VideoChatModel, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each of the minutes."""
    fast, rows = stubbed(model), []
    memory = streaming_speed.make_memory(model, options.memory_frames)
    session = StreamingSession(model, memory, settings=GenerationSettings(max_new_tokens=1))
    frame_HWC = make_frames(model, 1)
    for minute in sorted(options.minutes):
        session.model = fast
        for index in range(session.num_frames, round(60 * minute * options.fps) - options.frames - options.questions):
            session.push(frame_HWC, [index / options.fps])
        session.model = model
        frame_s = [_push_s(session, frame_HWC, options.fps) for _ in range(options.frames)]
        first: dict[str, list[float]] = {"reused": [], "anew": [], "prefilled": []}
        for number in range(options.questions):
            question = QUESTIONS[number % len(QUESTIONS)]
            _push_s(session, frame_HWC, options.fps)
            first["reused"].append(_ask_s(session, question))
            session.close()  # forgets what was computed, not what was seen
            first["anew"].append(_ask_s(session, question))
            session.close()
            session.prefill()
            first["prefilled"].append(_ask_s(session, question))
        rows.append({
            "minute": minute,
            "frames_per_s": round(1 / statistics.median(frame_s), 2),
            "real_time_factor": round(statistics.median(frame_s) * options.fps, 5),
            "visual_tokens": sum(frame.num_tokens for frame in session.remembered()),
            **{f"first_token_ms_{name}": _percentiles(seconds) for name, seconds in first.items()},
            "tokens_per_s": round(_tokens_per_s(session), 1),
            "peak_memory_mb": round(_peak_memory_mb(model.device), 1),
        })  # fmt: skip
    return rows


def _push_s(session: StreamingSession, frame_HWC: np.ndarray, fps: float) -> float:
    start = now(session.model.device)
    session.push(frame_HWC, [session.num_frames / fps])
    return now(session.model.device) - start


def _ask_s(session: StreamingSession, question: str) -> float:
    """An answer is one token long: all its time is that to the first token."""
    start = now(session.model.device)
    session.ask(question)
    seconds = now(session.model.device) - start
    session.forget_dialogue()
    return seconds


def _tokens_per_s(session: StreamingSession) -> float:
    ends: list[float] = []
    pieces = session.stream(QUESTIONS[0], settings=GenerationSettings(max_new_tokens=65, min_new_tokens=65))
    start = now(session.model.device)
    for _ in pieces:
        ends.append(now(session.model.device))
    session.forget_dialogue()
    return 64 / (ends[-1] - ends[0]) if len(ends) > 1 else 65 / (now(session.model.device) - start)


def _percentiles(seconds: list[float]) -> list[float]:
    ordered = sorted(seconds)
    return [round(1000 * value, 2) for value in (statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))])]


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def late(model: VideoChatModel, options: argparse.Namespace) -> dict[str, Any]:
    """Whether a stream gets slower, and larger."""
    fast, frame_HWC = stubbed(model), make_frames(model, 1)
    young, old = StreamingSession(fast), StreamingSession(fast)
    for index in range(round(36_000 * options.fps)):
        old.push(frame_HWC, [index / options.fps])
    for index in range(round(60 * options.fps)):
        young.push(frame_HWC, [index / options.fps])
    ratios = []
    for _ in range(20):
        seconds = {}
        for session in (young, old):
            seconds[session] = sum(_push_s(session, frame_HWC, options.fps) for _ in range(50))
        ratios.append(seconds[old] / seconds[young])
    sizes = [sum(tensor.numel() for tensor in session.memory.state_dict().values()) for session in (young, old)]
    return {
        "hour": 10,
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(min(ratios), 3), round(max(ratios), 3)],
        "state_ratio": round(sizes[1] / sizes[0], 4),
    }


def growth(model: VideoChatModel, options: argparse.Namespace) -> dict[str, Any]:
    """Of the resident set, from the point where everything is full."""
    session, frame_HWC = StreamingSession(stubbed(model)), make_frames(model, 1)
    resident_mb = {}
    for index in range(100_000):
        session.push(frame_HWC, [float(index)])
        if index in (2_999, 99_999):
            resident_mb[index + 1] = psutil.Process().memory_info().rss / 2**20
    return {"frames": 100_000, "growth_mb": round(resident_mb[100_000] - resident_mb[3_000], 2)}


def prefill(model: VideoChatModel, options: argparse.Namespace) -> dict[int, Any]:
    """Of prompts; their frames' features were made before."""
    return streaming_speed.prefill(model, options, stubbed)


PARTS = {
    "push": push,
    "stream": stream,
    "late": late,
    "growth": growth,
    "speed": streaming_speed.before_after,
    "live": streaming_speed.live,
    "prefill": prefill,
    "ahead": streaming_speed.ahead,
}
DEFAULT_PARTS = ("push", "stream", "late", "growth")


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(DEFAULT_PARTS))
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10, 60])
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=8, help="frames that go through the tower at once, of `push`")
    parser.add_argument("--frames", type=int, default=16, help="that are timed")
    parser.add_argument("--questions", type=int, default=10, help="at each of the minutes")
    parser.add_argument("--memory_frames", nargs="+", default=["2/2/12"], metavar="N", help="of each tier")
    parser.add_argument("--compile", choices=MODEL_PARTS)
    parser.add_argument("--int8", choices=MODEL_PARTS)
    parser.add_argument("--cache", choices=CACHES)
    parser.add_argument("--step_tokens", type=int, default=1100, metavar="N", help="before the steps of `speed`")
    parser.add_argument("--turns", type=int, default=5, help="of `speed`, `prefill` and `ahead`")
    parser.add_argument("--live_fps", type=float, default=30.0)
    parser.add_argument("--live_s", type=float, default=10.0, help="seconds of `live`")
    parser.add_argument("--prompts", type=int, nargs="+", choices=CAPACITIES, default=[832, 9984])
    parser.add_argument("--video", metavar="PATH", help="of `ahead`")
    parser.add_argument("--busy_ms", type=float, default=100.0, help="of `ahead`")
    options = parser.parse_args()
    options.memory_frames = MEMORIES.options_of("pyramid")["capacities"].parse(
        " ".join(options.memory_frames), "--memory_frames"
    )
    if "ahead" in options.only and options.video is None:
        parser.error("--only ahead: expected --video")
    plain = random_model(options.size)
    plain.network.requires_grad_(False)
    is_changed = options.compile or options.int8 or options.cache
    try:
        model = streaming_speed.speed_up(plain, options) if is_changed else plain
    except InputError as error:
        parser.error(str(error))
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else f"{os.cpu_count()} CPUs"
    result: dict[str, Any] = {
        "size": options.size,
        "hardware": f"{device} ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    for name in options.only:
        result[name] = PARTS[name](plain if name == "speed" else model, options)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
