"""What happens in a synthetic stream: things and events, and the state at any time.

Pure data and pure functions of time; knows nothing of pixels and questions. Times are seconds from the start of
the stream. A thing is there from its `appear` up to, but not including, its `vanish`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from videochat_online.errors import InputError
from videochat_online.synthetic.scene.words import ACTIONS, Cell


@dataclass(frozen=True, slots=True)
class Entity:
    """A thing of a scene.

    Attributes:
        colour: name of its colour.
        shape: name of its shape.
        pattern: pattern that is printed on it, or None.
        pattern_size: "fine" or "coarse" lines; None without a pattern.
    """

    colour: str
    shape: str
    pattern: str | None = None
    pattern_size: str | None = None

    @property
    def name(self) -> str:
        """Name that questions have for it: "red block"."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens to a thing.

    Attributes:
        kind: appear, vanish, move, flash, or one of `ACTIONS`.
        entity: its number in the scene.
        start_s: time at which it begins, in seconds.
        end_s: time at which it is over (excluded); equal to `start_s` for what takes no time.
        cell: cell in which it appears, or in which a move ends; None for other kinds.
    """

    kind: str
    entity: int
    start_s: float
    end_s: float
    cell: Cell | None = None


@dataclass(frozen=True, slots=True)
class Visible:
    """A thing as it is at one moment.

    Attributes:
        entity: its number in the scene.
        row: row in cells, not whole while it glides.
        column: column in cells, likewise.
        is_flashing: whether it has a white frame.
        action: the one of `ACTIONS` it is at, or None.
    """

    entity: int
    row: float
    column: float
    is_flashing: bool = False
    action: str | None = None

    @property
    def cell(self) -> Cell | None:
        """The cell it rests in; None while it is between two."""
        if self.row != int(self.row) or self.column != int(self.column):
            return None
        return int(self.row), int(self.column)


@dataclass(frozen=True)
class Scene:
    """A whole stream.

    Attributes:
        name: name that is unique in the data set.
        duration_s: length in seconds.
        cells_per_side: cells a side of the square grid that things rest in.
        entities: things that ever appear, each once.
        events: events by start time.
        background_seed: seed of the noise behind everything.
        is_busy: the background drifts; otherwise it stands still.
    """

    name: str
    duration_s: float
    cells_per_side: int
    entities: tuple[Entity, ...]
    events: tuple[Event, ...]
    background_seed: int = 0
    is_busy: bool = False

    @cached_property
    def _events_of(self) -> dict[int, tuple[Event, ...]]:
        found: dict[int, list[Event]] = {}
        for event in self.events:
            found.setdefault(event.entity, []).append(event)
        return {entity: tuple(events) for entity, events in found.items()}

    @cached_property
    def spans(self) -> dict[int, tuple[float, float]]:
        """When each thing appears and vanishes; infinity where it stays."""
        spans = {}
        for entity, events in self._events_of.items():
            first_s = {event.kind: event.start_s for event in reversed(events)}
            if "appear" in first_s:
                spans[entity] = first_s["appear"], first_s.get("vanish", math.inf)
        return spans

    def events_of(self, entity: int | None, kind: str | None = None) -> tuple[Event, ...]:
        """Events of a thing in time order, of one kind if given; none where there is no thing."""
        events = () if entity is None else self._events_of.get(entity, ())
        return tuple(event for event in events if kind in (None, event.kind))

    def state_at(self, time_s: float) -> tuple[Visible, ...]:
        """Everything that is there at a moment, by number."""
        there = [entity for entity, (start_s, end_s) in self.spans.items() if start_s <= time_s < end_s]
        return tuple(self._visible(entity, time_s) for entity in sorted(there))

    def cell_at(self, entity: int | None, time_s: float) -> Cell | None:
        """Where a thing rests at a moment; None if it is not there, or between two cells."""
        return next((seen.cell for seen in self.state_at(time_s) if seen.entity == entity), None)

    def _visible(self, entity: int, time_s: float) -> Visible:
        row = column = 0.0
        action, is_flashing = None, False
        for event in self._events_of[entity]:
            if event.start_s > time_s:
                break
            is_going_on = time_s < event.end_s
            if event.kind == "appear" and event.cell:
                row, column = event.cell
            elif event.kind == "move" and event.cell:
                share = (time_s - event.start_s) / (event.end_s - event.start_s) if is_going_on else 1.0
                row, column = row + share * (event.cell[0] - row), column + share * (event.cell[1] - column)
            elif event.kind == "flash":
                is_flashing = is_flashing or is_going_on
            elif event.kind in ACTIONS and is_going_on:
                action = event.kind
        return Visible(entity, row, column, is_flashing, action)

    def is_quiet(self, start_s: float, end_s: float) -> bool:
        """Nothing appears, vanishes or moves after `start_s` and up to `end_s`."""
        for event in self.events:
            if event.kind == "move" and event.start_s < end_s and event.end_s > start_s:
                return False
            if event.kind in ("appear", "vanish") and start_s < event.start_s <= end_s:
                return False
        return True

    def until(self, time_s: float) -> Scene:
        """What has been seen at a moment: the stream cut off there. A move that begins then does not show yet."""
        events = tuple(e for e in self.events if e.start_s < time_s or (e.start_s == time_s and e.kind != "move"))
        if time_s == self.duration_s and len(events) == len(self.events):
            return self
        return replace(self, duration_s=time_s, events=events)

    def between(self, start_s: float, end_s: float) -> Scene:
        """A clip as a stream of its own: times count from `start_s`; what was there appears at 0.

        What glides at `start_s` is put where it is nearest to; cut where everything rests.
        """
        events = [
            Event("appear", seen.entity, 0.0, 0.0, seen.cell or (round(seen.row), round(seen.column)))
            for seen in self.state_at(start_s)
        ]
        for event in self.events:
            is_first_move = event.start_s == start_s and event.kind == "move"
            if start_s < event.start_s < end_s or is_first_move:
                events.append(replace(event, start_s=event.start_s - start_s, end_s=event.end_s - start_s))
            elif event.start_s <= start_s < event.end_s and event.kind not in ("appear", "vanish", "move"):
                events.append(replace(event, start_s=0.0, end_s=event.end_s - start_s))
        return replace(self, duration_s=end_s - start_s, events=tuple(sorted(events, key=event_order)))

    def frozen_at(self, time_s: float) -> Scene:
        """The stream of somebody who knows one frame: it has always looked like this."""
        events = tuple(
            Event("appear", seen.entity, 0.0, 0.0, seen.cell) for seen in self.state_at(time_s) if seen.cell is not None
        )
        return replace(self, duration_s=time_s, events=events)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `scene_from_dict` reads it."""
        return asdict(self)


def event_order(event: Event) -> tuple[float, int, int]:
    """Sort key of events: by time; what vanishes makes room before anything appears."""
    first = {"vanish": 0, "appear": 1}.get(event.kind, 2)
    return event.start_s, first, event.entity


def scene_from_dict(data: Mapping[str, Any]) -> Scene:
    """A scene from its JSON.

    Raises:
        InputError: a key is missing, unknown or of another kind.
    """
    try:
        entities = tuple(Entity(**entity) for entity in data["entities"])
        events = tuple(
            Event(**{**event, "cell": tuple(event["cell"]) if event.get("cell") is not None else None})
            for event in data["events"]
        )
        return Scene(**{**data, "entities": entities, "events": events})
    except (KeyError, TypeError) as error:
        raise InputError(f"scene: expected the keys of a scene file, found {error}") from error
