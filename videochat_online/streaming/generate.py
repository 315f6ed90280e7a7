"""From a prompt with visual tokens to the ids of an answer, one at a time, and to its text as it comes.

Knows the language model and its KV cache; knows nothing of streams, memories or dialogues.

Shapes: `B` prompts, `L` tokens, `N` continuations, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from videochat_online.documents import check_dataclass
from videochat_online.errors import InputError, NonFiniteError, PromptTooLongError
from videochat_online.model.loading import VideoChatModel
from videochat_online.model.rope import fixed_regime, switch_length
from videochat_online.model.tokens import Tokens, run_language_model
from videochat_online.streaming.detokenize import text_pieces
from videochat_online.streaming.kv.cache import CachedSequence
from videochat_online.streaming.kv.contrasted import Contrast, ContrastedSequence
from videochat_online.streaming.kv.prefix import PrefixCache
from videochat_online.streaming.kv.static import new_cache
from videochat_online.streaming.question_prompt import Prompt

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How an answer is chosen, token by token. The default is greedy, as in the published evaluations.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        min_new_tokens: Fewest tokens of an answer.
        temperature: Divisor of the logits; 0 takes the most likely token instead of drawing one.
        top_p: Probability mass of the smallest set of tokens that is drawn from.
        top_k: Number of the most likely tokens that are drawn from; 0 means all.
        repetition_penalty: Factor above 1 that makes tokens of this answer less likely to come again.
        seed: Seed of the draws; None takes torch's global generator.

    Raises:
        InputError: a value out of its range.
    """

    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None

    def __post_init__(self) -> None:
        check_dataclass(self)
        if self.min_new_tokens > self.max_new_tokens:
            most = self.max_new_tokens
            raise InputError(f"min_new_tokens: expected at most max_new_tokens, {most}, found {self.min_new_tokens}")

    def processors(self, stop_ids: Sequence[int], device: torch.device) -> LogitsProcessorList:
        """Changes to the logits before a token is chosen, in the order transformers applies them."""
        chosen = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            chosen.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.min_new_tokens:
            chosen.append(MinNewTokensLengthLogitsProcessor(0, self.min_new_tokens, list(stop_ids), device=str(device)))
        if self.temperature > 0:
            chosen.append(TemperatureLogitsWarper(self.temperature))
            if self.top_k:
                chosen.append(TopKLogitsWarper(self.top_k))
            if self.top_p < 1:
                chosen.append(TopPLogitsWarper(self.top_p))
        return chosen


def needs_long_regime(language_model: PreTrainedModel, total_length: int) -> bool | None:
    """LongRoPE: whether prompt and answer together can exceed the original maximum; None where it has none."""
    limit = switch_length(language_model)
    return None if limit is None else total_length > limit


def _check_context(language_model: PreTrainedModel, num_prompt: int, max_new_tokens: int) -> None:
    limit = language_model.config.max_position_embeddings
    if num_prompt + max_new_tokens > limit:
        raise PromptTooLongError(
            f"a prompt of {num_prompt} tokens and an answer of up to {max_new_tokens}: the language model's context "
            f"is {limit}; use a smaller memory or a shorter answer"
        )


def _longest(tokens: Tokens, contrasts: Sequence[Contrast]) -> int:
    """Tokens of the longest of a question's prompts."""
    return max([len(tokens), *(len(contrast.tokens) for contrast in contrasts)])


@torch.inference_mode()
def first_logits(
    language_model: PreTrainedModel,
    tokens: Tokens,
    max_new_tokens: int,
    contrasts: Sequence[Contrast] = (),
    reuse: PrefixCache | None = None,
) -> Tensor:
    """Logits of the first answer token after a prompt: [vocabulary], fp32.

    Raises:
        PromptTooLongError: prompt and token are longer than the language model's context.
        NonFiniteError: no token can be told to be the likeliest.
    """
    num_prompt = _longest(tokens, contrasts)
    _check_context(language_model, num_prompt, 1)
    if not contrasts and reuse is None:
        return _first_logits(language_model, [tokens], num_prompt + max_new_tokens)[0]
    with _sequence(language_model, tokens, num_prompt + max_new_tokens, reuse, contrasts) as sequence:
        return _finite(sequence.append(tokens[sequence.num_tokens :]).float())


