"""From a prompt to an answer's text, piece by piece, and to what becomes of the text in the end."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

from videochat_online.model.loading import VideoChatModel
from videochat_online.streaming.detokenize import TextDecoder
from videochat_online.streaming.generate import GenerationSettings, generate_ids
from videochat_online.streaming.prompt_embeddings import Prompt

_Result = TypeVar("_Result")


def stream_text(
    model: VideoChatModel,
    prompt: Prompt,
    settings: GenerationSettings,
    record: Callable[[str], _Result],
) -> Generator[str, None, _Result]:
    """Yield an answer as it is generated, then return what `record` makes of all of it.

    Closing the iterator stops: `record` gets what was said so far. It gets nothing from an answer that failed.
    """
    decoder, stop_ids = TextDecoder(model.tokenizer), model.stop_ids
    try:
        for token in generate_ids(model.network, prompt.embeds_LD, stop_ids, settings, prompt.reuse, prompt.contrasts):
            piece = "" if token in stop_ids else decoder.push(token)
            if piece:
                yield piece
        rest = decoder.finish()
        if rest:
            yield rest
    except GeneratorExit:
        record(decoder.text.strip())
        raise
    return record(decoder.text.strip())


def result_of(generator: Generator[Any, None, _Result]) -> _Result:
    """Run a generator to its end and return what it returns."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            result: _Result = end.value
            return result
