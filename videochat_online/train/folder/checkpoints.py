"""Checkpoints of a run: which of them are whole, which is the last, and which go.

Knows nothing of the weights in them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(file: Path, content: Any) -> None:
    """As `write_text`."""
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """All of it or nothing, and on the disk; half a character, from a row's path or text, as JSON spells it."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def last_checkpoint(folder: Path, before: int | None = None) -> Path | None:
    """The newest checkpoint of a run that was written to its end; of those before a step, if that is given."""
    for found in checkpoints(folder):
        if (found / COMPLETE_MARK).is_file() and (before is None or _step(found) < before):
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


def is_as_long(checkpoint: Path, max_steps: int, keys: Any) -> bool:
    """Whether a checkpoint was made by a run as long as its keys say now.

    Args:
        checkpoint: checkpoint of the run.
        max_steps: of the run that made it.
        keys: of the run now.
    """
    length = (read_json(checkpoint / COMPLETE_MARK) or {}).get("length")
    if length is None and keys.max_steps > 0:  # as earlier versions wrote it
        length = {LENGTH[0]: max_steps}
    return length in (None, run_length(keys))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def checkpoints(folder: Path) -> list[Path]:
    """Of a run, whole or not, the newest first."""
    named = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted((path for path in named if path.is_dir()), key=_step, reverse=True)
