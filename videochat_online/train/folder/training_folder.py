"""The folder of a run: what it is a run of, whether it may be written to, and where to go on.

Owns `run.json` (identity, environment, launches), `config.yaml` (every resolved key) and `report.json`. A
folder that holds something else is refused, and nothing in it is changed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

import yaml
from transformers.trainer_pt_utils import AcceleratorConfig

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

from videochat_online.errors import CheckpointError, InputError
from videochat_online.model.checkpoints.weight_files import tensor_names
from videochat_online.text import load_tokenizer
from videochat_online.train.folder.checkpoints import (
    COMPLETE_MARK,
    LENGTH,
    checkpoints,
    last_checkpoint,
    length_of,
    read_json,
    write_text,
)
from videochat_online.train.keys.arguments import Arguments, DataArguments, ModelArguments, num_processes
from videochat_online.train.keys.deepspeed_plan import deciding_keys
from videochat_online.train.keys.parsing import GONE, PATHS
from videochat_online.utils import check_writable, git_revision, versions

RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
REPORT_FILE = "report.json"
SKIPPED_PREFIX = "skipped"
HELD_OUT_SKIPPED_PREFIX = "skipped_held_out"
LOCK_FILE = ".lock"

SEEN_WITHIN_S = 60.0
"""What one node has written, others see on a shared disk after so long at the latest."""

SECRET = ("hub_token",)
"""Keys that are never written down."""

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "peft", "tokenizers", "numpy", "av", "pillow")

# Keys that change how a run is watched, fed or saved, not what it computes.
_INCIDENTAL = (
    "output_dir",
    "run_name",
    "project",
    "report_to",
    "disable_tqdm",
    "debug",
    "local_rank",
    "use_cpu",
    "ddp_timeout",
    "video_backend",
    "cache_frames_mb",
    "max_bad_fraction",
    "skip_memory_metrics",
    "enable_jit_checkpoint",
    "extend",
    "per_device_eval_batch_size",
)
_DECIDING = ("dataloader_drop_last",)
_INCIDENTAL_PREFIXES = ("logging_", "log_", "save_", "dataloader_", "hub_", "push_to_hub", "trackio_", "do_", "eval_")

_COLLECTIVE = ("save_", "eval_", "logging_", "per_device_eval_batch_size", "max_bad_fraction", "extend")
"""Beginnings of incidental keys by which processes would wait for each other."""

OWN_DEFAULTS = {f.name: f.default for kind in (ModelArguments, DataArguments) for f in dataclasses.fields(kind)}
"""What a run of an earlier version, that does not know a key, was begun with."""

PLAN = "deepspeed."
"""Of keys that stand for what a DeepSpeed plan says."""


def resolved_keys(arguments: Arguments) -> dict[str, Any]:
    """Every key and its value, as YAML and JSON can hold it."""
    keys: dict[str, Any] = {}
    for part in (arguments.model, arguments.data, arguments.training):
        keys |= {f.name: _plain(getattr(part, f.name)) for f in dataclasses.fields(part) if f.init}
    if arguments.training.has_no_gpu:
        keys["use_cpu"] = False  # as it was given: the same file may be used where there is a GPU
    return {key: value for key, value in keys.items() if key not in SECRET and key not in GONE}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, AcceleratorConfig):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


class TrainingFolder:
    """The output folder of one run.

    Args:
        path: `output_dir`.
        keys: of `resolved_keys`.
    """

    def __init__(self, path: str | Path, keys: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.keys = dict(keys)
        self._lock: TextIO | None = None

    def finished_report(self) -> dict[str, Any] | None:
        """The report of this run if it has been through to its end, is not to go on beyond it, and has its result.

        Raises:
            InputError: it is to go on, or its result is gone, and so is the checkpoint of its last step.
        """
        report = read_json(self.path / REPORT_FILE)
        if report is None or not report.get("finished"):
            return None
        why, use = "extend", "go on from"
        if not self._is_extended():
            try:
                tensor_names(self.path)
                load_tokenizer(self.path)
                return report
            except CheckpointError as error:
                why, use = f"the run is finished, its result is not there any more ({error})", "write it again from"
        last, wanted = self.last_checkpoint(), f"checkpoint-{report['steps']}"
        if last is None or last.name != wanted:
            found = "none" if last is None else last.name
            raise InputError(
                f"{self.path}: {why}: expected {wanted}, of the last step, to {use}, found {found}; a run keeps it with"
                " save_strategy steps"
            )
        return None

    def _is_extended(self) -> bool:
        recorded = read_json(self.path / RUN_FILE) or {}
        was, ours = length_of(recorded.get("identity", {})), length_of(self.keys)
        return bool(self.keys.get("extend")) and was[0] == ours[0] and was[1] is not None and ours[1] > was[1]

    def check(self, sets: Mapping[str, Any]) -> None:
        """Refuse a folder that this run must not write to. Changes nothing.

        Args:
            sets: facts of each training set, as JSON has them.

        Raises:
            InputError: a file, a folder with other things in it, or another run; says which keys or sets differ.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise InputError(f"{self.path}: expected a folder for the run, found a file")
        if not any(self.path.iterdir()):
            return
        recorded = read_json(self.path / RUN_FILE)
        if recorded is None:
            raise InputError(
                f"{self.path}: expected a new or empty folder, or this run's own, found other files; choose another"
                " output_dir"
            )
        was, ours = dict(recorded.get("identity", {})), identity(self.keys)
        was = {key: OWN_DEFAULTS[key] for key in ours if key in OWN_DEFAULTS} | was
        is_older = bool(was.get("deepspeed")) and not any(key.startswith(PLAN) for key in was)
        for keys in (was, ours):  # it is the plan's content that counts, not its name
            for key in list(keys):
                if not _decides(key) or (key.startswith(PLAN) if is_older else key == "deepspeed"):
                    del keys[key]
        if self._is_extended():
            was |= {key: ours[key] for key in LENGTH if key in ours}
        places = recorded.get("paths") or {key: _placed(was.get(key)) for key in PATHS}
        # One place is written differently from different folders.
        was |= {key: ours[key] for key in PATHS if key in ours and places.get(key) == _placed(ours[key])}
        different = differing_keys(was, ours)
        if different:
            raise InputError(
                f"{self.path}: holds another run, which is left as it is: {'; '.join(different[:4])}"
                + (f"; and {len(different) - 4} more keys differ" if len(different) > 4 else "")
                + f". Choose another output_dir{self._hint(different)}"
            )
        was = recorded.get("sets", sets)
        changed = [name for name in sorted({*was, *sets}) if was.get(name) != sets.get(name)]
        if changed:
            facts = differing_keys(was.get(changed[0]) or {}, sets.get(changed[0]) or {})
            raise InputError(
                f"{self.path}: the run was begun with other data: {changed[0]}: {'; '.join(facts)}"
                + (f"; and {len(changed) - 1} more sets differ" if len(changed) > 1 else "")
                + ". Choose another output_dir"
            )

    def _hint(self, different: Sequence[str]) -> str:
        if not all(line.startswith(LENGTH) for line in different):
            return ""
        return "; `--extend True` goes on with this one, for more steps or epochs than before"

    def open(self, dataset: Mapping[str, Any], sets: Mapping[str, Any], checkpoint: Path | None) -> None:
        """Write what the run is, and that it is launched; incomplete checkpoints are removed.

        Args:
            dataset: rows and items of each set.
            sets: facts of each set, of `check`.
            checkpoint: where the run goes on, None at its start.

        Raises:
            InputError: the data is not what the run was begun with.
        """
        recorded = read_json(self.path / RUN_FILE) or {}
        if recorded and recorded["dataset"] != dict(dataset):
            raise InputError(
                f"{self.path}: the run was begun with other data ({recorded['dataset']}, now {dict(dataset)}); choose"
                " another output_dir"
            )
        self._make_mine()
        launch = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "processes": num_processes(),
            "resumed_from": checkpoint.name if checkpoint else None,
            "id": uuid.uuid4().hex,
            "git_revision": git_revision(),
            "versions": versions(PACKAGES),
        }
        report = read_json(self.path / REPORT_FILE)
        if report is not None and report.get("finished"):  # which it is not until its result is there
            self.write(REPORT_FILE, report | {"finished": False, "status": "ended early"})
        self.write(
            RUN_FILE,
            {
                "identity": identity(self.keys),
                "paths": {key: _placed(self.keys.get(key)) for key in PATHS},
                "dataset": dict(dataset),
                "sets": dict(sets),
                "launches": [*recorded.get("launches", []), launch],
            },
        )
        # To be used again from any folder.
        keys = {key: _placed(value) if key in PATHS else value for key, value in self.keys.items()}
        text = yaml.safe_dump(keys, sort_keys=True, allow_unicode=True)
        self._write(CONFIG_FILE, text)
        for folder in checkpoints(self.path):
            if not (folder / COMPLETE_MARK).is_file():
                shutil.rmtree(folder)

    def close(self) -> None:
        """Another launch may have the folder."""
        if self._lock is not None:
            self._lock.close()

    def wait_for(self, launch: str | None, checkpoint: Path | None) -> None:
        """Until this process sees what the first one has opened; a network's disk may show it a while later.

        Raises:
            InputError: it does not come: the folder is another one on this node.
        """
        deadline = time.monotonic() + SEEN_WITHIN_S
        while self.launch_id() != launch or not (
            checkpoint is None or (self.path / checkpoint.name / COMPLETE_MARK).is_file()
        ):
            if time.monotonic() > deadline:
                raise InputError(
                    f"{self.path}: expected the folder that process 0 writes to, found another one, or none: output_dir"
                    " has to be on a disk that all nodes share"
                )
            time.sleep(0.5)

    def launch_id(self) -> str | None:
        """Of the launch that has opened the folder last."""
        launches = (read_json(self.path / RUN_FILE) or {}).get("launches") or [{}]
        return str(launches[-1].get("id"))

    def _make_mine(self) -> None:
        """The folder, and a lock on it until `close` or the process's end: launches must not meet in it."""
        check_writable(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / LOCK_FILE).open("w")
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"{self.path}: another process is training in this folder") from error
            except OSError:  # some network file systems have no locks
                return

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end."""
        return last_checkpoint(self.path)

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file of the run, all of it or nothing.

        Raises:
            InputError: the disk does not take it.
        """
        self._write(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _write(self, name: str, text: str) -> None:
        try:
            write_text(self.path / name, text)
        except OSError as error:
            raise InputError(f"{self.path / name}: could not be written: {error.strerror}") from error


def identity(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that decide what a run computes, and over how many processes its state is spread."""
    deciding = {key: value for key, value in sorted(keys.items()) if _decides(key)}
    return deciding | {"processes": num_processes()} | deciding_keys(keys.get("deepspeed"))


def shared_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Those that processes of one launch must have in common: also when they save, log and evaluate together."""
    return identity(keys) | {key: value for key, value in sorted(keys.items()) if key.startswith(_COLLECTIVE)}


def _decides(key: str) -> bool:
    return key in _DECIDING or (key not in _INCIDENTAL and not key.startswith(_INCIDENTAL_PREFIXES))


def differing_keys(recorded: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """`key was X, now Y` for each key that differs."""
    keys = sorted({*recorded, *ours})
    return [
        f"{key} was {recorded.get(key)!r}, now {ours.get(key)!r}"
        for key in keys
        if recorded.get(key) != ours.get(key)
        and not str(recorded.get(key)).startswith("AcceleratorConfig(")  # as earlier versions wrote it
    ]


def _placed(value: Any) -> Any:
    """Paths of what is there, in full; a name on the Hub or a JSON object is no path."""
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",")]
    return ",".join(map(os.path.abspath, parts)) if all(map(os.path.exists, parts)) else value
