"""Training rows of the world "several": questions without options, with the answer in words.

Which letter stands before an answer among shuffled options is more than a tiny model learns in an hour, and while
it does not, nothing teaches it the answers. Asked in the open it learns those. A clip is asked whatever its scene
can answer, and answers come as evenly as scenes allow.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import permutations
from random import Random

from videochat_online.errors import InputError
from videochat_online.synthetic.files.question_rows import Row, image_row, offline_row, online_row, pair_of, turn_at
from videochat_online.synthetic.files.training_clips import IMAGE_QUESTION, WINDOW_SHARE
from videochat_online.synthetic.presets import ClipKind
from videochat_online.synthetic.questions.facts_several import PATH_S
from videochat_online.synthetic.questions.question_templates import TEMPLATES, answer_of
from videochat_online.synthetic.questions.shared_facts import Params
from videochat_online.synthetic.scene.even_draws import random_of
from videochat_online.synthetic.scene.scene import Scene
from videochat_online.synthetic.scene.words import SPANS, Cell, cell_name

NUM_PAIRS = 4
"""Questions about a clip, each about other things: the answer to one would give away that to the next."""
UNIT_S = 24
"""A stream of this length gets the preset's number of rows, one of twice the length twice as many."""
MIN_RECALL_S, MAX_DIALOGUE_S, MAX_TURNS = 8, 24, 4
"""Shortest clip with questions at its end, longest one with questions on the way, and times of asking there."""
MOVING_SHARE = 0.2
"""Part that ends while something moves on, of the clips that could: only these are asked where it goes."""
FEWEST_COUNTED = 10
"""Answers of a kind from which on one is taken for too common."""
BACK_S = (2, 8, 32, 128)
"""Seconds ago that `where_was` asks about; the benchmark's 512 s are longer than any training stream."""
Starts = defaultdict[int, list[int]]
_OF_A_THING = ("where_is", "pattern_now", "how_long_shaking", "action_order", "still_shaking", "still_there")


