"""The report of a run: what was computed, what could not be used, and how fast it went."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videochat_online.data import SetCount, SkippedSample, TrainingDataset
from videochat_online.train.disk import count_parameters
from videochat_online.train.skipped import read_skipped
from videochat_online.train.trainer import OnlineTrainer

FINISHED, ENDED_EARLY = "finished", "ended early"
"""What can have become of a run that has a report."""

_STEP_KEYS = ("step", "epoch", "loss", "grad_norm", "learning_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What `report.json` holds.

    Attributes:
        status: FINISHED, or ENDED_EARLY where the run was told to stop before its last step.
        output_dir: where the model is.
        steps: optimizer steps of all launches.
        losses: one entry for each logged step, of all launches; None for a number that is not finite.
        dataset: rows of each set, and the items it gives to an epoch.
        skipped: rows that could not be used, each once, with the reason.
        seconds: of the last launch, without loading.
        steps_per_second: of the last launch.
        parameters: of the model, and those of them that learned.
        nonfinite_batches: whose loss was not finite, and which taught nothing, of all launches.
        empty_steps: in which there was nothing to learn, and which changed nothing, of all launches.
        unread_keys: of each set, keys of its first rows that nothing is done with, and in how many rows they are.
        train_loss: mean over the other steps of the last launch.
    """

    status: str
    output_dir: str
    steps: int
    losses: tuple[dict[str, float | None], ...]
    dataset: dict[str, SetCount]
    skipped: tuple[SkippedSample, ...]
    seconds: float
    steps_per_second: float
    parameters: dict[str, int]
    nonfinite_batches: int = 0
    empty_steps: int = 0
    unread_keys: dict[str, dict[str, int]] = field(default_factory=dict)
    train_loss: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the run went through to its end."""
        return self.status == FINISHED

    def to_json(self) -> dict[str, Any]:
        """As written: the skipped rows are counted by set as well."""
        content = {"finished": self.finished} | dataclasses.asdict(self)
        content["skipped"] = {
            "count": len(self.skipped),
            "by_set": dict(Counter(skipped.set_name for skipped in self.skipped)),
            "rows": [dataclasses.asdict(skipped) for skipped in self.skipped],
        }
        return content


def make_report(trainer: OnlineTrainer, dataset: TrainingDataset, metrics: dict[str, float]) -> TrainReport:
    """The report of a run that has just ended, from its folder and the trainer's state."""
    folder = Path(str(trainer.args.output_dir))
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return TrainReport(
        status=FINISHED if trainer.is_finished else ENDED_EARLY,
        output_dir=str(folder),
        steps=trainer.state.global_step,
        losses=tuple({key: _number(entry[key]) for key in _STEP_KEYS if key in entry} for entry in logged),
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
    )


def _number(value: float | None) -> float | None:
    """JSON has no NaN; checkpoints of earlier versions have."""
    return value if value is not None and math.isfinite(value) else None


def read_report(content: dict[str, Any]) -> TrainReport:
    """The report that `report.json` holds."""
    status = FINISHED if content["finished"] else ENDED_EARLY  # reports of earlier versions have no status
    return TrainReport(
        **{key: value for key, value in content.items() if key != "finished"}
        | {
            "status": status,
            "losses": tuple(content["losses"]),
            "dataset": {name: SetCount(**count) for name, count in content["dataset"].items()},
            "skipped": tuple(SkippedSample(**row) for row in content["skipped"]["rows"]),
        }
    )
