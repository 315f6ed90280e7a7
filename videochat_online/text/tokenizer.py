"""Loading tokenizers so that a text gives the ids that the weights were trained with.

Owns which files of a directory decide, and which tokens the visual part needs. Knows nothing of prompts. No remote
code is run, whatever a directory asks for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from videochat_online.constants import SPECIAL_TOKENS
from videochat_online.errors import CheckpointError, InputError
from videochat_online.runs.files import read_object
from videochat_online.text.sentencepiece_tokenizer import SentencePieceTokenizer
from videochat_online.text.templates import ChatTemplate
from videochat_online.text.wording import INTERNVL, Wording

_LEGACY_BY_CLASS: dict[str, bool | None] = {"LlamaTokenizer": None, "InternLM2Tokenizer": True}
"""Classes that encode by sentencepiece. None: the directory's `legacy` entry decides, True if absent."""


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory.

    The first that applies decides:

    1. `tokenizer.model` of a `LlamaTokenizer` or `InternLM2Tokenizer`: sentencepiece, as in training, even
       where a `tokenizer.json` lies beside it (its ids differ around chat markers).
    2. `tokenizer.json`: taken as it is.
    3. anything else that transformers itself can read without remote code.

    `save_pretrained` of the result writes a directory from which this function gives the same ids.

    Raises:
        InputError: `directory` is no directory.
        CheckpointError: it holds no tokenizer that can be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"tokenizer: expected a directory, found none at {directory}")
    settings = directory / "tokenizer_config.json"
    try:
        config = read_object(settings) if settings.is_file() else {}
        if config.get("tokenizer_class") in _LEGACY_BY_CLASS and (directory / "tokenizer.model").is_file():
            return _load_sentencepiece(directory, config)
        if (directory / "tokenizer.json").is_file():
            return cast(PreTrainedTokenizerBase, PreTrainedTokenizerFast.from_pretrained(directory))
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # the libraries' parsers raise plain Exception and RuntimeError among others
        raise CheckpointError(
            f"tokenizer in {directory}: expected tokenizer.model, tokenizer.json or another tokenizer that"
            f" transformers can read without remote code, found {_listing(directory)}: {error}"
        ) from error


def _load_sentencepiece(directory: Path, config: dict[str, Any]) -> SentencePieceTokenizer:
    legacy = _LEGACY_BY_CLASS[config["tokenizer_class"]]
    if legacy is None:
        legacy = True if config.get("legacy") is None else bool(config["legacy"])
    # Given as arguments because transformers drops the two switches where a tokenizer.json is present.
    tokenizer = SentencePieceTokenizer.from_pretrained(
        directory,
        legacy=legacy,
        add_bos_token=bool(config.get("add_bos_token", True)),
        add_eos_token=bool(config.get("add_eos_token", False)),
    )
    return cast(SentencePieceTokenizer, tokenizer)


def _listing(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir() if path.name.startswith(("token", "vocab")))
    return ", ".join(names) or "no such file"


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    """Id of one token, None where the vocabulary lacks it (transformers gives the unknown token's)."""
    index = tokenizer.convert_tokens_to_ids(token)
    if index is None or tokenizer.convert_ids_to_tokens(index) != token:
        return None
    return cast(int, index)


def visual_token_id(tokenizer: PreTrainedTokenizerBase, wording: Wording = INTERNVL) -> int:
    """Id of the token that stands for each visual token: <IMG_CONTEXT> of InternVL's.

    Raises:
        CheckpointError: names those of the tokens of pictures that the vocabulary lacks.
    """
    names = [name for name in (wording.opens, wording.closes, wording.token) if name]
    found = {name: token_id(tokenizer, name) for name in names}
    missing = [name for name, index in found.items() if index is None]
    if missing:
        raise CheckpointError(
            f"tokenizer {tokenizer.name_or_path!r}: expected the tokens {', '.join(names)}, found no"
            f" {', '.join(missing)}; add_special_tokens() adds them to a tokenizer of a plain language model"
        )
    return cast(int, found[wording.token])


def add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Add those of SPECIAL_TOKENS that are missing; returns how many, for the embeddings to grow by."""
    missing = [token for token in SPECIAL_TOKENS if token_id(tokenizer, token) is None]
    return int(tokenizer.add_tokens(missing, special_tokens=True)) if missing else 0


def leave_ends_to_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Have a tokenizer put nothing around a text, as `apply_chat_template` does: bos is the template's to write.

    To be called before the tokenizer is used. `save_pretrained` keeps it so.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        tokenizer.add_bos_token = tokenizer.add_eos_token = False
    elif isinstance(tokenizer, PreTrainedTokenizerFast):
        trims = _trimmed_offsets(json.loads(tokenizer.backend_tokenizer.to_str())["post_processor"])
        tokenizer.add_bos_token = tokenizer.add_eos_token = False
        if trims is not None:  # whether a word's place begins with the blank before it
            tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trims)


def _trimmed_offsets(processor: dict[str, Any] | None) -> bool | None:
    """What a tokenizer on bytes does with places; None of others."""
    if processor is None or "trim_offsets" in processor:
        return None if processor is None else bool(processor["trim_offsets"])
    parts = map(_trimmed_offsets, processor.get("processors", ()))
    return next((trims for trims in parts if trims is not None), None)


def end_token_id(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> int:
    """Id of the token that ends a reply: where generation stops.

    Raises:
        InputError: the tokenizer has no such token: the template belongs to another family of models.
    """
    index = token_id(tokenizer, template.reply_end)
    if index is None:
        raise InputError(
            f"chat template {template.name!r}: expected {template.reply_end!r} to be a token of the tokenizer"
            f" {tokenizer.name_or_path!r}, found none; the template belongs to another model"
        )
    return index


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> tuple[int, ...]:
    """Ids at which generation stops, that of the end of a reply first; InputError as of `end_token_id`."""
    end = end_token_id(tokenizer, template)
    others = (token_id(tokenizer, token) for token in template.more_ends)
    return (end, *(index for index in others if index not in (None, end)))
