"""A prompt in the language model's space: text laid out, visual tokens projected and put in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from videochat_online.constants import IGNORE_INDEX
from videochat_online.model.loading import VideoChatModel
from videochat_online.streaming.kv.prefix import Reuse
from videochat_online.streaming.strategies.contrastive import Contrast
from videochat_online.text import PromptLayout, layout_prompt
from videochat_online.types import Turn


@dataclass(frozen=True)
class Prompt:
    """What the language model reads.

    Attributes:
        layout: ids, and where each frame's tokens stand.
        embeds_LD: embeddings of the whole prompt.
        contrasts: other readings of the question, whose logits count, too.
        reuse: what of it need not be computed.
    """

    layout: PromptLayout
    embeds_LD: Tensor
    contrasts: tuple[Contrast, ...] = ()
    reuse: Reuse | None = None

    def without_last(self, num_tokens: int) -> Prompt:
        """The same with that many tokens less at the end, which are alike in all readings. The layout stays."""
        stop = len(self.embeds_LD) - num_tokens
        shortened = [replace(one, embeds_LD=one.embeds_LD[: len(one.embeds_LD) - num_tokens]) for one in self.contrasts]
        reuse = self.reuse and replace(self.reuse, keys=self.reuse.keys[:stop])
        return replace(self, embeds_LD=self.embeds_LD[:stop], contrasts=tuple(shortened), reuse=reuse)


@torch.inference_mode()
def build_prompt(
    model: VideoChatModel,
    turns: Sequence[Turn],
    visuals: Sequence[Tensor],
    *,
    system_message: str | None = None,
    generation_prefix: str = "",
) -> Prompt:
    """Lay out a dialogue and put its visual tokens in place.

    Args:
        model: gives template, tokenizer and embeddings.
        turns: the dialogue; the last turn's reply is None.
        visuals: projected tokens [n, D] of every `Visual` of the turns, in order.
        system_message: None takes the checkpoint's own.
        generation_prefix: how the answer is made to begin.
    """
    layout = layout_prompt(
        turns,
        tokenizer=model.tokenizer,
        template=model.template,
        system_message=model.system_message if system_message is None else system_message,
        generation_prefix=generation_prefix,
    )
    ids = torch.tensor([layout.input_ids], device=model.device)
    visual_LD = torch.cat(list(visuals)) if visuals else None
    return Prompt(layout, model.network.fuse(ids, visual_LD)[0])


def reply_ids(model: VideoChatModel, text: str) -> tuple[int, ...]:
    """Ids of a reply as training has them, its end included."""
    layout = layout_prompt([Turn(("?",), text)], tokenizer=model.tokenizer, template=model.template)
    return tuple(label for label in layout.labels if label != IGNORE_INDEX)
