"""Under which conditions a run was made: weights, how they were loaded, how answers were generated, versions.

Nothing is recorded here a second time: `run.json` says what was asked for, rows of `videos.jsonl` what that came to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from videochat_online.model import VideoChatModel
from videochat_online.runs.row_file import Row


def loaded_conditions(model: VideoChatModel) -> dict[str, str]:
    """What "auto" came to, for a row of `videos.jsonl`: the processes of a run may have different machines."""
    device = model.device
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return {
        "template": model.template.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": str(model.language_model.config._attn_implementation),
        "device": f"{device.type}{name}",
    }


def run_conditions(run: Mapping[str, Any], videos: Sequence[Row]) -> dict[str, Any]:
    """What is known of a run; processes that differ are named side by side.

    Args:
        run: content of `run.json`.
        videos: rows of `videos.jsonl`.
    """
    settings = run["settings"]
    loaded: dict[str, set[str]] = {}
    for row in videos:
        for name, value in row.get("loaded", {}).items():
            loaded.setdefault(name, set()).add(value)
    known = {
        "weights": settings.get("weights"),
        **settings["model_options"],
        **{name: ", ".join(sorted(values)) for name, values in loaded.items()},
        # What the protocol decides stands there.
        **{name: value for name, value in settings["generation"].items() if name not in settings["protocol"]},
        **run.get("versions", {}),
    }
    return {name: value for name, value in known.items() if value is not None}
