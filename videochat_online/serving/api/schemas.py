"""JSON of the HTTP API: what comes in, checked by pydantic, and what goes out.

Knows no HTTP but the status that a wrong request gets. `docs/openapi.json` is made from these types.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter

from videochat_online.documents import Document, Text, TimeS, document_of, validated
from videochat_online.errors import InputError, one_line, shown
from videochat_online.memory import DEFAULT_FULL_GRID, MEMORIES, make_memory
from videochat_online.memory.labels import largest_size, settings_of
from videochat_online.serving.streams.live_answer import LiveAnswer
from videochat_online.serving.streams.live_stream import LiveStream
from videochat_online.serving.streams.memory_trace import MemoryView
from videochat_online.serving.streams.stream_options import MAX_REMEMBERED, StreamOptions
from videochat_online.serving.streams.stream_status import AnswerDocument, StreamStatus
from videochat_online.streaming import GenerationSettings


class RequestError(InputError):
    """A request that is refused; `status` is its HTTP status."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


def bounded_memories() -> tuple[str, ...]:
    """Names of the memories that do not grow with the stream, those of installed packages included."""
    usable = MEMORIES.usable(full_grid=DEFAULT_FULL_GRID, device=None)
    return tuple(name for name in usable if make_memory(name).max_tokens is not None)


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


def _asked(question: str) -> str:
    if not question.strip():
        raise InputError("expected a question, got an empty one")
    return question


Question = Annotated[Text, AfterValidator(_asked)]
RequestId = Annotated[int, Field(gt=-(2**63), lt=2**63)] | Annotated[str, Field(max_length=200)] | None
"""What tells a client which of its questions an answer belongs to."""

StreamRequest = document_of(StreamOptions, without=("strategy", "strategy_options"))
"""What a client may say of how it wants to watch: the strategy is the server's."""


class AskRequest(Document):
    """A question, to be answered whole, or piece by piece as server-sent events."""

    question: Question
    stream: bool = False


class FrameQuery(Document, strict=False):
    """What stands in the address beside a frame: its stream time in seconds, where it is not now."""

    time_s: TimeS | None = None


class AskCommand(Document):
    """A question."""

    type: Literal["ask"]
    question: Question
    request_id: RequestId = None


class StopCommand(Document):
    """The end of the answer that is being given."""

    type: Literal["stop"]


class StatusCommand(Document):
    """The wish to know how the stream is doing."""

    type: Literal["status"]


Command = Annotated[AskCommand | StopCommand | StatusCommand, Field(discriminator="type")]
"""A text message of a WebSocket."""


class ErrorDocument(Document):
    """Why something was refused, in one line."""

    error: str


class Versions(Document):
    """Versions of what runs here."""

    videochat_online: str
    torch: str


class Places(Document):
    """How many streams may be opened, of how many."""

    free: int
    total: int


class FrameSize(Document):
    """Pixels of the frames that the model sees."""

    width: int
    height: int


class Health(Document):
    """What runs here; the options of each memory that may be chosen."""

    versions: Versions
    places: Places
    frame_size: FrameSize
    memories: dict[str, list[str]]


class OpenedStream(Document):
    """A new stream."""

    id: str
    options: StreamOptions


class StreamDescription(OpenedStream):
    """All about a stream: its options, how it is doing, what it remembers, what was asked."""

    status: StreamStatus
    memory: MemoryView
    answers: list[AnswerDocument]


class TakenFrame(Document):
    """A frame that has arrived, and whether the model is to see it."""

    accepted: bool
    time_s: float
    num_frames_waiting: int
    num_frames_dropped: int


def parse_json(body: bytes | str) -> dict[str, Any]:
    """The object that a body holds; an empty body is an empty object.

    Raises:
        RequestError: a body that is not JSON, or no object.
    """
    try:
        document = json.loads(body or "{}", parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"expected JSON, found {one_line(error)}", 400) from error
    if not isinstance(document, dict):
        raise RequestError(f"expected a JSON object, found {shown(document)}", 400)
    return document


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant}, which JSON does not know")


def options_of(document: Mapping[str, Any], limits: ApiLimits) -> StreamOptions:
    """How a client wants to watch; what it does not say has the default of `StreamOptions`.

    Raises:
        InputError: an unknown field, another type, a value out of its range or beyond the limits.
    """
    asked: Any = validated(StreamRequest, document)
    given = {name: getattr(asked, name) for name in asked.model_fields_set}
    memory, settings = asked.memory, GenerationSettings(**asked.generation.model_dump())
    if memory not in limits.memories:
        raise RequestError(f"memory: expected one of {', '.join(limits.memories)}, found {shown(memory)}")
    known = settings_of(memory)
    for name in asked.memory_options:
        if name not in known:
            found = shown(f"memory_options.{name}")
            raise RequestError(f"unknown field {found}: expected one of {', '.join(known)}")
    given["memory_options"] = {
        name: known[name].check(found, f"memory_options.{name}") for name, found in asked.memory_options.items()
    }
    frame_tokens = math.prod(DEFAULT_FULL_GRID)
    most = -(-(make_memory(memory, **given["memory_options"]).max_tokens or 0) // frame_tokens)
    if (most := max(most, largest_size(given["memory_options"]))) > limits.max_remembered:
        raise RequestError(f"memory_options: expected at most {limits.max_remembered} frames, got {most}")
    for name, value, highest in (
        ("generation.max_new_tokens", settings.max_new_tokens, limits.max_new_tokens),
        ("max_waiting", asked.max_waiting, limits.max_waiting),
    ):
        if value > highest:
            raise RequestError(f"{name}: expected a number of at most {highest:,}, found {value}")
    given |= {"generation": settings, "strategy": limits.strategy, "strategy_options": limits.strategy_options}
    return StreamOptions(**given)


_MEMORY_VIEW = TypeAdapter(MemoryView)


def memory_document(stream: LiveStream) -> dict[str, Any]:
    """The fields of `MemoryView`; frames without their pictures."""
    return dict(_MEMORY_VIEW.dump_python(stream.memory()))


def answer_document(answer: LiveAnswer) -> AnswerDocument:
    """A question and what was answered, by now."""
    return AnswerDocument(**{one.name: getattr(answer, one.name) for one in fields(AnswerDocument)})
