"""Small tokenizers of the kinds that checkpoints come with, trained on the spot, and chat templates for them."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from videochat_online.constants import SPECIAL_TOKENS
from videochat_online.text import TEMPLATES, load_tokenizer
from videochat_online.text.templates import OWN

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


TOOL_TOKENS = ("<tool_call>", "</tool_call>")
"""Added to a vocabulary as tokens that are not special."""
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def fast_tokenizer(kind: str, markers: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """One of a family that comes as `tokenizer.json`.

    Args:
        kind: `llama` puts a blank in front of each part of a text. `byte_level` has a token for each byte, and merges
            that lead to <img>. `unigram` has its control tokens among the pieces of the model and makes one sign of
            others (NFKC). `whole_words` looks words up before it merges, and its bytes are special tokens.
        markers: of the chat; they swallow blanks after them in `llama`.
    """
    named = ("<unk>", "<s>", "</s>", "<|endoftext|>")
    special = [*named, *markers, *SPECIAL_TOKENS]
    if kind == "unigram":
        pieces = [(token, 0.0) for token in special] + [(token, -9.0) for token in _BYTES]
        pieces += [(character, -5.0) for character in sorted(set(WORDS) | {"▁"})]
        pieces += [("▁the", -2.0), ("end", -2.0), ("<|", -2.0), ("img", -2.0)]
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    elif kind == "byte_level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        _train(tokenizer, pre_tokenizers.ByteLevel.alphabet())
        tokenizer = _merging(tokenizer, "<img>")
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", ignore_merges=kind == "whole_words"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        _train(tokenizer, "", [*special, *_BYTES])
        if kind == "llama":
            state = json.loads(tokenizer.to_str())
            state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in _BYTES]
            tokenizer = Tokenizer.from_str(json.dumps(state))
    strips = markers if kind == "llama" else ()
    tokenizer.add_special_tokens(
        [AddedToken(token, rstrip=token in strips, normalized=False, special=True) for token in special]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=True, special=False) for token in TOOL_TOKENS])
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


def _train(tokenizer: Tokenizer, alphabet: object, special: list[str] | None = None) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=list(alphabet), special_tokens=special or [], show_progress=False
    )
    tokenizer.train_from_iterator([WORDS, *WORDS.split()] * 9, trainer)


def _merging(tokenizer: Tokenizer, token: str) -> Tokenizer:
    """The same with merges that lead to a token, as a corpus of dialogues gives them."""
    state = json.loads(tokenizer.to_str())
    vocab = state["model"]["vocab"]
    for stop in range(2, len(token) + 1):
        vocab.setdefault(token[:stop], len(vocab))
    chain = [[token[:stop], token[stop]] for stop in range(1, len(token))]
    state["model"]["merges"] = [*chain, *state["model"]["merges"]]
    return Tokenizer.from_str(json.dumps(state))


FAMILIES = {
    "phi3": "phi3-chat",
    "internlm2": "internlm2-chat",
    "marked": "internvl_zh",
    "llama": "phi3-chat",
    "byte_level": "Hermes-2",
    "unigram": "internvl2_5",
    "whole_words": "phi3-chat",
}
"""Tokenizers, and the template that each is tried with."""


def family_tokenizers(path: Path) -> dict[str, PreTrainedTokenizerBase]:
    """All of FAMILIES; those of sentencepiece are written to a folder."""
    older = {"tokenizer_class": "InternLM2Tokenizer"}
    user_defined = {"user_defined_symbols": "<sep>,<|user|>,--", "model_type": "unigram", "vocab_size": 340}
    directories = {
        "phi3": write_sentencepiece_directory(path / "phi3", markers=(*PHI3_MARKERS, *TOOL_TOKENS)),
        "internlm2": write_sentencepiece_directory(path / "internlm2", markers=IM_MARKERS, config=older),
        "marked": write_sentencepiece_directory(path / "marked", markers=(), **user_defined),
    }
    fast = {"llama": PHI3_MARKERS, "byte_level": IM_MARKERS, "unigram": IM_MARKERS, "whole_words": PHI3_MARKERS}
    return {name: load_tokenizer(directory) for name, directory in directories.items()} | {
        name: fast_tokenizer(name, markers) for name, markers in fast.items()
    }


NAMED_TEMPLATES = tuple(name for name in TEMPLATES.built_in if name != OWN)
"""Built-in templates that need no tokenizer."""

# Chat templates as tokenizers bring them.
EACH = "{% for m in messages %}"
END = "{% endfor %}"
CHATML = (
    EACH + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}" + END +
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # fmt: skip
WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}" + CHATML
)
PHI3 = (
    EACH + "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}" + END +
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|eot|>' }}{% endif %}"
)  # fmt: skip
LLAMA3 = (
    "{{ bos_token }}" + EACH +
    "{{ '<|head|>' + m['role'] + '<|tail|>\n\n' + m['content'] | trim + '<|eot|>' }}" + END +
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|tail|>\n\n' }}{% endif %}"
)  # fmt: skip
TURNS = EACH.replace("messages", "rest") + (
    "{{ '<turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + (first if loop.first else '')"
    " + m['content'] | trim + '</turn>\n' }}"
) + END + "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"  # fmt: skip
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}" + TURNS
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% set first = '' %}{% set rest = messages %}" + TURNS
)
MISTRAL = (
    "{{ bos_token }}" + EACH + "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + '</s>' }}{% endif %}" + END
)  # fmt: skip
LLAMA2 = (
    EACH + "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' </s>' }}{% endif %}" + END
)  # fmt: skip
MARKERS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>", "<|eot|>")
MARKERS += ("<|head|>", "<|tail|>", "<turn>", "</turn>", "[INST]", "[/INST]", *SPECIAL_TOKENS)


def tokenizer_with(chat_template: str | None, bos: str = "<s>", adds_bos: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=list(MARKERS), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["what is it now"], trainer)
    if adds_bos:
        single = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = single
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos)
    fast.chat_template = chat_template
    return fast
