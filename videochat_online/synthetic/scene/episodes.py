"""Episodes of twelve seconds that make a drawn answer true: one builder for each template with several shapes.

A builder gets the number of the answer (among a closed set of answers, or of equally likely cases) and says what to
ask, what is right and what else to offer. Wrong options are, where possible, right for another time or thing of the
same episode, and drawn so that the right one does not stand out among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from videochat_online.synthetic.questions.facts_several import DISTANCE_S, DISTANCES, PATH_S, bounced_step, path_name
from videochat_online.synthetic.questions.shared_facts import YES_NO
from videochat_online.synthetic.scene.episode_builder import (
    CELLS,
    CELLS_PER_SIDE,
    EPISODE_S,
    Stage,
    is_clear,
    spread_cells,
)
from videochat_online.synthetic.scene.words import ACTIONS, PATTERNS, SPANS, Cell, cell_name

COUNTS = ("0", "1", "2", "3")
DIRECTIONS = ((-1, 0), (1, 0), (0, -1), (0, 1))
NOW = 0
"""Age of evidence that is asked about at once."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a builder is to make true.

    Attributes:
        answer: number of the answer or case, below `Builder.num_answers`.
        age_s: one of `Builder.ages_s`.
        detail: "fine" or "coarse", where a pattern is asked about.
        more: 0 or 1, for what the answer leaves open.
    """

    answer: int
    age_s: int
    detail: str
    more: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What to ask about an episode: when (from its start), with which parameters and options."""

    time_s: int
    params: dict[str, str | int]
    answer: str
    options: Sequence[str]

    @property
    def others(self) -> list[str]:
        """The options but for the right one, which need not be among them."""
        return [option for option in self.options if option != self.answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """How a template's episodes are made.

    Attributes:
        build: function that puts the episode on the stage.
        num_answers: different answers or cases; all come equally often.
        is_closed: the options are the same set in every question.
        ages_s: possible ages of the evidence, in seconds.
        is_unique: the names of its things come nowhere else in the stream.
        has_detail: fine and coarse patterns.
    """

    build: Callable[[Stage, Case], Asked]
    num_answers: int = 4
    is_closed: bool = False
    ages_s: tuple[int, ...] = (NOW,)
    is_unique: bool = False
    has_detail: bool = False


def _name(cell: Cell) -> str:
    return cell_name(cell, CELLS_PER_SIDE)


def _where_is(stage: Stage, case: Case) -> Asked:
    before, between, now, elsewhere = spread_cells(stage.random, 4)
    main = stage.enter(before)
    stage.move(main, between, 3)
    stage.move(main, now, 6)
    stage.enter(elsewhere)
    stage.add_bystanders(stage.random.randint(0, 1))
    others = (_name(before), _name(between), _name(elsewhere))
    return Asked(stage.random.randint(8, 11), stage.params(main), _name(now), others)


def _how_many(stage: Stage, case: Case) -> Asked:
    time_s = stage.random.randint(8, 11)
    for i, cell in enumerate(stage.random.sample(CELLS, 3)):
        stage.enter(cell, end_s=EPISODE_S if i < case.answer else stage.random.randint(4, time_s - 2))
    answer = COUNTS[case.answer]
    return Asked(time_s, {}, answer, COUNTS)


def _pattern(stage: Stage, case: Case, end_s: int) -> Asked:
    answer = PATTERNS[case.answer]
    main = stage.enter(stage.random.choice(CELLS), end_s=end_s, pattern=answer, size=case.detail)
    asked = Asked(end_s + case.age_s, stage.params(main), answer, PATTERNS)
    stage.add_bystanders(2, stage.random.sample(asked.others, 2))
    return asked


def _pattern_now(stage: Stage, case: Case) -> Asked:
    asked = _pattern(stage, case, EPISODE_S)
    return replace(asked, time_s=stage.random.randint(2, 11))


def _pattern_was(stage: Stage, case: Case) -> Asked:
    return _pattern(stage, case, end_s=3)


def _where_was(stage: Stage, case: Case) -> Asked:
    cells = spread_cells(stage.random, 4)
    if case.age_s <= 2:
        # It is still there: in one of four cases where it was, so that its cell now says nothing.
        main = stage.enter(cells[0])
        starts_s = (1, 3, 5) if case.answer == 0 else (1, 3, 8)
        index, time_s = 3 if case.answer == 0 else 2, 10
    else:
        main = stage.enter(cells[0], end_s=8)
        starts_s = (1, 3, 5)
        index, time_s = case.answer, (1, 3, 5, 7)[case.answer] + case.age_s
    for cell, start_s in zip(cells[1:], starts_s, strict=True):
        stage.move(main, cell, start_s)
    stage.add_bystanders(stage.random.randint(0, 2))
    params = {**stage.params(main), "seconds": case.age_s}
    return Asked(time_s, params, _name(cells[index]), [_name(cell) for cell in cells])


def _first_of(stage: Stage, case: Case) -> Asked:
    numbers = [
        stage.enter(cell, start_s=2 * i, end_s=2 * i + 3) for i, cell in enumerate(spread_cells(stage.random, 4))
    ]
    names = [stage.entities[number].name for number in numbers]
    return Asked(3 + case.age_s, {}, names[0], names)


def _flashed(stage: Stage, case: Case) -> Asked:
    cells = stage.random.sample(CELLS, 4)
    change_s = 7
    spans = [(0, EPISODE_S), (0, EPISODE_S), (0, change_s), (change_s, EPISODE_S)]
    numbers = [stage.enter(cell, start_s=s, end_s=e) for cell, (s, e) in zip(cells, spans, strict=True)]
    order = stage.random.sample(numbers[:3], 3) + numbers[3:]
    # On even seconds; all ages are even, so that nothing flashes at the (odd) time of asking.
    for i, number in enumerate(order):
        stage.act(number, "flash", 2 + 2 * i, 3 + 2 * i)
    colours = [stage.entities[number].colour for number in order]
    answer = colours[case.answer]
    params: dict[str, str | int] = {"seconds": case.age_s + 1}
    return Asked(3 + 2 * case.answer + case.age_s, params, answer, colours)


def _how_long_shaking(stage: Stage, case: Case) -> Asked:
    time_s = stage.random.randint(9, 11)
    main = stage.enter(stage.random.choice(CELLS))
    stage.act(main, "shake", time_s - (2 * case.answer + 1 + case.more), time_s + 1)
    stage.add_bystanders(stage.random.randint(0, 2))
    answer = SPANS[case.answer]
    return Asked(time_s, stage.params(main), answer, SPANS)


def _action_order(stage: Stage, case: Case) -> Asked:
    orders = list(permutations(ACTIONS))
    answer = orders.pop(case.answer)
    main = stage.enter(stage.random.choice(CELLS))
    for i, kind in enumerate(answer):
        stage.act(main, kind, 1 + 3 * i, 3 + 3 * i)
    stage.add_bystanders(stage.random.randint(0, 2))
    others = tuple(", ".join(order) for order in stage.random.sample(orders, 3))
    return Asked(stage.random.randint(10, 11), stage.params(main), ", ".join(answer), others)


def _path(stage: Stage, case: Case) -> Asked:
    time_s = stage.random.randint(7, 11)
    end = stage.random.choice(CELLS)
    chosen = stage.random.sample(list(permutations([cell for cell in CELLS if cell != end], 2)), 4)
    ways = [path_name((*pair, end), CELLS_PER_SIDE) for pair in chosen]
    main = stage.enter(chosen[0][0])
    stage.move(main, chosen[0][1], time_s - PATH_S)
    stage.move(main, end, time_s - PATH_S + 2)
    stage.add_bystanders(stage.random.randint(0, 2))
    return Asked(time_s, stage.params(main), ways[0], ways)


def _distance(stage: Stage, case: Case) -> Asked:
    time_s = stage.random.randint(5, 11)
    answer = DISTANCES[case.answer]
    while True:
        other, near, far = stage.random.sample(CELLS, 3)
        squares = [(cell[0] - other[0]) ** 2 + (cell[1] - other[1]) ** 2 for cell in (near, far)]
        if squares[0] < squares[1] and is_clear(other, near, far):
            break
    start, end = {0: (far, near), 1: (near, far)}.get(case.answer, (stage.random.choice((near, far)),) * 2)
    main = stage.enter(start)
    if start != end:
        stage.move(main, end, time_s - DISTANCE_S)
    second = stage.enter(other)
    stage.add_bystanders(stage.random.randint(0, 1))
    params = {**stage.params(main), **stage.params(second, "_2")}
    return Asked(time_s, params, answer, DISTANCES)


def _next_cell(stage: Stage, case: Case) -> Asked:
    time_s, num_before = 7, 4
    step = DIRECTIONS[case.answer]
    # Inside, each direction leads to a cell; on the way there it may have turned round at the border.
    now = stage.random.choice([cell for cell in CELLS if all(0 < i < CELLS_PER_SIDE - 1 for i in cell)])
    cells = _straight_way(now, (-step[0], -step[1]), num_before)[::-1] + [now] + _straight_way(now, step, 3)
    main = stage.enter(cells[0])
    for i, cell in enumerate(cells[1:]):
        stage.move(main, cell, time_s - num_before + i)
    stage.add_bystanders(stage.random.randint(0, 2))
    neighbours = sorted((now[0] + i, now[1] + j) for i, j in DIRECTIONS)
    return Asked(time_s, stage.params(main), _name(cells[num_before + 1]), [_name(cell) for cell in neighbours])


def _straight_way(cell: Cell, step: Cell, count: int) -> list[Cell]:
    """The next cells of a way that turns round at the border."""
    cells = []
    for _ in range(count):
        there = bounced_step(cell, step, CELLS_PER_SIDE)
        step, cell = (there[0] - cell[0], there[1] - cell[1]), there
        cells.append(cell)
    return cells


def _still_shaking(stage: Stage, case: Case) -> Asked:
    time_s = stage.random.randint(8, 11)
    main = stage.enter(stage.random.choice(CELLS))
    stage.act(main, "shake", time_s - 6, (time_s + 1, time_s - 2)[case.answer])
    stage.add_bystanders(stage.random.randint(0, 2))
    return Asked(time_s, stage.params(main), YES_NO[case.answer], YES_NO)


def _still_there(stage: Stage, case: Case) -> Asked:
    time_s = stage.random.randint(6, 11)
    end_s = (EPISODE_S, stage.random.randint(3, time_s - 2))[case.answer]
    main = stage.enter(stage.random.choice(CELLS), end_s=end_s)
    stage.add_bystanders(stage.random.randint(1, 2))
    return Asked(time_s, stage.params(main), YES_NO[case.answer], YES_NO)


BUILDERS: dict[str, Builder] = {
    "where_is": Builder(build=_where_is, num_answers=1),
    "how_many": Builder(build=_how_many, is_closed=True),
    "pattern_now": Builder(build=_pattern_now, is_closed=True, has_detail=True),
    "where_was": Builder(build=_where_was, ages_s=(2, 8, 32, 128, 512), is_unique=True),
    "first_of": Builder(build=_first_of, num_answers=1, ages_s=(8, 32, 128, 512), is_unique=True),
    "flashed": Builder(build=_flashed, ages_s=(2, 8, 32, 128, 512)),
    "pattern_was": Builder(
        build=_pattern_was, is_closed=True, ages_s=(2, 8, 32, 128, 512), is_unique=True, has_detail=True
    ),
    "how_long_shaking": Builder(build=_how_long_shaking, is_closed=True),
    "action_order": Builder(build=_action_order, num_answers=6),
    "path": Builder(build=_path, num_answers=1),
    "distance": Builder(build=_distance, num_answers=3, is_closed=True),
    "next_cell": Builder(build=_next_cell),
    "still_shaking": Builder(build=_still_shaking, num_answers=2, is_closed=True),
    "still_there": Builder(build=_still_there, num_answers=2, is_closed=True),
}
