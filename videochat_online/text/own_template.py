"""The chat template that a tokenizer brings along (Jinja), as the fixed strings around each side of a dialogue.

A Jinja template is a program. Those of chat models put a dialogue between fixed strings, which are found by writing
dialogues of known words with it; whether that is all it does is then tried on other dialogues, id for id. So a prompt
of ours is what transformers' `apply_chat_template` writes, or the template is refused. It writes what begins a text,
too, so that the tokenizer no longer does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

from transformers import PreTrainedTokenizerBase

from videochat_online.errors import CheckpointError, one_line
from videochat_online.text.control_tokens import encode_parts
from videochat_online.text.prompt import prompt_pieces
from videochat_online.text.templates import OWN, ChatTemplate
from videochat_online.text.tokenizer import leave_ends_to_template
from videochat_online.types import Turn

logger = logging.getLogger(__name__)

_SYSTEM, _USER, _REPLY, _NEXT = "Systemtextum", "Usertextum", "Replytextum", "Nexttextum"
"""Words that no template has."""
_TRIED = (
    (Turn(("What is it?",)),),
    (Turn(("Hello there",), "Good day."), Turn(("And now:\n(A) red\n(B) blue",))),
    (Turn(("One",), "1"), Turn(("Two",), "2"), Turn((" blanks around ",))),
    (*[Turn(("More",), "3")] * 5, Turn(("Last",))),
)
"""Dialogues that both ways have to write alike."""


class _NotFixedError(Exception):
    """A template does more than put fixed strings around texts; says what was expected, and what it does."""


def own_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The template of a tokenizer, with the system message that it writes where none is given.

    The tokenizer itself puts nothing around a text from then on; to be called before it is used.

    Args:
        tokenizer: tokenizer with a `chat_template`.

    Raises:
        CheckpointError: no `chat_template`, or one that does more than put fixed strings around the sides.
    """
    what = f"chat template of the tokenizer {tokenizer.name_or_path!r}"
    if not tokenizer.chat_template:
        raise CheckpointError(f"{what}: expected one, found none; choose a template by name, such as chatml")
    leave_ends_to_template(tokenizer)
    try:
        template = _strings(tokenizer)
        for turns in _TRIED:
            _compare(tokenizer, template, None, turns)
    except Exception as error:  # jinja's own, and whatever a template trips over
        failed = f"that it writes a dialogue of texts, found {type(error).__name__}: {one_line(error, 300)}"
        reason = one_line(error, 400) if isinstance(error, _NotFixedError) else failed
        raise CheckpointError(f"{what}: expected {reason}; choose a template by name, such as chatml") from error
    _tell_what_moves(tokenizer)
    try:
        for turns in _TRIED:
            _compare(tokenizer, template, "Be brief.", turns)
    except Exception:  # a template says by an error of its own that it has no place for a system message
        before = template.system_prefix + template.default_system_message + template.system_end
        return replace(template, takes_system=False, system_prefix=before, default_system_message="", system_end="")
    return template


