"""The composite network: configuration, modelling, and checkpoints of every known layout."""

from videochat_online.model.checkpoint import export_original, load_network
from videochat_online.model.configuration import VideoChatOnlineConfig
from videochat_online.model.loading import VideoChatModel, load_model
from videochat_online.model.modeling import VideoChatOnlineForConditionalGeneration

__all__ = [
    "VideoChatOnlineConfig",
    "VideoChatModel",
    "VideoChatOnlineForConditionalGeneration",
    "export_original",
    "load_model",
    "load_network",
]
