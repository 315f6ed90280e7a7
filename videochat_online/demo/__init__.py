"""Talk to a live video: streams of several viewers at one model, in the browser and over HTTP."""

from videochat_online.demo.answers import LiveAnswer
from videochat_online.demo.live import LiveStream
from videochat_online.demo.player import FilePlayer, PlayerStatus
from videochat_online.demo.pool import BusyError, StreamPool, UnknownStreamError, Watching
from videochat_online.demo.records import MemoryView, StreamOptions, StreamStatus

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
