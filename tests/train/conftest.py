"""A small set with good and bad rows, and runs on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train_cases import arguments, write_good_and_bad
from videochat_online.train import TrainReport, parse_arguments, train


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Media and registries; runs go beside them."""
    return write_good_and_bad(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def run(place: Path, tiny_dir: Callable[[str], Path]) -> Callable[..., TrainReport]:
    """Train in this process; keys as `flags` takes them."""

    def start(name: str, registry: str = "good", **keys: Any) -> TrainReport:
        return train(parse_arguments(None, arguments(place, tiny_dir, name, registry, **keys)))

    return start
