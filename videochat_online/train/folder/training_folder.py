"""The folder of a run: what it is a run of, whether it may be written to, and where to go on.

Owns `run.json` (identity, environment, launches), `config.yaml` (every resolved key) and `report.json`. A
folder that holds something else is refused, and nothing in it is changed.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

import yaml
from transformers.trainer_pt_utils import AcceleratorConfig

from videochat_online.errors import CheckpointError, InputError
from videochat_online.model.checkpoints.weight_files import tensor_names
from videochat_online.runs.files import try_lock
from videochat_online.runs.provenance import git_revision, timestamp, versions
from videochat_online.runs.run_folder import LOCK_FILE, RUN_FILE, RunFolder, SettingDifference, differences, in_one_line
from videochat_online.text import get_template, load_tokenizer
from videochat_online.train.folder.checkpoints import LENGTH, checkpoints, is_complete, last_checkpoint, length_of
from videochat_online.train.keys.arguments import Arguments, num_processes
from videochat_online.train.keys.deepspeed_plan import deciding_keys
from videochat_online.train.keys.parsing import GONE, PATHS

CONFIG_FILE = "config.yaml"
REPORT_FILE = "report.json"
SKIPPED_PREFIX = "skipped"
HELD_OUT_SKIPPED_PREFIX = "skipped_held_out"

SEEN_WITHIN_S = 60.0
"""Seconds after which others see on a shared disk what one node has written, at the latest."""

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
    "deepspeed",  # it is the plan's content that counts, not its name
)
_DECIDING = ("dataloader_drop_last",)
_INCIDENTAL_PREFIXES = ("logging_", "log_", "save_", "dataloader_", "hub_", "push_to_hub", "trackio_", "do_", "eval_")

_COLLECTIVE = ("save_", "eval_", "logging_", "per_device_eval_batch_size", "max_bad_fraction", "extend")
"""Beginnings of incidental keys by which processes would wait for each other."""


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


class TrainingFolder(RunFolder):
    """The output folder of one training run.

    Args:
        path: `output_dir`.
        keys: keys of the run, by `resolved_keys`.
    """

    flag = "output_dir"

    def __init__(self, path: str | Path, keys: Mapping[str, Any]) -> None:
        super().__init__(path)
        self.keys = dict(keys)
        self._lock: TextIO | None = None

    def finished_report(self) -> dict[str, Any] | None:
        """The report of this run if it has been through to its end, is not to go on beyond it, and has its result.

        Raises:
            InputError: it is to go on, or its result is gone, and so is the checkpoint of its last step.
        """
        report = self.read(REPORT_FILE)
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
        last, wanted = last_checkpoint(self.path), f"checkpoint-{report['steps']}"
        if last is None or last.name != wanted:
            found = "none" if last is None else last.name
            raise InputError(
                f"{self.path}: {why}: expected {wanted}, of the last step, to {use}, found {found}; a run keeps it with"
                " save_strategy steps"
            )
        return None

    def _is_extended(self) -> bool:
        recorded = self.read(RUN_FILE) or {}
        was, now = length_of(recorded.get("identity", {})), length_of(self.keys)
        return bool(self.keys.get("extend")) and was[0] == now[0] and was[1] is not None and now[1] > was[1]

    def check(self, sets: Mapping[str, Any]) -> None:
        """Refuse a folder that this run must not write to. Changes nothing.

        Args:
            sets: facts of each training set, as JSON has them.

        Raises:
            InputError: a file, a folder with other things in it, or another run; says which keys or sets differ.
        """
        self.check_free()
        recorded = self.read(RUN_FILE)
        if recorded is None:
            return
        if different := self._other_keys(recorded):
            is_longer = all(found.name in LENGTH for found in different)
            hint = "; `--extend True` goes on with this one, for more steps or epochs than before" if is_longer else ""
            raise InputError(f"{self.other_run(different)}{hint}")
        self._check_data(recorded["sets"], sets)

    def _other_keys(self, recorded: Mapping[str, Any]) -> list[SettingDifference]:
        """The keys in which the recorded run is another one."""
        was, now = dict(recorded.get("identity", {})), identity(self.keys)
        if self._is_extended():
            was |= {key: now[key] for key in LENGTH if key in now}
        # A template may have two names, and one name other strings than before.
        was["conv_style"], now["conv_style"] = recorded.get("template"), template_of(now)
        # One path is written differently from different folders.
        paths = recorded.get("paths", {})
        was |= {key: now[key] for key in PATHS if key in now and paths.get(key) == _absolute(now[key])}
        return differences(was, now)

    def _check_data(self, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        if changed := differences(dict(was), dict(now)):
            raise InputError(
                f"{self.path}: the run was begun with other data: {in_one_line(changed)}. Choose another {self.flag}"
            )

    def open(self, dataset: Mapping[str, Any], sets: Mapping[str, Any], checkpoint: Path | None) -> None:
        """Write what the run is, and that it is launched; incomplete checkpoints are removed.

        Args:
            dataset: rows and items of each set.
            sets: facts of each set, of `check`.
            checkpoint: checkpoint from which the run goes on; None at its start.

        Raises:
            InputError: the data is not what the run was begun with.
        """
        recorded = self.read(RUN_FILE) or {}
        if recorded:
            self._check_data(recorded["dataset"], dataset)
        self.make()
        # Launches must not meet in it.
        self._lock = (self.path / LOCK_FILE).open("w")
        if not try_lock(self._lock):
            raise InputError(f"{self.path}: another process is training in this folder")
        launch = {
            "time": timestamp(),
            "command": sys.argv,
            "processes": num_processes(),
            "resumed_from": checkpoint.name if checkpoint else None,
            "id": uuid.uuid4().hex,
            "git_revision": git_revision(),
            "versions": versions(PACKAGES),
        }
        report = self.read(REPORT_FILE)
        if report is not None and report.get("finished"):  # which it is not until its result is there
            self.write_json(REPORT_FILE, report | {"finished": False, "status": "ended early"})
        self.write_json(
            RUN_FILE,
            {
                "identity": identity(self.keys),
                "template": template_of(self.keys),
                "paths": {key: _absolute(self.keys.get(key)) for key in PATHS},
                "dataset": dict(dataset),
                "sets": dict(sets),
                "launches": [*recorded.get("launches", []), launch],
            },
        )
        # To be used again from any folder.
        keys = {key: _absolute(value) if key in PATHS else value for key, value in self.keys.items()}
        self.write(CONFIG_FILE, yaml.safe_dump(keys, sort_keys=True, allow_unicode=True))
        for checkpoint in checkpoints(self.path):
            if not is_complete(checkpoint):
                shutil.rmtree(checkpoint)

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
        while not self._shows(launch, checkpoint):
            if time.monotonic() > deadline:
                raise InputError(
                    f"{self.path}: expected the folder that process 0 writes to, found another one, or none: output_dir"
                    " has to be on a disk that all nodes share"
                )
            time.sleep(0.5)

    def _shows(self, launch: str | None, checkpoint: Path | None) -> bool:
        with suppress(InputError):  # a network's disk may show half of it, too
            return self.launch_id() == launch and (checkpoint is None or is_complete(self.path / checkpoint.name))
        return False

    def launch_id(self) -> str | None:
        """Of the launch that has opened the folder last."""
        launches = (self.read(RUN_FILE) or {}).get("launches") or [{}]
        return str(launches[-1].get("id"))


def identity(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that decide what a run computes, and over how many processes its state is spread."""
    deciding = {key: value for key, value in sorted(keys.items()) if _decides(key)}
    return deciding | {"processes": num_processes()} | deciding_keys(keys.get("deepspeed"))


def template_of(keys: Mapping[str, Any]) -> Any:
    """The template of a run as a configuration says it; its name where that is all that is known of it here."""
    with suppress(InputError):  # none, the tokenizer's own, or one of a package that is gone
        return _plain(get_template(keys.get("conv_style") or "").to_config())
    return keys.get("conv_style")


def shared_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Those that processes of one launch must have in common: also when they save, log and evaluate together."""
    return identity(keys) | {key: value for key, value in sorted(keys.items()) if key.startswith(_COLLECTIVE)}


def _decides(key: str) -> bool:
    return key in _DECIDING or (key not in _INCIDENTAL and not key.startswith(_INCIDENTAL_PREFIXES))


def _absolute(value: Any) -> Any:
    """Paths that exist, in full; a name on the Hub or a JSON object is no path."""
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",")]
    return ",".join(map(os.path.abspath, parts)) if all(map(os.path.exists, parts)) else value
