"""What the model card of a run says about its training: data, keys that decide, losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from videochat_online.model.checkpoints.model_card import public, table, write_card
from videochat_online.train.folder.training_folder import identity, resolved_keys
from videochat_online.train.folder.training_report import TrainReport
from videochat_online.train.keys.arguments import Arguments
from videochat_online.train.keys.parsing import PATHS

_IN_REPORT = ("steps", "train_loss", "nonfinite_batches", "empty_steps")
_MEASURED = ("eval", "valid", "best")
"""Beginnings of the names of a report's entries that hold what was measured on held-out data."""


def write_run_card(
    folder: Path, arguments: Arguments, report: TrainReport, sets: Mapping[str, Mapping[str, Any]], intervals: Any
) -> bool:
    """Write the card of a finished run beside its model, unless there is a README.md.

    Args:
        folder: the run's folder.
        arguments: arguments of the run.
        report: report of the run.
        sets: facts of each training set.
        intervals: intervals of the token schedule.

    Returns:
        Whether one was written.
    """
    content = report.to_json()
    rows = [
        {"set": name, "rows": count["rows"], "items an epoch": count["items"]} | _sampling(sets.get(name, {}))
        for name, count in content["dataset"].items()
    ]
    sections = {"Training data": table(rows)} if rows else {}
    sections["Memory"] = f"Intervals of the token schedule: {public(list(intervals))}."
    sections["Training"] = table([{"key": key, "value": value} for key, value in _deciding(arguments).items()])
    results = {key: content[key] for key in _IN_REPORT if content.get(key)}
    losses = [entry for entry in report.losses if entry.get("loss") is not None]
    if losses:
        results |= {"first loss": f"{losses[0]['loss']:.4g}", "last loss": f"{losses[-1]['loss']:.4g}"}
    results |= {key: value for key, value in content.items() if key.startswith(_MEASURED) and value}
    if results:
        sections["Results"] = table([{"": key, "value": value} for key, value in results.items()])
    return write_card(folder, "native", base=arguments.model.model_name_or_path, sections=sections)


def _sampling(facts: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("weight", "repeat_time")
    return {"sampling": public({key: facts[key] for key in keys if facts.get(key) is not None})}


def _deciding(arguments: Arguments) -> dict[str, Any]:
    """Keys that decide what a run computes and are not as they are by default; no paths."""
    defaults = {
        field.name: field.default
        for part in (arguments.model, arguments.data, arguments.training)
        for field in dataclasses.fields(part)
    }
    keys = identity(resolved_keys(arguments))
    return {
        key: value
        for key, value in keys.items()
        if key not in PATHS and value is not None and value != defaults.get(key)
    }
