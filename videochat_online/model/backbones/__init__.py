"""Families of models by name: what each has of its own. One file a family."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from videochat_online.errors import CheckpointError
from videochat_online.model.backbones.base import Backbone, FrameLayout, VisualTokens
from videochat_online.model.checkpoints.weight_files import check_model_directory, read_entries
from videochat_online.parts import PartKind

_ROOM = "videochat_online.model.backbones"

BACKBONES = PartKind(
    name="backbone",
    group="videochat_online.backbones",
    built_in={
        "internvl": f"{_ROOM}.internvl:InternVL",
        "llava_qwen": f"{_ROOM}.llava_qwen:LlavaQwen",  # before the one whose class it is read into
        "llava_onevision": f"{_ROOM}.llava_onevision:LlavaOnevision",
        "qwen3_vl": f"{_ROOM}.qwen3_vl:Qwen3VL",
    },
    methods=("reads", "read_config", "load", "layout_of", "transform", "encode", "project", "image", "fit", "tokens"),
)


def find_backbone(directory: Path) -> type[Backbone]:
    """The family of a checkpoint, by its `config.json`.

    Raises:
        CheckpointError: there is no such file, or no family reads it.
    """
    check_model_directory(directory)
    config = read_entries(directory / "config.json", "a configuration")
    for name in BACKBONES.usable():
        family = cast(type[Backbone], BACKBONES.find(name))
        if family.reads(config):
            return family
    known = ", ".join(BACKBONES.usable())
    raise CheckpointError(
        f"{directory}/config.json: expected a model of one of the families {known}, found model_type"
        f" {config.get('model_type')!r}"
    )


__all__ = ["BACKBONES", "Backbone", "FrameLayout", "VisualTokens", "find_backbone"]
