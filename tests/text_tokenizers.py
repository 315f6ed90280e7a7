"""Small tokenizers of the kinds that checkpoints come with, trained on the spot."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import sentencepiece

from videochat_online.constants import SPECIAL_TOKENS

PHI3_MARKERS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
IM_MARKERS = ("<|im_start|>", "<|im_end|>")
WORDS = (
    "the cat sat on the mat and the dog ran away from the ball . Frame1 at 0.5s: what is the man doing now ?"
    " system user assistant Options: (A) yes (B) no    four  blanks 世界 你好 <img> <|user|> é ü"
)


@cache
def sentencepiece_model(**options: object) -> bytes:
    writer = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "character_coverage": 0.98,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    } | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS, "a   a    a     a", *WORDS.split()] * 5), model_writer=writer, **settings
    )
    return writer.getvalue()


def write_sentencepiece_directory(
    directory: Path, *, markers: tuple[str, ...] = PHI3_MARKERS, config: dict | None = None, **options: object
) -> Path:
    """The layout of Phi-3 (`config` None) or, with other entries, of its relatives."""
    directory.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model(**options)
    (directory / "tokenizer.model").write_bytes(model)
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    flags = {"lstrip": False, "normalized": False, "single_word": False, "special": True}
    added = {str(index): token for index, token in enumerate(("<unk>", "<s>", "</s>"))}
    added |= {str(size + index): token for index, token in enumerate((*markers, *SPECIAL_TOKENS))}
    entries = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>" if "<|endoftext|>" in markers else "</s>",
        "pad_token": "<|endoftext|>" if "<|endoftext|>" in markers else "</s>",
        "unk_token": "<unk>",
        "additional_special_tokens": list(SPECIAL_TOKENS),
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            index: {"content": token, "rstrip": token in PHI3_MARKERS[1:], **flags} for index, token in added.items()
        },
    } | (config or {})
    (directory / "tokenizer_config.json").write_text(json.dumps(entries), encoding="utf-8")
    return directory