class OpenQuestions:
    """Cuts clips of one kind and asks about them; remembers which answers came how often."""

    def __init__(self, seed: int, name: str) -> None:
        self._random: Random = random_of("open", seed, name)
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def offline_rows(self, scene: Scene, video: str, kind: ClipKind) -> Iterator[Row]:
        """VideoChat2-IT rows: what a clip has shown by its end."""
        for start_s, end_s, found in self._asked_at_end(scene, kind.per_stream, kind.min_s, kind.max_s):
            yield offline_row(video, start_s, end_s, [pair_of(text, answer) for text, answer in found])

    def online_rows(self, scene: Scene, video: str, count: int) -> Iterator[Row]:
        """Dialogues: a question or two at each of up to four times."""
        ends = _Ends(scene)
        for _ in range(_due(scene, count)):
            start_s, end_s = self._cut(ends, MIN_RECALL_S, MAX_DIALOGUE_S)
            clip = scene.between(start_s, end_s)
            times_s = [time_s for time_s in range(2, end_s - start_s) if clip.is_quiet(time_s - 1, time_s)]
            asked_s = sorted(self._random.sample(times_s, min(MAX_TURNS - 1, len(times_s))))
            is_window = self._random.random() < WINDOW_SHARE
            turns = [
                turn_at(text, answer, time_s, is_window=is_window)
                for time_s in (*asked_s, end_s - start_s)
                for text, answer in self._ask(clip, time_s, 2, ends.moving.get(start_s + time_s, ()))
            ]
            if turns:
                yield online_row(video, start_s, end_s, turns)

    def recall_rows(self, scene: Scene, video: str, count: int) -> Iterator[Row]:
        """Questions at the end of a clip of any length: what a memory holds there has to do for each."""
        for start_s, end_s, found in self._asked_at_end(scene, count, MIN_RECALL_S, int(scene.duration_s)):
            turns = [turn_at(text, answer, end_s - start_s) for text, answer in found]
            yield online_row(video, start_s, end_s, turns)

    def image_rows(self, scene: Scene, names: Sequence[str]) -> Iterator[tuple[float, Row]]:
        """(time, LLaVA row) of frames at rest: what is on them, and where.

        `red square upright lines row 1 column 2, blue cross weave row 4 column 3`, row by row.
        """
        times_s = [time_s for time_s in range(int(scene.duration_s)) if _shapes_at_rest(scene, time_s)]
        for name in names if times_s else ():
            time_s = self._random.choice(times_s)
            shapes = [(cell, scene.entities[entity]) for cell, entity in sorted(_shapes_at_rest(scene, time_s).items())]
            caption = ", ".join(
                f"{shape.name} {shape.pattern} {cell_name(cell, scene.cells_per_side)}" for cell, shape in shapes
            )
            yield time_s, image_row(name, [(IMAGE_QUESTION, caption)])

    def _asked_at_end(
        self, scene: Scene, per_unit: int, min_s: int, max_s: int
    ) -> Iterator[tuple[int, int, list[tuple[str, str]]]]:
        """Start and end of clips, and what is asked at the end of each and answered."""
        ends = _Ends(scene)
        for _ in range(_due(scene, per_unit)):
            start_s, end_s = self._cut(ends, min_s, max_s)
            found = self._ask(scene.between(start_s, end_s), end_s - start_s, NUM_PAIRS, ends.moving.get(end_s, ()))
            if found:
                yield start_s, end_s, found

    def _cut(self, ends: _Ends, min_s: int, max_s: int) -> tuple[int, int]:
        """Start and end in whole seconds: nothing moves in the first, nor, but for some, in the last."""
        resting, moving = ends.starts(min_s, max_s)
        if not (resting or moving):
            raise InputError(f"{ends.name}: expected a clip of {min_s} to {max_s} s to cut from it, found none")
        is_moving = bool(moving) and (not resting or self._random.random() < MOVING_SHARE)
        starts = moving if is_moving else resting
        # A length first: there are more starts for short clips.
        length = self._random.choice(sorted(starts))
        start_s = self._random.choice(starts[length])
        return start_s, start_s + length

    def _ask(self, clip: Scene, time_s: float, count: int, moving: Sequence[int]) -> list[tuple[str, str]]:
        """Up to `count` (question, answer), those whose answers came least often; `moving` goes on after the clip."""
        seen = clip.until(time_s)
        names = _names(seen)
        found = [
            (template, TEMPLATES[template].text.format(**params), answer, _things(params))
            for template, params in _askable(seen, time_s, moving)
            if (answer := answer_of(seen, template, time_s, params, names)) is not None
            and not self._is_too_common(template, answer)
        ]
        self._random.shuffle(found)
        chosen: list[tuple[str, str]] = []
        while found and len(chosen) < count:
            template, text, answer, things = min(found, key=lambda one: self._frequency(one[0], one[2]))
            self._counts[template][answer] += 1
            chosen.append((text, answer))
            found = [one for one in found if one[0] != template and not things & one[3]]
        self._random.shuffle(chosen)
        return chosen

    def _is_too_common(self, template: str, answer: str) -> bool:
        """Whether more than two of three answers to a template have been this one."""
        count, total = self._counts[template][answer], self._counts[template].total()
        return count >= FEWEST_COUNTED and count > 2 * (total - count)

    def _frequency(self, template: str, answer: str) -> int:
        """How often the template would have come if all its answers came as often as this one, this time included."""
        answers = self._counts[template]
        return (answers[answer] + 1) * len({*answers, answer})


def _due(scene: Scene, per_unit: int) -> int:
    return max(1, round(per_unit * scene.duration_s / UNIT_S)) if per_unit else 0


