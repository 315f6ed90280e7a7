"""Sessions: push frames, ask at any moment, stream the answer; and chat about still images."""

from videochat_online.streaming.generate import GenerationSettings
from videochat_online.streaming.images import ImageChat
from videochat_online.streaming.kv_budget import KvBudget
from videochat_online.streaming.session import StreamingSession
from videochat_online.streaming.state import Exchange

__all__ = ["Exchange", "GenerationSettings", "ImageChat", "KvBudget", "StreamingSession"]
