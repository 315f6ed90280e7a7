"""Checkpoints of a run: which of them are whole, which is the last, and which go.

Knows nothing of the weights in them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from videochat_online.runs.files import read_object

COMPLETE_MARK = "complete.json"
"""Written into a checkpoint as the last file, by which an interrupted one is told apart."""

LENGTH = ("max_steps", "num_train_epochs")
"""Keys that say how long a run is; the first one counts where it is above 0."""


def length_of(keys: Mapping[str, Any]) -> tuple[str, Any]:
    """The key that says how long a run is, and its value."""
    key = LENGTH[0] if (keys.get(LENGTH[0]) or -1) > 0 else LENGTH[1]
    return key, keys.get(key)


def run_length(keys: Any) -> dict[str, Any]:
    """The same of an object that has the keys, as JSON holds it."""
    key, value = length_of(vars(keys))
    return {key: value}


def checkpoint_of(folder: Path, step: int | None) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return (checkpoint / COMPLETE_MARK).is_file()


def mark_of(checkpoint: Path) -> dict[str, Any]:
    """What the mark of a checkpoint says; nothing where there is none.

    Raises:
        InputError: something else is in it.
    """
    return read_object(checkpoint / COMPLETE_MARK) if is_complete(checkpoint) else {}


def last_checkpoint(folder: Path, before: int | None = None) -> Path | None:
    """The newest checkpoint of a run that was written to its end; of those before a step, if that is given."""
    for found in checkpoints(folder):
        if is_complete(found) and (before is None or int(_step(found)) < before):
            return found
    return None


def rotate(folder: Path, limit: int | None, best: Path | None = None) -> None:
    """Remove the oldest checkpoints of a run beyond so many; None keeps all. The newest stays, and the best one.

    The mark goes first, so that none is taken for whole whose removal is interrupted.
    """
    if not limit:
        return
    found = checkpoints(folder)
    kept = {*found[:1], best} & {*found}
    for old in sorted(found, key=lambda path: path not in kept)[max(limit, len(kept)) :]:
        (old / COMPLETE_MARK).unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)


def is_as_long(checkpoint: Path, keys: Any) -> bool:
    """Whether a checkpoint was made by a run as long as its keys say now."""
    return bool(mark_of(checkpoint).get("length") == run_length(keys))


def checkpoints(folder: Path) -> list[Path]:
    """Of a run, whole or not, the newest first."""
    named = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _step(path).isdecimal() and path.is_dir()]
    return sorted(named, key=lambda path: int(_step(path)), reverse=True)


def _step(checkpoint: Path) -> str:
    return checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
