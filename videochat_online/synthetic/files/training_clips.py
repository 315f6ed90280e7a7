"""Training clips cut from streams with one shape at a time, chosen so that answers come equally often.

Short clips for offline training, longer ones with several turns for online training, single frames. A clip is a
video of its own: what was first in it need not be first in the stream. Times are whole seconds, with nothing moving
in the second after its start and before each question: whatever the frame rate, some frame shows the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from videochat_online.synthetic.files.question_rows import Row, image_row, offline_row, online_row, pair_of, turn_at
from videochat_online.synthetic.presets import ClipKind
from videochat_online.synthetic.questions.question_templates import TEMPLATES, answer_of
from videochat_online.synthetic.scene.even_draws import Decks, random_of
from videochat_online.synthetic.scene.one_shape import CORE, OPTIONS, STREAM_S
from videochat_online.synthetic.scene.scene import Scene
from videochat_online.synthetic.scene.words import cell_name

NUM_CANDIDATES = 12
"""Cuts to choose from; more would make the answers no more even."""
MIN_DIALOGUE_S, MAX_TURNS = 8, 5
WINDOW_SHARE = 0.25
"""Part of the dialogues that are in the words of the sliding-window setting."""
CAPTION_QUESTION = "What was shown?"
COLOUR_QUESTION = "What was {colour}?"
IMAGE_QUESTION = "What is on the screen?"


class ClipCutter:
    """Cuts clips of one kind; remembers what came how often. One for each annotation file."""

    def __init__(self, seed: int, name: str) -> None:
        self._name = name
        self._random = random_of("clips", seed, name)
        self._counts: Counter[tuple[str | None, ...]] = Counter()
        self._lengths: Decks[int] = Decks("lengths", seed)
        self._templates: Decks[str] = Decks("templates", seed)

    def offline_rows(self, scene: Scene, video: str, kind: ClipKind) -> Iterator[Row]:
        """VideoChat2-IT rows: the four core questions about a short clip, and an open one."""
        for _ in range(kind.per_stream):
            start_s, end_s = self._cut(scene, kind.min_s, kind.max_s)
            clip = scene.between(start_s, end_s)
            pairs = [_choice(clip, template, end_s - start_s) for template in CORE]
            pairs.append(self._open_pair(clip))
            self._random.shuffle(pairs)
            yield offline_row(video, start_s, end_s, pairs)

    def online_rows(self, scene: Scene, video: str, count: int) -> Iterator[Row]:
        """Dialogues of one to five turns, the last of them at the end of the clip."""
        for _ in range(count):
            start_s, end_s = self._cut(scene, MIN_DIALOGUE_S, STREAM_S - 1)
            clip = scene.between(start_s, end_s)
            times_s = [time_s for time_s in range(1, end_s - start_s) if clip.is_quiet(time_s - 1, time_s)]
            num_more = min(self._random.randrange(MAX_TURNS), len(times_s))
            asked_s = [*sorted(self._random.sample(times_s, num_more)), end_s - start_s]
            is_window = self._random.random() < WINDOW_SHARE
            turns = [_turn(clip, self._templates.draw(self._name, CORE), time_s, is_window) for time_s in asked_s]
            yield online_row(video, start_s, end_s, turns)

    def recall_rows(self, scene: Scene, video: str, count: int) -> Iterator[Row]:
        """All core questions at the end of a clip: what a memory holds there has to do for each."""
        for _ in range(count):
            start_s, end_s = self._cut(scene, MIN_DIALOGUE_S, STREAM_S - 1)
            clip = scene.between(start_s, end_s)
            templates = self._random.sample(CORE, len(CORE))
            yield online_row(video, start_s, end_s, [_turn(clip, template, end_s - start_s) for template in templates])

    def image_rows(self, scene: Scene, names: Sequence[str]) -> Iterator[tuple[float, Row]]:
        """(time, LLaVA row) of frames: an open question and one with options."""
        for name in names:
            start_s, end_s = self._cut(scene, 1, 1)
            clip = scene.between(start_s, end_s)
            template = self._random.choice(("where_now", "shape_now"))
            pairs = [(IMAGE_QUESTION, _caption(clip)), _choice(clip, template, 1)]
            yield start_s, image_row(name, pairs)

    def _cut(self, scene: Scene, min_s: int, max_s: int) -> tuple[int, int]:
        """Start and end of a clip whose answers have come least often so far."""
        length = self._lengths.draw(self._name, range(min_s, max_s + 1))
        while not (starts_s := _starts_s(scene, length)):
            length -= 1
        candidates = self._random.sample(starts_s, min(NUM_CANDIDATES, len(starts_s)))
        answers = [_answers(scene, start_s, start_s + length) for start_s in candidates]
        costs = [sum(self._counts[answer] for answer in found) for found in answers]
        best = costs.index(min(costs))
        self._counts.update(answers[best])
        return candidates[best], candidates[best] + length

    def _open_pair(self, clip: Scene) -> tuple[str, str]:
        if self._random.random() < 0.5:
            return CAPTION_QUESTION, _caption(clip)
        entity = self._random.choice(sorted(clip.spans))
        return COLOUR_QUESTION.format(colour=clip.entities[entity].colour), _description(clip, entity)


def _starts_s(scene: Scene, length: int) -> list[int]:
    """Seconds at which a clip of a length can start; nothing moves in its first and last second."""
    calm = {time_s for time_s in range(STREAM_S) if scene.is_quiet(time_s, time_s + 1)}
    return [time_s for time_s in sorted(calm) if time_s + length - 1 in calm and time_s + length < STREAM_S]


def _answers(scene: Scene, start_s: int, end_s: int) -> tuple[tuple[str | None, ...], ...]:
    """What was first with what is now: pairs that are to come equally often, or one would give away the other."""
    clip = scene.between(start_s, end_s)
    answers = {template: answer_of(clip, template, end_s - start_s, {}, OPTIONS[template]) for template in CORE}
    return (answers["first_shape"], answers["shape_now"]), (answers["first_place"], answers["where_now"])


def _choice(clip: Scene, template: str, time_s: int) -> tuple[str, str]:
    answer = str(answer_of(clip, template, time_s, {}, OPTIONS[template]))
    return pair_of(TEMPLATES[template].text, answer, OPTIONS[template])


def _turn(clip: Scene, template: str, time_s: int, is_window: bool = False) -> tuple[float, str, str]:
    answer = str(answer_of(clip, template, time_s, {}, OPTIONS[template]))
    return turn_at(TEMPLATES[template].text, answer, time_s, OPTIONS[template], is_window=is_window)


def _description(clip: Scene, entity: int) -> str:
    cell = clip.cell_at(entity, clip.spans[entity][0])
    where = cell_name(cell, clip.cells_per_side) if cell else ""
    return f"{clip.entities[entity].shape} {where}"


def _caption(clip: Scene) -> str:
    shown = sorted(clip.spans, key=lambda entity: clip.spans[entity][0])
    return ", then ".join(f"{clip.entities[entity].colour} {_description(clip, entity)}" for entity in shown)
