"""Parts of `benchmark_streaming.py` about speed: options before and after, a live stream, prompts, reading ahead."""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import videochat_online as vco
from measuring import CAPACITIES, now
from videochat_online.extras import require
from videochat_online.model import VideoChatModel
from videochat_online.model.compiling import check_compiler, compile_steps, compile_tower
from videochat_online.model.quantizing import quantize_weights
from videochat_online.model.tokens import in_a_row
from videochat_online.streaming import GenerationSettings, StreamingSession
from videochat_online.streaming.kv.cache import kv_bytes_per_token
from videochat_online.streaming.kv.static import new_cache
from videochat_online.train.loop.throughput import FlopModel, Work
from videochat_online.video import FrameTransform, read_ahead

CEILING_FLOPS, CEILING_BYTES = 790e12, 4.3e12
"""Speed that an H200 reaches: bfloat16 operations, and bytes of its memory, a second."""
NUM_STEPS = 32


def speed_up(model: VideoChatModel, options: argparse.Namespace) -> VideoChatModel:
    """The same weights, with what `--int8`, `--cache` and `--compile` ask for."""
    network = copy.deepcopy(model.network)
    if options.int8:
        require(f"int8 {options.int8!r}", "torchao")
        quantize_weights(network, options.int8)
    if options.cache:
        network.language_model.generation_config.cache_implementation = options.cache
    if options.compile:
        check_compiler()
    if options.compile in ("language", "both"):
        compile_steps(network)
    encode = compile_tower(network) if options.compile in ("vision", "both") else None
    return replace(model, network=network, compiled_encode=encode)


def make_memory(model: VideoChatModel, capacities: tuple[int, ...]) -> vco.PyramidMemoryBank:
    """Empty, for frames of this model."""
    config = model.config
    return vco.PyramidMemoryBank(
        capacities=tuple(capacities), full_grid=config.grid, intervals=tuple(config.memory_intervals)
    )


def in_turns(model: VideoChatModel, runs: list[Callable[[], Any]], turns: int) -> list[float]:
    """Median seconds of each, after one turn to warm up; the order changes with every turn. On a CPU, CPU seconds."""
    clock = now if model.device.type == "cuda" else lambda _: time.process_time()
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(turns + 1):
        for place in list(range(len(runs)))[:: 1 if turn % 2 else -1]:
            start = clock(model.device)
            runs[place]()
            if turn:
                seconds[place].append(clock(model.device) - start)
    return [statistics.median(values) for values in seconds]


def shares(model: VideoChatModel, *, flops_per_s: float = 0.0, bytes_per_s: float = 0.0) -> dict[str, float]:
    """Operations and bytes a second, and on a GPU what share of an H200's ceilings that is."""
    found = {"tflops_per_s": flops_per_s / 1e12, "gb_per_s": bytes_per_s / 1e9}
    if model.device.type == "cuda":
        found |= {"of_flops": flops_per_s / CEILING_FLOPS, "of_bandwidth": bytes_per_s / CEILING_BYTES}
    return {name: float(f"{value:.3g}") for name, value in found.items() if value}


def weights_bytes(module: torch.nn.Module) -> int:
    """Memory of a module's weights; of quantised ones, that of numbers and scales."""
    tensors = list(module.parameters())
    parts = [[getattr(t, name) for name in ("qdata", "scale")] if hasattr(t, "qdata") else [t] for t in tensors]
    return sum(part.nbytes for each in parts for part in each)


def before_after(model: VideoChatModel, options: argparse.Namespace) -> dict[str, Any]:
    """The options' effect: encoding, steps of an answer after a prompt, size; in turns, on the same weights."""
    changed, frames = speed_up(model, options), _noise(model, options.batch)
    both = (model, changed)
    features = [each.encode(frames) for each in both]
    before_s, after_s = in_turns(model, [lambda each=each: each.encode(frames) for each in both], options.turns)
    flops = FlopModel(model.network)(Work(pictures=options.batch))
    result: dict[str, Any] = {
        "options": {name: getattr(options, name) for name in ("int8", "cache", "compile")},
        "weights_mb": [round(weights_bytes(each.network) / 1e6, 1) for each in both],
        "encode": {
            "frames_per_s": [round(options.batch / seconds, 2) for seconds in (before_s, after_s)],
            "speed_up": round(before_s / after_s, 3),
            "difference": _difference(*features),
            **shares(model, flops_per_s=flops / after_s),
        },
    }
    generator, num_before = torch.Generator().manual_seed(0), options.step_tokens
    width = model.config.text_config.hidden_size
    embeds_LD = 0.3 * torch.randn(num_before + NUM_STEPS, width, generator=generator).to(model.device, model.dtype)
    tokens = in_a_row(embeds_LD, range(len(embeds_LD)))
    caches = [new_cache(each.network.language_model, len(tokens)) for each in both]

    def steps(cache: Any) -> list[torch.Tensor]:
        cache.crop(num_before)
        return [cache.append(tokens[n : n + 1]) for n in range(num_before, len(tokens))]

    for cache in caches:
        cache.append(tokens[:num_before])
    logits = [torch.stack(steps(cache)) for cache in caches]
    before_s, after_s = in_turns(model, [lambda cache=cache: steps(cache) for cache in caches], options.turns)
    per_token = weights_bytes(changed.network.language_model) - weights_bytes(changed.network.get_input_embeddings())
    per_token += num_before * kv_bytes_per_token(changed.network.language_model)
    result["steps"] = {
        "tokens_per_s": [round(NUM_STEPS / seconds, 1) for seconds in (before_s, after_s)],
        "speed_up": round(before_s / after_s, 3),
        "difference": _difference(*logits),
        **shares(model, bytes_per_s=per_token * NUM_STEPS / after_s),
    }
    return result


