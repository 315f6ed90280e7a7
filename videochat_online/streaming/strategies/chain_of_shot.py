"""Chain-of-Shot: the frames that a question is about count more, those that it is not about count against an answer.

Source: CoS, arXiv 2502.06428. From the paper: each four consecutive frames are one picture, tiled 2 x 2; a yes/no
question whether anything of the question is in it makes its frames relevant or not; a positive video of the relevant
frames and a negative one of irrelevant frames are read beside the video itself, and logits =
l + (1 - R / T) (l_positive - l_negative) for R relevant frames of T.

Our decisions, where the paper speaks of pixels or says nothing:
- A memory holds features, not pixels, and a frame is encoded once. So frames are tiled in feature space: each is
  pooled to half of the full token grid in each direction, and four of them make one picture's tokens, which then go
  through the projector. A smaller frame is enlarged, each token standing for its neighbours. The mosaic has the tokens
  of one full-size frame; the vision tower has never seen it as a picture, nor has anything trained a model on such.
- The frames are those that the memory gives, so T is at most what it holds. The last picture of fewer than four
  frames is filled up with its last frame.
- The model itself is asked, and its logits of the first token in which the replies Yes and No differ are compared.
- The negative video has T frames: a relevant one keeps its number and time and shows the irrelevant frame that is
  nearest by number, of two the earlier, pooled to its own size where that is smaller. So no reading has more tokens
  than the memory gives.
- Where no frame or every frame is relevant there is nothing to hold against each other: plain l.

Shapes: `B` mosaics, `C` channels, `H` `W` token grid, `L` tokens, `D` width of the language model, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videochat_online.memory import Grid, pool_to_grid
from videochat_online.model.loading import VideoChatModel
from videochat_online.model.tokens import joined
from videochat_online.streaming.generate import first_logits_of_each
from videochat_online.streaming.kv.prefix import common_length
from videochat_online.streaming.question_prompt import FrameSelection, build_prompt, reply_ids
from videochat_online.streaming.strategies.base import Projection
from videochat_online.text.questions import KIND_SUFFIXES
from videochat_online.types import FrameTokens, Turn

FRAMES_OF_A_MOSAIC = 4
MOSAICS_AT_ONCE = 8
"""Mosaics that go through the language model in one batch."""
IS_VISIBLE = "Is anything that this question is about visible in the image?"


@dataclass(frozen=True, slots=True)
class ChainOfShot:
    """See the module's docstring. It has no options."""

    def read(
        self, frames: Sequence[FrameTokens], question: str, model: VideoChatModel, project: Projection
    ) -> tuple[FrameSelection, ...]:
        """As `Strategy.read`: one selection, or the video itself, the positive and the negative one."""
        return contrasted(frames, are_relevant(model, frames, question))


def contrasted(frames: Sequence[FrameTokens], is_relevant: Sequence[bool]) -> tuple[FrameSelection, ...]:
    """The selections that Chain-of-Shot makes of frames of which some are relevant."""
    relevant = tuple(frame for frame, yes in zip(frames, is_relevant, strict=True) if yes)
    others = [frame for frame, yes in zip(frames, is_relevant, strict=True) if not yes]
    itself = FrameSelection(tuple(frames))
    if not relevant or not others:
        return (itself,)
    weight = 1 - len(relevant) / len(frames)
    unused_id = min(0, *(frame.content_id for frame in frames)) - 1
    negative: list[FrameTokens] = []
    for frame, yes in zip(frames, is_relevant, strict=True):
        nearest = min(others, key=lambda other: (abs(other.index - frame.index), other.index))
        negative.append(_shown_as(frame, nearest, unused_id - len(negative)) if yes else frame)
    return itself, FrameSelection(relevant, weight), FrameSelection(tuple(negative), -weight)


def _shown_as(replaced: FrameTokens, shown: FrameTokens, unused_id: int) -> FrameTokens:
    """One frame with the index and the time of another, on a grid no larger than that one's."""
    (rows, columns), (most_rows, most_columns) = shown.tokens_CHW.shape[-2:], replaced.tokens_CHW.shape[-2:]
    tokens_CHW = pool_to_grid(shown.tokens_CHW, (min(rows, most_rows), min(columns, most_columns)))
    content_id = shown.content_id if tokens_CHW is shown.tokens_CHW else unused_id
    return FrameTokens(tokens_CHW, replaced.index, replaced.time_s, content_id)


def are_relevant(model: VideoChatModel, frames: Sequence[FrameTokens], question: str) -> list[bool]:
    """For each frame whether the model says that its mosaic shows something of the question.

    Raises:
        PromptTooLongError, NonFiniteError: errors of `first_logits_of_each`.
    """
    groups = [frames[first : first + FRAMES_OF_A_MOSAIC] for first in range(0, len(frames), FRAMES_OF_A_MOSAIC)]
    said: list[bool] = []
    for first in range(0, len(groups), MOSAICS_AT_ONCE):
        batch = groups[first : first + MOSAICS_AT_ONCE]
        said += _say_yes(model, [mosaic([f.tokens_CHW for f in group], model.frames.grid) for group in batch], question)
    return [yes for group, yes in zip(groups, said, strict=True) for _ in group]


@torch.inference_mode()
def _say_yes(model: VideoChatModel, mosaics_CHW: Sequence[Tensor], question: str) -> list[bool]:
    """Whether Yes is a likelier beginning of the reply than No, for each mosaic. Several questions, one batch."""
    yes, no = (reply_ids(model, word) for word in ("Yes", "No"))
    common = common_length(yes, no)
    begun_LD = model.backbone.embed(torch.tensor(yes[:common], dtype=torch.long, device=model.device))
    text = f"{question}\n{IS_VISIBLE}{KIND_SUFFIXES['yes_no']}"
    prompts = []
    for mosaic_CHW in mosaics_CHW:
        shown, wording = model.project(mosaic_CHW), model.backbone.image_wording
        prompt = build_prompt(model, [Turn((*wording.images([len(shown)]), text))], [shown], wording=wording)
        prompts.append(joined((prompt.tokens, prompt.tokens.following(begun_LD, yes[:common]))))
    logits_BV = first_logits_of_each(model.language_model, prompts)
    return [bool(says) for says in logits_BV[:, yes[common]] > logits_BV[:, no[common]]]


def mosaic(frames_CHW: Sequence[Tensor], full_grid: Grid) -> Tensor:
    """One to four frames as one picture [C, H, W] on twice the half of the full grid, row by row.

    Args:
        frames_CHW: features, on any grids.
        full_grid: rows and columns of the tokens of a full-size frame.
    """
    grid = (max(1, full_grid[0] // 2), max(1, full_grid[1] // 2))
    cells = [pool_to_grid(_enlarged(tokens_CHW, grid), grid) for tokens_CHW in frames_CHW]
    cells += [cells[-1]] * (FRAMES_OF_A_MOSAIC - len(cells))
    return torch.cat((torch.cat(cells[:2], dim=-1), torch.cat(cells[2:], dim=-1)), dim=-2)


def _enlarged(tokens_CHW: Tensor, grid: Grid) -> Tensor:
    """At least as many rows and columns as the grid has, by repeating those that there are."""
    for dim, wanted in ((-2, grid[0]), (-1, grid[1])):
        size = tokens_CHW.shape[dim]
        if size < wanted:
            indices = torch.arange(wanted, device=tokens_CHW.device) * size // wanted
            tokens_CHW = tokens_CHW.index_select(dim, indices)
    return tokens_CHW
