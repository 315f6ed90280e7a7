"""Golden checks of whole answers: prompt, first logits, greedy ids and text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videochat_online.memory import PyramidMemoryBank, TokenSchedule
from videochat_online.model import VideoChatModel, load_model
from videochat_online.model.backbones import VisualTokens
from videochat_online.model.rope import fixed_regime, switch_length
from videochat_online.streaming import Exchange, GenerationSettings, StreamingSession
from videochat_online.streaming.detokenize import text_pieces
from videochat_online.streaming.generate import first_logits, generate_ids
from videochat_online.streaming.question_prompt import Prompt, build_prompt
from videochat_online.text import split_placeholders
from videochat_online.types import Turn

from .features import bank_capacities
from .harness import Case, run_lengths

DEFAULT_NEW_TOKENS = 24
CLOSE_MARGIN = 1e-4
"""Difference of the two largest logits: below it the recording itself takes no token for certain."""
_LABEL = re.compile(r"Frame(\d+)(?: at ([\d.]+)s)?: <image>")


@lru_cache(maxsize=8)
def model_of(root: Path, name: str, tokenizer: str) -> VideoChatModel:
    """The recorded model with the recorded tokenizer, in float32 on the CPU."""
    return load_model(root / "models" / name, tokenizer=root / "tokenizers" / tokenizer, device="cpu")


def _entries(case: Case) -> list[dict[str, Any]]:
    return list(json.loads((case.root / "index.json").read_text(encoding="utf-8"))["cases"])


def earlier_case(case: Case, name: str) -> Case:
    """Another recorded case, which this one goes on from."""
    entry = next(entry for entry in _entries(case) if entry["name"] == name)
    return Case(root=case.root, entry=entry, frames=case.frames)


def some_model(case: Case, name: str | None = None) -> tuple[str, str]:
    """Names of a recorded model and of a tokenizer that it was recorded with.

    Where no case has both, the first model that has a tokenizer of its name.
    """
    used = [(entry["params"].get("model"), entry["params"].get("tokenizer")) for entry in _entries(case)]
    same = [(path.name, path.name) for path in sorted((case.root / "models").iterdir())]
    there = [pair for pair in same if (case.root / "tokenizers" / pair[1]).is_dir()]
    return next(pair for pair in [*used, *there] if all(pair) and name in (None, pair[0]))


def _settings(case: Case) -> GenerationSettings:
    num_recorded = len(case.recorded.get("generated_ids", []))
    limit = case.params.get("max_new_tokens", max(DEFAULT_NEW_TOKENS, num_recorded))
    return GenerationSettings(max_new_tokens=limit, min_new_tokens=case.params.get("min_new_tokens", 0))


def _check_answer(case: Case, model: VideoChatModel, prompt: Prompt) -> None:
    """Prompt, first logits, ids and text against the recording."""
    recorded, settings = case.recorded, _settings(case)
    case.exact("prompt", prompt.layout.text, recorded["prompt_collapsed"])
    case.exact("prompt ids", run_lengths(list(prompt.layout.input_ids)), recorded["input_ids_rle"])
    case.exact("prompt length", len(prompt.layout), recorded["n_prompt"])
    if "prompt_embeds_mean" in case.tensors:
        case.close("prompt embeddings", prompt.tokens.embeds_LD.mean(0), case.tensors["prompt_embeds_mean"])
    ids = list(generate_ids(model.language_model, prompt.tokens, model.stop_ids, settings))
    logits = first_logits(model.language_model, prompt.tokens, settings.max_new_tokens)
    limit = switch_length(model.network.language_model)
    if limit is not None and len(prompt.layout) <= limit < len(prompt.layout) + settings.max_new_tokens:
        case.exclude(
            f"prompt of {len(prompt.layout)} + {settings.max_new_tokens} tokens crosses LongRoPE's {limit}: the "
            "reference decodes with mixed factors; ours against a fresh long-regime prefill at every step"
        )
        _compare_with_fresh_prefills(case, model, prompt, ids, logits)
        return
    case.close("first logits", logits, case.tensors["first_step_logits"])
    close = [step for step, margin in enumerate(recorded.get("step_margins", ())) if margin < CLOSE_MARGIN]
    if close and ids != recorded["generated_ids"]:
        case.exclude(f"from token {close[0]} on: two tokens are equally likely, and rounding decides between them")
        case.exact("generated ids", ids[: close[0]], recorded["generated_ids"][: close[0]])
        return
    case.exact("generated ids", ids, recorded["generated_ids"])
    pieces = text_pieces(model.tokenizer, [token for token in ids if token not in model.stop_ids])
    case.exact("text", "".join(pieces).strip(), recorded["response"])


@torch.no_grad()
def _compare_with_fresh_prefills(
    case: Case, model: VideoChatModel, prompt: Prompt, ids: list[int], logits: Tensor
) -> None:
    embed = model.network.get_input_embeddings()
    embeds = prompt.tokens.embeds_LD
    for step, token in enumerate(ids):
        with fixed_regime(True):
            fresh = model.network.language_model(inputs_embeds=embeds[None], use_cache=False).logits[0, -1]
        if step == 0:
            case.close("first logits, fresh prefill", logits, fresh)
        if step < case.params.get("min_new_tokens", 0):
            fresh[list(model.stop_ids)] = -torch.inf
        case.exact(f"token {step}, fresh prefill", token, int(fresh.argmax()))
        embeds = torch.cat((embeds, embed(torch.tensor([token]))))


def _watch(case: Case, **options: Any) -> tuple[VideoChatModel, StreamingSession]:
    """A session that has seen the case's frames."""
    params = case.params
    model = model_of(case.root, params["model"], params["tokenizer"])
    pixels = case.make_frames(**params["frames"])
    labels = [_LABEL.fullmatch(label) for label in params.get("timestamps") or []]
    with_times = bool(labels) and all(label is not None and label[2] is not None for label in labels)
    times = [float(label[2]) for label in labels if label and label[2]] if with_times else list(range(len(pixels)))
    capacities = bank_capacities(params["capacities"])
    memory = PyramidMemoryBank(
        capacities=capacities, full_grid=model.frames.grid, intervals=model.frames.memory_intervals
    )
    history = [Exchange(question, answer) for question, answer in params.get("history") or []]
    session = StreamingSession(
        model,
        memory,
        with_times=with_times,
        history=history,
        system_message=params.get("system_message", options.pop("system_message", None)),
        settings=_settings(case),
    )
    session.push(pixels, times)
    return model, session


