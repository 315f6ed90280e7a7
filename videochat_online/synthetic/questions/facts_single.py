"""Facts of a world with one shape at a time, read from a scene that ends at the time of asking.

Each function takes (scene, time_s, params, options); None says that the scene does not tell.
"""

from __future__ import annotations

from videochat_online.synthetic.questions.shared_facts import YES_NO, Options, Params, cell_name_at, last_seen_s
from videochat_online.synthetic.scene.scene import Scene
from videochat_online.synthetic.scene.words import Cell, cell_name, span_name

STEP_S = 2
"""A shape on patrol rests 1 s and glides 1 s."""
RING: tuple[Cell, ...] = ((0, 0), (0, 1), (1, 1), (1, 0))
"""The four cells clockwise."""
STAYED, SIDEWAYS, UP_DOWN, DIAGONALLY = "it stayed", "left or right", "up or down", "diagonally"
MOVEMENTS = (STAYED, SIDEWAYS, UP_DOWN, DIAGONALLY)


def current(scene: Scene, time_s: float) -> int | None:
    """Number of the shape that is on the screen."""
    return next((seen.entity for seen in scene.state_at(time_s)), None)


def first(scene: Scene) -> int | None:
    """Number of the shape that appeared first."""
    return min(scene.spans, key=lambda entity: scene.spans[entity][0], default=None)


def coloured(scene: Scene, params: Params) -> int | None:
    """Number of the shape of the asked colour, if it has been there."""
    return next((entity for entity in scene.spans if scene.entities[entity].colour == params["colour"]), None)


def movement(start: Cell, end: Cell) -> str:
    """What the way from one cell to another is called."""
    return MOVEMENTS[(start[1] != end[1]) + 2 * (start[0] != end[0])]


def where_now(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """The cell of the shape on the screen."""
    return cell_name_at(scene, current(scene, time_s), time_s)


def shape_now(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """The shape on the screen."""
    entity = current(scene, time_s)
    return None if entity is None else scene.entities[entity].shape


def first_shape(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """The shape that appeared first."""
    entity = first(scene)
    return None if entity is None else scene.entities[entity].shape


def first_place(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """Where the first shape appeared."""
    return _cell_of_appearance(scene, first(scene))


def shape_of_colour(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """The shape that had the asked colour."""
    entity = coloured(scene, params)
    return None if entity is None else scene.entities[entity].shape


def place_of_colour(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """Where the shape of the asked colour appeared."""
    return _cell_of_appearance(scene, coloured(scene, params))


def still_shown(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """Whether the shape on the screen has the asked colour."""
    entity = current(scene, time_s)
    return YES_NO[entity is None or scene.entities[entity].colour != params["colour"]]


def how_long(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """For how long the shape has been there; a scene that never changed does not tell."""
    entity = current(scene, time_s)
    if entity is None or len(scene.spans) < 2:
        return None
    return span_name(time_s - scene.spans[entity][0])


def how_moved(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """The way from where the shape appeared to where it is."""
    entity = current(scene, time_s)
    start = None if entity is None else scene.cell_at(entity, scene.spans[entity][0])
    end = scene.cell_at(entity, time_s)
    return None if start is None or end is None else movement(start, end)


def next_place(scene: Scene, time_s: float, params: Params, options: Options) -> str | None:
    """Where the shape's patrol takes it: every step turns by the same angle as the last."""
    entity = current(scene, time_s)
    cell, moves = scene.cell_at(entity, time_s), scene.events_of(entity, "move")
    before = cell if not moves else scene.cell_at(entity, moves[-1].start_s)
    if cell is None or before is None:
        return None
    turn = RING.index(cell) - RING.index(before)
    return cell_name(RING[(RING.index(cell) + turn) % len(RING)], scene.cells_per_side)


def first_shape_end_s(scene: Scene, time_s: float, params: Params, options: Options) -> float:
    """When the first shape was last seen."""
    return last_seen_s(scene, first(scene), time_s)


def first_place_end_s(scene: Scene, time_s: float, params: Params, options: Options) -> float:
    """When the first shape left the cell in which it appeared."""
    return _departure_s(scene, first(scene), time_s)


def colour_end_s(scene: Scene, time_s: float, params: Params, options: Options) -> float:
    """When the shape of the asked colour was last seen."""
    return last_seen_s(scene, coloured(scene, params), time_s)


def colour_place_end_s(scene: Scene, time_s: float, params: Params, options: Options) -> float:
    """When the shape of the asked colour left the cell in which it appeared."""
    return _departure_s(scene, coloured(scene, params), time_s)


def shown_since_s(scene: Scene, time_s: float, params: Params, options: Options) -> float:
    """When the shape on the screen appeared."""
    entity = current(scene, time_s)
    return time_s if entity is None else scene.spans[entity][0]


def _cell_of_appearance(scene: Scene, entity: int | None) -> str | None:
    return None if entity is None else cell_name_at(scene, entity, scene.spans[entity][0])


def _departure_s(scene: Scene, entity: int | None, time_s: float) -> float:
    moves = scene.events_of(entity, "move")
    return moves[0].start_s if moves else last_seen_s(scene, entity, time_s)
