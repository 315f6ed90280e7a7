"""Twelve seconds of a world with several shapes: who comes on, where, and what they do.

Knows no questions. Times are seconds from the start of the stretch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from videochat_online.synthetic.scene.scene import Entity, Event
from videochat_online.synthetic.scene.words import PATTERNS, Cell, all_cells

EPISODE_S = 12
CELLS_PER_SIDE = 4
CELLS = all_cells(CELLS_PER_SIDE)
Name = tuple[str, str]
"""(colour, shape)."""


class Stage:
    """Collects the things and events of one episode.

    Args:
        random: source of all draws.
        names: at least four names of different colours; each thing takes the next.
    """

    def __init__(self, random: Random, names: Sequence[Name]) -> None:
        self.random = random
        self.entities: list[Entity] = []
        self.events: list[Event] = []
        self._names = iter(names)
        self._ways: list[tuple[Cell, Cell]] = []
        self._at: dict[int, Cell] = {}

    def enter(
        self,
        cell: Cell,
        *,
        start_s: int = 0,
        end_s: int = EPISODE_S,
        pattern: str | None = None,
        size: str | None = None,
    ) -> int:
        """Somebody new appears; every shape carries a pattern, a random one unless given. Returns its number."""
        colour, shape = next(self._names)
        pattern = self.random.choice(PATTERNS) if pattern is None else pattern
        size = self.random.choice(("fine", "coarse")) if size is None else size
        number = len(self.entities)
        self.entities.append(Entity(colour, shape, pattern, size))
        self.events.append(Event("appear", number, start_s, start_s, cell))
        self.events.append(Event("vanish", number, end_s, end_s))
        self._ways.append((cell, cell))
        self._at[number] = cell
        return number

    def move(self, number: int, cell: Cell, start_s: int) -> None:
        """Glide to a cell within one second."""
        self.events.append(Event("move", number, start_s, start_s + 1, cell))
        self._ways.append((self._at[number], cell))
        self._at[number] = cell

    def act(self, number: int, kind: str, start_s: int, end_s: int) -> None:
        """Shake, hop, pulse or flash."""
        self.events.append(Event(kind, number, start_s, end_s))

    def add_bystanders(self, count: int, patterns: Sequence[str] = ()) -> None:
        """Up to `count` things that rest all the time, out of everybody's way; with these patterns, if given."""
        for i in range(count):
            free = [cell for cell in CELLS if all(is_clear(cell, *way) for way in self._ways)]
            if free:
                pattern = patterns[i] if i < len(patterns) else None
                self.enter(self.random.choice(free), pattern=pattern)

    def params(self, number: int, suffix: str = "") -> dict[str, str | int]:
        """A thing's colour and shape as a question's parameters."""
        entity = self.entities[number]
        return {"colour" + suffix: entity.colour, "shape" + suffix: entity.shape}


def is_clear(cell: Cell, start: Cell, end: Cell) -> bool:
    """A thing that rests in the cell is not touched by one that glides from `start` to `end`."""
    length_2 = (end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2
    along = (cell[0] - start[0]) * (end[0] - start[0]) + (cell[1] - start[1]) * (end[1] - start[1])
    share = min(max(along / length_2, 0.0), 1.0) if length_2 else 0.0
    nearest = (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))
    return math.dist(cell, nearest) >= 1


def spread_cells(random: Random, count: int) -> list[Cell]:
    """Different cells, each out of the way between any two others, so that none stands out among them."""
    while True:
        cells = random.sample(CELLS, count)
        pairs = [(a, b) for a in cells for b in cells if a < b]
        if all(is_clear(cell, a, b) for cell in cells for a, b in pairs if cell not in (a, b)):
            return cells
