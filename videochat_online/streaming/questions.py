"""A question laid out: from what a session remembers to the prompt that it is answered from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from videochat_online.model.loading import VideoChatModel
from videochat_online.streaming.kv_cache import TokenKey
from videochat_online.streaming.prefix_cache import common_length, sequence_keys
from videochat_online.streaming.prompting import Prompt, build_prompt
from videochat_online.streaming.state import Exchange
from videochat_online.text import frame_segments
from videochat_online.types import FrameTokens, FrameUse, Turn

# Two questions with no token in common: what their prompts share stands before any question.
_UNALIKE = ("A", "0")


@dataclass(frozen=True)
class Snapshot:
    """Memory and dialogue of a session at one moment.

    Attributes:
        remembered: frames in time order.
        visuals: their projected tokens, [n, D] each.
        history: questions and answers so far.
        num_frames: that have arrived.
        asked_at_s: stream time.
        epoch: how often the session has been reset or restored.
    """

    remembered: tuple[FrameTokens, ...]
    visuals: Sequence[Tensor]
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
    keys: tuple[TokenKey, ...]
    epoch: int


@dataclass(frozen=True, kw_only=True)
class QuestionLayout:
    """How a session writes its prompts.

    Attributes:
        model: gives template, tokenizer and embeddings.
        system_message: None takes the checkpoint's own.
        with_times: write the time of each frame before its tokens.
    """

    model: VideoChatModel
    system_message: str | None
    with_times: bool

    def prepare(self, snapshot: Snapshot, question: str, generation_prefix: str = "") -> PreparedQuestion:
        """The prompt of a question that is asked at this moment."""
        remembered, history = snapshot.remembered, snapshot.history
        frames = tuple(FrameUse(f.index, f.time_s, f.num_tokens) for f in remembered)
        prompt = build_prompt(
            self.model,
            _turns(frames, history, question, self.with_times),
            snapshot.visuals,
            system_message=self.system_message,
            generation_prefix=generation_prefix,
        )
        keys = sequence_keys(prompt.layout, [frame.content_id for frame in remembered], snapshot.epoch)
        return PreparedQuestion(
            question, snapshot.asked_at_s, snapshot.num_frames, len(history), frames, prompt, keys, snapshot.epoch
        )

    def prefix(self, snapshot: Snapshot) -> tuple[Tensor, tuple[TokenKey, ...], int]:
        """What the prompt of any question at this moment begins with.

        Returns:
            Its embeddings [L, D], its tokens' keys, and the length of the prompt of a short question.
        """
        one, other = (self.prepare(snapshot, question) for question in _UNALIKE)
        length = common_length(one.keys, other.keys)
        return one.prompt.embeds_LD[:length], one.keys[:length], len(one.keys)


def _turns(frames: Sequence[FrameUse], history: Sequence[Exchange], question: str, with_times: bool) -> list[Turn]:
    """One sequence in time order: before each turn, the remembered frames that had arrived when it was asked."""
    turns, first = [], 0
    for exchange in (*history, Exchange(question, "", None, num_frames_seen=1 << 62)):
        seen = [f for f in frames if first <= f.index < exchange.num_frames_seen]
        lines = frame_segments(seen, with_times=with_times)
        turns.append(Turn((*lines, exchange.question), exchange.answer))
        first = max(first, exchange.num_frames_seen)
    turns[-1] = Turn(turns[-1].user, None)
    return turns
