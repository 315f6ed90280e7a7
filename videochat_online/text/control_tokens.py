"""Text is text: whatever a user, a row or a model says, no part of it becomes a control token.

Owns which tokens of a vocabulary are control tokens, and the encoding in which they stand only where we put them.
Knows the tokenizer; knows nothing of turns or pictures.

A prompt is tokenised as one string, as the weights were trained. Only where the result has a control token that is not
ours, it is tokenised again by a twin of the tokenizer. To the twin our control tokens have names that nobody can know,
so that what a text spells is a string like any other, with the neighbours that it has.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from videochat_online.errors import InputError
from videochat_online.text.sentencepiece_tokenizer import SentencePieceTokenizer, Span, is_marker

Part = tuple[str, bool]
"""A piece of a prompt, and whether it is text: False for a template's strings, whose control tokens are meant."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""The token of a byte. It stands for a part of a character that has no token; spelled out, it is text."""

_Occurrence = tuple[int, int, int]
"""[start, stop) and id of a control token."""


def check_text(text: object, name: str) -> str:
    """The text, if it is one that a tokenizer takes.

    Raises:
        InputError: no text, or half of a surrogate pair in it, which JSON and Python can hold and UTF-8 cannot.
    """
    if not isinstance(text, str):
        raise InputError(f"{name}: expected text, found {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"half of a surrogate pair at position {error.start}"
        raise InputError(f"{name}: expected Unicode text, found {found}") from error
    return text


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text alone, without those that begin and end a sequence.

    Raises:
        InputError: half of a surrogate pair.
    """
    ids, offsets = encode_parts(tokenizer, [(check_text(text, "text"), True)])
    around = set(tokenizer.all_special_ids)
    return [index for index, (start, stop) in zip(ids, offsets, strict=True) if start < stop or index not in around]


def encode_with_offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[Span]]:
    """Ids of a text, special tokens of the sequence (bos) included, and where each stands in the text.

    Returns:
        The ids, and for each the [start, stop) of its characters.

    Raises:
        InputError: the tokenizer cannot tell where its tokens stand.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer.encode_with_offsets(text)
    if not tokenizer.is_fast:
        raise InputError(
            "tokenizer: expected one of load_tokenizer(), which knows the offsets of each token, found"
            f" {type(tokenizer).__name__}"
        )
    encoded = tokenizer(text, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    return list(encoded["input_ids"]), [(int(start), int(stop)) for start, stop in encoded["offset_mapping"]]


def encode_many(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The ids that `encode_with_offsets` gives for each of many texts, several times as fast."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return [tokenizer.encode_ids(text) for text in texts]
    encoded = tokenizer(list(texts), return_attention_mask=False, return_token_type_ids=False, verbose=False)
    return cast(list[list[int]], encoded["input_ids"])


def encode_parts(tokenizer: PreTrainedTokenizerBase, parts: Sequence[Part]) -> tuple[list[int], list[Span]]:
    """Ids of a prompt, those that begin and end a sequence included, and where each stands in the joined string.

    Args:
        tokenizer: tokenizer that `load_tokenizer` gives.
        parts: the prompt's pieces in order.

    Returns:
        As `encode_with_offsets` of the joined string, but that no control token comes from a text.

    Raises:
        InputError: the tokenizer makes a control token where none was put, or none where one was.
    """
    controls, text = _controls(tokenizer), "".join(part for part, _ in parts)
    ours = controls.occurrences(parts)
    ids, offsets = encode_with_offsets(tokenizer, text)
    if controls.are_only(ours, ids, offsets):
        return ids, offsets
    ids, offsets = controls.encode_only(tokenizer, text, ours)
    if not controls.are_only(ours, ids, offsets, is_escaped=True):
        raise InputError(
            f"prompt: expected {len(ours)} control tokens, those of the template and of pictures, found others; the"
            f" tokenizer {tokenizer.name_or_path!r} does not keep them apart from text"
        )
    return ids, offsets


def split_parts(tokenizer: PreTrainedTokenizerBase, parts: Iterable[Part]) -> list[list[Part]]:
    """A prompt cut at the control tokens that we put into it, each of which ends one piece and begins the next."""
    controls, pieces = _controls(tokenizer), [list[Part]()]
    for part, is_text in parts:
        done = 0
        for start, stop, _ in () if is_text else controls.in_ours(part):
            control = (part[start:stop], False)
            pieces[-1] += [(part[done:start], False), control] if done < start else [control]
            pieces.append([control])
            done = stop
        if done < len(part):
            pieces[-1].append((part[done:], is_text))
    return pieces


def count_parts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Part]]) -> list[int | None]:
    """How many ids each of many strings has, several times as fast as by `encode_parts`.

    None where a control token comes from a text, so that the whole of what it is a part of is tokenised again.
    """
    controls = _controls(tokenizer)
    texts = ["".join(part for part, _ in parts) for parts in prompts]
    around, *many_ids = encode_many(tokenizer, ["", *texts])
    found = list[int | None]()
    for parts, text, ids in zip(prompts, texts, many_ids, strict=True):
        is_known = controls.are_all_ours(parts, ids, around)
        if not is_known:
            is_known = controls.are_only(controls.occurrences(parts), *encode_with_offsets(tokenizer, text))
        found.append(len(ids) if is_known else None)
    return found


