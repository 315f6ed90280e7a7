"""The composite network: configuration, modelling, and checkpoints of every known layout.

Importing it tells transformers' Auto classes what a folder of ours is.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from videochat_online.model.checkpoints.checkpoint import export_original
from videochat_online.model.configuration import VideoChatOnlineConfig
from videochat_online.model.loading import VideoChatModel, load_model
from videochat_online.model.modeling import VideoChatOnlineForConditionalGeneration
from videochat_online.model.network_loading import load_network

__all__ = [
    "VideoChatOnlineConfig",
    "VideoChatModel",
    "VideoChatOnlineForConditionalGeneration",
    "export_original",
    "load_model",
    "load_network",
]

AutoConfig.register(VideoChatOnlineConfig.model_type, VideoChatOnlineConfig, exist_ok=True)
for _auto_class in (AutoModel, AutoModelForImageTextToText):
    _auto_class.register(VideoChatOnlineConfig, VideoChatOnlineForConditionalGeneration, exist_ok=True)
