#!/usr/bin/env python
"""What an evaluation costs beside the model, and against encoding every prefix anew as the published scripts do.

    python scripts/benchmarks/benchmark_evaluation.py [--only prefixes|overhead|shards] [--frames 120] [--questions 6]

`prefixes`: one video, its questions evenly spread. Ours: each frame is encoded once, 8 at a time, into the memory.
Theirs: for each question all frames so far go through the tower in one call, then into a new memory. Seconds until
all prompts are ready, and with answers (the likeliest letter); bytes at most beyond those of the loaded model. Each way
runs in a process of its own.
`overhead`: part of an evaluation's time that is neither the model's nor a wait for decoded frames.
`shards`: one process against two with half the videos each, one thread a process; time without loading.

The model has random weights: a vision tower of 384 x 8 layers on 224 pixels, a language model of 256 x 4 layers.
docs/performance.md has a record.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import torch

from videochat_online.evaluation import (
    EvaluationConfig,
    EvaluationFolder,
    Shard,
    evaluate,
    get_task,
    make_plan,
    resolve_protocol,
)
from videochat_online.evaluation.run.answering import LETTER_PREFIX, answer_by_likelihood
from videochat_online.model import VideoChatModel, VideoChatOnlineForConditionalGeneration
from videochat_online.model.backbones.internvl import InternVL
from videochat_online.model.loading import model_of
from videochat_online.streaming import GenerationSettings, StreamingSession
from videochat_online.testing import build_tiny_tokenizer, tiny_config
from videochat_online.text import stored_template

FPS = 8
SIZE = (320, 240)
QUESTION = "What?\nOptions:\n(A) a ball\n(B) a cup\nAnswer:"


def make_model() -> VideoChatModel:
    """Random weights, on a GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = build_tiny_tokenizer()
    config = tiny_config("phi3", len(tokenizer), 224)
    for part, sizes in ((config.vision_config, (384, 1536, 8, 6)), (config.text_config, (256, 512, 4, 8))):
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        for name, value in zip(names, sizes, strict=True):
            setattr(part, name, value)
    config.text_config.num_key_value_heads = config.text_config.num_attention_heads
    config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    torch.manual_seed(0)
    network = VideoChatOnlineForConditionalGeneration(config).eval().to(device)
    network.config.image_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    return model_of(InternVL(network), tokenizer, stored_template(config.template))


def answer(model: VideoChatModel, session: StreamingSession) -> None:
    """The likeliest letter of a question."""
    prompt = session.prepare(QUESTION, generation_prefix=LETTER_PREFIX).prompt
    answer_by_likelihood(model, prompt, 2, GenerationSettings(max_new_tokens=8))


def ours(model: VideoChatModel, frames_THWC: Any, asked: list[int]) -> tuple[float, float]:
    """Seconds until all prompts were ready, and of the answers."""
    session, done, watch_s, answer_s = StreamingSession(model), 0, 0.0, 0.0
    for stop in asked:
        start = time.perf_counter()
        for first in range(done, stop, 8):
            last = min(first + 8, stop)
            session.push(frames_THWC[first:last], [index / FPS for index in range(first, last)])
        done, middle = stop, time.perf_counter()
        answer(model, session)
        watch_s, answer_s = watch_s + middle - start, answer_s + time.perf_counter() - middle
    return watch_s, answer_s


def theirs(model: VideoChatModel, frames_THWC: Any, asked: list[int]) -> tuple[float, float]:
    """The same with a new session for each question, whose frames are pushed in one piece."""
    watch_s = answer_s = 0.0
    for stop in asked:
        start = time.perf_counter()
        session = StreamingSession(model, encode_batch=stop)
        session.push(frames_THWC[:stop], [index / FPS for index in range(stop)])
        middle = time.perf_counter()
        answer(model, session)
        watch_s, answer_s = watch_s + middle - start, answer_s + time.perf_counter() - middle
    return watch_s, answer_s


def measured(way: Callable[..., tuple[float, float]], num_frames: int, asked: list[int], found: Any) -> None:
    """In a process of its own: warm up, then run once."""
    torch.set_num_threads(1)
    model = make_model()
    frames_THWC = np.random.default_rng(0).integers(0, 256, (num_frames, 224, 224, 3), dtype=np.uint8)
    ours(model, frames_THWC[:8], [8])
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = psutil.Process().memory_info().rss
    watch_s, answer_s = way(model, frames_THWC, asked)
    most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    most = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else most
    found.put({"prompts_s": watch_s, "answers_s": answer_s, "more_bytes": most - before})


