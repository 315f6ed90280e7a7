"""Chat templates: the strings around each side of a dialogue.

Owns the exact wording that each family of checkpoints was trained with. Knows nothing of tokens: it turns
turns into pieces of text and pictures, and says which pieces a model is trained to write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import pydantic
from transformers import PreTrainedTokenizerBase

from videochat_online.documents import fault_of
from videochat_online.errors import InputError, shown
from videochat_online.parts import PartKind
from videochat_online.text.wording import INTERNVL, Wording
from videochat_online.types import Mark, Turn, Visual

OWN = "own"
"""Name of the template that is made of the `chat_template` of a tokenizer."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of characters, or one picture, of a rendered prompt.

    Attributes:
        segment: the characters or the picture.
        supervised: the model is to write it.
        is_text: somebody says it; else the template or a picture puts it there, and its control tokens are meant.
    """

    segment: str | Visual
    supervised: bool = False
    is_text: bool = False


@pydantic.dataclasses.dataclass(
    frozen=True, slots=True, kw_only=True, config=pydantic.ConfigDict(strict=True, extra="forbid")
)
class ChatTemplate:
    """The fixed strings of one chat format, in the order in which they appear.

    Attributes:
        name: name as written in a checkpoint's `template` field.
        default_system_message: system message where the caller gives none.
        system_prefix: text before the system message.
        system_end: text after it.
        user_prefix: text before what the user says.
        user_end: text after it.
        assistant_prefix: text that opens the reply; a prompt for generation ends with it.
        reply_prefix: text that the model writes before the reply itself.
        reply_suffix: text that it writes after the reply, before the end token.
        reply_end: the token that ends a reply; the model learns to write it, and generation stops at it.
        after_reply: text that follows the end token; never learned.
        trims: whether checkpoints were trained on sides of a dialogue without blanks and line breaks around them.
        trims_replies: whether they were trained on replies without them.
        trims_system: whether they were trained on system messages without them.
        omits_empty_system: whether nothing stands in the place of a missing system message.
        folds_system: whether the system message opens the first user's side, before which `user_prefix` is not
            repeated.
        takes_system: whether there is a place for a system message.
        prompt_start: text before everything, where the tokenizer does not put it there.
        more_ends: other tokens at which generation stops; never learned.
    """

    name: str
    default_system_message: str
    system_prefix: str
    system_end: str
    user_prefix: str
    user_end: str
    assistant_prefix: str
    reply_prefix: str = ""
    reply_suffix: str = ""
    reply_end: Annotated[str, pydantic.Field(min_length=1)]
    after_reply: str = ""
    trims: bool = False
    trims_replies: bool = False
    trims_system: bool = False
    omits_empty_system: bool = False
    folds_system: bool = False
    takes_system: bool = True
    prompt_start: str = ""
    more_ends: Annotated[tuple[str, ...], pydantic.Strict(False)] = ()  # a list in JSON

    def to_config(self) -> str | dict[str, Any]:
        """What `config.json` says of it, and `stored_template` reads: a name where that is enough everywhere."""
        is_known = self.name in TEMPLATES.built_in and TEMPLATES.find(self.name) == self
        return self.name if is_known else asdict(self)

    def render(
        self, turns: Sequence[Turn], *, system_message: str | None = None, generation_prefix: str = ""
    ) -> tuple[Piece, ...]:
        """Lay out a dialogue.

        Args:
            turns: turns in order. The last one may have `assistant=None`: the prompt then ends where the model goes on.
            system_message: None takes the template's own; "" leaves the system part empty.
            generation_prefix: words put into the model's mouth, such as "Best option:(".

        Returns:
            The pieces of the prompt; joined, they are the whole prompt.

        Raises:
            InputError: no turns; a reply missing before the last turn; a generation prefix where nothing is
                to be generated; a system message that has no place.
        """
        _check_turns(turns, generation_prefix)
        system = self.default_system_message if system_message is None else system_message
        if system and not self.takes_system:
            raise InputError(f"chat template {self.name!r}: expected no system message, found {system!r}")
        pieces = [Piece(self.prompt_start)]
        if system or not self.omits_empty_system:
            pieces += [Piece(self.system_prefix), Piece(system, is_text=True), Piece(self.system_end)]
        is_opened = bool(system) and self.folds_system
        for turn in turns:
            pieces.append(Piece("" if is_opened else self.user_prefix))
            is_opened = False
            for segment in turn.user:
                written = segment.text if isinstance(segment, Mark) else segment
                pieces.append(Piece(written, is_text=isinstance(segment, str)))
            pieces.append(Piece(self.user_end + self.assistant_prefix))
            if turn.assistant is None:
                pieces.append(Piece(generation_prefix, is_text=True))
            else:
                pieces.append(Piece(self.reply_prefix, supervised=True))
                pieces.append(Piece(turn.assistant, supervised=True, is_text=True))
                pieces.append(Piece(self.reply_suffix + self.reply_end, supervised=True))
                pieces.append(Piece(self.after_reply))
        return tuple(piece for piece in pieces if piece.segment != "")


def _check_turns(turns: Sequence[Turn], generation_prefix: str) -> None:
    if not turns:
        raise InputError("prompt: expected at least one turn, found none")
    for number, turn in enumerate(turns[:-1], start=1):
        if turn.assistant is None:
            raise InputError(f"turn {number} of {len(turns)}: expected a reply, as in all but the last, found none")
    if generation_prefix and turns[-1].assistant is not None:
        raise InputError(
            f"generation prefix {generation_prefix!r}: expected a last turn without reply,"
            f" found {turns[-1].assistant!r}"
        )


def display_text(pieces: Sequence[Piece], wording: Wording = INTERNVL) -> str:
    """The prompt for people: visual tokens are written once, with their number (`<IMG_CONTEXT>*256`)."""
    return "".join(
        f"{wording.opens}{wording.token}*{piece.segment.num_tokens}{wording.closes}"
        if isinstance(piece.segment, Visual)
        else piece.segment
        for piece in pieces
    )


# The system messages introduce the assistant in Chinese; checkpoints were trained with them word for word.
_INTERNVL2_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_INTERNVL2_5_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


def _marked(
    name: str,
    system: str,
    *,
    opens: str = "<|im_start|>{}\n",
    end: str = "<|im_end|>",
    after: str = "",
    trims: bool = False,
) -> ChatTemplate:
    """A side is its role as `opens` has it, its text, `end` and `after`; by default ChatML's."""
    return ChatTemplate(
        name=name,
        default_system_message=system,
        system_prefix=opens.format("system"),
        system_end=end + after,
        user_prefix=opens.format("user"),
        user_end=end + after,
        assistant_prefix=opens.format("assistant"),
        reply_end=end,
        after_reply=after,
        trims=trims,
    )


