"""What a run is to do, before any model is loaded: which videos, where they are, which of them are this process's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from videochat_online.errors import InputError
from videochat_online.evaluation.benchmark import EvalSet, EvalVideo
from videochat_online.evaluation.config import EvaluationConfig
from videochat_online.evaluation.media.locate import LocatedVideo, MediaLibrary
from videochat_online.evaluation.protocol import EvalProtocol
from videochat_online.evaluation.run.answering import asked_kind
from videochat_online.evaluation.run.evaluation_folder import Shard
from videochat_online.evaluation.scoring.open_answers import JUDGE, SCORER_NAMES, parse_number

QUESTION_COST = 4.0
"""An answer costs about as much as encoding this many frames; only for sharing out and for the time left."""
UNKNOWN_LENGTH_S = 300.0
"""Stands for the length of a video that is watched to its end; for the same."""


@dataclass(frozen=True)
class Plan:
    """The whole set and the share of this process.

    Attributes:
        content: all videos and questions, and the rows that could not be used.
        share: this shard's videos, in the set's order.
        missing: videos of the whole set that are not there.
    """

    content: EvalSet
    share: tuple[LocatedVideo, ...]
    missing: tuple[LocatedVideo, ...] = ()


def make_plan(config: EvaluationConfig) -> Plan:
    """Read annotations, share out, find the videos.

    Raises:
        InputError: annotations or data root unusable, too many unusable rows, or questions that `settled` refuses.
    """
    content = config.task.read(config.annotations)
    if config.max_videos is not None:
        content = replace(content, videos=content.videos[: config.max_videos])
    _check_starts(content, config.protocol)
    num_rows = len(content.questions) + len(content.problems)
    if len(content.problems) > config.max_bad_fraction * num_rows:
        raise InputError(
            f"{len(content.problems)} of {num_rows} annotated questions cannot be used, more than max_bad_fraction "
            f"{config.max_bad_fraction:g} allows; the first: {content.problems[0]}"
        )
    settled(config, content)
    _check_scorers(content, config)
    share = share_of(content.videos, config.protocol, config.shard, blind=config.blind)
    if config.blind or config.data_root is None:
        return Plan(content, tuple(LocatedVideo(video) for video in share))
    library = MediaLibrary(config.data_root)
    everywhere = {video.name: library.locate(video) for video in content.videos}
    missing = tuple(located for located in everywhere.values() if located.problem is not None)
    return Plan(content, tuple(everywhere[video.name] for video in share), missing)


def _check_starts(content: EvalSet, protocol: EvalProtocol) -> None:
    """A clip that begins at its question's own start cannot come out of a memory of the whole stream."""
    num_own = sum(question.starts_s is not None for question in content.questions)
    if protocol.clips and protocol.memory is not None and num_own:
        raise InputError(
            f"--protocol reference: expected --setting sliding_window, since {num_own} questions are shown clips that "
            f"begin at their own start, got {protocol.setting}, whose memory has seen what was before it"
        )


def settled(config: EvaluationConfig, content: EvalSet) -> EvaluationConfig:
    """The config with the system messages of the kinds of questions that are asked alone: what a run is known by.

    Raises:
        InputError: several system messages with `kv_memory`, which reads the frames after one of them.
    """
    # The question that a poll leads to is asked, too.
    asked = (question for video in content.videos for moment in video.moments for question in moment)
    kinds = {asked_kind(question, config.answer_by) for question in asked}
    return replace(config, protocol=config.protocol.asking(kinds))


def _check_scorers(content: EvalSet, config: EvaluationConfig) -> None:
    """What is said about scorers has to have a meaning for this set."""
    named = {question.id: (question, config.scorer_of(question)) for question in content.questions}
    if config.scorer is not None and not any(scorer for _, scorer in named.values()):
        raise InputError(f"--scorer {config.scorer}: expected open questions in the set, found none")
    for question, scorer in named.values():
        answer = question.answer_text or ""
        if scorer is not None and scorer not in SCORER_NAMES:
            raise InputError(
                f"question {question.id}: scorer: expected one of {', '.join(SCORER_NAMES)}, got {scorer!r}"
            )
        if scorer == "number" and parse_number(answer) is None:
            raise InputError(f"question {question.id}: scorer number: expected a number as answer, got {answer!r}")
    is_judged = any(scorer == JUDGE for _, scorer in named.values())
    if is_judged and config.judge is None:
        raise InputError("scorer judge: expected --judge_url, got none")
    if config.judge is not None and not is_judged:
        raise InputError("--judge_url: expected questions with scorer judge (such as by --scorer judge), found none")


def share_of(
    videos: Sequence[EvalVideo], protocol: EvalProtocol, shard: Shard, *, blind: bool = False
) -> list[EvalVideo]:
    """Videos of a shard, in order: the costliest first, each to the shard that has least so far.

    Depends on nothing but its arguments: every process finds the same shares.
    """
    costs = [estimated_cost(video, protocol, blind=blind) for video in videos]
    loads = [0.0] * shard.count
    owner: dict[int, int] = {}
    for index in sorted(range(len(videos)), key=lambda index: -costs[index]):
        owner[index] = loads.index(min(loads))
        loads[owner[index]] += costs[index]
    return [video for index, video in enumerate(videos) if owner[index] == shard.index]


def estimated_cost(video: EvalVideo, protocol: EvalProtocol, *, blind: bool = False) -> float:
    """Frames to encode, answers included as frames."""
    num_asked = len(video.moments)
    answers = QUESTION_COST * num_asked
    if blind:
        return answers
    fps = protocol.fps if video.fps is None else min(protocol.fps, video.fps)
    start_s, end_s = video.clip_s
    looks_ahead = protocol.is_scripted and protocol.memory is not None and math.isfinite(end_s)
    stop_s = end_s if looks_ahead else min(video.last_question_s, end_s)
    stop_s = stop_s if math.isfinite(stop_s) else start_s + UNKNOWN_LENGTH_S
    span_s = max(0.0, stop_s - start_s)
    if protocol.memory is None:
        span_s = min(span_s, num_asked * (protocol.window_s or math.inf))
    return min(fps * span_s, num_asked * (protocol.max_frames or math.inf)) + answers
