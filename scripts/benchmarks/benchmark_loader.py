#!/usr/bin/env python
"""What loading costs: CPU seconds of a sample and what they go to, and the part of batches that is padding.

    python scripts/benchmarks/benchmark_loader.py [--size tiny|vision]

On a mixed set that it makes: still images of many tiles, short and long videos, texts. CPU seconds are those of one
process without other processes, so they do not depend on what else runs; `vision` has the frames and tiles of the real
model (448 pixels), `tiny` those of the tiny one (112). docs/performance.md has records.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from videochat_online.data import (
    Collator,
    EpochSampler,
    FrameSampling,
    PackedDataset,
    PixelReader,
    SampleEncoder,
    Tiling,
    TrainingDataset,
    load_registries,
)
from videochat_online.data.samples import encoding
from videochat_online.memory import TokenSchedule
from videochat_online.testing import SIZES, random_model
from videochat_online.train.loop.throughput import Work, work_of
from videochat_online.train.run import make_collator
from videochat_online.video import FrameTransform

VIDEO_SIZE, IMAGE_SIZE, FPS = (640, 360), (1280, 720), 24
NUM = {"images": 16, "short": 16, "long": 8, "texts": 16}
SECONDS = {"short": 8, "long": 96}


def make_set(folder: Path) -> Path:
    """The mixed set; returns its registry."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*map(np.arange, IMAGE_SIZE)), axis=-1).sum(axis=-1)
    picture = np.stack([(grid * factor // 3) % 256 for factor in (1, 2, 3)], axis=-1).astype(np.uint8)
    Image.fromarray(picture).save(folder / "image.jpg", quality=90)
    frame = np.asarray(Image.fromarray(picture).resize(VIDEO_SIZE))
    for name, seconds in SECONDS.items():
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=FPS)
            (stream.width, stream.height), stream.pix_fmt = VIDEO_SIZE, "yuv420p"
            for number in range(seconds * FPS):
                moved = av.VideoFrame.from_ndarray(np.roll(frame, 3 * number, axis=1), format="rgb24")
                container.mux(stream.encode(moved))
            container.mux(stream.encode(None))
    media = {name: {"video": f"{name}.mp4"} for name in SECONDS} | {"images": {"image": "image.jpg"}, "texts": {}}
    entries = {}
    for name, count in NUM.items():
        rows = []
        for _ in range(count):
            words = " ".join(["word"] * int(rng.integers(20, 200)))
            turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": words}]
            size = dict(zip(("width", "height"), IMAGE_SIZE, strict=True)) if name == "images" else {}
            clip = {"clip": [0, SECONDS[name] - 0.1]} if name in SECONDS else {}
            rows.append(media[name] | size | clip | {"conversations": turns})
        (folder / f"{name}.json").write_text(json.dumps(rows))
        entries[name] = {"annotation": f"{name}.json", "data_root": "."}
    (folder / "registry.json").write_text(json.dumps(entries))
    return folder / "registry.json"


class Setup:
    """The network with random weights, and what makes its batches."""

    def __init__(self, size: str, registry: Path) -> None:
        model = random_model(size)
        self.network, self.device, self.dtype = model.network, model.device, model.dtype
        config, tokenizer = model.config, model.tokenizer
        self.encoder = SampleEncoder(
            tokenizer=tokenizer,
            template=model.template,
            system_message=None,
            max_length=32768,
            reader=PixelReader(FrameTransform(size=config.image_size)),
            full_grid=config.grid,
            schedule=TokenSchedule((8, 4, 1)),
            sampling=FrameSampling(method="fps1", max_num_frames=64),
            tiling=Tiling(),
        )
        self.dataset = TrainingDataset(load_registries(str(registry)), self.encoder)
        self.collator = make_collator(self.encoder, tokenizer)
        self.tokenizer = tokenizer


class CpuSeconds:
    """CPU seconds of this process by what they go to; what is called from within something is not counted there."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._stack = [("other", time.process_time())]

    @contextmanager
    def spending(self, what: str) -> Iterator[None]:
        """Count what happens here."""
        self._switch()
        self._stack.append((what, time.process_time()))
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()
            self._stack[-1] = (self._stack[-1][0], time.process_time())

    def _switch(self) -> None:
        what, since = self._stack[-1]
        now = time.process_time()
        self.spent[what] += now - since
        self._stack[-1] = (what, now)

    def counted(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose calls are counted."""

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            with self.spending(what):
                return function(*arguments, **options)

        return call


def loader(setup: Setup) -> dict[str, Any]:
    """CPU seconds of a sample, by kind and by what they go to."""
    places = ((PixelReader, "_decode", "decode video"), (PixelReader, "tiles", "decode images, cut tiles"))
    places += ((FrameTransform, "resized", "resize"),)
    places += ((encoding, "layout_prompt", "tokenize"), (Collator, "pack", "collate"))
    clock = CpuSeconds()
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, what in places:
        setattr(owner, name, clock.counted(what, getattr(owner, name)))
    found: dict[str, Any] = {}
    try:
        first = 0
        for name, count in setup.dataset.counts().items():
            clock.spent.clear()
            for number in range(first, first + count.items):
                with clock.spending("other"):
                    setup.collator.pack([(setup.dataset[number],)])
            first += count.items
            spent = {what: round(seconds / count.items, 5) for what, seconds in clock.spent.items()}
            found[name] = {"cpu_s_a_sample": round(sum(spent.values()), 4)} | spent
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)
    return found


def padding(setup: Setup) -> dict[str, Any]:
    """Part of the places that hold no token, in batches of 4, and packed into as many tokens as 4 samples have."""
    size, dataset = 4, setup.dataset
    examples = [dataset[number] for number in range(len(dataset))]
    lengths = dataset.estimate_lengths()
    pack_tokens = size * sum(map(len, examples)) // len(examples)

    def share(batches: list[dict[str, Any]]) -> float:
        work = sum((work_of(batch, setup.network.config.image_token_id) for batch in batches), Work())
        return round(work.padding, 4)

    def batched(order: list[int]) -> list[dict[str, Any]]:
        return [setup.collator([examples[i] for i in order[n : n + size]]) for n in range(0, len(order), size)]

    packs = PackedDataset(dataset, lengths, max(pack_tokens, int(lengths.max())), True, 0)
    packed = [setup.collator.pack([tuple(examples[i] for i in packs.items(n))]) for n in range(len(packs))]
    grouped = EpochSampler(len(dataset), seed=0, lengths=lengths.tolist(), group_size=size)
    return {
        "samples": len(examples),
        "tokens": {"shortest": min(map(len, examples)), "longest": max(map(len, examples))},
        "as they come": share(batched(list(EpochSampler(len(dataset), seed=0)))),
        "grouped by length": share(batched(list(grouped))),
        "packed": share(packed),
        "tokens in a pack": round(statistics.fmean(batch["input_ids"].shape[1] for batch in packed)),
    }


def machine(setup: Setup) -> dict[str, Any]:
    """Where and with what it was measured."""
    is_gpu = setup.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if is_gpu else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "image_size": setup.network.config.image_size,
    }


def main() -> int:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES[:2], default="tiny")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(options.size, make_set(Path(folder)))
        result = machine(setup) | {"loader": loader(setup), "padding": padding(setup)}
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
