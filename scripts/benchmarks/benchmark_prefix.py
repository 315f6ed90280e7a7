#!/usr/bin/env python
"""Time to the first token of an answer, with and without what was computed for the question before it.

    python scripts/benchmarks/benchmark_prefix.py [--video PATH] [--sizes 832 9984] [--repeats 3] [--pushes 8]

For each size of the Pyramid Memory Bank, full: `fresh`: nothing kept. `follow_up`: the next question of the dialogue,
no new frame. `after_prefill`: `session.prefill()` came before the question; its own time is `prefill`. `after_push`:
one more frame of the stream, then a question (each about the stream alone, without dialogue); how much of the prompt
was there already, and the time, question by question. `kv_memory`: the same frames and questions with a memory in the
KV cache, which reads each frame as it comes: how much of the prompt the language model read in the push, that push's
time, and the first token's. Ratios to `fresh`, all medians, taken in turns in one run.

Random weights: a tiny vision tower, and a language model of 256 x 6 layers. At 13,000 tokens attention is a large part
of the time (of a 4B model it would be a fifth), and that of the first half of a prompt is small: reusing it saves
little. Frames are 4 a second of `--video`, or of a generated stream. On a CPU, seconds are CPU seconds.

Sample record (a montage of 66 s, --repeats 2; 2 shared cores of an x86-64 server, 1 thread; of 832, only ratios):
{"832": {"ratios": {"follow_up": 0.0578, "after_prefill": 0.0476}, "after_push": {"mean_reused": 0.507, "mean_ratio":
 0.581}, "kv_memory": {"mean_read": 0.062, "mean_push_ratio": 0.206, "mean_ratio": 0.072}}, "9984": {"visual_tokens":
 9984, "prompt_tokens": 13053, "seconds": {"fresh": 10.963, "prefill": 11.38, ...}, "ratios": {"follow_up": 0.0089,
 "after_prefill": 0.0078}, "after_push": {"reused": [0.498, 0.568, 0.448, 0.457, 0.282, 0.794, 0.49, 0.742], "ratio":
 [0.934, 0.821, 0.954, 0.943, 1.14, 0.427, 0.952, 0.564], "mean_reused": 0.535, "mean_ratio": 0.842}, "kv_memory":
 {"mean_read": 0.006, "mean_push_ratio": 0.034, "mean_ratio": 0.023}}}
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import videochat_online as vco
from measuring import CAPACITIES
from videochat_online.model import VideoChatModel, VideoChatOnlineForConditionalGeneration
from videochat_online.model.backbones.internvl import InternVL
from videochat_online.model.loading import model_of
from videochat_online.streaming import GenerationSettings, StreamingSession
from videochat_online.synthetic.scene.render import Renderer
from videochat_online.synthetic.scene.several_shapes import SeveralStreams
from videochat_online.testing import build_tiny_tokenizer, tiny_config
from videochat_online.text import stored_template

FPS, IMAGE_SIZE = 4, 448
FIRST, SECOND = "What is happening now?", "And where was it before that?"


def make_model() -> VideoChatModel:
    """Random weights, on a GPU where there is one."""
    tokenizer = build_tiny_tokenizer()
    config = tiny_config("phi3", len(tokenizer), IMAGE_SIZE)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 256, 1024, 6
    text.num_attention_heads = text.num_key_value_heads = 8
    text.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    torch.manual_seed(0)
    network = VideoChatOnlineForConditionalGeneration(config).eval()
    network.config.image_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    network = network.to("cuda" if torch.cuda.is_available() else "cpu")
    return model_of(InternVL(network), tokenizer, stored_template(config.template))


def read_frames(video: str | None, count: int) -> np.ndarray:
    """The first frames, uint8 [T, H, W, 3]."""
    if video is not None:
        chunks = vco.read_video(video, fps=FPS)
        return np.stack(list(islice((frame for chunk in chunks for frame in chunk.pixels_THWC), count)))
    scene, _ = SeveralStreams(0, "test").make("benchmark", 1 + count // FPS, 1, is_busy=True)
    renderer = Renderer(scene, IMAGE_SIZE)
    return np.stack([renderer.frame(index / FPS) for index in range(count)])


def seconds(call: Any, *arguments: Any) -> float:
    """Of one call; an answer is one token long, so its whole time is that to the first token."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    call(*arguments)
    return clock() - start


