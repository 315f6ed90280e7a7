"""What can be asked: templates with their words, and the answer as it follows from a scene.

`TEMPLATES` maps a name to a template. An answer is computed from what has happened up to the time of asking,
without a look at how the scene was made, so it checks the builders; the same functions give the labels (how old
the evidence is, how fine its detail).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from videochat_online.errors import InputError
from videochat_online.synthetic.questions import facts_several, facts_single
from videochat_online.synthetic.scene.scene import Scene

Params: TypeAlias = Mapping[str, "str | int"]
Answer: TypeAlias = Callable[[Scene, float, Params, Sequence[str]], "str | None"]
EvidenceEnd: TypeAlias = Callable[[Scene, float, Params, Sequence[str]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A kind of question.

    Attributes:
        name: key in `TEMPLATES`.
        answer_type: OVBench's type.
        number: of the subtype within that type; rows say "PastMemory-2".
        text: with the names of parameters in braces.
        answer: the option that is right for a scene that ends at the time of asking; None where it does not say.
        evidence_end_s: when the oldest thing that must be remembered was last on view.
        is_in_frame: the frame at the time of asking says it all.
    """

    name: str
    answer_type: str
    number: int
    text: str
    answer: Answer
    evidence_end_s: EvidenceEnd
    is_in_frame: bool = False

    @property
    def sub_answer_type(self) -> str:
        """OVBench's subtype."""
        return f"{self.answer_type}-{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question to one stream.

    Attributes:
        template: name in `TEMPLATES`.
        asked_at_s: frames up to and including here may be used.
        params: what the template's text leaves open.
        options: texts without letters, in the order shown.
        answer_index: of the right option.
        evidence_age_s: how long ago the oldest needed evidence was last on view; 0 if it still is.
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
    evidence_end_s = TEMPLATES[template].evidence_end_s(scene.until(time_s), time_s, params, options)
    return Question(
        template=template,
        asked_at_s=time_s,
        params=params,
        options=tuple(options),
        answer_index=list(options).index(answer),
        evidence_age_s=time_s - evidence_end_s,
        detail=_detail(scene.until(time_s), template, params),
    )


def _detail(scene: Scene, template: str, params: Params) -> str:
    if template not in ("pattern_now", "pattern_was"):
        return "coarse"
    entity = facts_several.latest(scene, params)
    return (scene.entities[entity].pattern_size if entity is not None else None) or "coarse"


def _now(scene: Scene, time_s: float, params: Params, options: Sequence[str]) -> float:
    return time_s


def _seconds_ago(seconds: float) -> EvidenceEnd:
    return lambda scene, time_s, params, options: time_s - seconds


_SINGLE = facts_single
_SEVERAL = facts_several

