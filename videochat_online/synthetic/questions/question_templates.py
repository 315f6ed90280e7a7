"""What can be asked: templates with their words, and the answer as it follows from a scene.

`TEMPLATES` maps a name to a template. An answer is computed from what has happened up to the time of asking,
without a look at how the scene was made, so it checks the builders; the same functions give the labels (how old
the evidence is, how fine its detail).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from videochat_online.errors import InputError
from videochat_online.synthetic.questions import facts_several as several
from videochat_online.synthetic.questions import facts_single as single
from videochat_online.synthetic.questions.shared_facts import Params
from videochat_online.synthetic.scene.scene import Scene

Answer: TypeAlias = Callable[[Scene, float, Params, Sequence[str]], "str | None"]
EvidenceEnd: TypeAlias = Callable[[Scene, float, Params, Sequence[str]], float]


def _now(scene: Scene, time_s: float, params: Params, options: Sequence[str]) -> float:
    return time_s


@dataclass(frozen=True, slots=True)
class Template:
    """A kind of question.

    Attributes:
        sub_answer_type: OVBench's subtype, its type before the dash: "PastMemory-2".
        text: text with the names of parameters in braces.
        answer: function for the option that is right for a scene that ends at the time of asking; None where it does
            not say.
        evidence_end_s: function for the time at which the oldest thing to be remembered was last on view; default: it
            still is.
        is_in_frame: whether the frame at the time of asking says it all.
    """

    sub_answer_type: str
    text: str
    answer: Answer
    evidence_end_s: EvidenceEnd = _now
    is_in_frame: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question to one stream.

    Attributes:
        template: name in `TEMPLATES`.
        asked_at_s: stream time in seconds; frames up to and including here may be used.
        params: values of the parameters of the template's text.
        options: texts without letters, in the order shown.
        answer_index: index of the right option.
        evidence_age_s: seconds since the oldest needed evidence was last on view; 0 if it still is.
        detail: "fine" if the answer needs lines one pixel wide, else "coarse".
    """

    template: str
    asked_at_s: float
    params: Params
    options: tuple[str, ...]
    answer_index: int
    evidence_age_s: float
    detail: str

    @property
    def answer(self) -> str:
        """Text of the right option."""
        return self.options[self.answer_index]

    @property
    def text(self) -> str:
        """The question in words, without options."""
        return TEMPLATES[self.template].text.format(**self.params)


def answer_of(scene: Scene, template: str, time_s: float, params: Params, options: Sequence[str]) -> str | None:
    """What is right at a moment, from what happened up to it; None where the scene does not say."""
    return TEMPLATES[template].answer(scene.until(time_s), time_s, params, options)


def make_question(
    scene: Scene, template: str, time_s: float, params: Params, options: Sequence[str], answer: str
) -> Question:
    """A question with its labels.

    Raises:
        InputError: the scene does not bear the answer out.
    """
    found = answer_of(scene, template, time_s, params, options)
    if found != answer or answer not in options:
        raise InputError(
            f"{scene.name}, {template} at {time_s:g} s: expected {answer!r} of {list(options)}, "
            f"the scene says {found!r}"
        )
    seen = scene.until(time_s)
    evidence_end_s = TEMPLATES[template].evidence_end_s(seen, time_s, params, options)
    return Question(
        template=template,
        asked_at_s=time_s,
        params=params,
        options=tuple(options),
        answer_index=list(options).index(answer),
        evidence_age_s=time_s - evidence_end_s,
        detail=_detail(seen, template, params),
    )


def _detail(scene: Scene, template: str, params: Params) -> str:
    if template not in ("pattern_now", "pattern_was"):
        return "coarse"
    entity = several.latest(scene, params)
    return (scene.entities[entity].pattern_size if entity is not None else None) or "coarse"


def _seconds_ago(seconds: float) -> EvidenceEnd:
    return lambda scene, time_s, params, options: time_s - seconds