def check_chat_stream(case: Case) -> None:
    """One question after a stream, through a session."""
    model, session = _watch(case)
    prefix = case.params.get("add_generation_prompt") or ""
    prepared = session.prepare(case.params["question"], generation_prefix=prefix)
    _check_answer(case, model, prepared.prompt)


@torch.no_grad()
def check_chat_stream_multiturn(case: Case) -> None:
    """A second question: the reference fills the first turn's places with new features and leaves "<image>" as text.

    Ours keeps the frames where they were seen, and puts the empty line before the second question that the recorded
    training rows have where no frame came; checked against the recorded first prompt and a forward pass over it that
    shares no code with sessions.
    """
    case.exclude(
        "the reference fills the old turn's places again and leaves literal <image>; ours keeps each frame once"
    )
    first = earlier_case(case, case.params["history_from"])
    model, session = _watch(first)
    answer = session.ask(first.params["question"])
    case.exact("first answer", answer.text, first.recorded["response"])
    second = session.prepare(case.params["question"]).prompt
    template = model.template
    expected = (
        first.recorded["prompt_collapsed"]
        + answer.text
        + template.reply_suffix
        + template.reply_end
        + template.after_reply
        + template.user_prefix
        + "\n"
        + case.params["question"]
        + template.user_end
        + template.assistant_prefix
    )
    case.exact("second prompt", second.layout.text, expected)
    visual = torch.cat([model.project(frame.tokens_CHW).embeds for frame in session.memory.read()])
    ids = torch.tensor([second.layout.input_ids])
    limit = _settings(case).max_new_tokens
    fresh = model.network(inputs_embeds=model.network.fuse(ids, visual), use_cache=False).logits[0, -1]
    case.close("first logits, fresh prefill", first_logits(model.language_model, second.tokens, limit), fresh)


@torch.no_grad()
def _frame_tokens(case: Case, model: VideoChatModel) -> list[VisualTokens]:
    """Projected tokens of every frame with the schedule's resolution, none evicted."""
    schedule = TokenSchedule(model.frames.memory_intervals)
    pixels = case.make_frames(**case.params["frames"])
    ratios = [schedule.ratio(index) for index in range(len(pixels))]
    counts = [(model.frames.grid[0] // ratio) * (model.frames.grid[1] // ratio) for ratio in ratios]
    embedded = model.network.embed_frames(case.frames.normalise(pixels), ratios)
    return [VisualTokens(tokens_ND[None], (1, len(tokens_ND))) for tokens_ND in embedded.split(counts)]


def check_chat_it(case: Case) -> None:
    """All frames of a clip in one prompt (no bank), a second turn with further frames among them."""
    params = case.params
    model = model_of(case.root, params["model"], params["tokenizer"])
    visuals = _frame_tokens(case, model)
    dialogue = [(params["question"], None)]
    system_message = params.get("system_message")
    if "history_from" in params:
        first = earlier_case(case, params["history_from"])
        system_message = first.params.get("system_message") if system_message is None else system_message
        dialogue.insert(0, (first.params["question"], first.recorded["response"]))
    turns, start = [], 0
    for question, answer in dialogue:
        num_frames = question.count("<image>")
        counts = [len(tokens) for tokens in visuals[start : start + num_frames]]
        turns.append(Turn(split_placeholders(question, counts), answer))
        start += num_frames
    prefix = params.get("add_generation_prompt") or ""
    prompt = build_prompt(model, turns, visuals, system_message=system_message, generation_prefix=prefix)
    _check_answer(case, model, prompt)


def check_batch_chat(case: Case) -> None:
    """Several streams answered side by side: the reference raises; ours must not mix them up."""
    case.exclude(f"{case.notes}; ours: interleaved sessions answer as each alone")
    name, tokenizer = some_model(case, case.params["model"])
    model = model_of(case.root, name, case.params.get("tokenizer", tokenizer))
    settings = GenerationSettings(max_new_tokens=4)
    streams = [case.frames.make_frames(seed, 3) for seed in (1, 2)]
    alone = []
    for pixels in streams:
        session = StreamingSession(model, settings=settings)
        session.push(pixels, [0.0, 1.0, 2.0])
        alone.append(session.ask("What is it?").text)
    together = [StreamingSession(model, settings=settings) for _ in streams]
    for time in range(3):
        for session, pixels in zip(together, streams, strict=True):
            session.push(pixels[time : time + 1], [float(time)])
    case.exact("answers", [session.ask("What is it?").text for session in together], alone)


CHECKS: dict[str, Callable[[Case], None]] = {
    "batch_chat": check_batch_chat,
    "chat_it": check_chat_it,
    "chat_stream": check_chat_stream,
    "chat_stream_multiturn": check_chat_stream_multiturn,
}
