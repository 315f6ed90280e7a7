"""Facts of a world with several shapes on a finer grid, read from a scene that ends at the time of asking.

Each function takes (scene, time_s, params, options); None says that the scene does not tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from videochat_online.synthetic.questions.shared_facts import YES_NO, Options, Params, cell_name_at, last_seen_s
from videochat_online.synthetic.scene.scene import Event, Scene, Visible
from videochat_online.synthetic.scene.words import ACTIONS, Cell, cell_name, span_name

PATH_S = 4
DISTANCE_S = 2
CLOSER, FARTHER, UNCHANGED = "closer", "farther", "unchanged"
DISTANCES = (CLOSER, FARTHER, UNCHANGED)


def latest(scene: Scene, params: Params, suffix: str = "") -> int | None:
    """Number of the newest thing of the asked colour and shape."""
    name = f"{params['colour' + suffix]} {params['shape' + suffix]}"
    named = [entity for entity in scene.spans if scene.entities[entity].name == name]
    return max(named, key=lambda entity: scene.spans[entity][0], default=None)


def path_name(cells: Sequence[Cell], cells_per_side: int) -> str:
    """Cells on the way, in order."""
    return " to ".join(cell_name(cell, cells_per_side) for cell in cells)


def bounced_step(cell: Cell, step: Cell, cells_per_side: int) -> Cell:
    """The cell after this one on a straight way; a step off the grid is turned round."""
    there = (cell[0] + step[0], cell[1] + step[1])
    if all(0 <= coordinate < cells_per_side for coordinate in there):
        return there
    return (cell[0] - step[0], cell[1] - step[1])


def where_is(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """The cell of the asked thing."""
    return cell_name_at(scene, latest(scene, params), time_s)


def how_many(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """The number of things on the screen."""
    return str(len(scene.state_at(time_s)))


def pattern_now(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """The pattern of the asked thing, while it is there."""
    seen = _seen(scene, latest(scene, params), time_s)
    return None if seen is None else scene.entities[seen.entity].pattern


def where_was(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """The cell of the asked thing some seconds earlier."""
    return cell_name_at(scene, latest(scene, params), time_s - int(params["seconds"]))


def asked_moment_s(scene: Scene, time_s: float, params: Params, options: Options) -> float:
    """The moment that `where_was` asks about."""
    return time_s - int(params["seconds"])


def first_of(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """The one of the options that appeared before the others."""
    starts_s = _option_starts_s(scene, options)
    earliest = [option for option in starts_s if starts_s[option] == min(starts_s.values())]
    return earliest[0] if len(earliest) == 1 else None


def first_of_end_s(scene: Scene, time_s: float, params: Params, options: Options) -> float:
    """When the first of the options was last seen."""
    starts_s = _option_starts_s(scene, options)
    ends_s = [end_s for start_s, end_s in scene.spans.values() if start_s == min(starts_s.values(), default=0.0)]
    return min([*ends_s, time_s])


def flashed(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """The colour of the thing that flashed some seconds earlier."""
    event = _flash(scene, time_s - int(params["seconds"]))
    return None if event is None else scene.entities[event.entity].colour


def flash_end_s(scene: Scene, time_s: float, params: Params, options: Options) -> float:
    """When the asked flash was over."""
    event = _flash(scene, time_s - int(params["seconds"]))
    return time_s if event is None else min(event.end_s, time_s)


def pattern_was(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """The pattern of the asked thing, which has vanished."""
    entity = latest(scene, params)
    return None if entity is None else scene.entities[entity].pattern


def vanished_s(scene: Scene, time_s: float, params: Params, options: Options) -> float:
    """When the asked thing vanished."""
    return last_seen_s(scene, latest(scene, params), time_s)


def how_long_shaking(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """For how long the asked thing has been shaking."""
    event = _shaking(scene, time_s, params)
    return None if event is None else span_name(time_s - event.start_s)


def shaking_since_s(scene: Scene, time_s: float, params: Params, options: Options) -> float:
    """When the asked thing began to shake."""
    event = _shaking(scene, time_s, params)
    return time_s if event is None else event.start_s


def action_order(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """The last three actions of the asked thing, in order."""
    events = _last_actions(scene, params)
    return ", ".join(event.kind for event in events) if len(events) == 3 else None


def first_action_end_s(scene: Scene, time_s: float, params: Params, options: Options) -> float:
    """When the first of the last three actions was over."""
    return min([time_s, *(event.end_s for event in _last_actions(scene, params))])


def recent_path(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """The cells that the asked thing has been in during the past 4 seconds."""
    entity, start_s = latest(scene, params), time_s - PATH_S
    start = scene.cell_at(entity, start_s)
    if start is None:
        return None
    moves = [event for event in scene.events_of(entity, "move") if event.start_s >= start_s]
    cells = [start, *(event.cell for event in moves if event.cell is not None)]
    return path_name(cells, scene.cells_per_side)


def distance(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """Whether two things have come closer in the past 2 seconds."""
    pair = latest(scene, params), latest(scene, params, "_2")
    before, now = (_distance(scene, *pair, moment_s) for moment_s in (time_s - DISTANCE_S, time_s))
    if before is None or now is None:
        return None
    return UNCHANGED if now == before else CLOSER if now < before else FARTHER


def next_cell(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """Where a thing that goes straight on, a cell a second, will be; it turns round at the border."""
    entity = latest(scene, params)
    moves = scene.events_of(entity, "move")
    start, end = (scene.cell_at(entity, moves[-1].start_s), moves[-1].cell) if moves else (None, None)
    if start is None or end is None:
        return None
    step = (end[0] - start[0], end[1] - start[1])
    return cell_name(bounced_step(end, step, scene.cells_per_side), scene.cells_per_side)


def still_shaking(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """Whether the asked thing shakes; a scene in which nothing ever moved does not tell."""
    if not scene.events_of(latest(scene, params), "shake"):
        return None
    return YES_NO[_shaking(scene, time_s, params) is None]


def still_there(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """Whether the asked thing is on the screen."""
    return YES_NO[_seen(scene, latest(scene, params), time_s) is None]


def _seen(scene: Scene, entity: int | None, time_s: float) -> Visible | None:
    return next((seen for seen in scene.state_at(time_s) if seen.entity == entity), None)


def _option_starts_s(scene: Scene, options: Options) -> dict[str, float]:
    shown = [(scene.entities[entity].name, start_s) for entity, (start_s, _) in scene.spans.items()]
    return {name: min(start_s for other, start_s in shown if other == name) for name, _ in shown if name in options}


def _flash(scene: Scene, time_s: float) -> Event | None:
    return next((e for e in scene.events if e.kind == "flash" and e.start_s <= time_s < e.end_s), None)


def _shaking(scene: Scene, time_s: float, params: Params) -> Event | None:
    events = scene.events_of(latest(scene, params), "shake")
    return next((event for event in events if event.start_s <= time_s < event.end_s), None)


def _last_actions(scene: Scene, params: Params) -> list[Event]:
    return [event for event in scene.events_of(latest(scene, params)) if event.kind in ACTIONS][-3:]


def _distance(scene: Scene, first: int | None, second: int | None, time_s: float) -> float | None:
    one, other = scene.cell_at(first, time_s), scene.cell_at(second, time_s)
    return None if one is None or other is None else math.dist(one, other)