TEMPLATES: dict[str, Template] = {
    # One shape at a time.
    "where_now": Template("SpatialPerception-1", "Where is the shape now?", single.where_now, is_in_frame=True),
    "shape_now": Template(
        "SpatialPerception-2", "Which shape is on the screen now?", single.shape_now, is_in_frame=True
    ),
    "first_shape": Template(
        "PastMemory-1", "Which shape appeared first?", single.first_shape, single.first_shape_end_s
    ),
    "first_place": Template(
        "PastMemory-2", "Where did the first shape appear?", single.first_place, single.first_place_end_s
    ),
    "shape_of_colour": Template(
        "PastMemory-3", "Which shape was {colour}?", single.shape_of_colour, single.colour_end_s
    ),
    "place_of_colour": Template(
        "PastMemory-4", "Where did the {colour} shape appear?", single.place_of_colour, single.colour_place_end_s
    ),
    "still_shown": Template(
        "Hallucination-1", "Is the {colour} shape still on the screen?", single.still_shown, is_in_frame=True
    ),
    "how_long": Template(
        "TemporalPerception-1", "For how long has the shape been on the screen?", single.how_long, single.shown_since_s
    ),
    "how_moved": Template(
        "SpatioTemporalPerception-1",
        "How has the shape moved since it appeared?",
        single.how_moved,
        single.shown_since_s,
    ),
    "next_place": Template(
        "FuturePrediction-1", "Where will the shape be in one second?", single.next_place, _seconds_ago(single.STEP_S)
    ),
    # Several shapes on a finer grid.
    "where_is": Template(
        "SpatialPerception-1", "Where is the {colour} {shape} now?", several.where_is, is_in_frame=True
    ),
    "how_many": Template(
        "SpatialPerception-2", "How many shapes are on the screen now?", several.how_many, is_in_frame=True
    ),
    "pattern_now": Template(
        "SpatialPerception-3", "Which pattern is on the {colour} {shape} now?", several.pattern_now, is_in_frame=True
    ),
    "where_was": Template(
        "PastMemory-1",
        "Where was the {colour} {shape} {seconds} seconds ago?",
        several.where_was,
        several.asked_moment_s,
    ),
    "first_of": Template(
        "PastMemory-2", "Which of these shapes appeared first?", several.first_of, several.first_of_end_s
    ),
    "flashed": Template(
        "PastMemory-5", "Which colour flashed {seconds} seconds ago?", several.flashed, several.flash_end_s
    ),
    "pattern_was": Template(
        "PastMemory-7",
        "Which pattern was on the {colour} {shape} that vanished?",
        several.pattern_was,
        several.vanished_s,
    ),
    "how_long_shaking": Template(
        "TemporalPerception-1",
        "For how long has the {colour} {shape} been shaking?",
        several.how_long_shaking,
        several.shaking_since_s,
    ),
    "action_order": Template(
        "TemporalPerception-2",
        "What is the order of the last three actions of the {colour} {shape}?",
        several.action_order,
        several.first_action_end_s,
    ),
    "path": Template(
        "SpatioTemporalPerception-1",
        "What path did the {colour} {shape} take in the past 4 seconds?",
        several.recent_path,
        _seconds_ago(several.PATH_S),
    ),
    "distance": Template(
        "SpatioTemporalPerception-2",
        "Compared with 2 seconds ago, how far is the {colour} {shape} from the {colour_2} {shape_2}?",
        several.distance,
        _seconds_ago(several.DISTANCE_S),
    ),
    "next_cell": Template(
        "FuturePrediction-1", "Where will the {colour} {shape} be in one second?", several.next_cell, _seconds_ago(1)
    ),
    "still_shaking": Template("Hallucination-1", "Is the {colour} {shape} still shaking?", several.still_shaking),
    "still_there": Template(
        "Hallucination-2", "Is the {colour} {shape} still on the screen?", several.still_there, is_in_frame=True
    ),
}
