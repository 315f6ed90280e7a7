"""How a benchmark is put to a model: which frames, which memory, which words around the question.

Owns the published settings of OVBench, each value of which can be overridden; the resolved protocol is part of
a run's output. Knows no files and no model.

Source: the released evaluation of VideoChat-Online on OVBench. By default two of its habits are left out. Its
scripts label the frames of video files with their END times, training labels them with START times. And they hand
the last question of a video the frames up to the clip's end, which is looking ahead; here a question sees the
frames that start at or before its time, and nothing else. `protocol="reference"` does as the scripts do. Other
benchmarks say in their settings what their own scripts do: they cut a clip for each question.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from videochat_online.documents import check_dataclass
from videochat_online.errors import InputError
from videochat_online.memory import MEMORIES, MemoryBank, make_model_memory, sizes_within
from videochat_online.memory.schedule import Grid
from videochat_online.parts import check_names
from videochat_online.streaming.strategies import STRATEGIES, Strategy, make_strategy
from videochat_online.text import check_text
from videochat_online.text.questions import (
    KIND_SUFFIXES,
    KIND_SYSTEM_MESSAGES,
    OVBENCH_SYSTEM_MESSAGE,
    SLIDING_WINDOW_SUFFIX,
    STREAMING_SUFFIX,
)
from videochat_online.video import TIME_TOLERANCE_S
from videochat_online.video.sampling_rules import Rounding

FrameTimes = Literal["start", "end"]
FRAME_TIMES = get_args(FrameTimes)
FRAME_RULES = ("causal", "reference")
"""Values of `--protocol`: no look-ahead, or the frames of the published scripts."""
OVBENCH_REFERENCE: Mapping[str, Any] = {"causal": False, "frame_times": "end"}
"""Values that `--protocol reference` changes for OVBench."""
SYSTEM_MESSAGES: dict[str, str | None] = {"none": "", "checkpoint": None}
"""Words that `--system_message` takes in place of a text: no message, and the checkpoint's own."""