def measure(model: VideoChatModel, frames_THWC: np.ndarray, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """All figures at one size of the memory."""
    memory = vco.PyramidMemoryBank(capacities=CAPACITIES[size], full_grid=model.frames.grid)
    session = StreamingSession(model, memory, settings=GenerationSettings(max_new_tokens=1))
    num_filled = len(frames_THWC) - options.pushes
    session.push(frames_THWC[:num_filled], [index / FPS for index in range(num_filled)])
    session.ask(FIRST)  # projects the frames, warms up
    times: dict[str, list[float]] = {"fresh": [], "follow_up": [], "prefill": [], "after_prefill": []}
    for _ in range(options.repeats):
        forget(session)
        times["fresh"].append(seconds(session.ask, FIRST))
        times["follow_up"].append(seconds(session.ask, SECOND))
        forget(session)
        times["prefill"].append(seconds(session.prefill))
        times["after_prefill"].append(seconds(session.ask, FIRST))
    fresh_s = statistics.median(times["fresh"])
    kept = in_kv_cache(session, CAPACITIES[size])
    pushed: dict[str, list[float]] = {"reused": [], "ratio": []}
    with_kv: dict[str, list[float]] = {"read": [], "push_ratio": [], "ratio": []}
    for index in range(num_filled, len(frames_THWC)):
        frame_THWC, times_s = frames_THWC[index : index + 1], [index / FPS]
        session.forget_dialogue()
        session.push(frame_THWC, times_s)
        num_prompt = len(session.prepare(FIRST).prompt.layout)
        num_read, read_s = read_during(session, session.ask, FIRST)
        pushed["reused"].append(1 - num_read / num_prompt)
        pushed["ratio"].append(read_s / fresh_s)
        kept.forget_dialogue()
        num_read, read_s = read_during(kept, kept.push, frame_THWC, times_s)
        with_kv["read"].append(num_read / num_prompt)
        with_kv["push_ratio"].append(read_s / fresh_s)
        with_kv["ratio"].append(seconds(kept.ask, FIRST) / fresh_s)
    medians = {key: statistics.median(values) for key, values in times.items()}
    return {
        "visual_tokens": sum(frame.num_tokens for frame in session.remembered()),
        "prompt_tokens": len(session.prepare(FIRST).prompt.layout),
        "seconds": {key: round(value, 3) for key, value in medians.items()},
        "ratios": {key: round(medians[key] / fresh_s, 4) for key in ("follow_up", "after_prefill")},
        "after_push": with_means(pushed),
        "kv_memory": with_means(with_kv),
    }


def in_kv_cache(session: StreamingSession, capacities: tuple[int, ...]) -> StreamingSession:
    """A session that remembers the same in a KV cache."""
    memory = vco.PyramidMemoryBank(capacities=capacities, full_grid=session.model.frames.grid)
    kept = StreamingSession(session.model, memory, settings=session.settings, kv_memory=True)
    with tempfile.TemporaryDirectory() as folder:
        session.save(Path(folder) / "state")
        kept.restore(Path(folder) / "state")
    kept.prefill()
    return kept


def read_during(session: StreamingSession, call: Callable[..., Any], *arguments: Any) -> tuple[int, float]:
    """Tokens that the language model reads in a call, and the call's seconds."""
    counts: list[int] = []
    hook = session.model.network.language_model.register_forward_pre_hook(
        lambda _, __, keywords: counts.append(keywords["inputs_embeds"].shape[1]), with_kwargs=True
    )
    call_s = seconds(call, *arguments)
    hook.remove()
    return sum(counts), call_s


def with_means(figures: dict[str, list[float]]) -> dict[str, Any]:
    """Of each push, and on average."""
    rounded: dict[str, Any] = {key: [round(value, 3) for value in values] for key, values in figures.items()}
    return rounded | {f"mean_{key}": round(statistics.fmean(values), 3) for key, values in figures.items()}


def forget(session: StreamingSession) -> None:
    """Nothing but the frames is left."""
    session.forget_dialogue()
    session.close()


def main() -> None:
    """Print one JSON record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", help="of a minute or more; default: a generated stream")
    parser.add_argument("--sizes", type=int, nargs="+", choices=CAPACITIES, default=list(CAPACITIES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pushes", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model()
    # Every eighth frame is of the first tier, so this many frames fill all three.
    frames_THWC = {
        size: read_frames(options.video, 8 * CAPACITIES[size][0] + 16 + options.pushes) for size in options.sizes
    }
    record: dict[str, Any] = {size: measure(model, frames_THWC[size], size, options) for size in options.sizes}
    print(json.dumps(record | {"device": str(model.device), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
