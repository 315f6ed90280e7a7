"""The few names of lmms-eval that our model needs, for tests without it; the real one: tools/test_lmms_eval.sh."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any


class lmms:  # noqa: N801
    """Base class of models, as in lmms-eval 0.7.3: rank and task_dict are set by the evaluator."""

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.task_dict: dict[str, Any] = {}
        self.is_clean = False

    @property
    def rank(self) -> int:
        return self._rank

    def clean(self) -> None:
        self.is_clean = True


@dataclass
class GenerationResult:
    text: Any


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None


def import_with_stub(monkeypatch) -> ModuleType:
    """Our adapter, imported anew with the stub in lmms-eval's place; the caller forgets both afterwards."""
    parts = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.api.instance": {"GenerationResult": GenerationResult},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "videochat_online.integrations.lmms_eval", raising=False)
    return importlib.import_module("videochat_online.integrations.lmms_eval")
