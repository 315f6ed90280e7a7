"""Adapters for programs of others, which load them by entry point. Nothing in the package imports them."""

from __future__ import annotations

from typing import Any


def lmms_eval_model() -> Any:
    """What lmms-eval's entry point group `lmms_eval.models` is given: the manifest of model `videochat_online`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="videochat_online",
        simple_class_path="videochat_online.integrations.lmms_eval.VideoChatOnline",
    )
