"""Text out of ids as they come, without showing half a character."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextDecoder:
    """Decodes an answer piece by piece; the pieces add up to the text of all ids.

    A character of several byte tokens is held back until it is whole.

    Args:
        tokenizer: of the model that chose the ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = ""

    @property
    def text(self) -> str:
        """Text of all ids so far."""
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True))

    def push(self, token: int) -> str:
        """Take the next id and return what can be shown now (often a word, sometimes nothing)."""
        self._ids.append(token)
        text = self.text
        # Bytes that are not a character yet decode to the replacement character; later ids may complete them.
        if text.endswith(_REPLACEMENT) or not text.startswith(self._shown):
            return ""
        return self._show(text)

    def finish(self) -> str:
        """Return what was held back."""
        text = self.text
        return self._show(text) if text.startswith(self._shown) else ""

    def _show(self, text: str) -> str:
        piece = text[len(self._shown) :]
        self._shown = text
        return piece
