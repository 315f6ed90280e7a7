"""The prompt layout: turns and token counts -> ids, labels and the span of every visual token.

The one function for training, streaming and evaluation. Knows the template and the tokenizer; knows nothing
of pixels, memories or models.

The prompt is tokenised as one string, because the ids of a text depend on its neighbours; what a text spells never
becomes a control token (`control_tokens`). A picture is
a run of up to 256 (with tiles: thousands of) equal tokens; only one of them is in the string, and its id is
repeated afterwards. The result is the same, since a special token is encoded on its own, and the time does
not grow with the visual tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from videochat_online.constants import (
    IGNORE_INDEX,
    IMAGE_PLACEHOLDER,
)
from videochat_online.errors import InputError
from videochat_online.text.control_tokens import Part, check_text, encode_parts
from videochat_online.text.sentencepiece_tokenizer import Span
from videochat_online.text.templates import ChatTemplate, Piece, display_text
from videochat_online.text.tokenizer import end_token_id, visual_token_id
from videochat_online.text.wording import INTERNVL, Wording
from videochat_online.types import Mark, Segment, Turn, Visual


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """A tokenised dialogue.

    Attributes:
        input_ids: the whole prompt, bos included where the tokenizer adds one.
        labels: labels, as many as `input_ids`: the id itself where the model is to write it (replies and their end
            tokens), IGNORE_INDEX elsewhere. Not shifted.
        visual_spans: [start, stop) of the visual tokens of each picture or frame, in order.
        text: the prompt for people; visual tokens are written `<IMG_CONTEXT>*256`.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    visual_spans: tuple[Span, ...]
    text: str

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_supervised(self) -> int:
        """Tokens that count in the loss."""
        return sum(label != IGNORE_INDEX for label in self.labels)

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens of all pictures and frames."""
        return sum(stop - start for start, stop in self.visual_spans)


def layout_prompt(
    turns: Sequence[Turn],
    *,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    wording: Wording = INTERNVL,
    system_message: str | None = None,
    generation_prefix: str = "",
) -> PromptLayout:
    """Lay out a dialogue as the model sees it.

    Every reply and its end token are supervised, in every turn; nothing else is. A token that begins before a
    reply does not count, since at inference the model is given it. Where the template trims, each side of a turn is
    laid out without blanks and line breaks around it.

    Args:
        turns: turns in order. A last one with `assistant=None` opens generation.
        tokenizer: result of `load_tokenizer`, with the special tokens of pictures.
        template: the checkpoint's chat template.
        wording: wording of pictures of the checkpoint's family.
        system_message: None takes the template's own.
        generation_prefix: words that the generated reply begins with, such as "Best option:(".

    Raises:
        InputError: turns out of order; half of a surrogate pair in a text; a picture without tokens; the
            template's end token is not in the vocabulary; the tokenizer does not keep control tokens and text apart.
        CheckpointError: the tokenizer lacks the image tokens.
    """
    end_token_id(tokenizer, template)
    pieces, _ = prompt_pieces(turns, template, system_message, generation_prefix)
    parts, replies = tokenizer_parts(pieces, wording)
    ids, offsets = encode_parts(tokenizer, parts)
    labels = _labels(ids, offsets, replies)
    counts, context, shown = (
        _counts(pieces, wording),
        visual_token_id(tokenizer, wording),
        display_text(pieces, wording),
    )
    if (num_found := ids.count(context)) != len(counts):
        raise InputError(
            f"prompt: expected {len(counts)} times {wording.token}, one for each picture, found {num_found} among the"
            " ids; the tokenizer does not keep the token whole"
        )
    return _expand(ids, labels, counts, context, shown)


def prompt_pieces(
    turns: Sequence[Turn], template: ChatTemplate, system_message: str | None = None, generation_prefix: str = ""
) -> tuple[tuple[Piece, ...], list[int]]:
    """A dialogue as the template renders it, and the visual tokens of each of its pictures."""
    _check_texts(turns, system_message, generation_prefix)
    if template.trims:
        turns = [trimmed(turn) for turn in turns]
    elif template.trims_replies:
        turns = [Turn(turn.user, turn.assistant and turn.assistant.strip()) for turn in turns]
    if template.trims_system:
        system_message = system_message and system_message.strip()
    pieces = template.render(turns, system_message=system_message, generation_prefix=generation_prefix)
    counts = [piece.segment.num_tokens for piece in pieces if isinstance(piece.segment, Visual)]
    for number, count in enumerate(counts, start=1):
        if count < 1:
            raise InputError(f"picture {number}: expected at least one visual token, found {count}")
    return pieces, counts


def _check_texts(turns: Sequence[Turn], system_message: str | None, generation_prefix: str) -> None:
    check_text(system_message or "", "system message")
    check_text(generation_prefix, "generation prefix")
    for number, turn in enumerate(turns, start=1):
        for segment in turn.user:
            if not isinstance(segment, Visual | Mark):
                check_text(segment, f"turn {number}: question")
        check_text(turn.assistant or "", f"turn {number}: reply")


def trimmed(turn: Turn) -> Turn:
    """A turn without blanks and line breaks around each side."""
    user = list(turn.user)
    for position, strip in ((0, str.lstrip), (-1, str.rstrip)):
        while user and isinstance(end := user[position], str) and not strip(end):
            del user[position]
        if user and isinstance(end, str):
            user[position] = strip(end)
    return Turn(tuple(user), turn.assistant.strip() if turn.assistant is not None else None)


def tokenizer_parts(pieces: Sequence[Piece], wording: Wording = INTERNVL) -> tuple[list[Part], list[Span]]:
    """The prompt with one visual token a picture, and the [start, stop) of the supervised pieces in it."""
    picture = wording.opens + wording.token + wording.closes
    parts, replies, first = list[Part](), list[Span](), 0
    for piece in pieces:
        part = picture if isinstance(piece.segment, Visual) else piece.segment
        if piece.supervised:
            replies.append((first, first + len(part)))
        parts.append((part, piece.is_text))
        first += len(part)
    return parts, replies


def _labels(ids: Sequence[int], offsets: Sequence[Span], replies: Sequence[Span]) -> list[int]:
    # Only the start decides: the stop of an end token may lie beyond a line break that it swallows.
    starts, ends = (start for start, _ in offsets), [end for reply in replies for end in reply]
    # Within a reply, one more reply has begun than has ended.
    is_learned = (bisect_right(ends, start) % 2 for start in starts)
    return [index if learned else IGNORE_INDEX for index, learned in zip(ids, is_learned, strict=True)]


def _counts(pieces: Sequence[Piece], wording: Wording) -> list[int | None]:
    """Visual tokens of each picture; None where the token of one stands by itself, among what a family writes."""
    counts: list[int | None] = []
    for piece in pieces:
        if isinstance(piece.segment, Visual):
            counts.append(piece.segment.num_tokens)
        elif not piece.is_text:
            counts += [None] * piece.segment.count(wording.token)
    return counts


def _expand(
    ids: Sequence[int], labels: Sequence[int], counts: Sequence[int | None], context: int, text: str
) -> PromptLayout:
    """Repeat the one visual token of each picture as often as the picture has tokens."""
    all_ids, all_labels, spans = list[int](), list[int](), list[Span]()
    remaining = iter(counts)
    for index, label in zip(ids, labels, strict=True):
        count = next(remaining) if index == context else None
        if count is not None:
            spans.append((len(all_ids), len(all_ids) + count))
        all_ids += [index] * (1 if count is None else count)
        all_labels += [label] * (1 if count is None else count)
    return PromptLayout(tuple(all_ids), tuple(all_labels), tuple(spans), text)


def truncate_layout(layout: PromptLayout, max_length: int) -> PromptLayout:
    """Cut a layout for training to at most `max_length` tokens.

    Only the end of the text is ever cut. Where that would take visual tokens, or everything that is
    supervised, there is nothing left to learn from: an InputError, which data loading counts and reports.
    (The reference cuts blindly; such rows then train on nothing, or lose frames.)

    Raises:
        InputError: names the length, the limit and what would be lost.
    """
    if len(layout) <= max_length:
        return layout
    limit = f"prompt of {len(layout)} tokens: expected at most {max_length}"
    num_cut = sum(stop > max_length for _, stop in layout.visual_spans)
    if num_cut:
        raise InputError(f"{limit}; a cut would take tokens of {num_cut} of {len(layout.visual_spans)} pictures")
    cut = replace(layout, input_ids=layout.input_ids[:max_length], labels=layout.labels[:max_length])
    if not cut.num_supervised:
        raise InputError(f"{limit}; a cut would leave none of {layout.num_supervised} supervised tokens")
    return cut


def split_placeholders(text: str, num_tokens: Sequence[int]) -> tuple[Segment, ...]:
    """Text of a data row -> text and pictures.

    Args:
        text: text with one `<image>` for each picture.
        num_tokens: visual tokens of each picture, in order.

    Raises:
        InputError: the two numbers differ.
    """
    texts = text.split(IMAGE_PLACEHOLDER)
    if len(texts) - 1 != len(num_tokens):
        raise InputError(
            f"text with placeholders: expected {len(num_tokens)} times {IMAGE_PLACEHOLDER}, one for each"
            f" picture, found {len(texts) - 1}"
        )
    segments: list[Segment] = [texts[0]]
    for count, part in zip(num_tokens, texts[1:], strict=True):
        segments += [Visual(count), part]
    return tuple(segment for segment in segments if segment != "")
