"""Text of ids as they come, without showing half a character."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNSETTLED = re.compile(r"(?:\N{REPLACEMENT CHARACTER}|\s|[\s']n|'[vr]?)$")
"""Ends of a text that may read otherwise with what follows: bytes that are no character yet; and blanks and
apostrophes, as `clean_up_tokenization` takes blanks from before punctuation and `n't`, `'ve`, `'re` and the like, and
from around apostrophes, of which every second one counts where several stand in a row."""


def text_pieces(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> Iterator[str]:
    """Yield what each id adds to the text (often a word, sometimes nothing), and at the end what was held back.

    Joined, the pieces are what `tokenizer.decode(ids, skip_special_tokens=True)` gives.
    """
    is_fast = tokenizer.is_fast and not tokenizer.clean_up_tokenization_spaces
    stream = DecodeStream(skip_special_tokens=True) if is_fast else _WindowStream()
    decoder = tokenizer.backend_tokenizer if is_fast else tokenizer
    taken, held, num_shown = list[int](), list[int](), 0
    for token in ids:
        taken.append(token)
        held.append(token)
        piece = ""
        if _ends_a_run(tokenizer, token):
            piece = stream.step(decoder, held) or ""
            held.clear()
        num_shown += len(piece)
        yield piece
    yield str(tokenizer.decode(taken, skip_special_tokens=True))[num_shown:]


def _ends_a_run(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Whether no byte before this token can belong to a character with what follows.

    Tokens that each stand for a byte are decoded as a run: where it is no text, all of it becomes replacement
    characters, also those that were letters by themselves. Tokens that show nothing do not end it.
    """
    is_byte = _BYTE.fullmatch(str(tokenizer.convert_ids_to_tokens(token)))
    return not is_byte and bool(tokenizer.decode([token], skip_special_tokens=True))


class _WindowStream:
    """What `DecodeStream` does, for tokenizers that it does not know: only the ids of two pieces are decoded again."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        # Of these ids, and of their text, what belongs to the piece before.
        self._num_ids, self._num_characters = 0, 0

    def step(self, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str | None:
        """Take the next ids, and return their text with what was held back before; None to hold it back."""
        self._ids += ids
        text = str(tokenizer.decode(self._ids, skip_special_tokens=True))
        piece = text[self._num_characters :]
        if not piece or _UNSETTLED.search(text):
            return None
        self._ids = self._ids[self._num_ids :]
        self._num_ids = len(self._ids)
        # By itself: a blank in front may be gone.
        self._num_characters = len(str(tokenizer.decode(self._ids, skip_special_tokens=True)))
        return piece
