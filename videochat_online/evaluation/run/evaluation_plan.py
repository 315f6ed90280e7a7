"""What an evaluation is to do, before any model is loaded: its values, its videos, its share of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from videochat_online.errors import InputError, VideoError
from videochat_online.evaluation.benchmark import EvalQuestion, EvalSet, EvalVideo, Task, total_questions
from videochat_online.evaluation.media.decoder_process import DECODE_TIMEOUT_S
from videochat_online.evaluation.media.locate import MediaLibrary
from videochat_online.evaluation.protocol import EvalProtocol
from videochat_online.evaluation.run.answering import ANSWER_BY, asked_kind
from videochat_online.evaluation.run.evaluation_folder import Shard
from videochat_online.evaluation.scoring.judge import Judge
from videochat_online.evaluation.scoring.open_answers import JUDGE, SCORER_NAMES, parse_number
from videochat_online.model.checkpoints.weight_files import weights_digest
from videochat_online.runs.files import file_digest
from videochat_online.streaming import GenerationSettings

QUESTION_COST = 4.0
"""An answer costs about as much as encoding this many frames; only for sharing out and for the time left."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """All values of a run.

    Attributes:
        task: the benchmark.
        protocol: resolved.
        annotations: its files.
        data_root: where the videos are; None for a blind run.
        output: folder of the run.
        model: directory or name of the checkpoint, as given.
        model_options: how it is loaded, where that decides answers.
        generation: how answers are generated.
        answer_by: name in `ANSWER_BY`.
        scorer: of open questions that do not name one themselves, in `SCORER_NAMES`; None: the task's.
        judge: that is asked where a scorer is "judge".
        blind: no frames at all.
        backend: video decoder.
        max_bad_fraction: more unusable videos, rows, or questions with too long a prompt, than this part of all is an
            error.
        decode_timeout_s: longest wait for the next frames of a video.
        max_videos: only the first so many; None for all.
        shard: the part that this process works on.

    Raises:
        InputError: a value out of its range.
    """

    task: Task
    protocol: EvalProtocol
    annotations: tuple[Path, ...]
    data_root: Path | None
    output: Path
    model: str
    model_options: Mapping[str, Any] = field(default_factory=dict)
    generation: GenerationSettings
    answer_by: str = "generation"
    scorer: str | None = None
    judge: Judge | None = None
    blind: bool = False
    backend: str = "auto"
    max_bad_fraction: float = 0.1
    decode_timeout_s: float = DECODE_TIMEOUT_S
    max_videos: int | None = None
    shard: Shard = Shard()

    def __post_init__(self) -> None:
        published = self.task.settings.get("reference", {})
        frames = (self.protocol.causal, self.protocol.clips)
        if frames not in ((True, False), (published.get("causal", True), published.get("clips", False))):
            other = f"the frames that {self.task.name} publishes, got those of another task"
            expected = other if published else f"a task with published frames, got {self.task.name}"
            raise InputError(f"--protocol reference: expected {expected}")
        if self.answer_by not in ANSWER_BY:
            raise InputError(f"--answer_by: expected one of {', '.join(ANSWER_BY)}, got {self.answer_by!r}")
        if self.scorer is not None and self.scorer not in SCORER_NAMES:
            raise InputError(f"--scorer: expected one of {', '.join(SCORER_NAMES)}, got {self.scorer!r}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise InputError(f"--max_bad_fraction: expected a part between 0 and 1, got {self.max_bad_fraction}")
        if not 0 < self.decode_timeout_s < math.inf:
            raise InputError(f"--decode_timeout_s: expected seconds above 0, got {self.decode_timeout_s}")
        if self.max_videos is not None and self.max_videos < 1:
            raise InputError(f"--max_videos: expected at least 1, got {self.max_videos}")
        if self.data_root is None and not self.blind:
            raise InputError("--data_root: expected the folder with the videos, got none (only --blind needs none)")

    def scorer_of(self, question: EvalQuestion) -> str | None:
        """What reads the reply to an open question: its own scorer, the run's, or the task's; None for no such one."""
        if question.kind != "open" or question.answer_text is None:
            return None
        return question.scorer or self.scorer or self.task.scorer

    def settings(self) -> dict[str, Any]:
        """What decides the answers, which a resumed run must share, and where the videos are."""
        return dict(self._settings)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        # Once a run: annotations and weights are read for their digests.
        settings = {
            "task": self.task.name,
            "protocol": asdict(self.protocol),
            "blind": self.blind,
            "answer_by": self.answer_by,
            "model": self.model,
            "weights": weights_digest(self.model),
            "model_options": dict(self.model_options),
            "generation": asdict(self.generation),
            "annotations": [{"file": path.name, "sha256": file_digest(path)[:16]} for path in self.annotations],
            "data_root": None if self.blind or self.data_root is None else str(self.data_root.resolve()),
            "backend": self.backend,
            "max_videos": self.max_videos,
        }
        # Where they are given only: runs from before them can be resumed, and compared.
        scorer = self.scorer or self.task.scorer
        settings |= {} if scorer is None else {"scorer": scorer}
        settings |= {} if self.judge is None else {"judge": self.judge.settings()}
        return dict(json.loads(json.dumps(settings)))  # tuples as the lists that a file gives back


@dataclass(frozen=True)
class LocatedVideo:
    """A video and where it is, or why it cannot be used."""

    video: EvalVideo
    path: Path | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Plan:
    """The whole set and the share of this process.

    Attributes:
        content: all videos and questions, and the rows that could not be used.
        share: this shard's videos, in the set's order, each with its place.
        missing_anywhere: videos of the whole set that are not there.
    """

    content: EvalSet
    share: tuple[LocatedVideo, ...]
    missing_anywhere: tuple[LocatedVideo, ...] = ()

    @property
    def missing(self) -> tuple[LocatedVideo, ...]:
        """Videos of the share that are not there."""
        return tuple(located for located in self.share if located.problem is not None)


def make_plan(config: EvaluationConfig) -> Plan:
    """Read annotations, share out, find the videos.

    Raises:
        InputError: annotations or data root unusable, too many unusable rows, or questions that `settled` refuses.
    """
    content = config.task.load(config.annotations)
    if config.max_videos is not None:
        content = EvalSet(content.videos[: config.max_videos], content.problems)
    _check_starts(content, config.protocol)
    num_rows = total_questions(content.videos) + len(content.problems)
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
    everywhere = {video.name: _locate(library, video) for video in content.videos}
    missing = tuple(place for place in everywhere.values() if place.problem is not None)
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
        InputError: as `EvalProtocol.asking`.
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
    for place in sorted(range(len(videos)), key=lambda place: -costs[place]):
        owner[place] = loads.index(min(loads))
        loads[owner[place]] += costs[place]
    return [video for place, video in enumerate(videos) if owner[place] == shard.index]


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
    span_s = max(0.0, stop_s - start_s)
    if protocol.memory is None:
        span_s = min(span_s, num_asked * (protocol.window_s or math.inf))
    return min(fps * span_s, num_asked * (protocol.max_frames or math.inf)) + answers


def _locate(library: MediaLibrary, video: EvalVideo) -> LocatedVideo:
    try:
        return LocatedVideo(video, library.find(video))
    except VideoError as error:
        return LocatedVideo(video, problem=str(error))
