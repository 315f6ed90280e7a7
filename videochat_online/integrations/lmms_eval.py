"""The model `videochat_online` of lmms-eval: its requests in, answers out, in their order.

Owns the model arguments and what lmms-eval's generation keywords mean here. Loaded by lmms-eval alone; made for its
version 0.7.3. lmms-eval shares the documents out among ranks itself; each rank answers its own.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from tqdm import tqdm

from videochat_online.errors import InputError
from videochat_online.evaluation.protocol import one_system_message
from videochat_online.integrations.offline import OFFLINE, OFFLINE_PROTOCOLS, REFERENCE, OfflineAnswerer
from videochat_online.integrations.published_prompts import check_published, published_question
from videochat_online.memory.labels import settings_of
from videochat_online.model import load_model
from videochat_online.model.device_and_dtype import device_of_rank
from videochat_online.parts import Option
from videochat_online.streaming import STRATEGIES, GenerationSettings

logger = logging.getLogger(__name__)

_WITHOUT_MEANING = {"until", "do_sample", "num_beams", "use_cache"}
"""Generation keywords that are no settings: handled apart, or at their only value."""
_OF_MODEL = ("dtype", "attn_implementation", "quantization", "tokenizer", "template", "adapter")
"""Arguments that `load_model` is given as they are."""
_DEFAULT_STOP = "\n\n"
"""lmms-eval adds it to every task that names no `until`; it would cut an answer after its first paragraph."""


class VideoChatOnline(lmms):
    """A checkpoint of this package, with the published setting of offline benchmarks unless an argument says otherwise.

    Under `protocol=reference` MVBench and VideoMME are asked word for word as the released scripts ask them, from the
    document itself, whatever prompt and length of the answer lmms-eval hands over; other tasks are refused.

    Args:
        pretrained: model directory, or owner/name on the Hub.
        device: auto, cpu, cuda, cuda:N; "auto" takes the GPU of this rank.
        batch_size: 1.
        protocol: name in `OFFLINE_PROTOCOLS`: in lmms-eval's words, or in those of the released scripts.
        system_message: another one than the protocol's: a text, or a word of `SYSTEM_MESSAGES`.
        fps: every n-th frame of a video is taken, n = its rate / `fps` rounded.
        max_frames: of more, the centres of this many segments.
        memory: name in `MEMORIES`.
        strategy: name in `STRATEGIES`.
        with_times: label frames with their times.
        folder_fps: frames a second of videos that are folders of frames.
        backend: video decoder.
        **others: arguments of `load_model`: dtype, attn_implementation, quantization, tokenizer, template, adapter; and
            options of memory and strategy, several values with slashes: `memory.capacities=24/24/144`, or
            `capacities=24/24/144` in short.

    Raises:
        InputError: a value that cannot be met.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        *,
        device: str = "auto",
        batch_size: int | str = 1,
        protocol: str = "lmms_eval",
        system_message: str | int | float | None = None,
        fps: float = OFFLINE.fps,
        max_frames: int | None = OFFLINE.max_frames,
        memory: str = "pyramid",
        strategy: str = "direct",
        with_times: bool = OFFLINE.with_times,
        folder_fps: float | None = None,
        backend: str = "auto",
        **others: str | int | float,
    ) -> None:
        super().__init__()
        if str(batch_size) != "1":
            raise InputError(f"batch_size: expected 1, since each video has a memory of its own; got {batch_size}")
        if protocol not in OFFLINE_PROTOCOLS:
            raise InputError(f"protocol: expected one of {', '.join(OFFLINE_PROTOCOLS)}, got {protocol!r}")
        known = settings_of(memory)
        of_pyramid = settings_of("pyramid")
        usual = {name: value for name, value in OFFLINE.memory_options.items() if known.get(name) == of_pyramid[name]}
        of_model: dict[str, Any] = {name: others.pop(name) for name in _OF_MODEL if name in others}
        given = _options_of_parts(others, memory=known, strategy=STRATEGIES.options_of(strategy))
        resolved = replace(
            OFFLINE_PROTOCOLS[protocol],
            **({} if system_message is None else one_system_message(_text(system_message))),
            fps=float(fps),
            max_frames=max_frames,
            memory=memory,
            memory_options=usual | given["memory"],
            with_times=with_times,
            strategy=strategy,
            strategy_options=given["strategy"],
        )
        model = load_model(
            pretrained,
            device=device_of_rank(device),
            **of_model,
        )
        self._device = model.device
        self._is_reference = protocol == "reference"
        self.answerer: OfflineAnswerer | None = OfflineAnswerer(model, resolved, backend=backend, folder_fps=folder_fps)

    @property
    def device(self) -> torch.device:
        """Where lmms-eval puts the counts that ranks exchange."""
        return self._device

    def generate_until(self, requests: Sequence[Any]) -> Iterator[str]:
        """An answer for each request, in order; one at a time, so that lmms-eval's cache has those of a broken run.

        Raises:
            InputError: names task, document and visuals; or, before anything is answered, what the protocol cannot ask.
        """
        if self._is_reference:
            _check_askable(requests)
        for request in tqdm(requests, desc="Answers", disable=self.rank != 0):
            text, keywords, doc_to_visual, doc_id, task, split = request.args
            visuals = self._visuals(doc_to_visual, doc_id, task, split)
            with _named(task, doc_id, visuals):
                settings, stops = settings_from_keywords(keywords)
                if self._is_reference:
                    text = published_question(task, self.task_dict[task][split][doc_id])
                    settings = self._model().generation
                answer = self._model().answer(text, visuals, settings, stops)
            yield answer

    def loglikelihood(self, requests: Sequence[Any]) -> Iterator[Any]:
        """For each request the loss of its continuation (the smallest is chosen) and whether it is the greedy one.

        Requests that follow each other with the same question are the options of one document: read once. The pairs
        are wrapped as generated text would be: lmms-eval 0.7.3 turns a bare pair into a string, and fails on it.

        Raises:
            InputError: errors of `generate_until`; or a protocol whose scripts generate their answers.
        """
        if self._is_reference and requests:
            raise InputError(f"protocol=reference: expected tasks that generate, got {requests[0].args[4]}")
        groups = itertools.groupby(requests, key=lambda request: (request.args[0], *request.args[3:]))
        for (text, doc_id, task, split), group in groups:
            same = list(group)
            visuals = self._visuals(same[0].args[2], doc_id, task, split)
            doc = self.task_dict[task][split][doc_id]
            replies = [reply(doc) if callable(reply := request.args[1]) else reply for request in same]
            with _named(task, doc_id, visuals):
                pairs = self._model().losses(text, visuals, [reply.strip() for reply in replies])
            yield from (GenerationResult(text=pair) for pair in pairs)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not available: a document's later rounds show other videos.

        Raises:
            InputError: always.
        """
        raise InputError("tasks of several rounds (generate_until_multi_round) are not available for videochat_online")

    def clean(self) -> None:
        """Free the weights: lmms-eval calls this when all is answered, before a judge may be loaded."""
        self.answerer = None
        super().clean()

    def _model(self) -> OfflineAnswerer:
        if self.answerer is None:
            raise InputError("expected requests before `clean`, which has freed the model")
        return self.answerer

    def _visuals(self, doc_to_visual: Any, doc_id: int, task: str, split: str) -> list[Any]:
        with _named(task, doc_id, ()):
            found = doc_to_visual(self.task_dict[task][split][doc_id]) if doc_to_visual is not None else None
        if found is None:
            return []
        return list(found) if isinstance(found, (list, tuple)) else [found]


def settings_from_keywords(keywords: Mapping[str, Any]) -> tuple[GenerationSettings, tuple[str, ...]]:
    """Settings and stops from lmms-eval's generation keywords. Greedy unless sampling is asked for.

    Raises:
        InputError: a value out of its range, or beam search.
    """
    if keywords.get("num_beams") not in (None, 1):
        raise InputError(f"num_beams: expected 1, beam search is not available; got {keywords['num_beams']}")
    settings = {name: keywords.get(name) for name in ("max_new_tokens", "temperature", "top_p", "top_k")}
    unknown = sorted(set(keywords) - set(settings) - _WITHOUT_MEANING)
    if unknown:
        logger.warning("generation keywords without effect: %s", ", ".join(unknown))
    does_sample = keywords.get("do_sample")
    if does_sample and settings["temperature"] is None:
        settings["temperature"] = 1.0
    if does_sample is False:
        settings["temperature"] = 0.0
    if not settings["temperature"]:  # greedy: a top_p of 0 beside it means nothing
        settings["top_p"] = settings["top_k"] = None
    until = keywords.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    given = {name: value for name, value in settings.items() if value is not None}
    return GenerationSettings(**given), tuple(stop for stop in stops if stop != _DEFAULT_STOP)


def _check_askable(requests: Sequence[Any]) -> None:
    """InputError for a task, or a way of generating, that the released scripts do not have."""
    lengths = set()
    for _, keywords, *_, task, _ in (request.args for request in requests):
        check_published(task)
        settings, stops = settings_from_keywords(keywords)
        if settings.temperature or stops:
            found = f"stops {list(stops)}" if stops else f"temperature {settings.temperature:g}"
            raise InputError(f"protocol=reference: expected greedy answers without stops, got {found}")
        lengths.add(keywords.get("max_new_tokens"))
    for length in lengths - {REFERENCE.max_new_tokens, None}:
        logger.warning("protocol=reference: answers have %d new tokens, not %s", REFERENCE.max_new_tokens, length)


def _text(given: str | int | float) -> str:
    """A text of `--model_args`: quotes around one with commas belong to the command line."""
    text = str(given)
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _options_of_parts(given: Mapping[str, Any], **known: Mapping[str, Option]) -> dict[str, dict[str, Any]]:
    """What is set of each part, from arguments such as `memory.key_frames`."""
    options: dict[str, dict[str, Any]] = {part: {} for part in known}
    if "capacities" in given and "memory.capacities" in given:
        raise InputError("capacities: expected nothing beside memory.capacities, which it is short for")
    for argument, value in given.items():
        part, _, name = ("memory.capacities" if argument == "capacities" else argument).partition(".")
        if name not in known.get(part, {}):
            expected = [f"{part}.{name}" for part, names in known.items() for name in names]
            raise InputError(
                f"unknown argument {argument!r}: expected one of this adapter's, or of {', '.join(expected)}"
            )
        options[part][name] = known[part][name].parse(str(value), argument)
    return options


@contextmanager
def _named(task: str, doc_id: int, visuals: Sequence[Any]) -> Iterator[None]:
    """An error says which document it is about."""
    try:
        yield
    except InputError as error:
        shown = [str(visual) if isinstance(visual, (str, dict)) else type(visual).__name__ for visual in visuals]
        about = f" ({', '.join(shown)})" if shown else ""
        raise InputError(f"{task}, document {doc_id}{about}: {error}") from error
