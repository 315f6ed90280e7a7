"""How a benchmark is put to a model: which frames, which memory, which words around the question.

Owns the published settings of OVBench, each value of which can be overridden; the resolved protocol is part of
a run's output. Knows no files and no model.

Source: the released evaluation of VideoChat-Online on OVBench. By default two of its habits are left out. Its
scripts label the frames of video files with their END times, training labels them with START times. And they hand
the last question of a video the frames up to the clip's end, which is looking ahead; here a question sees the
frames that start at or before its time, and nothing else. `protocol="reference"` does as the scripts do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from videochat_online.errors import InputError
from videochat_online.memory import MEMORY_BANKS, MEMORY_OPTIONS, MemoryBank, make_model_memory
from videochat_online.memory.budget import sizes_within
from videochat_online.memory.schedule import Grid
from videochat_online.streaming.readings import Strategy
from videochat_online.streaming.strategies import STRATEGY_OPTIONS, make_strategy
from videochat_online.text.questions import (
    KIND_SUFFIXES,
    OVBENCH_SYSTEM_MESSAGE,
    SLIDING_WINDOW_SUFFIX,
    STREAMING_SUFFIX,
)

FRAME_TIMES = ("start", "end")
FRAME_RULES = ("causal", "reference")
"""Values of `--protocol`: no look-ahead, or the frames of the published scripts."""


@dataclass(frozen=True, kw_only=True)
class EvalProtocol:
    """A setting with all its values.

    Attributes:
        setting: name in `PROTOCOLS`.
        causal: a question sees no frame later than itself; otherwise it sees those of the published scripts.
        fps: frames a second; every n-th frame of the video is taken, n = its rate / `fps` rounded.
        memory: what remembers the stream; None where a question gets a window of frames instead.
        memory_options: options of that memory, without those that the model decides.
        strategy: what is done at question time with the frames that the memory gives; a window has only "direct".
        strategy_options: all options of that strategy.
        kv_memory: the language model reads each frame as it arrives (`StreamingSession`); experimental.
        window_s: how far a window reaches back; None for the whole stream.
        max_frames: most frames of a window, or of a whole video; more are thinned out evenly.
        frame_times: a frame of a video file is labelled with its "start" or its "end". With a memory it counts as seen
            from that time on; a window has the frames that start up to its question either way, so that the last one
            may be labelled with a time after it.
        with_times: whether frames are labelled with times at all.
        system_message: before everything else; None: the checkpoint's own.
        suffix: after the options of a multiple-choice question.
        max_new_tokens: of an answer.
        zero_start: times of questions and frames count from a video file's first frame, whatever its clock says.
    """

    setting: str
    causal: bool = True
    fps: float
    memory: str | None
    memory_options: Mapping[str, Any]
    window_s: float | None
    max_frames: int | None
    frame_times: str = "start"
    with_times: bool = True
    system_message: str | None = OVBENCH_SYSTEM_MESSAGE
    suffix: str
    max_new_tokens: int
    strategy: str = "direct"
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    kv_memory: bool = False
    zero_start: bool = False

    def __post_init__(self) -> None:
        rules = {
            "fps above 0": math.isfinite(self.fps) and self.fps > 0,
            "window_s above 0": self.window_s is None or (math.isfinite(self.window_s) and self.window_s > 0),
            "max_frames of at least 1": self.max_frames is None or self.max_frames >= 1,
            f"frame_times of {' or '.join(FRAME_TIMES)}": self.frame_times in FRAME_TIMES,
            "frame_times of end in the published scripts": self.causal or self.frame_times == "end",
            "max_new_tokens of at least 1": self.max_new_tokens >= 1,
        }
        for rule, holds in rules.items():
            if not holds:
                name = rule.split()[0]
                raise InputError(f"protocol: expected {rule}, got {getattr(self, name)}")
        if self.kv_memory:
            reads_question = hasattr(MEMORY_BANKS[self.memory or "pyramid"], "read_for")
            if reads_question or self.strategy != "direct":
                raise InputError(
                    "protocol: expected kv_memory only without a strategy, or a memory, that chooses frames by the "
                    f"question, got {self.memory if reads_question else self.strategy}"
                )

    def suffix_of(self, kind: str) -> str:
        """What a question of a kind (`records.KINDS`) ends in."""
        return KIND_SUFFIXES.get(kind, self.suffix)

    @property
    def min_new_tokens(self) -> int:
        """Of an answer; the published scripts do not let it be empty."""
        return 0 if self.causal else 1

    def make_memory(self, full_grid: Grid, intervals: tuple[int, ...]) -> MemoryBank:
        """An empty memory for frames of a model, which decides its grid and intervals.

        Raises:
            InputError: this setting has none; an option that the memory does not take, or a bad value.
        """
        if self.memory is None:
            raise InputError(f"setting {self.setting!r} has no memory")
        return make_model_memory(self.memory, full_grid, intervals, self.memory_options)

    def make_strategy(self) -> Strategy:
        """The strategy of a session.

        Raises:
            InputError: an unknown name, an option that the strategy does not take, or a bad value.
        """
        return make_strategy(self.strategy, **self.strategy_options)


PROTOCOLS: dict[str, EvalProtocol] = {
    "streaming": EvalProtocol(
        setting="streaming",
        fps=8.0,
        memory="pyramid",
        memory_options={"capacities": (2, 2, 12), "policy": "reference"},
        window_s=None,
        max_frames=None,
        suffix=STREAMING_SUFFIX,
        max_new_tokens=128,
    ),
    "sliding_window": EvalProtocol(
        setting="sliding_window",
        fps=2.0,
        memory=None,
        memory_options={},
        window_s=32.0,
        max_frames=64,
        suffix=SLIDING_WINDOW_SUFFIX,
        max_new_tokens=16,
    ),
}


def resolve_protocol(
    setting: str,
    *,
    of_task: Mapping[str, Mapping[str, Any]] | None = None,
    protocol: str = "causal",
    memory: str | None = None,
    memory_options: Mapping[str, Any] | None = None,
    strategy: str | None = None,
    strategy_options: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> EvalProtocol:
    """A preset with what the caller wants otherwise.

    Args:
        setting: name in `PROTOCOLS`.
        of_task: `Task.settings`: what a benchmark has otherwise than the preset.
        protocol: one of `FRAME_RULES`; "reference" labels frames with their ends, too.
        memory: another memory than the preset's. It then gets as many frames as fit the preset's budget on its
            default token grids, unless its options say otherwise; `fifo` gets the preset's capacities.
        memory_options: options of the memory; None values count as not given.
        strategy: other than "direct".
        strategy_options: options of the strategy; None values count as not given.
        **overrides: other fields of `EvalProtocol`; None values count as not given. A `window_s` of infinity is
            the whole stream.

    Raises:
        InputError: an unknown setting, protocol, memory or strategy, a value out of its range, or an option that has
            no meaning in the setting.
    """
    if setting not in PROTOCOLS:
        raise InputError(f"unknown setting {setting!r}: expected one of {sorted(PROTOCOLS)}")
    if protocol not in FRAME_RULES:
        raise InputError(f"unknown protocol {protocol!r}: expected one of {list(FRAME_RULES)}")
    preset = replace(PROTOCOLS[setting], **(of_task or {}).get(setting, {}))
    given = {name: value for name, value in overrides.items() if value is not None}
    if protocol == "reference":
        given = {"causal": False, "frame_times": "end", **given}
    options = {name: value for name, value in (memory_options or {}).items() if value is not None}
    of_strategy = {name: value for name, value in (strategy_options or {}).items() if value is not None}
    if preset.memory is None:
        # A window keeps its frames as projected tokens alone, which is not what a strategy reads.
        named = {"memory": memory, **options, "strategy": strategy, **of_strategy, "kv_memory": given.get("kv_memory")}
        unusable = [f"--{name}" for name, value in named.items() if value is not None]
    else:
        unusable = [f"--{name}" for name in ("window_s", "max_frames") if name in given]
    if unusable:
        raise InputError(f"setting {setting!r} does not use {', '.join(unusable)}")
    if preset.memory is not None:
        name = preset.memory if memory is None else memory
        given |= {"memory": name, "memory_options": _memory_options(name, options, preset)}
        given |= _strategy("direct" if strategy is None else strategy, of_strategy)
    elif given.get("window_s") == math.inf:
        given["window_s"] = None
    return replace(preset, **given)


def _memory_options(name: str, given: Mapping[str, Any], preset: EvalProtocol) -> dict[str, Any]:
    if name not in MEMORY_BANKS:
        raise InputError(f"unknown memory {name!r}: expected one of {sorted(MEMORY_BANKS)}")
    unknown = sorted(set(given) - set(MEMORY_OPTIONS[name]))
    if unknown:
        raise InputError(f"memory {name!r} does not take {', '.join(unknown)}")
    chosen = {option: value for option, value in preset.memory_options.items() if option in MEMORY_OPTIONS[name]}
    budget = full_size_frames(preset)
    sizes = sizes_within(name, budget, given)
    taken = ", ".join(f"{option} {given[option]}" for option in sizes if option in given)
    left_out = [option for option, size in sizes.items() if option not in given and size < 1 and option != "key_frames"]
    if taken and left_out:
        raise InputError(
            f"memory {name!r}: expected sizes within the budget of {budget:g} full-size frames, got {taken}, which "
            f"leaves no {', '.join(left_out)}: give all sizes, or smaller ones"
        )
    chosen |= sizes
    chosen |= given
    if "capacities" in chosen:
        chosen["capacities"] = tuple(chosen["capacities"])
    return chosen


def _strategy(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Its fields of a protocol: all options, also those that have their defaults."""
    chosen = make_strategy(name, **given)
    return {"strategy": name, "strategy_options": {key: getattr(chosen, key) for key in STRATEGY_OPTIONS[name]}}


def full_size_frames(preset: EvalProtocol) -> float:
    """Budget of a preset's pyramid in full-size frames: each tier's frames have a quarter of the tokens."""
    return float(sum(capacity / 4**tier for tier, capacity in enumerate(preset.memory_options["capacities"])))
