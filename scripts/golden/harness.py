"""Golden cases: loading them, comparing with them, and keeping the score.

A check is a function `check(case: Case) -> None`, listed by kind in `CHECKS` of its module. It computes our
value from `case.params` and the recorded inputs, and hands both sides to `case.exact`, `case.close` or
`case.exclude`. It never looks at a case's name to decide what to expect.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file


@dataclass
class Case:
    """One recorded case and the outcome of comparing with it."""

    root: Path
    entry: dict[str, Any]
    frames: ModuleType
    failures: list[str] = field(default_factory=list)
    exclusions: list[str] = field(default_factory=list)
    num_compared: int = 0
    largest_error: float = 0.0

    @property
    def name(self) -> str:
        """Name of the case in `index.json`."""
        return str(self.entry["name"])

    @property
    def params(self) -> dict[str, Any]:
        """The inputs the case was recorded with."""
        return dict(self.entry["params"])

    @property
    def tolerance(self) -> dict[str, Any]:
        """What `index.json` allows: it binds."""
        return dict(self.entry.get("tolerance", {}))

    @property
    def notes(self) -> str:
        """The recorder's remark; "reference raises" and "reference oddity" mark what need not be copied."""
        return str(self.entry.get("notes", ""))

    @cached_property
    def recorded(self) -> Any:
        """The case's JSON file, or None."""
        files = [f for f in self.entry["files"] if f.endswith(".json")]
        return json.loads((self.root / files[0]).read_text(encoding="utf-8")) if files else None

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The case's safetensors file, or an empty dict."""
        files = [f for f in self.entry["files"] if f.endswith(".safetensors")]
        return load_file(self.root / files[0]) if files else {}

    def make_frames(self, **arguments: Any) -> np.ndarray:
        """The recorded generator's frames: uint8 [T, H, W, 3]."""
        return np.asarray(self.frames.make_frames(**arguments))

    def exact(self, label: str, ours: Any, recorded: Any) -> bool:
        """Equality of ids, indices, strings, counts."""
        self.num_compared += 1
        if ours == recorded:
            return True
        self.failures.append(f"{label}: expected {_short(recorded)}, got {_short(ours)}")
        return False

    def close(
        self, label: str, ours: Any, recorded: Any, *, atol: float | None = None, rtol: float | None = None
    ) -> bool:
        """|ours - recorded| <= atol + rtol * |recorded|, with the case's tolerance unless one is given."""
        self.num_compared += 1
        atol = float(self.tolerance.get("atol", 0.0)) if atol is None else atol
        rtol = float(self.tolerance.get("rtol", 0.0)) if rtol is None else rtol
        ours_t, recorded_t = (torch.as_tensor(v).detach().to(torch.float64) for v in (ours, recorded))
        if ours_t.shape != recorded_t.shape:
            self.failures.append(f"{label}: expected shape {tuple(recorded_t.shape)}, got {tuple(ours_t.shape)}")
            return False
        error = (ours_t - recorded_t).abs()
        if error.numel():
            # NaN counts as infinitely wrong, or it would slip through the comparison below.
            self.largest_error = max(self.largest_error, float(torch.nan_to_num(error, nan=float("inf")).max()))
        if bool((error <= atol + rtol * recorded_t.abs()).all()):
            return True
        self.failures.append(f"{label}: largest error {self.largest_error:.3g}, allowed atol {atol:g} rtol {rtol:g}")
        return False

    def exclude(self, reason: str) -> None:
        """Say why (part of) this case is not compared; the check must assert our own value instead."""
        self.exclusions.append(reason)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:110]} ... {text[-40:]}"


def run_lengths(ids: list[int]) -> list[list[int]]:
    """Run-length encoding `[[id, count], ...]` of a list of ids."""
    runs: list[list[int]] = []
    for token in ids:
        if runs and runs[-1][0] == token:
            runs[-1][1] += 1
        else:
            runs.append([token, 1])
    return runs
