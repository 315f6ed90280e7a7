"""Questions as a model would read them, before any is loaded: prompt, frames, tokens, expected answer.

Needs no weights. Frame times need the videos, sizes of frames and tokens the model's directory; what is not known is
said. What a window holds is exact, if all frames decode. What a memory holds may depend on the pixels: it is exact
where the memory goes by the order of frames alone, else the prompt has a line in its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from videochat_online.errors import VideoError
from videochat_online.evaluation.benchmark import EvalQuestion, right_answer_text
from videochat_online.evaluation.config import EvaluationConfig
from videochat_online.evaluation.media.decoder_process import FootageWorker, RemoteVideoFrames
from videochat_online.evaluation.protocol import EvalProtocol
from videochat_online.evaluation.run.answering import LETTER_PREFIX, asked_kind, question_text, way_of_answering
from videochat_online.evaluation.run.contexts import may_see
from videochat_online.evaluation.run.plan import LocatedVideo, Plan
from videochat_online.memory import TokenSchedule
from videochat_online.model.configuration import VideoChatOnlineConfig
from videochat_online.text import ChatTemplate, PromptLayout, layout_prompt, turn_segments
from videochat_online.types import FrameTokens, FrameUse, Segment, Turn
from videochat_online.video import FrameTransform

BY_ORDER = ("window", "uniform", "fifo", "keep_all")
"""Memories whose frames depend on how many there were, and and not on what they show."""

UNKNOWN_FRAMES = "[lines of the frames: not known here]"
"""Stands in a prompt in place of the frames."""


@dataclass(frozen=True, slots=True)
class TextModel:
    """The parts of a checkpoint that lay out prompts: everything but the weights."""

    config: VideoChatOnlineConfig
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate


@dataclass(frozen=True, slots=True)
class _Seen:
    """Frames that a question may be answered from.

    Attributes:
        times_s: labels of all frames seen by then, in seconds; None where the video was not looked at.
        used: frames that the prompt has; None where that is not known.
        max_tokens: most visual tokens that they have; None where that is not known.
        problem: why it is not known.
    """

    times_s: tuple[float, ...] | None
    used: tuple[FrameUse, ...] | None
    max_tokens: int | None = None
    problem: str | None = None


def kind_of(question: EvalQuestion) -> str:
    """A kind in `KINDS`, or "proactive" where the model is polled."""
    return question.kind if question.proactive is None else "proactive"


def preview(
    config: EvaluationConfig, plan: Plan, number: int, model: TextModel | None, *, is_blind: bool = False
) -> list[dict[str, Any]]:
    """The first questions of each kind of this share, for JSON.

    Args:
        config: all values of the run.
        plan: its videos.
        number: most questions of each kind.
        model: None where no directory was given.
        is_blind: whether frames are not wanted, rather than not there to be looked at.

    Returns:
        Of each `id`, `kind`, `video`, `time_s`, `answer_by`, `expected`, `frames_seen` and `frames_used` (null: not
        known), `prompt`, `num_text_tokens`, `num_visual_tokens`, `max_visual_tokens`, and `unknown`: what is not known,
        and why. Of a proactive question, the first poll.
    """
    counts: Counter[str] = Counter()
    chosen: list[tuple[LocatedVideo, list[EvalQuestion]]] = []
    for place in plan.share:
        questions = []
        for question in place.video.questions:
            counts[kind_of(question)] += 1
            if counts[kind_of(question)] <= number:
                questions.append(question)
        if questions:
            chosen.append((place, questions))
    with FootageWorker(config.decode_timeout_s) as worker:
        shown = []
        for place, questions in chosen:
            seen = [_Seen((), (), 0)] * len(questions) if is_blind else _seen(config, questions, place, worker, model)
            pairs = zip(questions, seen, strict=True)
            shown += [_shown(config, question, place, one, model, is_blind) for question, one in pairs]
    return sorted(shown, key=lambda one: one["kind"])


def expected_answer(question: EvalQuestion) -> str:
    """The right answer as people say it."""
    if question.proactive is not None:
        due = question.proactive
        return f"{due.output!r} at {due.due_s:g} s, or up to {due.tolerance_s:g} s from it"
    if question.kind == "open" and question.answer_text is None:
        return "nothing is known to be right"
    return right_answer_text(question.kind, question.options, question.answer_index, question.answer_text)


def _shown(
    config: EvaluationConfig,
    question: EvalQuestion,
    place: LocatedVideo,
    seen: _Seen,
    model: TextModel | None,
    is_blind: bool,
) -> dict[str, Any]:
    asked = _asked(question)
    text = question_text(asked, config.answer_by, config.task, config.protocol)
    unknown = [] if seen.problem is None else [seen.problem]
    found: dict[str, Any] = {
        "id": question.id,
        "kind": kind_of(question),
        "video": place.video.name,
        "time_s": asked.time_s,
        "answer_by": way_of_answering(asked, config.answer_by),
        "expected": expected_answer(question),
        "scorer": config.scorer_of(question),
        "frames_seen": None if seen.times_s is None else list(seen.times_s),
        "frames_used": None if seen.used is None else [[use.index, use.time_s, use.num_tokens] for use in seen.used],
        "num_visual_tokens": None if seen.used is None else sum(use.num_tokens for use in seen.used),
        "max_visual_tokens": seen.max_tokens,
        "prompt": text,
        "num_text_tokens": None,
    }
    if question.proactive is not None:
        found["polled_at_s"] = [poll.time_s for poll in question.proactive.polls]
    if model is None:
        unknown.append("tokens, and what the template puts around the text: no --model")
    else:
        found |= _laid_out(config, asked, text, seen, model, is_blind)
    return found | {"unknown": unknown}


def _laid_out(
    config: EvaluationConfig, asked: EvalQuestion, text: str, seen: _Seen, model: TextModel, is_blind: bool
) -> dict[str, Any]:
    protocol, message = config.protocol, config.protocol.system_message_of(asked_kind(asked, config.answer_by))
    own = model.template.default_system_message if model.config.system_message is None else model.config.system_message
    by_letter = way_of_answering(asked, config.answer_by) == "likelihood"

    def laid_out(segments: tuple[Segment, ...]) -> PromptLayout:
        return layout_prompt(
            [Turn(segments)],
            tokenizer=model.tokenizer,
            template=model.template,
            system_message=own if message is None else message,
            generation_prefix=LETTER_PREFIX if by_letter else "",
        )

    layout = laid_out((text,) if is_blind else turn_segments(seen.used or (), text, with_times=protocol.with_times))
    if seen.used is None:
        return {"prompt": laid_out((f"{UNKNOWN_FRAMES}\n", text)).text, "num_text_tokens": len(layout)}
    return {"prompt": layout.text, "num_text_tokens": len(layout) - layout.num_visual_tokens}


def _asked(question: EvalQuestion) -> EvalQuestion:
    """What is asked first."""
    return question if question.proactive is None else question.proactive.polls[0]


def _seen(
    config: EvaluationConfig,
    questions: Sequence[EvalQuestion],
    place: LocatedVideo,
    worker: FootageWorker,
    model: TextModel | None,
) -> list[_Seen]:
    """For each question about a video, which is opened once for all of them."""
    if place.path is None:
        return [_Seen(None, None, None, f"frames: {place.problem or 'no --data_root'}")] * len(questions)
    try:
        rate = config.task.folder_fps.get(place.video.dataset or "")
        transform = FrameTransform()
        with worker.open(
            place.path, place.video, config.protocol, transform, backend=config.backend, folder_fps=rate
        ) as footage:
            return [_of_footage(config.protocol, _asked(one), place, footage, model) for one in questions]
    except VideoError as error:
        return [_Seen(None, None, None, f"frames: {error}")] * len(questions)


def _of_footage(
    protocol: EvalProtocol,
    asked: EvalQuestion,
    place: LocatedVideo,
    footage: RemoteVideoFrames,
    model: TextModel | None,
) -> _Seen:
    if protocol.memory is None:
        times_s = tuple(footage.labels(footage.window_indices(asked.time_s, asked.starts_s)))
        if model is None:
            return _Seen(times_s, None, None, "sizes of frames: no --model")
        used = tuple(_window(times_s, model.config))
        return _Seen(times_s, used, sum(use.num_tokens for use in used))
    indices = footage.streaming_indices()
    is_last = asked.id == place.video.moments[-1][0].id
    times_s = tuple(
        time_s
        for index, time_s in zip(indices, footage.labels(indices), strict=True)
        if may_see(protocol, asked.time_s, time_s, is_last, index == indices[-1])
    )
    if not times_s:
        return _Seen((), (), 0, "no frame comes at or before the question, so that it is not answered")
    if model is None:
        return _Seen(times_s, None, None, "what the memory holds: no --model")
    bank = protocol.make_memory(model.config.grid, tuple(model.config.memory_intervals))
    if protocol.memory not in BY_ORDER or protocol.strategy != "direct":
        why = f"strategy {protocol.strategy}" if protocol.strategy != "direct" else f"memory {protocol.memory}"
        return _Seen(times_s, None, bank.max_tokens, f"which frames are used: {why} chooses by what they show")
    tokens_CHW = torch.ones(1, *model.config.grid)
    for index, time_s in enumerate(times_s):
        bank.write(FrameTokens(index=index, time_s=time_s, tokens_CHW=tokens_CHW, content_id=index))
    used = tuple(FrameUse(one.index, one.time_s, one.num_tokens) for one in bank.read())
    return _Seen(times_s, used, bank.max_tokens)


def _window(times_s: Sequence[float], config: VideoChatOnlineConfig) -> Iterator[FrameUse]:
    schedule, (rows, columns) = TokenSchedule(tuple(config.memory_intervals)), config.grid
    for place, time_s in enumerate(times_s):
        ratio = schedule.ratio(place)
        if ratio is not None:
            yield FrameUse(place, time_s, num_tokens=(rows // ratio) * (columns // ratio))