@dataclass(frozen=True, kw_only=True)
class EvalProtocol:
    """A setting with all its values.

    Attributes:
        setting: name in `PROTOCOLS`.
        causal: whether a question sees no frame later than itself; otherwise it sees those of the published scripts.
        clips: whether a question sees the clip that its benchmark's scripts cut for it. It begins with a frame and has
            those that start before the end of the second that the question falls into: at 2.5 s those before 3 s, at
            3 s the same.
        own_starts: whether a window has no frame from before the start of a question that has one
            (`EvalQuestion.starts_s`).
        fps: frames a second; every n-th frame of the video is taken, n = its rate / `fps` rounded.
        step_rounding: rounding of n in streams of video files: "nearest", or "down" as in the published multi-turn
            script.
        memory: name of the memory of the stream; None where a question gets a window of frames instead.
        memory_options: options of that memory, without those that the model decides.
        strategy: name of what is done at question time with the frames that the memory gives; a window has only
            "direct".
        strategy_options: all options of that strategy.
        kv_memory: whether the language model reads each frame as it arrives (`StreamingSession`); experimental.
        window_s: reach of a window, in seconds before the question; None for the whole stream.
        max_frames: largest number of frames of a window, or of a whole video; more are thinned out evenly.
        frame_times: time of a video file's frame that labels it, its "start" or its "end". With a memory it counts as
            seen from that time on; a window has the frames that start up to its question either way, so that the last
            one may be labelled with a time after it.
        with_times: whether frames are labelled with times at all.
        system_message: text before everything else; None: the checkpoint's own.
        kind_system_messages: the same for kinds of questions (`benchmark.KINDS`) that have another one; those without
            options may not be told to select one.
        suffix: text after the options of a multiple-choice question.
        max_new_tokens: largest number of tokens of an answer.
        zero_start: whether times of questions and frames count from a video file's first frame, whatever its clock
            says.
    """

    setting: str
    causal: bool = True
    clips: bool = False
    own_starts: bool = True
    fps: Annotated[float, Field(gt=0)]
    step_rounding: Rounding = "nearest"
    memory: str | None
    memory_options: Mapping[str, Any]
    window_s: Annotated[float, Field(gt=0)] | None
    max_frames: Annotated[int, Field(ge=1)] | None
    frame_times: FrameTimes = "start"
    with_times: bool = True
    system_message: str | None = OVBENCH_SYSTEM_MESSAGE
    kind_system_messages: Mapping[str, str | None] = field(default_factory=lambda: dict(KIND_SYSTEM_MESSAGES))
    suffix: str
    max_new_tokens: Annotated[int, Field(ge=1)]
    strategy: str = "direct"
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    kv_memory: bool = False
    zero_start: bool = False

    def __post_init__(self) -> None:
        check_dataclass(self, "--")
        wanted, why = ("end", "in the published scripts") if self.is_scripted else ("start", "in a benchmark's clips")
        if (self.is_scripted or self.clips) and self.frame_times != wanted:
            raise InputError(f"--frame_times: expected {wanted} {why}, found {self.frame_times}")
        if self.kv_memory:
            reads_question = hasattr(MEMORIES.find(self.memory or "pyramid"), "read_for")
            if reads_question or self.strategy != "direct":
                raise InputError(
                    "protocol: expected kv_memory only without a strategy, or a memory, that chooses frames by the "
                    f"question, got {self.memory if reads_question else self.strategy}"
                )

    def suffix_of(self, kind: str) -> str:
        """What a question of a kind (`benchmark.KINDS`) ends in."""
        return KIND_SUFFIXES.get(kind, self.suffix)

    def system_message_of(self, kind: str) -> str | None:
        """What stands before a question of a kind; None: the checkpoint's own."""
        return self.kind_system_messages.get(kind, self.system_message)

    def asking(self, kinds: Collection[str]) -> EvalProtocol:
        """The same with the system messages of these kinds of questions, and no others.

        Protocols that ask such questions alike are then equal, whatever they had for other kinds.

        Raises:
            InputError: several system messages with `kv_memory`, which reads the frames after one of them.
        """
        messages = {kind: self.system_message_of(kind) for kind in sorted(kinds)}
        if len(set(messages.values())) == 1:
            (message,) = set(messages.values())
            return replace(self, system_message=message, kind_system_messages={})
        if self.kv_memory and messages:
            raise InputError(
                "--kv_memory: expected one system message, which frames are read after, got one each for questions of "
                f"kind {', '.join(messages)} (--system_message gives all the same)"
            )
        return replace(self, kind_system_messages={kind: messages[kind] for kind in messages if kind != "choice"})

    @property
    def is_scripted(self) -> bool:
        """Whether frames are those of OVBench's published scripts."""
        return not (self.causal or self.clips)

    @property
    def min_new_tokens(self) -> int:
        """Smallest number of tokens of an answer, which OVBench's scripts do not let be empty."""
        return int(self.is_scripted)

    def until_s(self, question_s: float) -> float:
        """The latest start of a frame that a question sees; in a clip the end of it, before which a frame starts."""
        return float(math.ceil(question_s)) if self.clips and math.isfinite(question_s) else question_s

    def shows(self, start_s: float, question_s: float) -> bool:
        """Whether a frame starts early enough for a question; both in seconds."""
        until_s = self.until_s(question_s)
        return start_s < until_s - TIME_TOLERANCE_S if self.clips else start_s <= until_s

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
        of_task: `Task.settings`: what a benchmark has otherwise than the preset; None for OVBench's.
        protocol: one of `FRAME_RULES`.
        memory: another memory than the preset's. It then gets as many frames as fit the preset's budget on its
            default token grids, unless its options say otherwise; `fifo` gets the preset's capacities.
        memory_options: options of the memory; None values count as not given.
        strategy: other than "direct".
        strategy_options: options of the strategy; None values count as not given.
        **overrides: other fields of `EvalProtocol`; None values count as not given. A `window_s` of infinity is
            the whole stream; a `system_message` stands before all questions, whatever their kind.

    Raises:
        InputError: an unknown setting, protocol, memory or strategy, a value out of its range, an option that
            has no meaning in the setting, or published frames of a benchmark that has none.
    """
    settings = {"reference": OVBENCH_REFERENCE} if of_task is None else of_task
    preset = _preset(setting, settings, protocol)
    given = {name: value for name, value in overrides.items() if value is not None}
    if "system_message" in given:
        given |= one_system_message(given["system_message"])
    options = {name: value for name, value in (memory_options or {}).items() if value is not None}
    of_strategy = {name: value for name, value in (strategy_options or {}).items() if value is not None}
    if preset.memory is None:
        # A window keeps its frames as projected tokens alone, which is not what a strategy reads.
        named = {"memory": memory, **{f"memory.{name}": value for name, value in options.items()}, "strategy": strategy}
        named |= {f"strategy.{name}": value for name, value in of_strategy.items()}
        named["kv_memory"] = given.get("kv_memory")
    else:
        named = {name: given.get(name) for name in ("window_s", "max_frames")}
    unusable = [f"--{name}" for name, value in named.items() if value is not None]
    if unusable:
        raise InputError(f"setting {setting!r} does not use {', '.join(unusable)}")
    if preset.memory is not None:
        name = preset.memory if memory is None else memory
        given |= {"memory": name, "memory_options": _memory_options(name, options, preset)}
        given |= _strategy("direct" if strategy is None else strategy, of_strategy)
    elif given.get("window_s") == math.inf:
        given["window_s"] = None
    return replace(preset, **given)


def _preset(setting: str, settings: Mapping[str, Mapping[str, Any]], protocol: str) -> EvalProtocol:
    """A benchmark's values for a setting."""
    if setting not in PROTOCOLS:
        raise InputError(f"unknown setting {setting!r}: expected one of {sorted(PROTOCOLS)}")
    if protocol not in FRAME_RULES:
        raise InputError(f"unknown protocol {protocol!r}: expected one of {list(FRAME_RULES)}")
    if protocol == "reference" and "reference" not in settings:
        raise InputError("--protocol reference: expected a benchmark with published frames, got one without")
    otherwise = settings["reference"] if protocol == "reference" else {}
    return replace(PROTOCOLS[setting], **{**settings.get(setting, {}), **otherwise})