PHI3_CHAT = _marked("phi3-chat", _INTERNVL2_SYSTEM, opens="<|{}|>\n", end="<|end|>")
INTERNLM2_CHAT = _marked("internlm2-chat", _INTERNVL2_SYSTEM, trims=True)
HERMES_2 = _marked("Hermes-2", _INTERNVL2_SYSTEM)
INTERNVL2_5 = _marked("internvl2_5", _INTERNVL2_5_SYSTEM, after="\n")
CHATML = replace(_marked("chatml", "", after="\n"), omits_empty_system=True)
QWEN = replace(CHATML, name="qwen", default_system_message="You are a helpful assistant.")
INTERNVL_ZH = ChatTemplate(
    name="internvl_zh",
    default_system_message="",
    system_prefix="",
    system_end=" ",  # separates the parts: without a system message the prompt starts with it
    user_prefix="<human>: ",
    user_end=" ",
    assistant_prefix="<bot>:",
    reply_prefix=" ",
    reply_end="</s>",
)

TEMPLATES = PartKind(
    name="template",
    group="videochat_online.templates",
    built_in={
        "phi3-chat": f"{__name__}:PHI3_CHAT",
        "internlm2-chat": f"{__name__}:INTERNLM2_CHAT",
        "Hermes-2": f"{__name__}:HERMES_2",
        "internvl2_5": f"{__name__}:INTERNVL2_5",
        "chatml": f"{__name__}:CHATML",
        "qwen": f"{__name__}:QWEN",
        "internvl_zh": f"{__name__}:INTERNVL_ZH",
        OWN: "videochat_online.text.own_template:own_template",
    },
)


def get_template(template: str | ChatTemplate, tokenizer: PreTrainedTokenizerBase | None = None) -> ChatTemplate:
    """The template that somebody asks for.

    Args:
        template: name in `TEMPLATES`, import path of a `ChatTemplate`, or one itself.
        tokenizer: what "own" is made of, by `own_template`.

    Raises:
        InputError: no such name (the valid ones are listed), or something else than a `ChatTemplate`; "own" of no
            tokenizer.
        CheckpointError: the tokenizer's own is not one of fixed strings.
    """
    found: Any = TEMPLATES.find(template) if isinstance(template, str) else template
    if template == OWN:
        if tokenizer is None:
            raise InputError(f"template {OWN!r}: expected a tokenizer to take it from, found none")
        found = found(tokenizer)
    if type(found) is not ChatTemplate:  # a class made of it may write what its strings do not say
        raise InputError(f"template {shown(template)}: expected a ChatTemplate, found {shown(found)}")
    return found


def stored_template(written: Any, tokenizer: PreTrainedTokenizerBase | None = None) -> ChatTemplate:
    """The template that `config.json` says, as `ChatTemplate.to_config` gave it: a built-in name, or the strings.

    No code is looked for by what a checkpoint says.

    Raises:
        InputError: no such name, or strings that are missing, unknown or none.
    """
    if isinstance(written, str) and written in TEMPLATES.built_in:
        return get_template(written, tokenizer)
    if not isinstance(written, Mapping):
        known = ", ".join(TEMPLATES.built_in)
        raise InputError(f"template in config.json: expected one of {known}, or its strings, found {shown(written)}")
    try:
        return ChatTemplate(**written)
    except pydantic.ValidationError as error:
        wrong = fault_of(error, written, kind=ChatTemplate)
        raise InputError(f"template in config.json: expected the strings of a ChatTemplate: {wrong}") from error
