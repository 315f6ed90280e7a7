"""Sessions: push frames, ask at any moment, stream the answer; and chat about still images."""

from videochat_online.streaming.generate import GenerationSettings
from videochat_online.streaming.image_chat import ImageChat
from videochat_online.streaming.kv.kv_budget import KvBudget
from videochat_online.streaming.session import StreamingSession
from videochat_online.streaming.session_file import Exchange
from videochat_online.streaming.strategies import STRATEGIES, Strategy, make_strategy

__all__ = [
    "STRATEGIES",
    "Exchange",
    "GenerationSettings",
    "ImageChat",
    "KvBudget",
    "Strategy",
    "StreamingSession",
    "make_strategy",
]
