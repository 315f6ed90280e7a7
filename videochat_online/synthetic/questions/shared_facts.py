"""What the facts of both worlds are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from videochat_online.synthetic.scene.scene import Scene
from videochat_online.synthetic.scene.words import cell_name

Params = Mapping[str, "str | int"]
Options = Sequence[str]

YES_NO = ("Yes", "No")


def cell_name_at(scene: Scene, entity: int | None, time_s: float) -> str | None:
    """Where a shape is at a moment, in words; None where there is no such shape, or while it moves."""
    cell = scene.cell_at(entity, time_s)
    return None if cell is None else cell_name(cell, scene.cells_per_side)


def last_seen_s(scene: Scene, entity: int | None, time_s: float) -> float:
    """When a shape vanished; `time_s` where it has not, or where there is none."""
    return time_s if entity is None else min(time_s, scene.spans[entity][1])
