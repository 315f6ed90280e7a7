"""The sentencepiece tokenizer that the published Phi-3, Llama and InternLM2 checkpoints were trained with.

They were trained with transformers' pure-Python `LlamaTokenizer`, which transformers 5 no longer has: its
rebuilt tokenizer gives other ids around chat markers (no lone "▁" after <s>) and for text that starts with a
blank. Here the sentencepiece library itself encodes the text between added tokens, so that any model file
works. transformers' `SentencePieceBackend` holds model file and vocabulary; this module owns what happens around those
pieces of text:

* `legacy=False` (Phi-3): the whole text gets one "▁" in front, and the parts after an added token get none.
  The first "▁" is taken away again where a *special* token follows it at once. "Special" are the named tokens
  (bos, eos, unk, pad) and the additional ones; Phi-3's chat markers are added tokens but not special.
* `legacy=True` (InternLM2, old Llama): each part is encoded as the model file says, as a rule with a "▁" in
  front.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, cast

import sentencepiece
from sentencepiece import sentencepiece_model_pb2, sentencepiece_pb2
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from videochat_online.runs.files import read_object, write_json

BLANK = "▁"
"""Sign that sentencepiece writes for a space."""

# Generated modules: their classes are not visible to a type checker.
_MODEL_PROTO: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
_TEXT_PROTO: Any = sentencepiece_pb2.SentencePieceText  # type: ignore[attr-defined]

_USER_DEFINED: Any = _MODEL_PROTO.SentencePiece.USER_DEFINED

_OF_TOKENS = ("_added", "_special", "_apart", "_text_processor")
"""What a tokenizer keeps for as long as no token is added, and no other is special."""

Span = tuple[int, int]


def is_marker(content: str) -> bool:
    """Whether a token of its own marks something: one of blanks or of a single character is text all the same."""
    return len(content.replace(BLANK, " ").strip()) > 1


class SentencePieceTokenizer(SentencePieceBackend):
    """Reads and writes the original files: `tokenizer.model` and a `LlamaTokenizer` configuration.

    Besides the usual interface of transformers, `encode_with_offsets` gives the offsets of each token.

    Args:
        vocab_file: path of the sentencepiece model.
        legacy: older rule for blanks, see the module's docstring.
        add_bos_token: start each text with <s>.
        add_eos_token: end each text with the end-of-sequence token.
        **kwargs: special tokens and the like, as for any tokenizer.
    """

    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str,
        *,
        legacy: bool = True,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        unk_token: Any = "<unk>",
        bos_token: Any = "<s>",
        eos_token: Any = "</s>",
        **kwargs: Any,
    ) -> None:
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        super().__init__(
            vocab_file=vocab_file,
            legacy=legacy,
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            **kwargs,
        )

    def __setattr__(self, key: str, value: Any) -> None:
        super().__setattr__(key, value)
        self._forget_tokens()  # it may have named a special token

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add tokens, as of any tokenizer; `add_special_tokens` comes here, too."""
        num_added = super().add_tokens(new_tokens, special_tokens=special_tokens)
        self._forget_tokens()
        return int(num_added)

    def _forget_tokens(self) -> None:
        for name in _OF_TOKENS:
            self.__dict__.pop(name, None)

    @cached_property
    def _text_processor(self) -> sentencepiece.SentencePieceProcessor:
        """One that never makes a piece that is, or is spelled as, a control token: these have names nobody can know."""
        model, names = model_proto(self), {*self.user_defined, *self.added_tokens_encoder}
        for piece in model.pieces:
            if piece.type == _USER_DEFINED and is_marker(piece.piece):
                piece.type = _MODEL_PROTO.SentencePiece.NORMAL
            if piece.type == _MODEL_PROTO.SentencePiece.NORMAL and piece.piece in names and is_marker(piece.piece):
                piece.piece = secrets.token_hex(16)
        return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    @cached_property
    def user_defined(self) -> dict[str, int]:
        """Pieces that the model file keeps whole wherever they stand in a text, and their ids."""
        pieces = model_proto(self).pieces
        return {piece.piece: index for index, piece in enumerate(pieces) if piece.type == _USER_DEFINED}

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Split a text into tokens; what transformers calls for each text it encodes."""
        return [token for token, _ in self._tokens(text)]

    def encode_with_offsets(self, text: str, controls: Sequence[Span] | None = None) -> tuple[list[int], list[Span]]:
        """Ids of a text, bos included, and for each the [start, stop) of its characters in the text.

        A token without characters of its own (bos, the "▁" in front of the text, all but the last byte of a
        character that is spelled in bytes) has start == stop.

        Args:
            text: text to be encoded.
            controls: spans of its added tokens; what is spelled as one elsewhere is encoded as text. None takes every
                string that is one.
        """
        found = list(self._tokens(text, controls))
        plain = cast(list[int], self.convert_tokens_to_ids([token for token, _ in found]))
        ids = self.build_inputs_with_special_tokens(plain)
        before = [(0, 0)] * self.add_bos_token
        after = [(len(text), len(text))] * self.add_eos_token
        return ids, before + [span for _, span in found] + after

    def encode_ids(self, text: str) -> list[int]:
        """The ids that `encode_with_offsets` gives, several times as fast."""
        ids, shift = list[int](), bool(text) and not self.legacy
        for _, part, is_added in self._parts(BLANK + text.replace(BLANK, " ") if shift else text, None):
            if is_added:
                ids.append(cast(int, self.convert_tokens_to_ids(part)))
            elif self.legacy or not part.startswith((BLANK, " ")):
                ids += self.sp_model.encode(part)
            else:  # as in `_encode_part`
                guard = str(self.unk_token)
                ids += self.sp_model.encode(guard + part)[len(self.sp_model.encode(guard)) :]
        if shift and len(ids) > 1 and ids[0] == self._convert_token_to_id(BLANK) and ids[1] in self.all_special_ids:
            del ids[0]
        return cast(list[int], self.build_inputs_with_special_tokens(ids))

    @property
    def special_tokens_pattern(self) -> str:
        """What stands around each text, by the name that transformers has for it."""
        return "_".join(["bos"] * self.add_bos_token + ["eos"] * self.add_eos_token) or "none"

    @special_tokens_pattern.setter
    def special_tokens_pattern(self, given: object) -> None:
        """The base class sets one; the two switches decide."""

    def _tokens(self, text: str, controls: Sequence[Span] | None = None) -> Iterator[tuple[str, Span]]:
        """Tokens of a text and their offsets in it."""
        if not text:
            return
        shift = 0
        if not self.legacy:
            text = BLANK + text.replace(BLANK, " ")
            shift = 1
        processor = self.sp_model
        if controls is not None:
            processor, controls = self._text_processor, [(start + shift, stop + shift) for start, stop in controls]
        tokens = [
            (token, (max(0, start + first - shift), max(0, start + last - shift)))
            for start, part, is_added in self._parts(text, controls)
            for token, (first, last) in (((part, (0, len(part))),) if is_added else self._encode_part(part, processor))
        ]
        if shift and len(tokens) > 1 and tokens[0][0] == BLANK and tokens[1][0] in self._special:
            del tokens[0]
        yield from tokens

    def _parts(self, text: str, controls: Sequence[Span] | None) -> Iterator[tuple[int, str, bool]]:
        """Cut a text at its added tokens: (start, part, is it an added token), without empty parts."""
        added, pattern = self._added
        if controls is None:
            controls = [match.span() for match in pattern.finditer(text)]
        swallow_left = False
        position = 0
        for start, stop in [*controls, (len(text), len(text))]:
            control = text[start:stop]
            flags = added.get(control)
            part = text[position:start]
            if swallow_left:
                part = part.lstrip()
            part_start = start - len(part)
            if flags is not None and flags.lstrip:
                part = part.rstrip()
            if part:
                yield part_start, part, False
            if control:
                yield start, control, True
            swallow_left = flags is not None and flags.rstrip
            position = stop

    @cached_property
    def _added(self) -> tuple[dict[str, Any], re.Pattern[str]]:
        """The added tokens, and what finds them."""
        added = {str(token): token for token in self.added_tokens_decoder.values()}
        # The longest alternative comes first: of two tokens that start at one character the longer one is meant.
        return added, re.compile("|".join(re.escape(token) for token in sorted(added, key=len, reverse=True)))

    @cached_property
    def _special(self) -> frozenset[str]:
        return frozenset(self.all_special_tokens)

    @cached_property
    def _apart(self) -> frozenset[str]:
        """Added tokens that stand between blanks in a text of ids."""
        extra = set(map(str, self.extra_special_tokens))
        return frozenset(
            token
            for token, index in self.added_tokens_encoder.items()
            if token not in self._special or (token in extra and index >= self.vocab_size)
        )

    def _encode_part(self, part: str, processor: sentencepiece.SentencePieceProcessor) -> list[tuple[str, Span]]:
        """Encode a text without added tokens by sentencepiece."""
        if self.legacy or not part.startswith((BLANK, " ")):
            return _pieces(processor, part)
        # A model that trims blanks would lose those in front; behind "<unk>" they are safe.
        guard = str(self.unk_token)
        num_guard = len(_pieces(processor, guard))
        pieces = _pieces(processor, guard + part)
        cut = len(guard)
        return [(piece, (max(0, first - cut), max(0, last - cut))) for piece, (first, last) in pieces[num_guard:]]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens to text; the "▁" in front, put there by encoding, is dropped."""
        special, text, run = self._special, "", list[str]()
        for index, token in enumerate(tokens):
            if token not in special:
                run.append(token.removeprefix(BLANK) if index == 0 else token)
                continue
            if self.legacy and index and tokens[index - 1] not in special:
                text += " "
            text += self.sp_model.decode(run) + token
            run = []
        return text + str(self.sp_model.decode(run))

    def _decode(
        self,
        token_ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
        **kwargs: Any,
    ) -> str:
        """Text of ids, as the original tokenizer wrote it: added tokens that remain stand between blanks."""
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        texts, tokens = list[str](), self.convert_ids_to_tokens(ids, skip_special_tokens=skip_special_tokens)
        for stand_apart, group in groupby(tokens, self._apart.__contains__):
            run = list(group)
            texts += run if stand_apart else [self.convert_tokens_to_string(run)]
        text = (" " if spaces_between_special_tokens else "").join(filter(None, texts))
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return str(self.clean_up_tokenization(text)) if clean else text

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Write a directory in the original layout, which other programs read as a `LlamaTokenizer` too."""
        files = tuple(super().save_pretrained(save_directory, *args, **kwargs))
        prefix = f"{kwargs['filename_prefix']}-" if kwargs.get("filename_prefix") else ""
        path = Path(save_directory) / f"{prefix}tokenizer_config.json"
        config = read_object(path)
        config.pop("auto_map", None)
        config.update(
            tokenizer_class="LlamaTokenizer",
            legacy=self.legacy,
            add_bos_token=self.add_bos_token,
            add_eos_token=self.add_eos_token,
            additional_special_tokens=[str(token) for token in self.extra_special_tokens],
        )
        write_json(path, config)
        return files


def model_proto(tokenizer: SentencePieceTokenizer) -> Any:
    """The model, parsed: pieces with their scores, and how texts are normalised.

    Where not `legacy`, without the "▁" in front of a text, which `_tokens` puts there.
    """
    return _MODEL_PROTO.FromString(tokenizer.sp_model.serialized_model_proto())


def _pieces(processor: sentencepiece.SentencePieceProcessor, text: str) -> list[tuple[str, Span]]:
    pieces = _TEXT_PROTO.FromString(processor.encode(text, out_type="serialized_proto")).pieces
    if text.isascii():
        return [(piece.piece, (piece.begin, piece.end)) for piece in pieces]
    # sentencepiece counts bytes of UTF-8; `ends[i]` is where character i stops.
    ends = list(accumulate(len(character.encode("utf-8")) for character in text))
    character = {0: 0} | {stop: index for index, stop in enumerate(ends, start=1)}
    return [(piece.piece, (character[piece.begin], character[piece.end])) for piece in pieces]
