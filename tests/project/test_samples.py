"""What an earlier state of the package wrote is read by this one, and servers speak as they did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from videochat_online import StreamingSession, load_model, make_memory
from videochat_online.cli.main import main
from videochat_online.memory import MEMORIES
from videochat_online.testing import build_tiny_tokenizer
from videochat_online.types import FrameTokens
from write_samples import PLACE, calls_to, evaluation_flags, facts_of, new_memory, prepare, training_flags

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture
def place(tmp_path) -> Path:
    """The samples beside the model and the media that they were made with."""
    prepare(tmp_path)
    shutil.copytree(SAMPLES, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.rglob("*"):
        if file.suffix in (".json", ".yaml", ".jsonl"):
            file.write_text(file.read_text("utf-8").replace(PLACE, str(tmp_path)), encoding="utf-8")
    return tmp_path


def recorded(name: str) -> Any:
    return json.loads((SAMPLES / name).read_text("utf-8"))


def is_part(old: Any, new: Any) -> bool:
    """Whether a shape has all that another one has; more is allowed, and null stands for any value."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and is_part(value, new[key]) for key, value in old.items())
    if isinstance(old, list) and old:
        return isinstance(new, list) and len(new) > 0 and is_part(old[0], new[0])
    return old == new or "NoneType" in (old, new)


@pytest.mark.parametrize("name", sorted(MEMORIES.built_in))
def test_a_memory_goes_on_from_its_state(name):
    memory = new_memory(name)
    memory.load_state_dict(load_file(SAMPLES / f"sessions/{name}.safetensors"))
    assert facts_of(memory) == [tuple(frame) for frame in recorded("sessions/frames.json")[name]]
    memory.write(FrameTokens(torch.ones(3, 4, 4), 30, 15.0, 30))
    assert memory.read()[-1].index == 30


def test_a_session_goes_on(tiny_model):
    memory = make_memory("window", full_grid=tiny_model.frames.grid, num_frames=2)
    session = StreamingSession(tiny_model, memory)
    session.restore(SAMPLES / "sessions/session.safetensors")
    assert facts_of(memory) == [tuple(frame) for frame in recorded("sessions/frames.json")["session"]]
    assert [(each.question, each.asked_at_s) for each in session.history] == [("What is it?", 4.0)]
    assert session.ask("And now?").frames_used


def test_a_training_run_goes_on(place):
    """Registry and rows are those of the sample, too."""
    assert main(training_flags(place)) == 0
    losses = [entry["loss"] for entry in json.loads((place / "training/report.json").read_text())["losses"]]
    assert losses == pytest.approx(recorded("training_losses.json"), abs=1e-4)
    launches = json.loads((place / "training/run.json").read_text())["launches"]
    assert [launch["resumed_from"] for launch in launches] == [None, "checkpoint-1"]


def test_an_evaluation_goes_on_and_is_compared(place):
    folder = place / "evaluation"
    shutil.copytree(folder, place / "whole")
    lines = (folder / "predictions.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "predictions.jsonl").write_text("".join(lines[:2]), encoding="utf-8")
    videos = (folder / "videos.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "videos.jsonl").write_text("".join(videos[:1]), encoding="utf-8")
    for name in ("metrics.json", "result.json"):
        (folder / name).unlink()
    assert main(evaluation_flags(place)) == 0
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]
    expected = [json.loads(line) for line in lines]
    assert [(row["id"], row["text"], row["correct"]) for row in rows] == [
        (row["id"], row["text"], row["correct"]) for row in expected
    ]
    assert expected[-1].keys() <= rows[-1].keys()
    assert main(["compare", str(place / "whole"), str(folder)]) == 0


def test_a_server_answers_as_before(tiny_model):
    found = calls_to(tiny_model)
    for old, new in zip(recorded("api.json"), found, strict=True):
        assert is_part(old, new), (old, new)


def test_a_checkpoint_is_loaded(tmp_path):
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        shutil.copy(SAMPLES / "checkpoint" / name, tmp_path)
    build_tiny_tokenizer().save_pretrained(tmp_path)
    shapes = recorded("checkpoint/weights.json")
    numbers = {name: torch.full(shape, 1 / len(name)) for name, shape in shapes.items()}
    save_file(numbers, tmp_path / "model.safetensors", metadata={"format": "pt"})
    state = load_model(tmp_path, device="cpu").network.state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == shapes
    assert all(torch.equal(state[name], numbers[name]) for name in shapes)
