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


_HOMES = ("memory", "video", "model", "streaming")
"""Where these names live; resolved on first use, in this order: a reader of memories need not wait for transformers."""


def __getattr__(name: str) -> Any:
    for home in _HOMES if name in __all__ else ():
        module = import_module(f"{__name__}.{home}")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