def _askable(seen: Scene, time_s: float, moving: Sequence[int]) -> Iterator[tuple[str, Params]]:
    """Templates with their parameters for which a scene, cut off at the time of asking, may have an answer."""
    shown = {seen.entities[entity].name: entity for entity in seen.spans}  # the newest of each name
    named: list[tuple[Params, int]] = []
    for entity in shown.values():
        thing = seen.entities[entity]
        named.append(({"colour": thing.colour, "shape": thing.shape}, entity))
    yield from (("next_cell", params) for params, entity in named if entity in moving)
    if not seen.is_quiet(time_s - 1, time_s):
        return
    yield "how_many", {}
    if len(_names(seen)) > 1:
        yield "first_of", {}
    for event in seen.events:
        if event.kind == "flash" and event.end_s <= time_s:
            yield "flashed", {"seconds": round(time_s - event.start_s)}
    for params, entity in named:
        if any(event.start_s == time_s for event in seen.events_of(entity)):
            continue  # what begins now has not been seen yet
        for template in _OF_A_THING:
            if template != "how_long_shaking" or _is_span(seen, entity, time_s):
                yield template, params
        if seen.spans[entity][1] <= time_s:
            yield "pattern_was", params
        if any(move.start_s >= time_s - PATH_S for move in seen.events_of(entity, "move")):
            yield "path", params
        yield from (("where_was", {**params, "seconds": seconds}) for seconds in BACK_S)
    for (first, _), (second, _) in permutations(named, 2):
        yield "distance", {**first, "colour_2": second["colour"], "shape_2": second["shape"]}


def _things(params: Params) -> frozenset[str]:
    """Colours and shapes of the things that a question names."""
    return frozenset(
        f"{params['colour' + suffix]} {params['shape' + suffix]}"
        for suffix in ("", "_2")
        if "colour" + suffix in params
    )


class _Ends:
    """Where clips of a scene can begin and end.

    Attributes:
        name: name of the scene.
        quiet: entry for each second: whether nothing moves in it.
        moving: whole seconds at which something has gone straight on for two cells or more, and goes on: its number.
    """

    def __init__(self, scene: Scene) -> None:
        self.name = scene.name
        seconds = int(scene.duration_s)
        self.quiet = [scene.is_quiet(time_s, time_s + 1) for time_s in range(seconds - 1)]
        self.quiet.append(scene.is_quiet(seconds - 1, seconds - 0.5))  # what happens at the very end is not shown
        self.moving: defaultdict[int, list[int]] = defaultdict(list)
        for entity in scene.spans:
            moves = scene.events_of(entity, "move")
            for before, move, after in zip(moves, moves[1:], moves[2:], strict=False):
                if not (before.end_s == move.start_s and move.end_s == after.start_s and after.cell):
                    continue
                params = {"colour": scene.entities[entity].colour, "shape": scene.entities[entity].shape}
                expected = answer_of(scene, "next_cell", move.end_s, params, ())
                if expected == cell_name(after.cell, scene.cells_per_side):
                    self.moving[int(move.end_s)].append(entity)
        self._starts: dict[tuple[int, int], tuple[Starts, Starts]] = {}

    def starts(self, min_s: int, max_s: int) -> tuple[Starts, Starts]:
        """Length -> starts of the clips that end at rest, and of those that end while something moves on."""
        if (min_s, max_s) not in self._starts:
            found: tuple[Starts, Starts] = (defaultdict(list), defaultdict(list))
            for start_s in (start_s for start_s, is_quiet in enumerate(self.quiet) if is_quiet):
                for end_s in range(start_s + min_s, min(start_s + max_s, len(self.quiet)) + 1):
                    if end_s in self.moving or self.quiet[end_s - 1]:
                        found[end_s in self.moving][end_s - start_s].append(start_s)
            self._starts[min_s, max_s] = found
        return self._starts[min_s, max_s]


def _names(seen: Scene) -> list[str]:
    """All that have been seen, where one of them was there before the others; else none."""
    starts_s = [start_s for start_s, _ in seen.spans.values()]
    if not starts_s or starts_s.count(min(starts_s)) > 1:
        return []
    return [seen.entities[entity].name for entity in seen.spans]


def _is_span(seen: Scene, entity: int, time_s: float) -> bool:
    """Whether a thing that shakes has done so for as long as questions have words for."""
    shakes = [event for event in seen.events_of(entity, "shake") if event.start_s <= time_s < event.end_s]
    return all(1 <= time_s - event.start_s <= 2 * len(SPANS) for event in shakes)


def _shapes_at_rest(scene: Scene, time_s: float) -> dict[Cell, int]:
    """Cell -> thing; none at all where one is between two cells, or looks otherwise for a moment."""
    seen = scene.state_at(time_s)
    if any(one.cell is None or one.is_flashing or one.action for one in seen):
        return {}
    return {one.cell: one.entity for one in seen if one.cell is not None}
