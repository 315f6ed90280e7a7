"""The report of a run: what was computed, what could not be used, and how fast it went; and its model card."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from videochat_online.data import SetCount, SkippedSample, TrainingDataset
from videochat_online.documents import fault_of
from videochat_online.errors import InputError
from videochat_online.model.checkpoints.model_card import public, table, write_card
from videochat_online.train.folder.disk import count_parameters
from videochat_online.train.folder.training_folder import HELD_OUT_SKIPPED_PREFIX, identity, resolved_keys
from videochat_online.train.keys.arguments import Arguments
from videochat_online.train.keys.parsing import PATHS
from videochat_online.train.loop.skipped_rows import read_skipped
from videochat_online.train.loop.trainer import OnlineTrainer

FINISHED, ENDED_EARLY = "finished", "ended early"
"""States of a run that has a report."""

_STEP_KEYS = ("step", "epoch", "loss", "grad_norm", "learning_rate")
_IN_REPORT = ("steps", "train_loss", "nonfinite_batches", "empty_steps")
_MEASURED = ("eval", "valid", "best")
"""Beginnings of the names of a report's entries that hold what was measured on held-out data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What `report.json` holds.

    Attributes:
        status: FINISHED, or ENDED_EARLY where the run was told to stop before its last step.
        output_dir: folder that the model is in.
        steps: optimizer steps of all launches.
        losses: one entry for each logged step, of all launches; None for a number that is not finite.
        dataset: rows of each set, and the items it gives to an epoch.
        skipped: rows that could not be used, each once, with the reason.
        seconds: seconds of the last launch, without loading.
        steps_per_second: optimizer steps a second of the last launch.
        parameters: elements of the model's parameters: of `all`, and of those `learning`.
        nonfinite_batches: batches whose loss was not finite, and which taught nothing, of all launches.
        empty_steps: steps in which there was nothing to learn, and which changed nothing, of all launches.
        unread_keys: keys of each set's first rows that nothing is done with, and in how many rows they are.
        train_loss: mean over the other steps of the last launch.
        validation: one entry for each evaluation, of all launches: `eval_loss` and the like, None for a number that is
            not finite.
        held_out: rows of each held-out set.
        skipped_held_out: held-out rows that could not be used, as `skipped`.
        best: metric, value and step of the best evaluation; None where none is asked for or none was finite.
        result_step: the step whose weights the model has.
    """

    status: str
    output_dir: str
    steps: int
    losses: tuple[dict[str, int | float | None], ...]
    dataset: dict[str, SetCount]
    skipped: tuple[SkippedSample, ...]
    seconds: float
    steps_per_second: float
    parameters: dict[str, int]
    nonfinite_batches: int = 0
    empty_steps: int = 0
    unread_keys: dict[str, dict[str, int]] = field(default_factory=dict)
    train_loss: float | None = None
    validation: tuple[dict[str, int | float | None], ...] = ()
    held_out: dict[str, SetCount] = field(default_factory=dict)
    skipped_held_out: tuple[SkippedSample, ...] = ()
    best: dict[str, Any] | None = None
    result_step: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the run went through to its end."""
        return self.status == FINISHED

    def to_json(self) -> dict[str, Any]:
        """As written: the skipped rows are counted by set as well."""
        content = {"finished": self.finished} | dataclasses.asdict(self)
        return content | {"skipped": _counted(self.skipped), "skipped_held_out": _counted(self.skipped_held_out)}


def _counted(skipped: tuple[SkippedSample, ...]) -> dict[str, Any]:
    return {
        "count": len(skipped),
        "by_set": dict(Counter(row.set_name for row in skipped)),
        "rows": [dataclasses.asdict(row) for row in skipped],
    }


def make_report(
    trainer: OnlineTrainer,
    dataset: TrainingDataset,
    metrics: dict[str, float],
    is_over: bool,
    result_step: int | None = None,
) -> TrainReport:
    """The report of a run that has just ended, over or not, from its folder and the trainer's state."""
    folder, state = trainer.folder, trainer.state
    metric = trainer.args.metric_for_best_model
    evaluated = [entry for entry in state.log_history if "eval_loss" in entry]
    logged = [entry for entry in state.log_history if "loss" in entry]
    return TrainReport(
        status=FINISHED if is_over else ENDED_EARLY,
        output_dir=str(folder),
        steps=state.global_step,
        losses=tuple({key: entry[key] for key in _STEP_KEYS if key in entry} for entry in logged),
        dataset=dataset.counts(),
        unread_keys=dataset.unread_keys(),
        skipped=tuple(read_skipped(folder)),
        seconds=float(metrics.get("train_runtime", 0.0)),
        steps_per_second=float(metrics.get("train_steps_per_second", 0.0)),
        parameters=count_parameters(trainer.model),
        # Those since the last entry are in none.
        nonfinite_batches=sum(entry.get("nonfinite_batches", 0) for entry in logged)
        + trainer.finite.take(trainer.reduce),
        empty_steps=sum(entry.get("empty_steps", 0) for entry in logged) + trainer.steps.take(0.0)[1],
        train_loss=_number(metrics.get("train_loss")),
        validation=tuple(evaluated),
        held_out={} if trainer.validation is None else trainer.validation.rows.counts(),
        skipped_held_out=tuple(read_skipped(folder, HELD_OUT_SKIPPED_PREFIX)),
        best=None
        if metric is None or state.best_metric is None
        else {
            "metric": f"eval_{metric.removeprefix('eval_')}",
            "value": state.best_metric,
            "step": state.best_global_step,
        },
        result_step=result_step,
    )


def _number(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def read_report(content: dict[str, Any], where: Path) -> TrainReport:
    """The report that a file `report.json` holds.

    Raises:
        InputError: a key that it lacks, or a value of another type; the file is named.
    """
    known = content | {key: (content.get(key) or {}).get("rows", ()) for key in ("skipped", "skipped_held_out")}
    try:
        return TypeAdapter(TrainReport).validate_python(known)
    except ValidationError as error:
        raise InputError(fault_of(error, known, str(where), TrainReport)) from error


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
    rows = []
    for name, count in report.dataset.items():
        facts = sets.get(name, {})
        sampling = {key: facts[key] for key in ("weight", "repeat_time") if facts.get(key) is not None}
        row = {"set": name, "rows": count.rows, "items an epoch": count.items}
        rows.append(row | {"sampling": public(sampling)})
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
