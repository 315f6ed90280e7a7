"""A sentencepiece tokenizer of ours as one that any program reads from `tokenizer.json`, with the same ids.

Three places of the original have no counterpart in that format; two of them are put together from what it has:

* `legacy=False` puts one "▁" in front of a text whatever it begins with, and none in front of the parts after an added
  token. "Metaspace" alone puts none before a blank: here blanks are "▁" before it looks, and what it puts is a blank.
* A text that begins with an added token gets a lone "▁" in front. Nothing in the format writes one: chat templates do.
* A "▁" that somebody wrote counts as a blank for an added token that swallows blanks; here it is kept.

Whether the ids are the same is for `check_texts` to say: it encodes texts of all kinds with both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from videochat_online.errors import CheckpointError
from videochat_online.text.sentencepiece_tokenizer import BLANK, SentencePieceTokenizer, model_proto

_UNIGRAM, _BPE = 1, 2

PLAIN_TEXTS = (
    "hello",
    "Hello, world! What is the man doing now?",
    " a blank in front",
    "  two, and one behind ",
    "a\nb\n\n c\t d",
    "four    blanks",
    "0.5s 12.0 1234567890 3,5",
    "(A) yes\n(B) no\nBest option:(",
    "Frame12 at 11.5s: ",
    "你好，世界！視頻 日本語 한국어 العربية עברית ไทย",
    "Ça va — “oui” … ½ ﬁ Ⅳ é e\u0301 ＡＢ",
    "😀👩‍👩‍👧 \U0001f1e9\U0001f1ea ∑∫√ \u200b\u00a0\u3000x",
    "x = {'a': [1, 2]}  # <tag> </tag> |pipe| \\n %s",
    "under ▁bar ▁▁ ▁ x",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa zzzzzz qqq",
    "\x00\x7f\r\n.",
)
"""Texts of every kind that a tokenizer may treat in a way of its own; no control tokens."""


def fast_copy(tokenizer: SentencePieceTokenizer) -> PreTrainedTokenizerFast:
    """The same vocabulary and rules, for `tokenizer.json`.

    Raises:
        CheckpointError: the model file is of a kind that the format does not know, or added tokens leave ids out.
    """
    proto = model_proto(tokenizer)
    fast = Tokenizer(_model(proto))
    charsmap = proto.normalizer_spec.precompiled_charsmap
    normal: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if tokenizer.legacy and proto.normalizer_spec.add_dummy_prefix:
        normal.append(normalizers.Prepend(BLANK))
    fast.normalizer = normalizers.Sequence([*normal, normalizers.Replace(" ", BLANK)])
    if not tokenizer.legacy:
        first = pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False)
        blanks = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="never", split=False)
        fast.pre_tokenizer = pre_tokenizers.Sequence([first, blanks])
    fast.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    for index, token in sorted(tokenizer.added_tokens_decoder.items()):
        entry = AddedToken(str(token), lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)
        _ = fast.add_special_tokens([entry]) if token.special else fast.add_tokens([entry])
        if (found := fast.token_to_id(str(token))) != index:
            raise CheckpointError(
                f"tokenizer: {str(token)!r} has the id {index}, in tokenizer.json it would be {found}"
            )
    bos = str(tokenizer.bos_token) if tokenizer.add_bos_token else ""
    eos = str(tokenizer.eos_token) if tokenizer.add_eos_token else ""
    ends = [(token, fast.token_to_id(token)) for token in (bos, eos) if token]
    if ends:
        single = " ".join(filter(None, (bos, "$A", eos)))
        fast.post_processor = processors.TemplateProcessing(
            single=single, pair=f"{single} {single.replace('$A', '$B')}", special_tokens=ends
        )
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(tokenizer_object=fast, clean_up_tokenization_spaces=False, **names)


def _model(proto: Any) -> models.Model:
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    trainer = proto.trainer_spec
    if trainer.model_type == _UNIGRAM:
        return models.Unigram(pieces, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback)
    if trainer.model_type != _BPE:
        raise CheckpointError("tokenizer.model: expected BPE or unigram pieces, which tokenizer.json knows")
    vocab = {piece: index for index, (piece, _) in enumerate(pieces)}
    merges = generate_merges(vocab, dict(pieces))
    return models.BPE(vocab, merges, unk_token=trainer.unk_piece, fuse_unk=True, byte_fallback=trainer.byte_fallback)


def as_saved(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """A copy that went through its files."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return cast(PreTrainedTokenizerFast, PreTrainedTokenizerFast.from_pretrained(Path(folder)))


def check_texts(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> None:
    """Encode `PLAIN_TEXTS` with both.

    Raises:
        CheckpointError: names the first text whose ids differ, and both.
    """
    for text in PLAIN_TEXTS:
        compare_ids(text, *(tokenizer(text)["input_ids"] for tokenizer in (ours, theirs)))


def compare_ids(text: str, ours: Sequence[int], theirs: Sequence[int]) -> None:
    """Raises a CheckpointError that shows the text and the ids around the first that differs."""
    if list(ours) == list(theirs):
        return
    index = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(theirs))
    near = slice(max(0, index - 2), index + 4)
    raise CheckpointError(
        f"tokenizer: {text!r}: token {index + 1} and those around it have the ids {list(ours[near])}; from"
        f" tokenizer.json and chat_template.jinja, which other programs read, {list(theirs[near])}"
    )
