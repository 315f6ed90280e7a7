"""Steps without a sample: weights, optimizer and schedule stay as they were, and no mean has them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from train_cases import arguments, dialogue, launch, losses, online_rows, spoilt_loss, write_media, write_registry
from videochat_online.train import TrainReport, parse_arguments, train

ROOT = Path(__file__).resolve().parents[3]
BAD, TEXT = {"QA": 3}, {"conversations": dialogue("Hello.", "Good day.")}
KEYS: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "train_sampling_strategy": "sequential",
    "max_bad_fraction": 1,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.1,
    "max_num_frame": 2,
    "save_strategy": "steps",
    "save_steps": 1,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Media and a registry for each order of rows."""
    place = tmp_path_factory.mktemp("empty_steps")
    media, good = write_media(place / "media"), online_rows(4)
    write_registry(place / "apart", media, rows=[good[0], BAD, BAD, good[1], BAD, good[2]])
    write_registry(place / "pairs", media, rows=[good[0], BAD, BAD, BAD, TEXT, BAD, good[1], TEXT, *good[2:]])
    return place


@pytest.fixture
def run(place: Path, tiny_dir: Callable[[str], Path], tmp_path: Path) -> Callable[..., TrainReport]:
    def start(name: str, registry: str, **keys: Any) -> TrainReport:
        keys = KEYS | {"output_dir": tmp_path / name} | keys
        return train(parse_arguments(None, arguments(place, tiny_dir, name, registry, **keys)))

    return start


def leaves(content: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in what `torch.load` gives."""
    if isinstance(content, dict | list | tuple):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(value, f"{place}/{key}")
    else:
        yield place, content


def same_as_before(folder: Path) -> list[bool]:
    """Whether each checkpoint but the first holds the very weights, optimizer and schedule of the one before it."""
    held = []
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-"))):
        files = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *checkpoint.glob("global_step*/*.pt")]
        content: dict[str, Any] = {"weights": (checkpoint / "model.safetensors").read_bytes()}
        for file in files:
            if file.is_file():
                content |= leaves(torch.load(file, weights_only=False), file.name)
        assert len(content) > 200, checkpoint
        held.append(content)
    return [
        before.keys() == after.keys()
        and all(
            torch.equal(value, after[key]) if torch.is_tensor(value) else str(value) == str(after[key])
            for key, value in before.items()
        )
        for before, after in zip(held, held[1:], strict=False)
    ]


def test_a_step_without_a_sample_changes_nothing(tmp_path, run):
    report = run("run", "apart", max_steps=6)
    assert same_as_before(tmp_path / "run") == [True, True, False, True, False]
    assert [loss is None for loss in losses(report)] == [False, True, True, False, True, False]
    # The schedule waits, and so do the means.
    assert [entry["learning_rate"] for entry in report.losses] == pytest.approx([x / 6e3 for x in (6, 5, 5, 5, 4, 4)])
    real = [loss for loss in losses(report) if loss is not None]
    assert report.train_loss == pytest.approx(sum(real) / 3)
    assert (report.steps, report.empty_steps, report.finished) == (6, 3, True)
    saved = (tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text()
    history = json.loads(saved, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["log_history"]
    assert [entry["loss"] for entry in history] == losses(report)
    assert all("grad_norm" not in entry for entry in history if entry["loss"] is None)
    # The rows that are left, alone: the same learning, without the gaps.
    mean = run("mean", "apart", max_steps=6, logging_steps=3)
    assert losses(mean) == pytest.approx([real[0], (real[1] + real[2]) / 2])


def test_a_step_with_a_sample_in_one_of_its_batches_is_one(tmp_path, run, monkeypatch):
    """Two batches a step; the loss of a text alone is not finite."""
    monkeypatch.setattr(Trainer, "compute_loss", spoilt_loss(math.nan))
    report = run("run", "pairs", max_steps=5, gradient_accumulation_steps=2)
    assert same_as_before(tmp_path / "run") == [True, True, False, False]
    assert [loss is None for loss in losses(report)] == [False, True, True, False, False]
    # Two texts, and batches without a sample: they have no picture, too.
    assert (report.empty_steps, report.nonfinite_batches) == (2, 6)


def test_packs_without_a_sample(tmp_path, run):
    report = run("run", "apart", max_steps=5, packing_tokens=8)
    assert [loss is None for loss in losses(report)] == [False, True, False, True, False]
    assert same_as_before(tmp_path / "run") == [True, False, True, False]


def test_epochs_without_a_sample_end(tmp_path, run, place):
    write_registry(place / "nothing", place / "media", rows=[BAD] * 3)
    report = run("run", "nothing", max_steps=-1, num_train_epochs=2, save_strategy="no")
    assert (report.steps, report.empty_steps, report.train_loss, report.finished) == (6, 6, None, True)


@pytest.mark.slow
def test_processes_agree_on_it(tmp_path, place, tiny_dir):
    """Of two, under ZeRO-2: one has a sample and it is a step; none has; one has a loss of NaN."""
    plan = ROOT / "configs/deepspeed/zero2.json"
    keys = KEYS | {"output_dir": tmp_path / "run", "max_steps": 5, "deepspeed": plan}
    done = launch(arguments(place, tiny_dir, "run", "pairs", **keys), processes=2, SPOIL_TEXTS_BY="nan")
    assert done.returncode == 0, done.stderr[-3000:]
    assert same_as_before(tmp_path / "run") == [True, True, False, False]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [loss is None for loss in losses(report)] == [False, True, True, False, False]