def context_of(protocol: EvalProtocol, of_task: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A benchmark's name for how far a window reaches back; None for a memory, or a window of one's own."""
    if protocol.memory is not None:
        return None
    window_s = math.inf if protocol.window_s is None else protocol.window_s
    return next((name for name, value in of_task.get("contexts", {}).items() if value == window_s), None)


def one_system_message(given: str) -> dict[str, Any]:
    """The fields of a protocol that has this one before all questions: a text, or a word of `SYSTEM_MESSAGES`.

    Raises:
        InputError: half of a surrogate pair.
    """
    message = SYSTEM_MESSAGES.get(given, given)
    return {"system_message": message and check_text(message, "system message"), "kind_system_messages": {}}


def _memory_options(name: str, given: Mapping[str, Any], preset: EvalProtocol) -> dict[str, Any]:
    known, of_preset = MEMORIES.options_of(name), MEMORIES.options_of(str(preset.memory))
    check_names(known, given, f"memory {name!r}")
    # An option of the same name may mean another thing in another memory.
    chosen = {
        option: value for option, value in preset.memory_options.items() if known.get(option) == of_preset[option]
    }
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
    # In the order of the memory's own: that of sizes in labels.
    inner = {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}
    return {option: inner[option] for option in known if option in inner}


def _strategy(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Its fields of a protocol: all options, also those that have their defaults."""
    make_strategy(name, **given)  # what it does not take is said at once
    defaults = {option: one.default for option, one in STRATEGIES.options_of(name).items()}
    return {"strategy": name, "strategy_options": defaults | dict(given)}


def full_size_frames(preset: EvalProtocol) -> float:
    """Budget of a preset's pyramid in full-size frames: each tier's frames have a quarter of the tokens."""
    return float(sum(capacity / 4**tier for tier, capacity in enumerate(preset.memory_options["capacities"])))
