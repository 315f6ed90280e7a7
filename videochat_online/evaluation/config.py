"""All values of a run, and which of them decide its answers.

Owns their ranges, and what a run is known by: `EvaluationConfig.settings`. Reads no annotation and no video.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from videochat_online.documents import check_dataclass, one_of
from videochat_online.errors import InputError
from videochat_online.evaluation.benchmark import EvalQuestion
from videochat_online.evaluation.media.decoder_process import DECODE_TIMEOUT_S
from videochat_online.evaluation.protocol import EvalProtocol
from videochat_online.evaluation.run.evaluation_folder import Shard
from videochat_online.evaluation.scoring.judge import Judge
from videochat_online.evaluation.scoring.open_answers import SCORER_NAMES
from videochat_online.evaluation.task import Task
from videochat_online.model.checkpoints.weight_files import weights_digest
from videochat_online.runs.files import file_digest
from videochat_online.streaming import GenerationSettings

AnswerBy = Literal["generation", "likelihood", "text_likelihood"]
ANSWER_BY = get_args(AnswerBy)
"""Ways in which an answer comes about: text is generated, or the letters or texts of the options are compared."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """All values of a run.

    Attributes:
        task: the benchmark.
        protocol: protocol by which the benchmark is put to the model, with all its values.
        annotations: files of the benchmark.
        data_root: folder with the videos; None for a blind run.
        output: folder of the run.
        model: directory or name of the checkpoint, as given.
        model_options: options of loading it that decide answers.
        generation: settings of generated answers.
        answer_by: name in `ANSWER_BY`.
        scorer: name in `SCORER_NAMES`, for open questions that do not name one themselves; None: the task's.
        judge: judge that is asked where a scorer is "judge".
        blind: whether no frames are shown at all.
        backend: name of the video decoder.
        max_bad_fraction: largest part of videos, rows, or questions with too long a prompt that may be unusable.
        decode_timeout_s: longest wait for the next frames of a video, in seconds.
        max_videos: number of videos from the first on; None for all.
        shard: part of the videos that this process works on.

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
    answer_by: AnswerBy = "generation"
    scorer: Annotated[str, one_of(SCORER_NAMES)] | None = None
    judge: Judge | None = None
    blind: bool = False
    backend: str = "auto"
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    decode_timeout_s: Annotated[float, Field(gt=0)] = DECODE_TIMEOUT_S
    max_videos: Annotated[int, Field(ge=1)] | None = None
    shard: Shard = Shard()

    def __post_init__(self) -> None:
        check_dataclass(self, "--")
        published = self.task.settings.get("reference", {})
        frames = (self.protocol.causal, self.protocol.clips)
        if frames not in ((True, False), (published.get("causal", True), published.get("clips", False))):
            other = f"the frames that {self.task.name} publishes, got those of another task"
            expected = other if published else f"a task with published frames, got {self.task.name}"
            raise InputError(f"--protocol reference: expected {expected}")
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
            "task_options": dict(self.task.options) or None,
            "protocol": asdict(self.protocol),
            "blind": self.blind,
            "answer_by": self.answer_by,
            "scorer": self.scorer or self.task.scorer,
            "judge": None if self.judge is None else self.judge.settings(),
            "model": self.model,
            "weights": weights_digest(self.model),
            "model_options": dict(self.model_options),
            "generation": asdict(self.generation),
            "annotations": [{"file": path.name, "sha256": file_digest(path)[:16]} for path in self.annotations],
            "data_root": None if self.blind or self.data_root is None else str(self.data_root.resolve()),
            "backend": self.backend,
            "max_videos": self.max_videos,
        }
        return dict(json.loads(json.dumps(settings)))  # tuples as the lists that a file gives back