def _tell_what_moves(tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn of what fixed strings cannot say, and dialogues of today do not show."""
    source = tokenizer.get_chat_template()
    today, other = (
        tokenizer.apply_chat_template(
            [{"role": "user", "content": _USER}], chat_template=clock + source, tokenize=False
        )
        for clock in ("", f"{{%- macro strftime_now(form) -%}}{_NEXT}{{%- endmacro -%}}")
    )
    if today != other:
        logger.warning("the chat template writes the date: it stays that of today, %s", date.today())
    thought = f"<think>\n{_SYSTEM}\n</think>\n\n{_REPLY}"
    if _SYSTEM not in _written(tokenizer, None, _USER, thought, _NEXT):
        logger.warning("the chat template leaves <think> ... </think> out of earlier replies: here it stays in them")


def _written(tokenizer: PreTrainedTokenizerBase, system: str | None, *texts: str, goes_on: bool = True) -> str:
    """A dialogue of user and assistant in turn, without the token that every text begins with."""
    messages = _messages(system, *texts)
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=goes_on))
    return text.removeprefix(_first_token(tokenizer))


def _messages(system: str | None, *texts: str) -> list[dict[str, str]]:
    told = [] if system is None else [{"role": "system", "content": system}]
    return told + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


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
            raise _NotFixedError(f"each text of a dialogue once, as it is, found {word} {text.count(word)} times")
        before, text = text.split(word)
        parts.append(before)
    return [*parts, text]


def _strings(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    bare, opening, between, reopened = _between(_written(tokenizer, None, _USER, _REPLY, _NEXT), _USER, _REPLY, _NEXT)
    if not opening.startswith(reopened):
        raise _NotFixedError(f"the same words before each reply, found {opening!r} and {reopened!r}")
    longest_first = sorted(map(str, tokenizer.get_added_vocab()), key=len, reverse=True)  # one may begin with another
    end = next((token for token in longest_first if between.lstrip().startswith(token)), None)
    if end is None:
        raise _NotFixedError(f"a special token of the tokenizer at the end of each reply, found {between!r}")
    suffix = between[: between.index(end)]
    closing = _between(_written(tokenizer, None, _USER, _REPLY, goes_on=False), _REPLY)[1]
    if not between.startswith(closing):  # what ends a dialogue is not what ends a reply
        closing = suffix + end
    user_prefix = between.removeprefix(closing)
    while not bare.endswith(user_prefix):  # blanks that only stand between turns
        closing, user_prefix = closing + user_prefix[0], user_prefix[1:]
    before = bare.removesuffix(user_prefix)  # what a dialogue without a system message begins with
    first = _first_token(tokenizer)
    if not first and _opens_once(str(tokenizer.bos_token), bare, between):
        first, before = str(tokenizer.bos_token), before.removeprefix(str(tokenizer.bos_token))
    template = ChatTemplate(
        name=OWN,
        prompt_start=first,
        default_system_message="",
        system_prefix=before,
        system_end="",
        user_prefix=user_prefix,
        user_end="",
        assistant_prefix=reopened,
        reply_prefix=opening.removeprefix(reopened),
        reply_suffix=suffix,
        reply_end=end,
        after_reply=closing.removeprefix(suffix + end),
        trims=_is_trimmed(_written(tokenizer, None, _blanks(_USER)), _USER),
        trims_replies=_is_trimmed(_written(tokenizer, None, _USER, _blanks(_REPLY), _NEXT), _REPLY),
    )
    if template.trims and not template.trims_replies:
        raise _NotFixedError("blanks taken from around replies, as from around what users say, found them there")
    return _with_system(tokenizer, template)


def _blanks(word: str) -> str:
    return f"\n {word} \n"


def _is_trimmed(text: str, word: str) -> bool:
    """Whether blanks go, or some of them: then ours all go, so that a text without any is written alike."""
    return _blanks(word) not in text


def _opens_once(bos: str, bare: str, between: str) -> bool:
    """The token that every text begins with may also end replies."""
    return bool(bos) and bare.startswith(bos) and bare.count(bos) == 1 and not between.endswith(bare)


def _with_system(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> ChatTemplate:
    """With its place for a system message, whose prefix is so far what a dialogue without one begins with."""
    before = template.system_prefix
    try:
        told = _written(tokenizer, _SYSTEM, _USER).removeprefix(template.prompt_start)
        prefix, end, _ = _between(told, _SYSTEM, _USER)
        trims = _is_trimmed(_written(tokenizer, _blanks(_SYSTEM), _USER), _SYSTEM)
    except Exception:  # as in `own_template`
        return replace(template, takes_system=False)
    folds = not end.endswith(template.user_prefix)
    if not folds:
        end = end.removesuffix(template.user_prefix)
    template = replace(template, system_prefix=prefix, system_end=end, folds_system=folds, trims_system=trims)
    if not before:
        return replace(template, omits_empty_system=True)
    if folds or not (before.startswith(prefix) and before.endswith(end)):
        raise _NotFixedError(f"one place for a system message, given or not, found {before!r} where none is given")
    return replace(template, default_system_message=before.removeprefix(prefix).removesuffix(end))


def _compare(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, system: str | None, turns: Sequence[Turn]
) -> None:
    """Raise an _NotFixedError where the tokenizer writes a dialogue otherwise."""
    said = [str(text) for turn in turns for text in (turn.user[0], turn.assistant) if text is not None]
    theirs = tokenizer.apply_chat_template(_messages(system, *said), add_generation_prompt=True, return_dict=False)
    pieces, _ = prompt_pieces(turns, template, system)
    ours = encode_parts(tokenizer, [(str(piece.segment), piece.is_text) for piece in pieces])[0]
    if ours != list(theirs):
        expected, found = tokenizer.decode(ours), tokenizer.decode(theirs)
        raise _NotFixedError(f"fixed strings around each side, as in {expected!r}, found {found!r}")
