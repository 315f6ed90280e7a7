"""JSON of the HTTP API: what comes in is checked field by field, what goes out is made from the streams' records.

Knows no HTTP but the status that a wrong request gets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from videochat_online.data.rows.field_values import number, text
from videochat_online.errors import InputError, shown
from videochat_online.memory import MEMORIES
from videochat_online.memory.labels import largest_size, settings_of
from videochat_online.serving.streams.live_answer import LiveAnswer
from videochat_online.serving.streams.live_stream import LiveStream
from videochat_online.serving.streams.stream_options import MAX_REMEMBERED, StreamOptions
from videochat_online.streaming import GenerationSettings

MAX_ID = 200
"""Characters of the id that a client gives to a question."""


class RequestError(InputError):
    """A request that is refused; `status` is its HTTP status."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


def bounded_memories() -> tuple[str, ...]:
    """Names of the memories that do not grow with the stream, those of installed packages included."""
    return tuple(name for name in MEMORIES.usable() if name != "keep_all")


@dataclass(frozen=True, kw_only=True)
class ApiLimits:
    """What one client may ask of the server.

    Attributes:
        max_frame_bytes: largest encoded frame, in bytes.
        max_frame_pixels: largest frame, in pixels.
        max_waiting: frames of one stream that may wait for the model.
        max_remembered: frames of one memory.
        max_new_tokens: longest answer, in tokens.
        max_views: readers of the view of one stream.
        memories: names of memories that may be chosen; by default all that are bounded.
        strategy, strategy_options: strategy of every stream, and its options; not for the client to choose.
    """

    max_frame_bytes: int = 8 * 2**20
    max_frame_pixels: int = 4096 * 4096
    max_waiting: int = 64
    max_remembered: int = MAX_REMEMBERED
    max_new_tokens: int = 2048
    max_views: int = 128
    memories: tuple[str, ...] = field(default_factory=bounded_memories)
    strategy: str = StreamOptions.strategy
    strategy_options: Mapping[str, Any] = field(default_factory=dict)


def parse_json(body: bytes | str) -> dict[str, Any]:
    """The object that a body holds; an empty body is an empty object.

    Raises:
        RequestError: a body that is not JSON, or no object.
    """
    try:
        document = json.loads(body or "{}", parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"expected JSON, found {_line(error)}", 400) from error
    if not isinstance(document, dict):
        raise RequestError(f"expected a JSON object, found {shown(document)}", 400)
    return document


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant}, which JSON does not know")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def check_fields(document: Mapping[str, Any], known: Collection[str], where: str = "") -> None:
    """Raise a `RequestError` if there are other fields than the known ones; `where` ends in a dot."""
    for name in document:
        if name not in known:
            raise RequestError(f"unknown field {shown(where + name)}: expected one of {', '.join(known)}")


def whole(value: Any, where: str, lowest: float, highest: float) -> int:
    """A whole number within a range.

    Raises:
        InputError: another type, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{where}: expected a whole number, found {shown(value)}")
    return int(number(value, where, lowest=lowest, highest=highest))


def options_of(document: Mapping[str, Any], limits: ApiLimits) -> StreamOptions:
    """How a client wants to watch; what it does not say has the default of `StreamOptions`.

    Raises:
        InputError: an unknown field, another type, a value out of its range.
    """
    own: dict[str, Any] = {"strategy": limits.strategy, "strategy_options": limits.strategy_options}
    check_fields(document, [option.name for option in fields(StreamOptions) if option.name not in own])
    given = dict(document)
    if "fps" in given:
        given["fps"] = number(given["fps"], "fps", lowest=0, highest=30)
    memory = text(given.get("memory", StreamOptions.memory), "memory")
    if memory not in limits.memories:
        found = shown(memory)
        raise RequestError(f"memory: expected one of {', '.join(limits.memories)}, found {found}")
    if given.get("system_message") is not None:
        text(given["system_message"], "system_message")
    if "memory_options" in given:
        given["memory_options"] = _memory_options(given["memory_options"], memory, limits)
    generation = given.get("generation", {})
    given["generation"] = _generation(generation, limits)
    if "max_waiting" in given:
        whole(given["max_waiting"], "max_waiting", 1, limits.max_waiting)
    return StreamOptions(**given, **own)


def _inner(value: Any, where: str, known: Collection[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{where}: expected an object, found {shown(value)}")
    check_fields(value, known, f"{where}.")
    return value


def _memory_options(value: Any, memory: str, limits: ApiLimits) -> dict[str, Any]:
    known = settings_of(memory)
    given = {
        name: known[name].check(found, f"memory_options.{name}")
        for name, found in _inner(value, "memory_options", known).items()
    }
    if (most := largest_size(given)) > limits.max_remembered:
        raise RequestError(f"memory_options: expected at most {limits.max_remembered} frames, got {most}")
    return given


def _generation(value: Any, limits: ApiLimits) -> GenerationSettings:
    defaults = asdict(GenerationSettings())
    given = dict(_inner(value, "generation", defaults))
    for name, found in given.items():
        where = f"generation.{name}"
        if name == "seed":
            if found is not None:
                whole(found, where, 0, 2**63 - 1)
        elif isinstance(defaults[name], int):
            whole(found, where, 0, limits.max_new_tokens if name == "max_new_tokens" else math.inf)
        else:
            given[name] = float(number(found, where, lowest=0, highest=1e6))
    return GenerationSettings(**given)


def question_of(document: Mapping[str, Any]) -> str:
    """The field `question`.

    Raises:
        InputError: none, empty, another type.
    """
    question = text(document.get("question"), "question")
    if not question.strip():
        raise RequestError("question: expected a question, got an empty one")
    return question


def request_id_of(document: Mapping[str, Any]) -> str | int | None:
    """The field `request_id`: whatever short text or number tells the client which question an answer belongs to.

    Raises:
        InputError: something else.
    """
    value = document.get("request_id")
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63):
        return value
    if len(text(value, "request_id")) > MAX_ID:
        raise RequestError(f"request_id: expected at most {MAX_ID} characters, found {len(value)}")
    return str(value)


def options_document(options: StreamOptions) -> dict[str, Any]:
    """How a stream is watched."""
    return asdict(options)


def status_document(stream: LiveStream) -> dict[str, Any]:
    """The fields of `StreamStatus`."""
    return asdict(stream.status())


def memory_document(stream: LiveStream) -> dict[str, Any]:
    """The fields of `MemoryView`; frames without their pictures."""
    document = asdict(stream.memory())
    for frame in (*document["remembered"], *document["forgotten"]):
        del frame["thumbnail"]
    return document


def answer_document(answer: LiveAnswer) -> dict[str, Any]:
    """A question and what was answered, by now."""
    names = ("question", "text", "state", "asked_at_s", "first_token_s", "error")
    return {name: getattr(answer, name) for name in names}
