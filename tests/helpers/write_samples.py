"""One small sample of each kind of file and document that is read later or by others: what tests/samples holds.

    PYTHONPATH=tests/helpers:tests/evaluation/helpers python tests/helpers/write_samples.py FOLDER

tests/project/test_samples.py reads those of the repository, which an earlier state of the package wrote. A kind that
comes to be written otherwise gets one more sample; the old ones stay. `{place}` in them stands for the folder that
they are in.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from api_server import WAIT_S, png, serving
from evaluation_sets import folder_set
from train_cases import flags, mixed_rows, write_media, write_registry
from videochat_online import StreamingSession, load_model, make_memory
from videochat_online.cli.main import main
from videochat_online.memory import MEMORIES
from videochat_online.serving.streams.pool import StreamPool
from videochat_online.streaming import GenerationSettings
from videochat_online.testing import make_tiny_model
from videochat_online.types import FrameTokens

PLACE = "{place}"
LORA = {"freeze_backbone": True, "freeze_mlp": True, "freeze_llm": True, "use_llm_lora": 1}
LORA |= {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1, "max_steps": 2}
SMALL: dict[str, dict[str, Any]] = {
    "pyramid": {"capacities": (1, 1, 3)},
    "fifo": {"capacities": (1, 1, 3)},
    "window": {"num_frames": 2},
    "uniform": {"num_frames": 2},
    "moviechat": {"short_frames": 4, "long_frames": 4, "merged_frames": 2},
    "moviechat_plus": {"short_frames": 4, "long_frames": 4, "merged_frames": 2},
    "star": {"newest_frames": 1, "key_frames": 2, "cluster_frames": 2},
    "token_merging": {"num_frames": 3},
    "similarity_drop": {"num_frames": 3},
    "event_merging": {"recent_frames": 2, "event_frames": 2},
    "keep_all": {},
}
"""Options of each memory with which it holds little."""
SHORT = GenerationSettings(max_new_tokens=4, min_new_tokens=4)
CALLS: tuple[tuple[str, str, Any], ...] = (
    ("GET", "/health", None),
    (
        "POST",
        "/streams",
        {
            "fps": 2,
            "memory": "pyramid",
            "memory_options": {"capacities": [1, 1, 1]},
            "generation": {"max_new_tokens": 4},
        },
    ),
    *(("POST", f"ID/frames?time_s={place}", b"frame") for place in range(1, 6)),
    ("POST", "ID/frames?time_s=0.1", b"frame"),
    ("POST", "ID/frames", b"no picture"),
    ("POST", "ID/ask", {"question": "What is it?"}),
    ("POST", "ID/ask", {"question": "And now?", "stream": True}),
    ("POST", "ID/ask", {"query": "What is it?"}),
    ("POST", "/streams", {"fps": "2"}),
    ("GET", "ID", None),
    ("DELETE", "ID/answer", None),
    ("DELETE", "ID/dialogue", None),
    ("DELETE", "ID", None),
    ("GET", "ID", None),
    ("GET", "/nothing", None),
)
"""Method, path and body of each request; ID is what the first stream was called."""


def prepare(place: Path) -> None:
    """A tiny model, a training set and a benchmark."""
    make_tiny_model(place / "model")
    write_registry(place, write_media(place / "media"), mixed=mixed_rows())
    folder_set(place / "benchmark", num_videos=2, times_s=(1.0, 3.0))


def training_flags(place: Path) -> list[str]:
    """The command line of a run of two steps over adapters."""
    paths = {"output_dir": place / "training", "model_name_or_path": place / "model"}
    return ["train", *flags(**paths, meta_path=place / "registry.json", **LORA)]


def evaluation_flags(place: Path) -> list[str]:
    """The command line of an evaluation of four questions."""
    paths = {"model": place / "model", "annotations": place / "benchmark/set.json", "output": place / "evaluation"}
    paths["data_root"] = place / "benchmark/media"
    flags = [part for key, path in paths.items() for part in (f"--{key.replace('_', '-')}", str(path))]
    return ["evaluate", "--max-new-tokens", "4", *flags]


def new_memory(name: str) -> Any:
    """A small memory for frames of 4 x 4 tokens."""
    return make_memory(name, full_grid=(4, 4), **SMALL[name])


def filled_memory(name: str) -> Any:
    """A small memory that has seen 30 frames of three channels."""
    memory = new_memory(name)
    for index in range(30):
        tokens_CHW = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(index))
        memory.write(FrameTokens(tokens_CHW, index, index / 2, index))
    return memory


def facts_of(memory: Any) -> list[tuple[int, float, int]]:
    """Index, time and tokens of each remembered frame."""
    return [(frame.index, frame.time_s, frame.num_tokens) for frame in memory.read()]


def shape_of(value: Any) -> Any:
    """A document with the kinds of its values in place of them; of a list, of its first value."""
    if isinstance(value, Mapping):
        return {key: shape_of(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shape_of(one) for one in value[:1]]
    return "number" if type(value) in (int, float) else type(value).__name__


def _events(text: str) -> dict[str, Any]:
    """The last document of each kind in a stream of events."""
    events = [block.splitlines() for block in text.strip().split("\n\n") if block]
    return {kind.removeprefix("event: "): json.loads(data.removeprefix("data: ")) for kind, data in events}


def calls_to(model: Any) -> list[dict[str, Any]]:
    """What a server answers to CALLS: status, type, and the shape of JSON or of events."""
    picture, found, name = png(np.zeros((8, 8, 3), np.uint8)), [], ""
    with serving(StreamPool(model, max_streams=2)) as server, httpx.Client(base_url=f"{server.url}/v1") as http:
        for method, path, body in CALLS:
            content = picture if body == b"frame" else body if isinstance(body, bytes) else None
            document = None if content is not None or body is None else body
            address = path.replace("ID", f"/streams/{name}", 1)
            response = http.request(method, address, content=content, json=document, timeout=WAIT_S)
            kind = response.headers.get("content-type", "").partition(";")[0]
            document = response.json() if kind == "application/json" else _events(response.text)
            name = name or document.get("id", "")
            found.append(
                {
                    "call": f"{method} {path}",
                    "status": response.status_code,
                    "type": kind,
                    "shape": shape_of(document),
                }
            )
    return found


def write_sessions(folder: Path, model: Any) -> None:
    """A session, and the state of each memory."""
    session = StreamingSession(model, make_memory("window", full_grid=model.frames.grid, num_frames=2), settings=SHORT)
    session.push(np.random.default_rng(0).integers(0, 256, (5, 60, 80, 3), dtype=np.uint8), range(5))
    session.ask("What is it?")
    session.save(folder / "session.safetensors")
    facts = {}
    for name in MEMORIES.built_in:
        memory = filled_memory(name)
        save_file(memory.state_dict(), folder / f"{name}.safetensors")
        facts[name] = facts_of(memory)
    facts["session"] = [(frame.index, frame.time_s, frame.num_tokens) for frame in session.remembered()]
    write_json(folder / "frames.json", facts)


def write_json(path: Path, value: Any) -> None:
    """A document of a sample."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_training(place: Path) -> None:
    """A run as it is after its first step, and the losses of both."""
    assert main(training_flags(place)) == 0
    folder = place / "training"
    losses = [entry["loss"] for entry in json.loads((folder / "report.json").read_text())["losses"]]
    for file in [*folder.glob("*.safetensors"), folder / "report.json", folder / "training_args.bin"]:
        file.unlink()
    for name in ("checkpoint-2", "adapter"):
        shutil.rmtree(folder / name)
    write_json(place / "training_losses.json", losses)


def write_model(folder: Path, model: Path) -> None:
    """All of a checkpoint but its numbers: names and shapes of them."""
    folder.mkdir()
    shapes = {name: list(tensor.shape) for name, tensor in load_file(model / "model.safetensors").items()}
    write_json(folder / "weights.json", shapes)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        shutil.copy(model / name, folder / name)


def write_samples(folder: Path) -> None:
    """All of them; the folder is new."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "place"
        prepare(place)
        model = load_model(place / "model", device="cpu")
        write_training(place)
        assert main(evaluation_flags(place)) == 0
        (place / "sessions").mkdir()
        write_sessions(place / "sessions", model)
        write_json(place / "api.json", calls_to(model))
        write_model(place / "checkpoint", place / "model")
        for rest in ("model", "media", "benchmark"):
            shutil.rmtree(place / rest)
        for file in (*place.rglob("*.png"), *place.rglob("*.md"), place / "training/.lock"):
            file.unlink()
        for file in place.rglob("*"):
            if file.suffix in (".json", ".yaml", ".jsonl"):
                file.write_text(file.read_text("utf-8").replace(str(place), PLACE), encoding="utf-8")
        shutil.copytree(place, folder)


if __name__ == "__main__":
    write_samples(Path(sys.argv[1]))
