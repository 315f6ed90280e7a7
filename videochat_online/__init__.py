"""VideoChat-Online: online video language models with bounded memory.

import videochat_online as vco

model = vco.load_model("MCG-NJU/VideoChatOnline-4B")
session = vco.StreamingSession(model)
for frames in vco.read_video("match.mp4", fps=2):
session.push(frames.pixels_THWC, frames.times_s)
print(session.ask("What just happened?").text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from videochat_online.memory import (
        FifoMemoryBank,
        KeepAllMemoryBank,
        MemoryBank,
        PyramidMemoryBank,
        UniformMemoryBank,
        WindowMemoryBank,
        make_memory,
    )
    from videochat_online.model import VideoChatModel, load_model
    from videochat_online.streaming import GenerationSettings, ImageChat, StreamingSession, make_strategy
    from videochat_online.video import open_video, read_image, read_video

# Where each public name lives. Resolved on first use: a reader of memories need not wait for transformers.
_HOMES = {
    "FifoMemoryBank": "memory",
    "KeepAllMemoryBank": "memory",
    "MemoryBank": "memory",
    "PyramidMemoryBank": "memory",
    "UniformMemoryBank": "memory",
    "WindowMemoryBank": "memory",
    "make_memory": "memory",
    "VideoChatModel": "model",
    "load_model": "model",
    "GenerationSettings": "streaming",
    "ImageChat": "streaming",
    "StreamingSession": "streaming",
    "make_strategy": "streaming",
    "open_video": "video",
    "read_image": "video",
    "read_video": "video",
}

__all__ = [
    "FifoMemoryBank",
    "GenerationSettings",
    "ImageChat",
    "KeepAllMemoryBank",
    "MemoryBank",
    "PyramidMemoryBank",
    "StreamingSession",
    "UniformMemoryBank",
    "VideoChatModel",
    "WindowMemoryBank",
    "load_model",
    "make_memory",
    "make_strategy",
    "open_video",
    "read_image",
    "read_video",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