_TEMPLATES = (
    # One shape at a time.
    Template(
        name="where_now",
        answer_type="SpatialPerception",
        number=1,
        text="Where is the shape now?",
        answer=_SINGLE.where_now,
        evidence_end_s=_now,
        is_in_frame=True,
    ),
    Template(
        name="shape_now",
        answer_type="SpatialPerception",
        number=2,
        text="Which shape is on the screen now?",
        answer=_SINGLE.shape_now,
        evidence_end_s=_now,
        is_in_frame=True,
    ),
    Template(
        name="first_shape",
        answer_type="PastMemory",
        number=1,
        text="Which shape appeared first?",
        answer=_SINGLE.first_shape,
        evidence_end_s=_SINGLE.first_shape_end_s,
    ),
    Template(
        name="first_place",
        answer_type="PastMemory",
        number=2,
        text="Where did the first shape appear?",
        answer=_SINGLE.first_place,
        evidence_end_s=_SINGLE.first_place_end_s,
    ),
    Template(
        name="shape_of_colour",
        answer_type="PastMemory",
        number=3,
        text="Which shape was {colour}?",
        answer=_SINGLE.shape_of_colour,
        evidence_end_s=_SINGLE.colour_end_s,
    ),
    Template(
        name="place_of_colour",
        answer_type="PastMemory",
        number=4,
        text="Where did the {colour} shape appear?",
        answer=_SINGLE.place_of_colour,
        evidence_end_s=_SINGLE.colour_place_end_s,
    ),
    Template(
        name="still_shown",
        answer_type="Hallucination",
        number=1,
        text="Is the {colour} shape still on the screen?",
        answer=_SINGLE.still_shown,
        evidence_end_s=_now,
        is_in_frame=True,
    ),
    Template(
        name="how_long",
        answer_type="TemporalPerception",
        number=1,
        text="For how long has the shape been on the screen?",
        answer=_SINGLE.how_long,
        evidence_end_s=_SINGLE.shown_since_s,
    ),
    Template(
        name="how_moved",
        answer_type="SpatioTemporalPerception",
        number=1,
        text="How has the shape moved since it appeared?",
        answer=_SINGLE.how_moved,
        evidence_end_s=_SINGLE.shown_since_s,
    ),
    Template(
        name="next_place",
        answer_type="FuturePrediction",
        number=1,
        text="Where will the shape be in one second?",
        answer=_SINGLE.next_place,
        evidence_end_s=_seconds_ago(_SINGLE.STEP_S),
    ),
    # Several shapes on a finer grid.
    Template(
        name="where_is",
        answer_type="SpatialPerception",
        number=1,
        text="Where is the {colour} {shape} now?",
        answer=_SEVERAL.where_is,
        evidence_end_s=_now,
        is_in_frame=True,
    ),
    Template(
        name="how_many",
        answer_type="SpatialPerception",
        number=2,
        text="How many shapes are on the screen now?",
        answer=_SEVERAL.how_many,
        evidence_end_s=_now,
        is_in_frame=True,
    ),
    Template(
        name="pattern_now",
        answer_type="SpatialPerception",
        number=3,
        text="Which pattern is on the {colour} {shape} now?",
        answer=_SEVERAL.pattern_now,
        evidence_end_s=_now,
        is_in_frame=True,
    ),
    Template(
        name="where_was",
        answer_type="PastMemory",
        number=1,
        text="Where was the {colour} {shape} {seconds} seconds ago?",
        answer=_SEVERAL.where_was,
        evidence_end_s=_SEVERAL.asked_moment_s,
    ),
    Template(
        name="first_of",
        answer_type="PastMemory",
        number=2,
        text="Which of these shapes appeared first?",
        answer=_SEVERAL.first_of,
        evidence_end_s=_SEVERAL.first_of_end_s,
    ),
    Template(
        name="flashed",
        answer_type="PastMemory",
        number=5,
        text="Which colour flashed {seconds} seconds ago?",
        answer=_SEVERAL.flashed,
        evidence_end_s=_SEVERAL.flash_end_s,
    ),
    Template(
        name="pattern_was",
        answer_type="PastMemory",
        number=7,
        text="Which pattern was on the {colour} {shape} that vanished?",
        answer=_SEVERAL.pattern_was,
        evidence_end_s=_SEVERAL.vanished_s,
    ),
    Template(
        name="how_long_shaking",
        answer_type="TemporalPerception",
        number=1,
        text="For how long has the {colour} {shape} been shaking?",
        answer=_SEVERAL.how_long_shaking,
        evidence_end_s=_SEVERAL.shaking_since_s,
    ),
    Template(
        name="action_order",
        answer_type="TemporalPerception",
        number=2,
        text="What is the order of the last three actions of the {colour} {shape}?",
        answer=_SEVERAL.action_order,
        evidence_end_s=_SEVERAL.first_action_end_s,
    ),
    Template(
        name="path",
        answer_type="SpatioTemporalPerception",
        number=1,
        text="What path did the {colour} {shape} take in the past 4 seconds?",
        answer=_SEVERAL.recent_path,
        evidence_end_s=_seconds_ago(_SEVERAL.PATH_S),
    ),
    Template(
        name="distance",
        answer_type="SpatioTemporalPerception",
        number=2,
        text="Compared with 2 seconds ago, how far is the {colour} {shape} from the {colour_2} {shape_2}?",
        answer=_SEVERAL.distance,
        evidence_end_s=_seconds_ago(_SEVERAL.DISTANCE_S),
    ),
    Template(
        name="next_cell",
        answer_type="FuturePrediction",
        number=1,
        text="Where will the {colour} {shape} be in one second?",
        answer=_SEVERAL.next_cell,
        evidence_end_s=_seconds_ago(1),
    ),
    Template(
        name="still_shaking",
        answer_type="Hallucination",
        number=1,
        text="Is the {colour} {shape} still shaking?",
        answer=_SEVERAL.still_shaking,
        evidence_end_s=_now,
    ),
    Template(
        name="still_there",
        answer_type="Hallucination",
        number=2,
        text="Is the {colour} {shape} still on the screen?",
        answer=_SEVERAL.still_there,
        evidence_end_s=_now,
        is_in_frame=True,
    ),
)

TEMPLATES: dict[str, Template] = {template.name: template for template in _TEMPLATES}
