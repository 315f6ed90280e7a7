"""Streams without a page: shared by many, fed from files and networks, spoken to over HTTP."""

from videochat_online.serving.sources.file_source import FilePlayer, PlayerStatus
from videochat_online.serving.streams.live_answer import LiveAnswer
from videochat_online.serving.streams.live_stream import LiveStream
from videochat_online.serving.streams.pool import BusyError, StreamPool, UnknownStreamError, Watching
from videochat_online.serving.streams.stream_status import MemoryView, StreamOptions, StreamStatus

__all__ = [
    "BusyError",
    "FilePlayer",
    "LiveAnswer",
    "LiveStream",
    "MemoryView",
    "PlayerStatus",
    "StreamOptions",
    "StreamPool",
    "StreamStatus",
    "UnknownStreamError",
    "Watching",
]
