"""How many tokens prompts have, counted for many at a time and several times as fast as by laying each out.

Owns no rule of its own: prompts are rendered by `text.prompt` and tokenised by `text.plain`, in parts. What stands
between two control tokens has as many tokens whatever is before and behind these two, so it is counted by itself, and
what comes again, the template's strings, lines of frames, common texts, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from videochat_online.text.control_tokens import Part, count_parts, encode_parts, split_parts
from videochat_online.text.prompt import prompt_pieces, tokenizer_parts
from videochat_online.text.templates import ChatTemplate
from videochat_online.text.tokenizer import end_token_id
from videochat_online.types import Turn

MAX_KNOWN = 100_000
"""Parts whose tokens are remembered, some tens of MB; then all are forgotten, and common ones soon known again."""

Parts = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class PromptOutline:
    """A rendered dialogue, cut at its control tokens.

    Attributes:
        parts: all parts of it.
        added: parts whose tokens it has: its first control token, and what stands between two, with these two.
        removed: parts whose tokens it has once more by `added`: two control tokens with nothing between.
        num_controls: control tokens after the first.
        num_repeated: visual tokens beyond the first one of each picture.
    """

    parts: Parts
    added: tuple[Parts, ...]
    removed: tuple[Parts, ...]
    num_controls: int
    num_repeated: int


class PromptCounter:
    """Counts the tokens of prompts: of each as many as `layout_prompt` makes of it.

    Args:
        tokenizer: tokenizer that `load_tokenizer` gives.
        template: chat template of the checkpoint.

    Raises:
        InputError: the template's end token is not in the vocabulary.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
        end_token_id(tokenizer, template)
        self._tokenizer, self._template = tokenizer, template
        self._known: dict[Parts, int | None] = {}

    def outline(self, turns: Sequence[Turn], system_message: str | None = None) -> PromptOutline:
        """A dialogue, ready to be counted.

        Args:
            turns: turns in order.
            system_message: system message; None takes the template's own.

        Raises:
            InputError: turns or texts that `layout_prompt` refuses.
        """
        pieces, counts = prompt_pieces(turns, self._template, system_message)
        parts, num_repeated = tuple(tokenizer_parts(pieces)[0]), sum(counts) - len(counts)
        first, *others = [tuple(part) for part in split_parts(self._tokenizer, parts)]
        if not others:
            return PromptOutline(parts, (first,), (), 0, num_repeated)
        between = [(first, first[-1:]), *((part, (part[0], part[-1])) for part in others[:-1])]
        between.append((others[-1], others[-1][:1]))
        different = [pair for pair in between if pair[0] != pair[1]]
        added = (first[-1:], *(part for part, _ in different))
        return PromptOutline(parts, added, tuple(ends for _, ends in different), len(others) - 1, num_repeated)

    def count(self, outlines: Sequence[PromptOutline]) -> list[int]:
        """Tokens of each prompt.

        Raises:
            InputError: texts that `layout_prompt` refuses.
        """
        if len(self._known) > MAX_KNOWN:
            self._known.clear()
        needed = dict.fromkeys(parts for outline in outlines for parts in (*outline.added, *outline.removed))
        missing = [parts for parts in needed if parts not in self._known]
        self._known.update(zip(missing, count_parts(self._tokenizer, missing), strict=True))
        return [self._count(outline) for outline in outlines]

    def _count(self, outline: PromptOutline) -> int:
        added, removed = ([self._known[parts] for parts in some] for some in (outline.added, outline.removed))
        if None in (*added, *removed):
            return len(encode_parts(self._tokenizer, outline.parts)[0]) + outline.num_repeated
        num_tokens = sum(filter(None, added)) - sum(filter(None, removed))
        return num_tokens + outline.num_controls + outline.num_repeated