def prefixes(options: argparse.Namespace) -> dict[str, Any]:
    """Both ways, each in its process."""
    asked = [options.frames * number // options.questions for number in range(1, options.questions + 1)]
    context = multiprocessing.get_context("spawn")
    figures: dict[str, Any] = {}
    for name, way in (("ours", ours), ("theirs", theirs)):
        found = context.Queue()
        process = context.Process(target=measured, args=(way, options.frames, asked, found))
        process.start()
        figures[name] = found.get()
        process.join()
    mine, other = figures["ours"], figures["theirs"]
    ratios = {
        "time_until_prompts": other["prompts_s"] / mine["prompts_s"],
        "time_with_answers": sum(other[key] for key in ("prompts_s", "answers_s"))
        / sum(mine[key] for key in ("prompts_s", "answers_s")),
        "memory": other["more_bytes"] / mine["more_bytes"],
    }
    rounded = {name: {key: round(value, 3) for key, value in one.items()} for name, one in figures.items()}
    return rounded | {"ratios": {key: round(value, 2) for key, value in ratios.items()}}


def make_set(folder: Path, num_videos: int, seconds: int) -> Path:
    """Videos of moving noise, each with six questions."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    rows = []
    for number in range(num_videos):
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=24)
            (stream.width, stream.height), stream.pix_fmt = SIZE, "yuv420p"
            for index in range(24 * seconds):
                moved = av.VideoFrame.from_ndarray(np.roll(frame, 2 * index, axis=1), format="rgb24")
                container.mux(stream.encode(moved))
            container.mux(stream.encode(None))
        questions = [
            {"middle_frame_timestamp": seconds * part / 6 - 0.1, "question": "What?", "options": ["A. a", "B. b"]}
            | {"answer": "A", "answer_type": "PastMemory", "sub_answer_type": "PastMemory-1"}
            for part in range(1, 7)
        ]
        rows.append({"video_id": f"{number}.mp4", "clip": [0.0, float(seconds)], "questions": questions})
    (folder / "set.json").write_text(json.dumps(rows))
    return folder / "set.json"


def evaluated(annotations: Path, output: Path, model: VideoChatModel, shard: Shard) -> tuple[float, float]:
    """Evaluate; wall seconds, and those of them that waited for frames."""
    config = EvaluationConfig(
        task=get_task("ovbench"),
        protocol=resolve_protocol("streaming"),
        annotations=(annotations,),
        data_root=annotations.parent,
        output=output,
        model="random",
        generation=GenerationSettings(max_new_tokens=8),
        answer_by="likelihood",
        shard=shard,
    )
    folder = EvaluationFolder(output, config.settings(), {}, shard)
    plan = make_plan(config)
    start = time.perf_counter()
    evaluate(config, plan, folder, lambda: model)
    wall_s = time.perf_counter() - start
    return wall_s, sum(row["waited_s"] for row in folder.videos.rows())


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Everything but model and decoding, over the whole."""
    torch.set_num_threads(1)
    model, in_model_s = make_model(), [0.0]

    def begin(module: Any, inputs: Any) -> None:
        in_model_s[0] -= time.perf_counter()

    def end(module: Any, inputs: Any, output: Any) -> None:
        in_model_s[0] += time.perf_counter()

    network = model.network
    for part in (network.vision_tower.embeddings, *network.vision_tower.encoder.layer, network.vision_tower.layernorm):
        part.register_forward_pre_hook(begin)
        part.register_forward_hook(end)
    for part in (network.projector, network.language_model):
        part.register_forward_pre_hook(begin)
        part.register_forward_hook(end)
    with tempfile.TemporaryDirectory() as folder:
        annotations = make_set(Path(folder), 2, 10)
        evaluated(annotations, Path(folder) / "warm", model, Shard())
        in_model_s[0] = 0.0
        wall_s, waited_s = evaluated(annotations, Path(folder) / "run", model, Shard())
    rest = wall_s - in_model_s[0] - waited_s
    parts = {"wall_s": wall_s, "model_s": in_model_s[0], "waited_for_frames_s": waited_s, "overhead": rest / wall_s}
    return {key: round(value, 4) for key, value in parts.items()}


def share(annotations: Path, output: Path, shard: Shard, ready: Any, found: Any) -> None:
    """One process of several: load, wait for the others, evaluate."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    model = make_model()
    ready.wait()
    found.put(evaluated(annotations, output, model, shard)[0])


def shards(options: argparse.Namespace) -> dict[str, Any]:
    """The slower of two processes against one."""
    context = multiprocessing.get_context("spawn")
    seconds: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        annotations = make_set(Path(folder), 4, 10)
        for count in (1, 2):
            ready, found = context.Barrier(count), context.Queue()
            processes = [
                context.Process(
                    target=share, args=(annotations, Path(folder) / f"out{count}", Shard(index, count), ready, found)
                )
                for index in range(count)
            ]
            for process in processes:
                process.start()
            seconds[count] = max(found.get() for _ in processes)
            for process in processes:
                process.join()
    return {"one_s": round(seconds[1], 2), "two_s": round(seconds[2], 2), "ratio": round(seconds[1] / seconds[2], 2)}


def main() -> int:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"prefixes": prefixes, "overhead": overhead, "shards": shards}
    parser.add_argument("--only", choices=parts)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--questions", type=int, default=6)
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    result: dict[str, Any] = {"device": device, "cores": len(os.sched_getaffinity(0)), "torch": torch.__version__}
    for name, measure in parts.items():
        if options.only in (None, name):
            result[name] = measure(options)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
