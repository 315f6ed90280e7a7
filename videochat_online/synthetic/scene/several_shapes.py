"""Streams with several shapes: one episode of twelve seconds after another, some of them asked about.

Templates, answers, letters, ages and details are dealt from decks before anything is built. A question about the
past is asked when its evidence is as old as was dealt, whatever is on the screen by then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from videochat_online.synthetic.questions.question_templates import Question, make_question
from videochat_online.synthetic.scene.episode_builder import CELLS_PER_SIDE, EPISODE_S, Name, Stage
from videochat_online.synthetic.scene.episodes import BUILDERS, Asked, Builder, Case
from videochat_online.synthetic.scene.even_draws import Decks, random_of
from videochat_online.synthetic.scene.scene import Entity, Event, Scene, event_order
from videochat_online.synthetic.scene.words import SEVERAL_COLOURS, SEVERAL_SHAPES


@dataclass(frozen=True, slots=True)
class _Dealt:
    """A question as it was dealt: the template, what is to be true, and the letter of the right option."""

    template: str
    case: Case
    letter: int


class SeveralStreams:
    """Makes streams of one split; the answers come from decks that all its streams of one length share."""

    def __init__(self, seed: int, split: str) -> None:
        self._words: tuple[str | int, ...] = ("several", seed, split)
        self._templates: Decks[str] = Decks(*self._words, "templates")
        self._pairs: Decks[tuple[int, int]] = Decks(*self._words, "pairs")
        self._ages: Decks[int] = Decks(*self._words, "ages")
        self._details: Decks[tuple[str, int]] = Decks(*self._words, "details")

    def make(
        self, name: str, seconds: int, num_questions: int, *, is_busy: bool = False
    ) -> tuple[Scene, list[Question]]:
        """The next stream of a length and its questions in order of time."""
        random = random_of(*self._words, name)
        dealt = [self._deal(seconds) for _ in range(min(num_questions, seconds // EPISODE_S))]
        slots = _choose_slots(random, dealt, seconds)
        reserved, free_names = _reserve(_shuffled_names(random), slots)
        entities: list[Entity] = []
        events: list[Event] = []
        asked: list[tuple[_Dealt, Asked]] = []
        for number in range(seconds // EPISODE_S):
            own = slots.get(number)
            dealt_here = own or _filler(random)
            stage = Stage(random, reserved.get(number, []) + _different_colours(random, free_names))
            ask = BUILDERS[dealt_here.template].build(stage, dealt_here.case)
            start_s = number * EPISODE_S
            events += [_shifted(event, start_s, len(entities)) for event in stage.events]
            entities += stage.entities
            if own:
                asked.append((own, replace(ask, time_s=ask.time_s + start_s)))
        ordered = tuple(sorted(events, key=event_order))
        scene = Scene(name, seconds, CELLS_PER_SIDE, tuple(entities), ordered, random.getrandbits(32), is_busy)
        return scene, sorted((_question(random, scene, *pair) for pair in asked), key=lambda q: q.asked_at_s)

    def _deal(self, seconds: int) -> _Dealt:
        template = self._templates.draw(str(seconds), list(BUILDERS))
        builder = BUILDERS[template]
        key = f"{template}/{seconds}"
        num_letters = builder.num_answers if builder.is_closed else 4
        pairs = [(answer, letter) for answer in range(builder.num_answers) for letter in range(num_letters)]
        answer, letter = self._pairs.draw(key, pairs)
        age_s = self._ages.draw(key, [age_s for age_s in builder.ages_s if age_s + EPISODE_S <= seconds])
        details = ("fine", "coarse") if builder.has_detail else ("coarse",)
        detail, more = self._details.draw(key, [(detail, more) for detail in details for more in range(2)])
        return _Dealt(template, Case(answer, age_s, detail, more), letter)


def _shuffled_names(random: Random) -> list[Name]:
    """All names in random order, each six in a row of six colours: whatever is taken leaves every colour."""
    shapes = {colour: random.sample(SEVERAL_SHAPES, len(SEVERAL_SHAPES)) for colour in SEVERAL_COLOURS}
    rounds = [random.sample(SEVERAL_COLOURS, len(SEVERAL_COLOURS)) for _ in SEVERAL_SHAPES]
    return [(colour, shapes[colour][i]) for i, colours in enumerate(rounds) for colour in colours]


def _different_colours(random: Random, names: list[Name]) -> list[Name]:
    """A name of each colour, in random order."""
    by_colour: dict[str, Name] = {}
    for name in random.sample(names, len(names)):
        by_colour.setdefault(name[0], name)
    return list(by_colour.values())


def _choose_slots(random: Random, dealt: list[_Dealt], seconds: int) -> dict[int, _Dealt]:
    """An episode for each question, early enough that its evidence can grow old; else it is asked younger."""
    free = list(range(seconds // EPISODE_S))
    random.shuffle(free)
    slots: dict[int, _Dealt] = {}
    for question in sorted(dealt, key=lambda question: -question.case.age_s):
        builder = BUILDERS[question.template]
        fits = [slot for slot in free if slot * EPISODE_S + _latest_s(builder, question) < seconds]
        if not fits:
            question = replace(question, case=replace(question.case, age_s=builder.ages_s[0]))
            fits = free
        slots[fits[0]] = question
        free.remove(fits[0])
    return slots


def _reserve(names: list[Name], slots: dict[int, _Dealt]) -> tuple[dict[int, list[Name]], list[Name]]:
    """Names that come in one episode only, by its number, and the names that are left for all others."""
    reserved: dict[int, list[Name]] = {}
    for number, question in slots.items():
        if BUILDERS[question.template].is_unique:
            needed = 4 if question.template == "first_of" else 1
            reserved[number], names = names[:needed], names[needed:]
    return reserved, names


def _shifted(event: Event, start_s: int, first_entity: int) -> Event:
    """An event of an episode in the stream's time and numbering."""
    entity = event.entity + first_entity
    return replace(event, entity=entity, start_s=event.start_s + start_s, end_s=event.end_s + start_s)


def _latest_s(builder: Builder, question: _Dealt) -> int:
    """When a question is asked at the latest, from the start of its episode."""
    return EPISODE_S - 1 if question.case.age_s == builder.ages_s[0] else 9 + question.case.age_s


def _filler(random: Random) -> _Dealt:
    """An episode that nobody asks about."""
    template = random.choice(list(BUILDERS))
    builder = BUILDERS[template]
    case = Case(random.randrange(builder.num_answers), builder.ages_s[0], random.choice(("fine", "coarse")), 0)
    return _Dealt(template, case, 0)


def _question(random: Random, scene: Scene, dealt: _Dealt, asked: Asked) -> Question:
    options = random.sample(asked.others, len(asked.others))
    options.insert(dealt.letter, asked.answer)
    return make_question(scene, dealt.template, asked.time_s, asked.params, options, asked.answer)
