from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from videochat_online.model import VideoChatModel, load_model
from videochat_online.testing import make_tiny_model

ROOT = Path(__file__).resolve().parents[1]
# accelerate would go back to all cores otherwise, and sums would depend on how busy they are.
os.environ["OMP_NUM_THREADS"] = "1"

TESTS = Path(__file__).resolve().parent
LONG = ("train", "serving", "demo", "project/test_quickstart", "evaluation", "cli")
"""Tests that start processes: they come first, so that no process of the suite is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the order within a file stays."""
    items.sort(key=lambda item: not item.path.relative_to(TESTS).as_posix().startswith(LONG))


def pytest_collection_finish() -> None:
    """What was imported stays: looking through it for garbage would take a second of each training run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tensors here are so small that several threads spend their time waiting for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_launch_left_behind():
    """A process that trains alone through DeepSpeed tells itself what torchrun would."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Recorded numbers and clips that live beside the project; most checkouts do not have them."""
    path = ROOT.parent / "shared"
    if not (path / "golden" / "index.json").is_file():
        pytest.skip(f"no shared test data at {path.name}/ beside the checkout")
    return path


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of a tiny model by kind of language model, made once a run. Not to be written to."""
    made: dict[str, Path] = {}

    def directory(llm: str = "phi3") -> Path:
        if llm not in made:
            made[llm] = tmp_path_factory.mktemp(f"tiny_{llm}") / "model"
            make_tiny_model(made[llm], llm)
        return made[llm]

    return directory


@pytest.fixture(scope="session")
def tiny_model(tiny_dir: Callable[[str], Path]) -> VideoChatModel:
    """A tiny Phi-3 model, shared by all tests: nothing may change it."""
    return load_model(tiny_dir("phi3"), device="cpu")


@pytest.fixture
def frames() -> Callable[[int], np.ndarray]:
    """Seeded noise frames, uint8 [T, 60, 80, 3]; frame t is the same whatever T."""

    def make(num_frames: int, seed: int = 0) -> np.ndarray:
        return np.stack(
            [np.random.default_rng((seed, t)).integers(0, 256, (60, 80, 3), dtype=np.uint8) for t in range(num_frames)]
        )

    return make


@pytest.fixture
def at(monkeypatch) -> dict[int, Callable[[], None]]:
    """What happens in the middle of a step, by the number of steps before it."""
    from videochat_online.train.loop.trainer import OnlineTrainer  # takes seconds, and few tests want it

    events: dict[int, Callable[[], None]] = {}
    step = OnlineTrainer.training_step

    def watched(self, *rest, **options):
        result = step(self, *rest, **options)
        events.pop(self.state.global_step, lambda: None)()
        return result

    monkeypatch.setattr(OnlineTrainer, "training_step", watched)
    return events


@pytest.fixture
def saved(monkeypatch) -> list[int]:
    """The steps after which a checkpoint is written."""
    from videochat_online.train.loop.trainer import OnlineTrainer  # takes seconds, and few tests want it

    steps: list[int] = []
    # The last thing that is done for a checkpoint: one that fails before is none.
    complete = OnlineTrainer._complete

    def watched(self, *rest):
        steps.append(self.state.global_step)
        return complete(self, *rest)

    monkeypatch.setattr(OnlineTrainer, "_complete", watched)
    return steps