class _Controls:
    """The control tokens of a tokenizer: all that were added to its vocabulary, and its model's own of that kind."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = {str(token): index for index, token in tokenizer.added_tokens_decoder.items()}
        if isinstance(tokenizer, SentencePieceTokenizer):
            added |= tokenizer.user_defined
        self._ids = {content: index for content, index in added.items() if is_marker(content)}
        self._of_ids = frozenset(self._ids.values())
        # The longest alternative comes first: of two tokens that start at one character the longer one is meant.
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        unknown = str(tokenizer.unk_token)
        vocab = tokenizer.get_vocab().items()
        self._stand_ins = {index: len(token) for token, index in vocab if token == unknown or _BYTE.fullmatch(token)}
        self._searched: dict[str, list[_Occurrence]] = {}
        self._twin: _Twin | None = None
        self.size = len(tokenizer)

    def occurrences(self, parts: Sequence[Part]) -> list[_Occurrence]:
        """Where our control tokens stand in the joined string."""
        found, first = list[_Occurrence](), 0
        for part, is_text in parts:
            if not is_text:
                found += [(first + start, first + stop, index) for start, stop, index in self.in_ours(part)]
            first += len(part)
        return found

    def in_ours(self, part: str) -> list[_Occurrence]:
        """Where control tokens stand in one piece of ours; there are few, and they come again and again."""
        if part not in self._searched:
            matches = self._pattern.finditer(part)
            self._searched[part] = [(*match.span(), self._ids[match.group()]) for match in matches]
        return self._searched[part]

    def are_only(
        self, ours: Sequence[_Occurrence], ids: Sequence[int], offsets: Sequence[Span], *, is_escaped: bool = False
    ) -> bool:
        """Whether the control tokens among ids are ours, each where it was put.

        Bytes and the unknown token stand for characters that have no token. Where they stand for as many as their names
        have, the text may spell these names, unless it `is_escaped`: then it cannot.
        """
        remaining = iter(ours)
        for index, (start, stop) in zip(ids, offsets, strict=True):
            if start == stop:
                continue  # begins or ends the sequence
            if index in self._stand_ins:
                if stop - start >= self._stand_ins[index] and not is_escaped:
                    return False
            elif index in self._of_ids:
                # A token may have swallowed blanks around it.
                first, last, own = next(remaining, (0, 0, None))
                if own != index or not (start <= first and last <= stop):
                    return False
        return next(remaining, None) is None

    def are_all_ours(self, parts: Sequence[Part], ids: Sequence[int], around: Sequence[int]) -> bool:
        """Whether ids have our control tokens, those around every text, and nothing whose offsets must be looked at."""
        found = [index for index in ids if index in self._of_ids]
        ours = [index for part, is_text in parts if not is_text for *_, index in self.in_ours(part)]
        expected = [index for index in around if index in self._of_ids] + ours
        return sorted(found) == sorted(expected) and self._stand_ins.keys().isdisjoint(ids)

    def encode_only(
        self, tokenizer: PreTrainedTokenizerBase, text: str, ours: Sequence[_Occurrence]
    ) -> tuple[list[int], list[Span]]:
        """Ids and offsets of a text in which only these control tokens are any."""
        if isinstance(tokenizer, SentencePieceTokenizer):
            return tokenizer.encode_with_offsets(text, [(start, stop) for start, stop, _ in ours])
        if self._twin is None:
            backend = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer
            self._twin = _Twin(json.loads(backend.to_str()), self._ids)
        return self._twin.encode(text, ours)


class _Twin:
    """A tokenizer that is another one but for the names of its control tokens.

    Args:
        state: state of the other one, as its library writes it; changed.
        contents: texts of the control tokens.
    """

    def __init__(self, state: dict[str, Any], contents: Iterable[str]) -> None:
        model = state["model"]
        known = model["vocab"] if isinstance(model["vocab"], dict) else [token for token, _ in model["vocab"]]
        # The model looks bytes up by their names: these have to stay, but are no longer searched for in a text.
        looked_up = {token for token in known if _BYTE.fullmatch(token)}
        secret = secrets.token_hex(16)  # in lower case and ASCII: normalizers leave it as it is
        self._names = {token: f"<{secret}:{number}>" for number, token in enumerate(set(contents) - looked_up)}
        state["truncation"] = state["padding"] = None
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in looked_up]
        for token in state["added_tokens"]:
            token["content"] = self._name(token["content"])
        if isinstance(model["vocab"], dict):
            model["vocab"] = {self._name(token): index for token, index in model["vocab"].items()}
        else:
            model["vocab"] = [[self._name(token), score] for token, score in model["vocab"]]
        if model.get("unk_token") is not None:
            model["unk_token"] = self._name(model["unk_token"])
        if "merges" in model:
            prefix = model.get("continuing_subword_prefix") or ""
            model["merges"] = [
                (one, other)
                for one, other in model["merges"]
                if self._names.keys().isdisjoint((one, other, one + other.removeprefix(prefix)))
            ]
        # What spells the name of a byte is cut, so that the model does not find it as a piece.
        pattern = {"Regex": f"<(?={_BYTE.pattern[1:]})"}
        cut = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        before = [state["pre_tokenizer"]] if state["pre_tokenizer"] else []
        state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*before, cut]}
        self._tokenizer = Tokenizer.from_str(json.dumps(state))

    def _name(self, token: str) -> str:
        return self._names.get(token, token)

    def encode(self, text: str, controls: Sequence[_Occurrence]) -> tuple[list[int], list[Span]]:
        """Ids of a text, and the offsets of each in it; `controls` are those of its strings that are meant."""
        renamed, offsets, done = "", list[int](), 0
        for start, stop, _ in controls:
            name = self._names[text[start:stop]]
            renamed += text[done:start] + name
            offsets += [*range(done, start), *[start] * len(name)]
            done = stop
        renamed += text[done:]
        offsets += range(done, len(text) + 1)
        encoded = self._tokenizer.encode(renamed)
        return list(encoded.ids), [(offsets[start], offsets[stop]) for start, stop in encoded.offsets]


_KNOWN: WeakKeyDictionary[PreTrainedTokenizerBase, _Controls] = WeakKeyDictionary()


def _controls(tokenizer: PreTrainedTokenizerBase) -> _Controls:
    known = _KNOWN.get(tokenizer)
    if known is None or known.size != len(tokenizer):
        known = _KNOWN[tokenizer] = _Controls(tokenizer)
    return known
