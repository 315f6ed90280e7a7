"""Questions as a model would read them, before any is loaded: prompt, frames, tokens, expected answer.

Needs no weights. Frame times need the videos, sizes of frames and tokens the model's directory; what is not known is
said. What a window holds is exact, if all frames decode. What a memory holds may depend on the pixels: it is exact
where the memory goes by the order of frames alone, else the prompt has a line in its place.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from videochat_online.errors import VideoError
from videochat_online.evaluation.benchmark import EvalQuestion, EvalVideo, right_answer
from videochat_online.evaluation.config import EvaluationConfig
from videochat_online.evaluation.media.decoder_process import DecoderProcess, RemoteVideoFrames
from videochat_online.evaluation.media.locate import LocatedVideo
from videochat_online.evaluation.run.answering import LETTER_PREFIX, asked_kind, question_text, way_of_answering
from videochat_online.evaluation.run.contexts import may_see
from videochat_online.evaluation.run.plan import Plan
from videochat_online.memory import TokenSchedule
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.model.backbones import FrameLayout
from videochat_online.text import INTERNVL, ChatTemplate, PromptLayout, Wording, layout_prompt
from videochat_online.types import FrameTokens, FrameUse, Segment, Turn
from videochat_online.video import FrameTransform

UNKNOWN_FRAMES = "[lines of the frames: not known here]"
"""Stands in a prompt in place of the frames."""


@dataclass(frozen=True, slots=True)
class TextModel:
    """The parts of a checkpoint that lay out prompts: everything but the weights."""

    frames: FrameLayout
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    system_message: str
    wording: Wording = INTERNVL


@dataclass(frozen=True, slots=True)
class _Seen:
    """Frames that a question may be answered from.

    Attributes:
        times_s: labels of all frames seen by then, in seconds; None where the video was not looked at.
        used: frames that the prompt has; None where that is not known.
        max_tokens: largest number of visual tokens that they have; None where that is not known.
        problem: reason why it is not known.
    """

    times_s: tuple[float, ...] | None = None
    used: tuple[FrameUse, ...] | None = None
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
    previewed, shown = _Preview(config, model, is_blind), []
    with DecoderProcess(config.decode_timeout_s) as decoder:
        for located in plan.share:
            questions = []
            for question in located.video.questions:
                counts[kind_of(question)] += 1
                if counts[kind_of(question)] <= number:
                    questions.append(question)
            pairs = [(question, _Seen((), (), 0)) for question in questions]
            if questions and not is_blind:
                pairs = previewed.seen(questions, located, decoder)
            shown += [previewed.shown(question, located.video, one) for question, one in pairs]
    return sorted(shown, key=lambda one: one["kind"])


def expected_answer(question: EvalQuestion) -> str:
    """The right answer as people say it; of a proactive question, what is due and when."""
    if question.proactive is not None:
        due = question.proactive
        return f"{due.output!r} at {due.due_s:g} s, or up to {due.tolerance_s:g} s from it"
    if question.kind == "open" and question.answer_text is None:
        return "nothing is known to be right"
    return right_answer(question.kind, question.options, question.answer_index, question.answer_text)


def _asked(question: EvalQuestion) -> EvalQuestion:
    """What is asked first."""
    return question if question.proactive is None else question.proactive.polls[0]


@dataclass(frozen=True, slots=True)
class _Preview:
    """How questions are laid out: `config`, `model` and `is_blind` of `preview`."""

    config: EvaluationConfig
    model: TextModel | None
    is_blind: bool

    def shown(self, question: EvalQuestion, video: EvalVideo, seen: _Seen) -> dict[str, Any]:
        """A question and what it is answered from, for JSON."""
        config, asked, used = self.config, _asked(question), seen.used
        text = question_text(asked, config.answer_by, config.task, config.protocol)
        unknown = [] if seen.problem is None else [seen.problem]
        found: dict[str, Any] = {
            "id": question.id,
            "kind": kind_of(question),
            "video": video.name,
            "time_s": asked.time_s if math.isfinite(asked.time_s) else None,
            "answer_by": way_of_answering(asked, config.answer_by),
            "expected": expected_answer(question),
            "scorer": config.scorer_of(question),
            "frames_seen": None if seen.times_s is None else list(seen.times_s),
            "frames_used": None if used is None else [[use.index, use.time_s, use.num_tokens] for use in used],
            "num_visual_tokens": None if used is None else sum(use.num_tokens for use in used),
            "max_visual_tokens": seen.max_tokens,
            "prompt": text,
            "num_text_tokens": None,
        }
        if question.proactive is not None:
            found["polled_at_s"] = [poll.time_s for poll in question.proactive.polls]
        if self.model is None:
            unknown.append("tokens, and what the template puts around the text: no --model")
        else:
            found |= self._laid_out(asked, text, seen, self.model)
        return found | {"unknown": unknown}

    def _laid_out(self, asked: EvalQuestion, text: str, seen: _Seen, model: TextModel) -> dict[str, Any]:
        config, protocol = self.config, self.config.protocol
        message = protocol.system_message_of(asked_kind(asked, config.answer_by))
        by_letter = way_of_answering(asked, config.answer_by) == "likelihood"

        def laid_out(segments: tuple[Segment, ...]) -> PromptLayout:
            return layout_prompt(
                [Turn(segments)],
                tokenizer=model.tokenizer,
                template=model.template,
                wording=model.wording,
                system_message=model.system_message if message is None else message,
                generation_prefix=LETTER_PREFIX if by_letter else "",
            )

        segments = model.wording.turn(seen.used or (), text, with_times=protocol.with_times)
        layout = laid_out((text,) if self.is_blind else segments)
        if seen.used is None:
            return {"prompt": laid_out((f"{UNKNOWN_FRAMES}\n", text)).text, "num_text_tokens": len(layout)}
        return {"prompt": layout.text, "num_text_tokens": len(layout) - layout.num_visual_tokens}

    def seen(
        self, questions: Sequence[EvalQuestion], located: LocatedVideo, decoder: DecoderProcess
    ) -> list[tuple[EvalQuestion, _Seen]]:
        """Questions about a video, which is opened once for all of them, and what they may be answered from."""
        if located.path is None:
            problem = f"frames: {located.problem or 'no --data_root'}"
            return [(question, _Seen(problem=problem)) for question in questions]
        video, protocol, backend = located.video, self.config.protocol, self.config.backend
        try:
            with decoder.open(located.path, video, protocol, FrameTransform(), backend=backend) as video_frames:
                video, ids = video_frames.video, {question.id for question in questions}
                chosen = [question for question in video.questions if question.id in ids]
                return [(one, self._of_video(_asked(one), video, video_frames)) for one in chosen]
        except VideoError as error:
            return [(question, _Seen(problem=f"frames: {error}")) for question in questions]

    def _of_video(self, asked: EvalQuestion, video: EvalVideo, video_frames: RemoteVideoFrames) -> _Seen:
        protocol, model = self.config.protocol, self.model
        if protocol.memory is None:
            times_s = tuple(video_frames.labels(video_frames.window_indices(asked.time_s, asked.starts_s)))
            if model is None:
                return _Seen(times_s, problem="sizes of frames: no --model")
            used = tuple(_window(times_s, model.frames))
            return _Seen(times_s, used, sum(use.num_tokens for use in used))
        indices = video_frames.streaming_indices()
        is_last = asked.id == video.moments[-1][0].id
        times_s = tuple(
            time_s
            for index, time_s in zip(indices, video_frames.labels(indices), strict=True)
            if may_see(protocol, asked.time_s, time_s, is_last, index == indices[-1])
        )
        if not times_s:
            return _Seen((), (), 0, "no frame comes at or before the question, so that it is not answered")
        if model is None:
            return _Seen(times_s, problem="what the memory holds: no --model")
        bank = protocol.make_memory(model.frames.grid, model.frames.memory_intervals)
        goes_by_order = isinstance(bank, TieredMemoryBank) and bank.goes_by_order
        if not goes_by_order or protocol.strategy != "direct":
            why = f"strategy {protocol.strategy}" if protocol.strategy != "direct" else f"memory {protocol.memory}"
            return _Seen(times_s, None, bank.max_tokens, f"which frames are used: {why} chooses by what they show")
        tokens_CHW = torch.ones(1, *model.frames.grid)
        for index, time_s in enumerate(times_s):
            bank.write(FrameTokens(index=index, time_s=time_s, tokens_CHW=tokens_CHW, content_id=index))
        used = tuple(FrameUse(one.index, one.time_s, one.num_tokens) for one in bank.read())
        return _Seen(times_s, used, bank.max_tokens)


def _window(times_s: Sequence[float], frames: FrameLayout) -> Iterator[FrameUse]:
    schedule, (rows, columns) = TokenSchedule(frames.memory_intervals), frames.grid
    for index, time_s in enumerate(times_s):
        ratio = schedule.ratio(index)
        if ratio is not None:
            yield FrameUse(index, time_s, num_tokens=(rows // ratio) * (columns // ratio))