@torch.inference_mode()
def first_logits_of_each(language_model: PreTrainedModel, prompts: Sequence[Tokens]) -> Tensor:
    """Logits of the first answer token after each of `B` prompts of the same length: [B, vocabulary], fp32.

    Raises:
        PromptTooLongError, NonFiniteError: errors of `first_logits`.
    """
    num_prompt = len(prompts[0])
    _check_context(language_model, num_prompt, 1)
    return _first_logits(language_model, prompts, num_prompt + 1)


def _first_logits(language_model: PreTrainedModel, prompts: Sequence[Tokens], max_tokens: int) -> Tensor:
    with fixed_regime(needs_long_regime(language_model, max_tokens)):
        logits_BLV = run_language_model(language_model, prompts, use_cache=False, logits_to_keep=1)
    return torch.stack([_finite(logits_V) for logits_V in logits_BLV[:, -1].float()])


def _finite(logits: Tensor) -> Tensor:
    """Of NaN the first would be taken for the largest, and an answer would look like any other."""
    if not bool(torch.isfinite(logits.max())):
        raise NonFiniteError("the model gives logits that are NaN or infinite: try another dtype, or other weights")
    return logits


@torch.inference_mode()
def continuation_log_likelihoods(
    language_model: PreTrainedModel,
    tokens: Tokens,
    continuations: Sequence[Sequence[int]],
    contrasts: Sequence[Contrast] = (),
    reuse: PrefixCache | None = None,
) -> Tensor:
    """Log-probability of each of `N` continuations of a prompt, the sum over its tokens: [N], fp32.

    Raises:
        PromptTooLongError: prompt and continuation together can be longer than the language model's context.
    """
    num_prompt, longest = _longest(tokens, contrasts), max(map(len, continuations))
    _check_context(language_model, num_prompt, longest)
    regime = needs_long_regime(language_model, num_prompt + longest)
    embed, sums = language_model.get_input_embeddings(), []
    # Without reuse a cache need not be one that can be cropped.
    fresh = nullcontext(ContrastedSequence(language_model, contrasts, regime))
    reused = _sequence(language_model, tokens, num_prompt + longest, reuse, contrasts)
    with fresh if reuse is None else reused as sequence:
        first_V = sequence.append(tokens[sequence.num_tokens :])
        for continuation in continuations:
            ids_N = torch.tensor(continuation, device=first_V.device)
            logits_NV = first_V[None]
            if len(ids_N) > 1:
                before = tokens.following(embed(ids_N[:-1]), continuation[:-1])
                logits_NV = torch.cat((logits_NV, sequence.logits_of(before)))
            log_probabilities_NV = _finite(logits_NV.float()).log_softmax(-1)
            sums.append(log_probabilities_NV.gather(1, ids_N[:, None]).sum())
    return torch.stack(sums)


@torch.inference_mode()
def generate_ids(
    language_model: PreTrainedModel,
    tokens: Tokens,
    stop_ids: Sequence[int],
    settings: GenerationSettings,
    reuse: PrefixCache | None = None,
    contrasts: Sequence[Contrast] = (),
) -> Iterator[int]:
    """Yield the ids of an answer as they are chosen; the stop id, where it comes, is the last one.

    Args:
        language_model: language model in evaluation mode.
        tokens: the prompt.
        stop_ids: ids that end an answer.
        settings: settings by which ids are chosen.
        reuse: cache from which the beginning in common with an earlier prompt is taken over, and which holds this
            prompt's for the next. With contrasts only the room is counted that they take.
        contrasts: other prompts of the question, whose logits count, too.

    Raises:
        PromptTooLongError: prompt and answer together can be longer than the language model's context.
        NonFiniteError: no token can be told to be the likeliest.
    """
    num_prompt, device = _longest(tokens, contrasts), tokens.embeds_LD.device
    _check_context(language_model, num_prompt, settings.max_new_tokens)
    processors = settings.processors(stop_ids, device)
    generator = None if settings.seed is None else torch.Generator(device).manual_seed(settings.seed)
    embed = language_model.get_input_embeddings()
    ids = torch.empty((1, 0), dtype=torch.long, device=device)
    with _sequence(language_model, tokens, num_prompt + settings.max_new_tokens, reuse, contrasts) as sequence:
        logits_V = sequence.append(tokens[sequence.num_tokens :])
        for num_ids in range(1, settings.max_new_tokens + 1):
            scores = processors(ids, _finite(logits_V[None].float()))
            if settings.temperature > 0:
                chosen = torch.multinomial(scores.softmax(-1), 1, generator=generator)
            else:
                chosen = scores.argmax(-1, keepdim=True)
            ids = torch.cat((ids, chosen), dim=1)
            token = int(chosen)
            yield token
            if token in stop_ids or num_ids == settings.max_new_tokens:
                return
            tokens = tokens.following(embed(chosen[0]), (token,))
            logits_V = sequence.append(tokens)


