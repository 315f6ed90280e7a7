"""The folder of a run: whose it is, and what is said where it holds another run.

Each kind of run has its own: `train/folder/training_folder.py`, `evaluation/run/evaluation_folder.py`. All of them say
in `run.json` what the run is a run of, and go on with no other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from videochat_online.errors import InputError
from videochat_online.runs.files import PARTIAL, check_writable, json_text, read_object, write_text

RUN_FILE = "run.json"
LOCK_FILE = ".lock"

MOST_SHOWN = 160
"""Characters of a value in an error; of more, both ends are shown."""
MOST_TOLD = 8
"""Differences that an error gives with their values; of more, the names."""
MOST_NAMED = 50
"""Differences that an error names in all."""


class RunFolder:
    """The folder that a run writes to.

    Args:
        path: the folder, which need not exist.
    """

    flag: ClassVar[str]
    """The flag or key that names the folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def check_free(self) -> None:
        """Refuse a folder that holds something else than a run.

        Raises:
            InputError: a file, or a folder with other things in it.
        """
        if not self.path.exists():
            return
        found = "a file"
        if self.path.is_dir():
            names = sorted(entry.name for entry in self.path.iterdir())
            others = [name for name in names if name != LOCK_FILE and not name.endswith(PARTIAL)]
            if not others or RUN_FILE in others:
                return
            found = f"{len(others)} other files ({others[0]})"
        raise InputError(
            f"{self.path}: expected a new or empty folder, or this run's own, found {found}; choose another {self.flag}"
        )

    def make(self) -> None:
        """Make the folder if it does not exist.

        Raises:
            InputError: it cannot be written to.
        """
        check_writable(self.path)
        self.path.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file of the run; None where there is no such file.

        Raises:
            InputError: something else is in it.
        """
        path = self.path / name
        return read_object(path) if path.is_file() else None

    def write(self, name: str, text: str) -> None:
        """Write a file of the run, all of it or nothing.

        Raises:
            InputError: the disk does not take it.
        """
        try:
            write_text(self.path / name, text)
        except OSError as error:
            raise InputError(f"{self.path / name}: could not be written: {error.strerror}") from error

    def write_json(self, name: str, content: Any) -> None:
        """As `write`."""
        self.write(name, json_text(content))

    def other_run(self, found: Sequence[SettingDifference]) -> str:
        """What is said where the folder holds a run of other settings."""
        return (
            f"{self.path}: holds another run, which is left as it is: {in_one_line(found)}. Choose another {self.flag}"
        )


class SettingDifference(NamedTuple):
    """A setting that differs: its name with dots, its value in a run and that now, as short JSON."""

    name: str
    was: str
    now: str

    def __str__(self) -> str:
        return f"{self.name} was {self.was}, now {self.now}"


def differences(was: Any, now: Any, name: str = "") -> list[SettingDifference]:
    """`("protocol.fps", "8.0", "4.0")` for each value of two settings that differs."""
    if isinstance(was, dict) and isinstance(now, dict):
        keys = sorted({*was, *now})
        return [found for key in keys for found in differences(was.get(key), now.get(key), f"{name}.{key}".lstrip("."))]
    return [] if was == now else [SettingDifference(name, _short(was), _short(now))]


def in_one_line(found: Sequence[SettingDifference], told: Callable[[SettingDifference], str] = str) -> str:
    """The first of what differs as `told` gives it, the names of the others, and of very many how many they are."""
    lines = [told(one) for one in found[:MOST_TOLD]]
    names = [one.name for one in found[MOST_TOLD:MOST_NAMED]]
    if (more := len(found) - MOST_NAMED) > 0:
        names.append(f"{more} more")
    return "; ".join(lines) + (f"; and {', '.join(names)} differ" if names else "")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    half = MOST_SHOWN // 2
    return text if len(text) <= MOST_SHOWN else f"{text[:half]}...{text[-half:]}"
