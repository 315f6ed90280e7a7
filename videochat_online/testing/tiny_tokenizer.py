"""A small tokenizer for tiny test models: Phi-3's chat markers, the image tokens, bytes for all other text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from videochat_online.constants import SPECIAL_TOKENS

MARKERS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
SEQUENCE_TOKENS = ("<unk>", "<s>", "</s>", "<|endoftext|>")

_TEXT = """Frame1 at 0.0s: Frame2 at 0.5s: Frame12 at 11.5s: Frame3: Frame45: Question at 12.0s: Options:
(A) yes (B) no (C) the red square (D) the blue circle Answer: Best option:(
What is the person doing now? What just happened? How many times? Where is the ball?
Only give the best option. Carefully watch the video and pay attention to the cause and sequence of events,
the detail and movement of objects, and the action and pose of persons. Based on your observations, select
the best option that accurately addresses the question.
A man in a blue shirt is cooking soup in a kitchen. The dog runs away from the red ball to the left.
"""


def build_tiny_tokenizer(texts: Iterable[str] = (), vocab_size: int = 600) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on a built-in text and on `texts`.

    The same arguments always give the same tokenizer. Any text can be encoded; each text starts with <s>. The
    chat markers swallow a line break that follows them, as Phi-3's do.

    Args:
        texts: more text to learn words from.
        vocab_size: number of all tokens, added ones included; fewer where the texts hold too few words.

    Raises:
        ValueError: `vocab_size` leaves no room for the 256 bytes.
    """
    added = [*SEQUENCE_TOKENS, *MARKERS, *SPECIAL_TOKENS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(added) + len(alphabet):
        raise ValueError(f"vocab_size: expected at least {len(added) + len(alphabet)}, found {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added), initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator([_TEXT, *texts], trainer)
    return _fast(tokenizer, added)


TIMES = {False: r"(?: at [0-9]+\.[0-9]s)?: ", True: r" at [0-9]+|\.[0-9]s: |: "}
"""` at 11.0s: ` in one piece, or in two (` at 11`, `.0s: `)."""
OTHER_PIECES = r"Frame[0-9]+|\n?\(|[A-Z]\)| ?[A-Za-z]+|[^A-Za-z]"
"""Pieces of a prompt that are one token each where they are known: `Frame12`, ` left`, `A)`; after all others."""


def build_word_tokenizer(
    words: Iterable[str], last_s: int, fps: int, phrases: Iterable[str] = (), *, split_times: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer that knows whole words, frame numbers and times; bytes for all other text.

    Frame lines then cost a tiny model two tokens, not ten.

    Args:
        words: words to be known, with and without a blank before them.
        last_s: latest time to be known, in seconds.
        fps: frames per second: how many numbers and times there are.
        phrases: texts that are one token each, such as a system message that stands before everything.
        split_times: a time is two tokens, as in ` at 11` and `.5s: `: half as many to learn in long streams, and
            what is learned at one half of a second holds for the other.
    """
    numbers = range(last_s * fps + 1)
    phrases = list(phrases)
    known = [*phrases, *(f"Frame{number + 1}" for number in numbers)]
    if split_times:
        known += [*(f" at {second}" for second in range(last_s + 1)), *(f".{tenth}s: " for tenth in range(10))]
    else:
        known += [f" at {number / fps:.1f}s: " for number in numbers]
    known += [": ", "(", "\n(", *(f"{letter})" for letter in "ABCDEFGH")]
    known += [variant for word in words for variant in (word, f" {word}")]
    known += [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*SEQUENCE_TOKENS, *MARKERS, *SPECIAL_TOKENS]
    # All alike: a piece that is known is one token, whatever it could be cut into.
    entries = [(token, 0.0 if token in tokens else -1.0) for token in dict.fromkeys([*tokens, *known])]
    tokenizer = Tokenizer(models.Unigram(entries, unk_id=0, byte_fallback=True))
    pattern = "|".join([*map(re.escape, phrases), TIMES[split_times], OTHER_PIECES])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return _fast(tokenizer, tokens)


def _fast(tokenizer: Tokenizer, special: Iterable[str]) -> PreTrainedTokenizerFast:
    """As transformers wants it, with special tokens; each text starts with <s>."""
    tokenizer.add_special_tokens(
        [AddedToken(token, rstrip=token in MARKERS, normalized=False, special=True) for token in special]
    )
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[bos]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
