"""From a question to its text, and from a prompt to an answer: generated, or the likeliest letter or text of an option.

Shapes: `L` tokens, `D` width of the language model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase

import torch

from videochat_online.errors import InputError, shown
from videochat_online.evaluation.benchmark import EvalQuestion
from videochat_online.evaluation.protocol import EvalProtocol
from videochat_online.evaluation.scoring.parse import parse_reply
from videochat_online.evaluation.task import Task
from videochat_online.model import VideoChatModel
from videochat_online.streaming import GenerationSettings
from videochat_online.streaming.generate import answer_pieces, continuation_log_likelihoods, first_logits
from videochat_online.streaming.question_prompt import Prompt, reply_ids
from videochat_online.text import layout_prompt
from videochat_online.types import Turn

LETTER_PREFIX = "("
"""Text that a reply is made to begin with where its letter is scored: the training answers are `(B) text`."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered.

    Attributes:
        text: generated text; with likelihood the chosen letter in brackets, with text likelihood the chosen text.
        option: index of the option it means, or the number; None where it names none, or several.
        first_token_s: seconds from the finished prompt to the first token; None where whole replies are compared.
        option_probabilities: share of each letter or text among those of all options; None where text is generated.
    """

    text: str
    option: int | None
    first_token_s: float | None
    option_probabilities: tuple[float, ...] | None = None


def way_of_answering(question: EvalQuestion, answer_by: str) -> str:
    """Of a question that shows no letters, the texts are compared; of one without options, the text is generated."""
    if not question.options:
        return "generation"
    return "text_likelihood" if answer_by == "likelihood" and question.kind != "choice" else answer_by


def asked_kind(question: EvalQuestion, answer_by: str) -> str:
    """The kind in `benchmark.KINDS` that a question is put as: one whose options are not shown is open."""
    hides_options = question.kind == "choice" and way_of_answering(question, answer_by) == "text_likelihood"
    return "open" if hides_options else question.kind


def question_text(question: EvalQuestion, answer_by: str, task: Task, protocol: EvalProtocol) -> str:
    """What stands after the frames: the task's words, then the protocol's."""
    # Options that are not shown cannot be chosen from.
    hides_options = way_of_answering(question, answer_by) == "text_likelihood"
    asked = replace(question, options=()) if hides_options else question
    text = task.prompt(asked)
    if not isinstance(text, str):
        raise InputError(f"task {task.name!r}: expected prompt to give a text, found {shown(text)}")
    return text + protocol.suffix_of(asked_kind(question, answer_by))


def answer_by_generation(
    model: VideoChatModel, prompt: Prompt, options: Sequence[str], settings: GenerationSettings, kind: str = "choice"
) -> Reply:
    """Generate, then parse the text as an answer to a question of that kind."""
    start_s = time.perf_counter()
    pieces = answer_pieces(model, prompt, settings)
    first = next(pieces)
    first_token_s = time.perf_counter() - start_s
    text = (first + "".join(pieces)).strip()
    return Reply(text, parse_reply(text, options, kind), first_token_s)


def answer_by_likelihood(
    model: VideoChatModel, prompt: Prompt, num_options: int, settings: GenerationSettings
) -> Reply:
    """Compare the letters as the next token of a prompt that was laid out with `LETTER_PREFIX`."""
    start_s = time.perf_counter()
    num_dropped, ids = letter_ids(model, num_options)
    prompt = prompt.without_last(num_dropped)
    logits = first_logits(model.language_model, prompt.tokens, settings.max_new_tokens, prompt.contrasts, prompt.reuse)
    scores = logits[torch.tensor(ids, device=logits.device)]
    option = int(scores.argmax())
    probabilities = tuple(scores.softmax(-1).tolist())
    return Reply(f"({ascii_uppercase[option]})", option, time.perf_counter() - start_s, probabilities)


def answer_by_text_likelihood(model: VideoChatModel, prompt: Prompt, options: Sequence[str]) -> Reply:
    """Compare how probable it is that the reply to a prompt without options is the text of each, and ends there.

    Not averaged over tokens: options of many would win, since the later ones follow from the first. Of equal options
    the first is taken.

    Source: the "cloze formulation" of OLMES (arXiv:2406.08446), which small models can be told apart with.
    """
    replies = [reply_ids(model, option) for option in options]
    scores = continuation_log_likelihoods(model.language_model, prompt.tokens, replies, prompt.contrasts, prompt.reuse)
    option = int(scores.argmax())
    return Reply(options[option], option, None, tuple(scores.softmax(-1).tolist()))


def letter_ids(model: VideoChatModel, num_options: int) -> tuple[int, list[int]]:
    """Ids that stand for the option letters after `LETTER_PREFIX`, whatever the tokenizer merges.

    Returns:
        How many tokens at the end of a prompt with `LETTER_PREFIX` to drop (1 where bracket and letter are one
        token, else 0), and the id of each letter as the token after it.

    Raises:
        InputError: the tokenizer does not tell the letters apart by one token.
    """

    def ids_with(prefix: str) -> tuple[int, ...]:
        return layout_prompt(
            [Turn(("?",))],
            tokenizer=model.tokenizer,
            template=model.template,
            wording=model.backbone.wording,
            generation_prefix=prefix,
        ).input_ids

    bare = ids_with(LETTER_PREFIX)
    # With the bracket that follows in a reply: a tokenizer may have `B)` in one piece.
    spelled = [ids_with(f"{LETTER_PREFIX}{letter})") for letter in ascii_uppercase[:num_options]]
    common = 0
    while all(common < len(ids) and ids[common] == spelled[0][common] for ids in spelled):
        common += 1
    letters = [ids[common] for ids in spelled if common < len(ids)]
    if len(set(letters)) != num_options or common > len(bare) or bare[:common] != spelled[0][:common]:
        raise InputError(
            f"answers by likelihood: the tokenizer does not tell the letters {ascii_uppercase[:num_options]} apart"
            f" after {LETTER_PREFIX!r}"
        )
    return len(bare) - common, letters
