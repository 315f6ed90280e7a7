"""A question laid out: from what a session remembers to the prompt that it is answered from.

Owns how a dialogue becomes one sequence of embeddings, text laid out and visual tokens in place, and where in it the
frames of a stream stand. Knows nothing of how an answer is generated.

Shapes: `L` tokens, `n` visual tokens of a frame or picture, `D` width of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from videochat_online.constants import IGNORE_INDEX
from videochat_online.errors import InputError, expect
from videochat_online.model.backbones import VisualTokens
from videochat_online.model.loading import VideoChatModel
from videochat_online.model.tokens import Tokens
from videochat_online.streaming.kv.contrasted import Contrast
from videochat_online.streaming.kv.prefix import PrefixCache, common_length
from videochat_online.streaming.session_file import Exchange
from videochat_online.text import INTERNVL, PromptLayout, Wording, check_text, layout_prompt
from videochat_online.types import FrameTokens, FrameUse, Turn

_Given = TypeVar("_Given")

# Two questions with no token in common: what their prompts share stands before any question.
_UNALIKE = ("A", "0")


@dataclass(frozen=True, slots=True)
class FrameSelection:
    """Frames that a question is put to.

    Attributes:
        frames: Frames in time order; one whose content is not what the memory gave has a content id below all of those.
        weight: Factor of the logits that they lead to.
    """

    frames: tuple[FrameTokens, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """What the language model reads.

    Attributes:
        layout: Ids, and the span of each frame's tokens.
        tokens: The whole prompt in the language model's space.
        contrasts: Other prompts of the question, whose logits count, too.
        reuse: Cache of what need not be computed.
    """

    layout: PromptLayout
    tokens: Tokens
    contrasts: tuple[Contrast, ...] = ()
    reuse: PrefixCache | None = None

    def without_last(self, num_tokens: int) -> Prompt:
        """Without the last `num_tokens`, which have to be alike in all contrasts; `layout` is not shortened."""
        shortened = [replace(one, tokens=one.tokens[: len(one.tokens) - num_tokens]) for one in self.contrasts]
        return replace(self, tokens=self.tokens[: len(self.tokens) - num_tokens], contrasts=tuple(shortened))


@torch.inference_mode()
def build_prompt(
    model: VideoChatModel,
    turns: Sequence[Turn],
    visuals: Sequence[VisualTokens],
    *,
    wording: Wording | None = None,
    content_ids: Sequence[int] | None = None,
    system_message: str | None = None,
    generation_prefix: str = "",
) -> Prompt:
    """Lay out a dialogue and put its visual tokens in place.

    Args:
        model: model that gives template, tokenizer and embeddings.
        turns: the dialogue; the last turn's reply is None.
        visuals: projected tokens of every `Visual` of the turns, in order.
        wording: wording by which the visuals are written; None for that of frames.
        content_ids: content id of each, as `Backbone.tokens` takes them.
        system_message: None takes the checkpoint's own.
        generation_prefix: words that the answer is made to begin with.
    """
    layout = layout_prompt(
        turns,
        tokenizer=model.tokenizer,
        template=model.template,
        wording=wording or model.backbone.wording,
        system_message=model.system_message if system_message is None else system_message,
        generation_prefix=generation_prefix,
    )
    return Prompt(layout, model.backbone.tokens(layout, visuals, content_ids))


def reply_ids(model: VideoChatModel, text: str) -> tuple[int, ...]:
    """Ids of a reply as training has them, its end included."""
    turns, wording = [Turn(("?",), text)], model.backbone.wording
    layout = layout_prompt(turns, tokenizer=model.tokenizer, template=model.template, wording=wording)
    return tuple(label for label in layout.labels if label != IGNORE_INDEX)


def check_given(found: Any, kind: type[_Given], what: str) -> tuple[_Given, ...]:
    """What `read` of a part has given; InputError unless it is a sequence of this kind."""
    is_one = isinstance(found, Sequence) and all(isinstance(one, kind) for one in found)
    expect(is_one, f"{what}: read", f"a sequence of {kind.__name__}", found)
    return tuple(found)


class ProjectedFrames:
    """Tokens of frames in the language model's space, each projected once as long as it is kept.

    A frame keeps its content id until it changes tier: most were projected for an earlier question.
    """

    def __init__(self, model: VideoChatModel) -> None:
        self._model = model
        self._tokens: dict[int, VisualTokens] = {}

    def __call__(self, frame: FrameTokens) -> Tensor:
        """Embeddings [N, D] of a frame."""
        return self._of_kept(frame).embeds

    def _of_kept(self, frame: FrameTokens) -> VisualTokens:
        if frame.content_id not in self._tokens:
            self._tokens[frame.content_id] = self._model.project(frame.tokens_CHW)
        return self._tokens[frame.content_id]

    def of_shown(self, frame: FrameTokens) -> VisualTokens:
        """Tokens of a frame that a strategy shows, and may have changed.

        What is new is not kept: the memory may give the same id to something else later.
        """
        known = self._tokens.get(frame.content_id)
        return self._model.project(frame.tokens_CHW) if known is None else known

    def keep(self, frames: Sequence[FrameTokens]) -> None:
        """Forget those of all other frames."""
        self._tokens = {frame.content_id: self._of_kept(frame) for frame in frames}

    def clear(self) -> None:
        """Forget the projected tokens of every frame."""
        self._tokens.clear()


@dataclass(frozen=True)
class Snapshot:
    """Memory and dialogue of a session at one moment.

    Attributes:
        selections: Frames in time order; of several selections, the first is the question's own.
        visuals: Projected tokens of the frames of each.
        history: Questions and answers so far.
        num_frames: Number of frames that have arrived.
        asked_at_s: Stream time of the question, in seconds.
        epoch: Number of times that the session has been reset or restored.
    """

    selections: tuple[FrameSelection, ...]
    visuals: Sequence[Sequence[VisualTokens]]
    history: tuple[Exchange, ...]
    num_frames: int
    asked_at_s: float
    epoch: int


@dataclass(frozen=True)
class PreparedQuestion:
    """A question with all it will be answered from: the memory may change, this does not."""

    question: str
    asked_at_s: float
    num_frames_seen: int
    num_exchanges: int
    frames: tuple[FrameUse, ...]
    prompt: Prompt
    epoch: int


@dataclass(frozen=True, kw_only=True)
class QuestionLayout:
    """How a session writes its prompts.

    Attributes:
        model: model that gives template, tokenizer and embeddings.
        system_message: None takes the checkpoint's own.
        with_times: write the time of each frame before its tokens.
    """

    model: VideoChatModel
    system_message: str | None
    with_times: bool

    @property
    def message(self) -> str:
        """The system message that stands in the prompts."""
        return self.model.system_message if self.system_message is None else self.system_message

    def with_message(self, system_message: str | None, *, is_read: bool) -> QuestionLayout:
        """The same with another system message; None: with its own.

        Raises:
            InputError: half of a surrogate pair in it; or it is another one, and frames were read after its own.
        """
        if system_message is None or check_text(system_message, "system message") == self.message:
            return self
        if is_read:
            raise InputError(f"kv_memory has read frames after another system message than {system_message!r}")
        return replace(self, system_message=system_message)

    def prepare(self, snapshot: Snapshot, question: str, prefix: str = "") -> PreparedQuestion:
        """The prompt of a question that is asked at this moment."""
        prompts = []
        for selection, visuals in zip(snapshot.selections, snapshot.visuals, strict=True):
            frames = frame_uses(self.model, selection.frames)
            wording = self.model.backbone.wording
            turns = stream_turns(frames, snapshot.history, question, with_times=self.with_times, wording=wording)
            prompts.append(
                build_prompt(
                    self.model,
                    turns,
                    visuals,
                    content_ids=[frame.content_id for frame in selection.frames],
                    system_message=self.message,
                    generation_prefix=prefix,
                )
            )
        contrasts = [
            Contrast(prompt.tokens, selection.weight)
            for prompt, selection in zip(prompts[1:], snapshot.selections[1:], strict=True)
        ]
        return PreparedQuestion(
            question=question,
            asked_at_s=snapshot.asked_at_s,
            num_frames_seen=snapshot.num_frames,
            num_exchanges=len(snapshot.history),
            frames=frame_uses(self.model, snapshot.selections[0].frames),
            prompt=replace(prompts[0], contrasts=tuple(contrasts)),
            epoch=snapshot.epoch,
        )

    def prefix(self, snapshot: Snapshot) -> tuple[Tokens, int]:
        """What the prompt of any question at this moment begins with, and the length of that of a short one."""
        one, other = (self.prepare(snapshot, question).prompt.tokens for question in _UNALIKE)
        return one[: common_length(one.keys, other.keys)], len(one)


def frame_uses(model: VideoChatModel, frames: Sequence[FrameTokens]) -> tuple[FrameUse, ...]:
    """What a prompt says of frames, and an answer of those that it was given from.

    Of an entry of two frames the index is that of the first.
    """
    per_entry, count = model.frames.frames_per_entry, model.backbone.num_tokens
    return tuple(FrameUse(f.index * per_entry, f.time_s, count(f)) for f in frames)


def stream_turns(
    frames: Sequence[FrameUse],
    history: Sequence[Exchange],
    question: str,
    *,
    with_times: bool,
    wording: Wording = INTERNVL,
) -> list[Turn]:
    """One sequence in time order: before each turn, the remembered frames that had arrived when it was asked.

    What was said before the stream is text alone; every later turn is laid out as one of a training row.
    """
    turns, first = [], 0
    for exchange in (*history, Exchange(question, "", math.inf, num_frames_seen=1 << 62)):
        seen = [f for f in frames if first <= f.index < exchange.num_frames_seen]
        is_before = exchange.asked_at_s is None and not seen
        user = (exchange.question,) if is_before else wording.turn(seen, exchange.question, with_times=with_times)
        turns.append(Turn(user, exchange.answer))
        first = max(first, exchange.num_frames_seen)
    turns[-1] = Turn(turns[-1].user, None)
    return turns
