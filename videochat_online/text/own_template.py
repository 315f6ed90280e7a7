"""The chat template that a tokenizer brings along (Jinja), as the fixed strings around each side of a dialogue.

A Jinja template is a program. Those of chat models put a dialogue between fixed strings, which are found by writing
dialogues of known words with it; whether that is all it does is then tried on other dialogues, id for id. So a prompt
of ours is what transformers' `apply_chat_template` writes, or the template is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from videochat_online.errors import CheckpointError
from videochat_online.text.plain import encode_parts
from videochat_online.text.prompt import trimmed
from videochat_online.text.templates import ChatTemplate
from videochat_online.types import Turn

_SYSTEM, _USER, _REPLY, _NEXT = "Systemtextum", "Usertextum", "Replytextum", "Nexttextum"
"""Words that no template has."""
_TRIED = (
    (Turn(("What is it?",)),),
    (Turn(("Hello there",), "Good day."), Turn(("And now:\n(A) red\n(B) blue",))),
    (Turn(("One",), "1"), Turn(("Two",), "2"), Turn((" blanks around ",))),
)
"""Dialogues that both ways have to write alike."""


def own_template(tokenizer: PreTrainedTokenizerBase, name: str = "own") -> ChatTemplate:
    """The template of a tokenizer, with the system message that it writes where none is given.

    Args:
        tokenizer: with a `chat_template`.
        name: of the result.

    Raises:
        CheckpointError: no `chat_template`, or one that does more than put fixed strings around the sides.
    """
    if not tokenizer.chat_template:
        raise CheckpointError("chat template: expected one in the tokenizer, found none")
    try:
        template = _strings(tokenizer, name)
        for turns in _TRIED:
            _compare(tokenizer, template, None, turns)
    except ValueError as error:
        raise CheckpointError(
            "chat template of the tokenizer: expected fixed strings around each side of a dialogue, found one that does"
            f" more ({error}); choose another one"
        ) from error
    try:
        for turns in _TRIED:
            _compare(tokenizer, template, "Be brief.", turns)
    except Exception:  # a template says by an error of its own that it has no place for a system message
        return replace(template, takes_system=False)
    return template


def _written(tokenizer: PreTrainedTokenizerBase, system: str | None, *texts: str, goes_on: bool = True) -> str:
    """A dialogue of user and assistant in turn, without the token that every text begins with."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    messages += [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=goes_on))
    return text.removeprefix(_first_token(tokenizer))


def _first_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that the template writes once, before everything: of some tokenizers it is what opens each side."""
    first, roles = tokenizer.bos_token or "", ("user", "assistant", "user")
    text = str(tokenizer.apply_chat_template([{"role": role, "content": _USER} for role in roles], tokenize=False))
    return first if first and text.startswith(first) and text.count(first) == 1 else ""


def _between(text: str, *words: str) -> list[str]:
    """What stands before, between and after words that are there once each, in this order."""
    parts = []
    for word in words:
        if text.count(word) != 1:
            raise ValueError(f"{word} is there {text.count(word)} times")
        before, text = text.split(word)
        parts.append(before)
    return [*parts, text]


def _strings(tokenizer: PreTrainedTokenizerBase, name: str) -> ChatTemplate:
    bare, opening, between, reopened = _between(_written(tokenizer, None, _USER, _REPLY, _NEXT), _USER, _REPLY, _NEXT)
    if not opening.startswith(reopened):
        raise ValueError(f"replies are opened by {opening!r} and by {reopened!r}")
    end = next((token for token in _added(tokenizer) if between.startswith(token)), None)
    if end is None:
        raise ValueError(f"a reply is followed by {between!r}, which begins with no token of the tokenizer's own")
    closing = _between(_written(tokenizer, None, _USER, _REPLY, goes_on=False), _REPLY)[1]
    if not between.startswith(closing):  # what ends a dialogue is not what ends a reply
        closing = end
    user_prefix = between.removeprefix(closing)
    while not bare.endswith(user_prefix):  # blanks that only stand between turns
        closing, user_prefix = closing + user_prefix[0], user_prefix[1:]
    before = bare.removesuffix(user_prefix)  # what a dialogue without a system message begins with
    first, blanks = _first_token(tokenizer), f" {_USER}\n"
    is_added = tokenizer(_USER).input_ids[:1] == [tokenizer.bos_token_id]
    template = ChatTemplate(
        name=name,
        prompt_start="" if is_added else first,
        default_system_message="",
        system_prefix=before,
        system_end="",
        user_prefix=user_prefix,
        user_end="",
        assistant_prefix=reopened,
        reply_prefix=opening.removeprefix(reopened),
        reply_end=end,
        after_reply=closing.removeprefix(end),
        trims=blanks not in _written(tokenizer, None, blanks),
    )
    return _with_system(tokenizer, template, before)


def _with_system(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, before: str) -> ChatTemplate:
    try:
        prefix, end, _ = _between(_written(tokenizer, _SYSTEM, _USER), _SYSTEM, _USER)
    except Exception:  # as in `own_template`
        return replace(template, takes_system=False)
    folds = not end.endswith(template.user_prefix)
    if not folds:
        end = end.removesuffix(template.user_prefix)
    template = replace(template, system_prefix=prefix, system_end=end, folds_system=folds)
    if not before:
        return replace(template, omits_empty_system=True)
    if folds or not (before.startswith(prefix) and before.endswith(end)):
        raise ValueError(f"without a system message it begins with {before!r}")
    return replace(template, default_system_message=before.removeprefix(prefix).removesuffix(end))


def _added(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Longest first: one may begin with another."""
    return sorted(map(str, tokenizer.get_added_vocab()), key=len, reverse=True)


def _compare(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, system: str | None, turns: Sequence[Turn]
) -> None:
    """ValueError where the tokenizer writes a dialogue otherwise."""
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for turn in turns:
        messages.append({"role": "user", "content": turn.user[0]})
        if turn.assistant is not None:
            messages.append({"role": "assistant", "content": turn.assistant})
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    pieces = template.render([trimmed(turn) for turn in turns] if template.trims else turns, system_message=system)
    ours = encode_parts(tokenizer, [(str(piece.segment), piece.is_text) for piece in pieces])[0]
    if ours != list(theirs):
        raise ValueError(f"{tokenizer.decode(theirs)!r}, where fixed strings give {tokenizer.decode(ours)!r}")
