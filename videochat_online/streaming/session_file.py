"""A session on disk: one safetensors file with the memory's tensors and the dialogue as JSON metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from videochat_online.documents import validated
from videochat_online.errors import InputError, shown
from videochat_online.model.backbones import FrameLayout
from videochat_online.model.loading import VideoChatModel
from videochat_online.runs.files import written_whole
from videochat_online.text import check_text
from videochat_online.types import NO_FRAMES, FrameChunk

_FORMAT = "videochat_online.session.1"
_WAITING = "waiting_frames"
"""Tensor of the frames that lack others of their entry."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question that was answered.

    Attributes:
        question: Text as it was asked.
        answer: Text as it was given.
        asked_at_s: Stream time in seconds; None for text from before the stream.
        num_frames_seen: Number of frames that had arrived by then; the turn stands after them.
    """

    question: str
    answer: str
    asked_at_s: float | None = None
    num_frames_seen: int = 0


@dataclass(frozen=True, slots=True)
class SessionState:
    """What a session holds beside its memory."""

    num_frames: int
    last_time_s: float
    history: tuple[Exchange, ...]
    waiting: FrameChunk = NO_FRAMES


def check_history(history: Sequence[Exchange]) -> None:
    """Fail on questions or answers that no prompt can hold.

    Raises:
        InputError: no text, or half of a surrogate pair in it.
    """
    for number, exchange in enumerate(history, start=1):
        check_text(exchange.question, f"exchange {number}: question")
        check_text(exchange.answer, f"exchange {number}: answer")


def save_state(path: Path, state: SessionState, memory: Mapping[str, Tensor]) -> None:
    """Write a session; a file that is there already is replaced only by a whole one.

    Raises:
        InputError: there is no such folder, it cannot be written to, or the state holds something else than tensors.
    """
    meta = asdict(replace(state, waiting=NO_FRAMES)) | {"waiting": list(state.waiting.times_s)}
    if math.isinf(state.last_time_s):
        meta["last_time_s"] = None  # JSON has no infinity
    metadata = {"format": _FORMAT, "session": json.dumps(meta)}
    for key, value in memory.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{path}: expected tensors alone in a memory's state, found {shown(value)} at {key}")
    if len(state.waiting):
        memory = {**memory, _WAITING: torch.from_numpy(state.waiting.pixels_THWC)}
    # Copies: an outside memory's may be views of one another.
    tensors = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in memory.items()
    }
    try:
        with written_whole(path) as partial:
            save_file(tensors, partial, metadata=metadata)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: expected a place to write a session to: {error}") from error


def load_state(path: Path, model: VideoChatModel) -> tuple[SessionState, dict[str, Tensor]]:
    """Read a session of frames as the model takes them.

    Raises:
        InputError: the file is missing, unreadable, or not a saved session; or its dialogue has half of a surrogate
            pair.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: expected a saved session, found: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise InputError(f"{path}: expected a saved session ({_FORMAT}), found {metadata.get('format')!r}")
    try:
        meta = json.loads(metadata["session"])
        history = tuple(Exchange(**exchange) for exchange in meta["history"])
        last_time_s = -math.inf if meta["last_time_s"] is None else float(meta["last_time_s"])
        times_s = tuple(map(float, meta.get("waiting", ())))
        waiting = FrameChunk(tensors.pop(_WAITING).numpy(), times_s) if times_s else NO_FRAMES
        state = SessionState(meta["num_frames"], last_time_s, history, waiting)
        check_history(history)
        _check(state, model.frames)
        return state, tensors
    except InputError as error:
        raise InputError(f"{path}: expected a saved session, found a broken dialogue: {error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: expected a saved session, found broken metadata: {error!r}") from error


def _check(state: SessionState, frames: FrameLayout) -> None:
    """Raise a ValueError or TypeError unless it is the state of some session of such frames."""
    validated(Annotated[int, Ge(0)], state.num_frames, "num_frames")
    if not (math.isfinite(state.last_time_s) if state.num_frames else state.last_time_s == -math.inf):
        raise ValueError(f"{state.num_frames} frames up to {state.last_time_s} s")
    found, expected = state.waiting.pixels_THWC, (state.num_frames % frames.frames_per_entry, *frames.shape, 3)
    if len(state.waiting) != expected[0] or (expected[0] and (found.shape != expected or found.dtype != np.uint8)):
        raise ValueError(f"frames that wait, {found.dtype} {found.shape}, expected uint8 {expected}")
    for each in state.history:
        is_timed = each.asked_at_s is None or math.isfinite(each.asked_at_s)
        if not (is_timed and each.num_frames_seen in range(state.num_frames + 1)):
            raise ValueError(f"{each} of {state.num_frames} frames")


def to_model(tensor: Tensor, model: VideoChatModel) -> Tensor:
    """A saved tensor beside the model; features (fp16, bf16 or fp32 grids) in the model's own precision.

    Raises:
        InputError: features of another width than the model's.
    """
    is_features = tensor.is_floating_point() and tensor.ndim == 4
    expected = model.frames.feature_dim
    if is_features and tensor.shape[1] not in (0, expected):
        raise InputError(f"a saved session of frames with {tensor.shape[1]} channels: this model has {expected}")
    return tensor.to(model.device, model.dtype if is_features else None)
