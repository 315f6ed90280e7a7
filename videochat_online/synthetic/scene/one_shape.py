"""Streams with one shape at a time: the answers are drawn first, then the scene that makes them true.

A stream of 48 s is cut into segments of 3 to 8 s; each shows one shape, and no colour comes twice. Times of asking
are drawn without regard to the answers, so that they give nothing away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from random import Random

from videochat_online.synthetic.questions.facts_single import MOVEMENTS, RING, STEP_S, movement
from videochat_online.synthetic.questions.question_templates import Question, make_question
from videochat_online.synthetic.questions.shared_facts import YES_NO
from videochat_online.synthetic.scene.even_draws import Decks, random_of
from videochat_online.synthetic.scene.scene import Entity, Event, Scene, event_order
from videochat_online.synthetic.scene.words import QUADRANTS, SINGLE_COLOURS, SINGLE_SHAPES, SPANS, Cell

STREAM_S = 48
MIN_SEGMENT_S, MAX_SEGMENT_S = 3, 8
MOVING_SHARE = 0.15
"""Part of the shapes that no answer makes move, but that move all the same; of all, about 30% do."""
CELL_NAMES = tuple(QUADRANTS.values())
CELLS = tuple(QUADRANTS)
AGE_BINS_S = ((0, 8), (8, 32), (32, STREAM_S))
"""Bins of ages in seconds, (low, high]: each stream is asked about its beginning once in each."""

OPTIONS: dict[str, tuple[str, ...]] = {
    "where_now": CELL_NAMES,
    "shape_now": SINGLE_SHAPES,
    "first_shape": SINGLE_SHAPES,
    "first_place": CELL_NAMES,
    "shape_of_colour": SINGLE_SHAPES,
    "place_of_colour": CELL_NAMES,
    "still_shown": YES_NO,
    "how_long": SPANS,
    "how_moved": MOVEMENTS,
    "next_place": CELL_NAMES,
}
"""Always in this order: a letter means the same in every question of a template."""
CORE = ("where_now", "shape_now", "first_shape", "first_place")
"""Templates that a tiny model learns in minutes."""


@dataclass(slots=True)
class Segment:
    """A stretch of the stream with one shape; what is not settled by an answer is filled in at random.

    Attributes:
        start_s: second at which its shape appears.
        end_s: second at which the next one's does.
        role: what is asked about it; empty where nothing is.
        asked_s: when it is asked about. The first segment is so at several times.
        shape: name of its shape.
        colour: name of its colour.
        stays: (second from which it rests there, cell); a glide takes the second before.
    """

    start_s: int
    end_s: int
    role: str = ""
    asked_s: int = 0
    shape: str = ""
    colour: str = ""
    stays: list[tuple[int, Cell]] = field(default_factory=list)

    def cell_at(self, time_s: float) -> Cell:
        """Where its shape is, or is on the way to."""
        return [cell for start_s, cell in self.stays if start_s <= time_s][-1]


class SingleStreams:
    """Makes streams of one split; the answers come from decks that all streams of the split share."""

    def __init__(self, seed: int, split: str) -> None:
        self._words: tuple[str | int, ...] = ("single", seed, split)
        self._decks: Decks[tuple[int, int]] = Decks(*self._words)

    def make(self, name: str) -> tuple[Scene, list[Question]]:
        """The next stream and its questions in order of time."""
        random = random_of(*self._words, name)
        span, length = self._decks.draw("how_long", [(span, more) for span in range(4) for more in range(2)])
        # At 8 s the next shape would be there.
        segments = _draw_segments_to_ask_about(random, min(2 * span + 1 + length, MAX_SEGMENT_S - 1))
        self._settle(random, segments)
        scene = _scene(name, segments, random.getrandbits(32))
        return scene, sorted(self._ask(random, scene, segments, SPANS[span]), key=lambda question: question.asked_at_s)

    def _settle(self, random: Random, segments: Sequence[Segment]) -> None:
        """Give every segment its colour, shape and way; those that answers are about from the decks."""
        sixteen = [(first, second) for first in range(4) for second in range(4)]
        colours = list(SINGLE_COLOURS)
        random.shuffle(colours)
        for segment, colour in zip(segments, colours, strict=False):
            segment.colour, segment.shape = colour, random.choice(SINGLE_SHAPES)
        for segment in segments:
            if segment.role == "moved":
                cell, answer = self._decks.draw("how_moved", sixteen)
                _move_once(random, segment, CELLS[cell], answer, before_s=segment.asked_s)
            elif segment.role == "next":
                answer, turn = self._decks.draw("next_place", sixteen)
                _patrol(segment, RING.index(CELLS[answer]), turn, asked_s=segment.asked_s)
            elif segment.role in ("now", "first", "past"):
                shape, cell = self._decks.draw(segment.role, sixteen)
                segment.shape = SINGLE_SHAPES[shape]
                # Of the past is asked where it appeared.
                at_s = segment.asked_s if segment.role == "now" else segment.start_s
                _wander(random, segment, CELLS[cell], at_s=at_s)
            else:
                _wander(random, segment, random.choice(CELLS), at_s=segment.asked_s or segment.start_s)

    def _ask(self, random: Random, scene: Scene, segments: Sequence[Segment], span: str) -> list[Question]:
        of = {segment.role: segment for segment in segments}
        first, now, still, moved, next_, past = (of[r] for r in ("first", "now", "still", "moved", "next", "past"))
        times_s = _times_by_age(random, scene, first)
        is_gone, _ = self._decks.draw("still_shown", [(0, 0), (1, 0)])
        other = segments[random.randrange(segments.index(still))] if is_gone else still
        start, end = moved.stays[0][1], moved.cell_at(moved.asked_s)
        beginning = (("first_shape", first.shape), ("first_place", QUADRANTS[first.stays[0][1]]))
        asked: list[tuple[str, int, dict[str, str | int], str]] = [
            *((template, time_s, {}, answer) for time_s in times_s for template, answer in beginning),
            ("where_now", now.asked_s, {}, QUADRANTS[now.cell_at(now.asked_s)]),
            ("shape_now", now.asked_s, {}, now.shape),
            ("shape_of_colour", past.asked_s, {"colour": past.colour}, past.shape),
            ("place_of_colour", past.asked_s, {"colour": past.colour}, QUADRANTS[past.stays[0][1]]),
            ("still_shown", still.asked_s, {"colour": other.colour}, YES_NO[is_gone]),
            ("how_long", of["long"].asked_s, {}, span),
            ("how_moved", moved.asked_s, {}, movement(start, end)),
            ("next_place", next_.asked_s, {}, QUADRANTS[next_.cell_at(next_.asked_s + 1)]),
        ]
        return [
            make_question(scene, template, time_s, params, OPTIONS[template], answer)
            for template, time_s, params, answer in asked
        ]


@cache
def _num_cuts(seconds: int, num_parts: int) -> int:
    """In how many ways a stretch can be cut into segments."""
    if num_parts == 0:
        return int(seconds == 0)
    lengths = range(MIN_SEGMENT_S, min(MAX_SEGMENT_S, seconds) + 1)
    return sum(_num_cuts(seconds - length, num_parts - 1) for length in lengths)


def _cut(random: Random, seconds: int, num_parts: int) -> list[int]:
    """Lengths of segments that fill a stretch; every way is as likely as any other."""
    parts = []
    for rest in reversed(range(num_parts)):
        lengths = range(MIN_SEGMENT_S, min(MAX_SEGMENT_S, seconds) + 1)
        parts += random.choices(lengths, [_num_cuts(seconds - length, rest) for length in lengths])
        seconds -= parts[-1]
    return parts


def _draw_segments(random: Random, start_s: int, min_s: int) -> tuple[list[Segment], int]:
    """Segments of a stream, one of which starts at a second and lasts `min_s` or more; and its number."""
    ways = [
        (length, before, after)
        for length in range(max(min_s, MIN_SEGMENT_S), MAX_SEGMENT_S + 1)
        for before in range(1, len(SINGLE_COLOURS))
        for after in range(7 - 1 - before, len(SINGLE_COLOURS) - before)
        if after >= 0
    ]
    weights = [_num_cuts(start_s, b) * _num_cuts(STREAM_S - start_s - length, a) for length, b, a in ways]
    length, before, after = random.choices(ways, weights)[0]
    lengths = [*_cut(random, start_s, before), length, *_cut(random, STREAM_S - start_s - length, after)]
    ends_s = list(accumulate(lengths))
    return [Segment(end_s - length, end_s) for length, end_s in zip(lengths, ends_s, strict=True)], before


def _draw_segments_to_ask_about(random: Random, shown_s: int) -> list[Segment]:
    """Segments and when they are asked about. `shown_s`: how long the shape has been there when `how_long` asks."""
    # Before the segments, so that the time says nothing about the answer.
    long_s = random.randint(MIN_SEGMENT_S + MAX_SEGMENT_S - 1, STREAM_S - MIN_SEGMENT_S - 1)
    while True:
        segments, long = _draw_segments(random, long_s - shown_s, shown_s + 1)
        others = [segment for i, segment in enumerate(segments) if i not in (0, long)]
        random.shuffle(others)
        roomy = [segment for segment in others if segment.end_s - segment.start_s >= 5][:2]
        rest = [segment for segment in others if segment not in roomy]
        pasts = [segment for segment in rest if segment.end_s < STREAM_S]
        if len(roomy) < 2 or not pasts:
            continue
        moved, next_ = roomy
        now, still = [segment for segment in rest if segment != pasts[0]][:2]
        segments[0].role = "first"
        segments[long].role, segments[long].asked_s = "long", long_s
        for role, segment, after_s in (("now", now, 1), ("still", still, 1), ("moved", moved, 3)):
            segment.role, segment.asked_s = role, random.randint(segment.start_s + after_s, segment.end_s - 1)
        next_.role, next_.asked_s = "next", next_.start_s + 1 + STEP_S
        past_s = random.choice(_quiet_seconds(segments, pasts[0].end_s + 1))
        pasts[0].role, pasts[0].asked_s = "past", past_s
        return segments


def _quiet_seconds(segments: Sequence[Segment], from_s: int) -> list[int]:
    """Seconds with the same shape on the screen as a second before."""
    starts_s = {segment.start_s for segment in segments}
    return [time_s for time_s in range(from_s, STREAM_S) if time_s not in starts_s]


def _wander(random: Random, segment: Segment, cell: Cell, *, at_s: int) -> None:
    """Rest all the time, or move once; be at `cell` at a time, and have been for a second."""
    segment.stays = [(segment.start_s, cell)]
    # A glide takes the second before its end, and never touches the second before the time or the borders.
    ends_s = [s for s in range(segment.start_s + 3, segment.end_s - 1) if not s - 1 < at_s <= s]
    if ends_s and random.random() < MOVING_SHARE:
        end_s = random.choice(ends_s)
        other = random.choice([c for c in CELLS if c != cell])
        before, after = (other, cell) if end_s <= at_s else (cell, other)
        segment.stays = [(segment.start_s, before), (end_s, after)]


def _move_once(random: Random, segment: Segment, end: Cell, answer: int, *, before_s: int) -> None:
    """End in a cell, by the movement that is the answer, at least a second before a time."""
    start = (end[0] ^ (answer // 2), end[1] ^ (answer % 2))
    segment.stays = [(segment.start_s, start)]
    if answer:
        segment.stays.append((random.randint(segment.start_s + 2, before_s - 1), end))


def _patrol(segment: Segment, answer: int, turn: int, *, asked_s: int) -> None:
    """Go round by the same turn every two seconds, to be at `answer` one second after a time."""
    num_steps = (asked_s + 1 - segment.start_s) // STEP_S
    index = (answer - num_steps * turn) % len(RING)
    segment.stays = [(segment.start_s, RING[index])]
    for start_s in range(segment.start_s + STEP_S, segment.end_s, STEP_S):
        index = (index + turn) % len(RING)
        if turn:
            segment.stays.append((start_s, RING[index]))


def _scene(name: str, segments: Sequence[Segment], background_seed: int) -> Scene:
    entities, events = [], []
    for number, segment in enumerate(segments):
        entities.append(Entity(segment.colour, segment.shape))
        events.append(Event("appear", number, segment.start_s, segment.start_s, segment.stays[0][1]))
        events += [Event("move", number, start_s - 1, start_s, cell) for start_s, cell in segment.stays[1:]]
        if segment.end_s < STREAM_S:
            events.append(Event("vanish", number, segment.end_s, segment.end_s))
    return Scene(name, STREAM_S, 2, tuple(entities), tuple(sorted(events, key=event_order)), background_seed)


def _times_by_age(random: Random, scene: Scene, first: Segment) -> list[int]:
    """A time of asking for each of `AGE_BINS_S`, by the age of both kinds of evidence of the beginning."""
    cell_end_s = first.stays[1][0] - 1 if len(first.stays) > 1 else first.end_s
    times_s = []
    for low_s, high_s in AGE_BINS_S:
        seconds = range(first.end_s + low_s + 1, min(cell_end_s + high_s + 1, STREAM_S))
        times_s.append(random.choice([time_s for time_s in seconds if scene.is_quiet(time_s - 1, time_s)]))
    return times_s