def _difference(plain: torch.Tensor, found: torch.Tensor) -> dict[str, float]:
    gap = float((found.float() - plain.float()).abs().max())
    return {"largest": float(f"{gap:.3g}"), "of_spread": float(f"{gap / float(plain.float().std()):.3g}")}


def _noise(model: VideoChatModel, count: int) -> np.ndarray:
    side = model.frames.shape[0]
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def live(model: VideoChatModel, options: argparse.Namespace) -> dict[str, Any]:
    """A stream in real time: what arrived while a push was under way goes into the next one.

    Frames that are not taken in within a second are dropped.
    """
    session = StreamingSession(model, make_memory(model, options.memory_frames), encode_batch=options.batch)
    frames, fps = _noise(model, options.batch), options.live_fps
    for count in (1, options.batch):  # warms up
        session.push(frames[:count], [0.0] * count)
    busy_s, batches, dropped, arrived = 0.0, [], 0, 0
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < options.live_s:
        due = int(elapsed * fps) + 1
        if due - arrived > fps:
            dropped, arrived = dropped + due - arrived - round(fps), due - round(fps)
        count = min(due - arrived, options.batch)
        if count == 0:
            time.sleep(max(0.0, due / fps - elapsed))
            continue
        start = now(model.device)
        session.push(frames[:count], [(arrived + place) / fps for place in range(count)])
        busy_s += now(model.device) - start
        arrived += count
        batches.append(count)
    elapsed = time.perf_counter() - began
    flops = FlopModel(model.network)(Work(pictures=sum(batches)))
    return {
        "fps": fps,
        "busy": round(busy_s / elapsed, 3),
        "frames_seen": sum(batches),
        "frames_dropped": dropped,
        "frames_a_push": round(statistics.mean(batches), 2),
        "ms_a_frame": round(1000 * busy_s / sum(batches), 2),
        **shares(model, flops_per_s=flops / busy_s),
    }


def prefill(
    model: VideoChatModel, options: argparse.Namespace, stub: Callable[[VideoChatModel], Any]
) -> dict[int, Any]:
    """Prompts of a full memory, nothing kept: tokens a second up to the first token of the answer."""
    rows = {}
    fast = stub(model)
    for visual_tokens in options.prompts:
        memory = make_memory(model, CAPACITIES[visual_tokens])
        session = StreamingSession(fast, memory, settings=GenerationSettings(max_new_tokens=1), reuse_prefix=False)
        for index in range(8 * CAPACITIES[visual_tokens][0] + 16):
            session.push(_noise(model, 1), [float(index)])
        num_prompt = len(session.prepare("What?").prompt.tokens)

        def ask(session: StreamingSession = session) -> None:
            session.ask("What?")
            session.forget_dialogue()

        (seconds,) = in_turns(model, [ask], options.turns)
        flops = FlopModel(model.network)(Work(tokens=num_prompt, squares=num_prompt**2))
        rows[visual_tokens] = {
            "visual_tokens": sum(frame.num_tokens for frame in session.remembered()),
            "prompt_tokens": num_prompt,
            "seconds": round(seconds, 4),
            "tokens_per_s": round(num_prompt / seconds),
            **shares(model, flops_per_s=flops / seconds),
        }
    return rows


def ahead(model: VideoChatModel, options: argparse.Namespace) -> dict[str, Any]:
    """A video that is read, resized and handed to a device that is busy for so long with each chunk."""
    transform = FrameTransform(size=448)

    def play(depth: int) -> None:
        chunks = vco.read_video(options.video, fps=options.fps, chunk=options.batch)
        for _ in read_ahead((transform.resized(chunk.pixels_THWC) for chunk in chunks), depth):
            time.sleep(options.busy_ms / 1000)

    seconds: dict[int, list[float]] = {0: [], 2: []}
    for _ in range(options.turns):
        for depth, values in seconds.items():
            start = time.perf_counter()
            play(depth)
            values.append(time.perf_counter() - start)
    before_s, after_s = map(statistics.median, seconds.values())
    return {
        "busy_ms": options.busy_ms,
        "seconds": [round(before_s, 3), round(after_s, 3)],
        "speed_up": round(before_s / after_s, 3),
    }
