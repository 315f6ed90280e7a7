from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Recorded numbers and clips that live beside the project; most checkouts do not have them."""
    path = ROOT.parent / "shared"
    if not (path / "golden" / "index.json").is_file():
        pytest.skip(f"no shared test data at {path.name}/ beside the checkout")
    return path