@contextmanager
def _sequence(
    language_model: PreTrainedModel,
    tokens: Tokens,
    max_tokens: int,
    reuse: PrefixCache | None,
    contrasts: Sequence[Contrast],
) -> Iterator[CachedSequence | ContrastedSequence]:
    """The cache that a prompt and its answer of together at most `max_tokens` are computed in."""
    regime = needs_long_regime(language_model, max_tokens)
    if contrasts:
        num_tokens = (1 + len(contrasts)) * max_tokens
        with nullcontext() if reuse is None else reuse.set_aside(num_tokens):
            yield ContrastedSequence(language_model, contrasts, regime)
    elif reuse is None:
        yield CachedSequence(new_cache(language_model, max_tokens), regime)
    else:
        with reuse.borrowed(tokens, regime, max_tokens) as sequence:
            yield sequence


@torch.inference_mode()
def prefill(
    language_model: PreTrainedModel,
    tokens: Tokens,
    reuse: PrefixCache,
    max_length: int,
    next_size: Callable[[], int] | None = None,
) -> int:
    """Compute the beginning of a prompt ahead; returns how many tokens were not there already.

    Args:
        language_model: language model in evaluation mode.
        tokens: the beginning.
        reuse: cache in which it is kept.
        max_length: tokens that the whole prompt and its answer are expected to have at most.
        next_size: function that gives the tokens of the next piece, see `PrefixCache.fill`.

    Raises:
        PromptTooLongError: `max_length` tokens, which are more than the language model's context holds.
    """
    _check_context(language_model, len(tokens), max_length - len(tokens))
    return reuse.fill(tokens, needs_long_regime(language_model, max_length), next_size)


def answer_pieces(model: VideoChatModel, prompt: Prompt, settings: GenerationSettings) -> Iterator[str]:
    """Generate an answer, and yield what each token adds to its text, as `text_pieces` does.

    Raises:
        PromptTooLongError, NonFiniteError: errors of `generate_ids`.
    """
    stop_ids = model.stop_ids
    ids = generate_ids(model.language_model, prompt.tokens, stop_ids, settings, prompt.reuse, prompt.contrasts)
    return text_pieces(model.tokenizer, (token for token in ids if token not in stop_ids))


def stream_text(
    model: VideoChatModel, prompt: Prompt, settings: GenerationSettings, record: Callable[[str], _Result]
) -> Generator[str, None, _Result]:
    """Yield an answer as it is generated, then return what `record` makes of all that was yielded.

    Blanks around an answer are left out. Closing the iterator stops: `record` gets what was said so far. It gets
    nothing from an answer that failed.
    """
    said = blanks = ""
    try:
        for piece in answer_pieces(model, prompt, settings):
            text = (blanks + piece) if said else piece.lstrip()
            shown = text.rstrip()
            blanks = text[len(shown) :]
            said += shown
            if shown:
                yield shown
    except GeneratorExit:
        record(said)
        raise
    return record(said)


def result_of(generator: Generator[Any, None, _Result]) -> _Result:
    """Run a generator to its end and return what it returns."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            result: _Result = end.value
            return result
