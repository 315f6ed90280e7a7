"""The evaluation itself: one pass over each video, all its questions on the way, every answer written at once.

Knows about shards; knows no file format and no words of a benchmark. A question is answered on its own: what
was asked before leaves no trace. A run that was broken off answers what is missing, from the same frames in
the same batches, so that it gives the same answers.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import IO

import torch

from videochat_online.errors import InputError, NoFrameError, NonFiniteError, PromptTooLongError, VideoError
from videochat_online.evaluation.benchmark import EvalQuestion, EvalSet, EvalVideo
from videochat_online.evaluation.config import EvaluationConfig
from videochat_online.evaluation.media.decoder_process import DecoderProcess
from videochat_online.evaluation.media.locate import LocatedVideo
from videochat_online.evaluation.report.environment import loaded_conditions
from videochat_online.evaluation.run.answering import (
    LETTER_PREFIX,
    answer_by_generation,
    answer_by_likelihood,
    answer_by_text_likelihood,
    asked_kind,
    question_text,
    way_of_answering,
)
from videochat_online.evaluation.run.contexts import Context, make_context
from videochat_online.evaluation.run.evaluation_folder import EvaluationFolder
from videochat_online.evaluation.run.plan import Plan
from videochat_online.evaluation.run.proactive import Polls
from videochat_online.evaluation.run.summarize import Outcome, check_bad, check_too_long, summarize, too_long_rows
from videochat_online.extras import require
from videochat_online.model import VideoChatModel
from videochat_online.runs.row_file import Row, RowFile

MAX_FAILED_IN_A_ROW = 5
"""So many questions that a model gives no finite number for: it is broken for all others, too."""


@dataclass
class Progress:
    """How far a process has come with what was open when it began.

    Attributes:
        num_questions: questions about the videos that were not finished.
        questions_done: questions of these that were answered, or cannot be.
        frames_encoded: frames that went through the vision tower.
    """

    num_questions: int
    questions_done: int = 0
    frames_encoded: int = 0


@dataclass
class _Cost:
    """What a video cost so far, in seconds, and the ids of its questions that are done."""

    watch_s: float = 0.0
    answer_s: float = 0.0
    answered: set[str] = field(default_factory=set)


def evaluate(
    config: EvaluationConfig,
    plan: Plan,
    folder: EvaluationFolder,
    load_model: Callable[[], VideoChatModel],
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Answer what is not answered yet, then sum up if nothing is missing.

    Args:
        config: all values.
        plan: videos and where they are.
        folder: this run's folder.
        load_model: called only if there is something to answer.
        on_progress: called after every answer and every video.

    Raises:
        InputError: more bad videos, or questions with too long a prompt, than `max_bad_fraction` allows, and what was
            answered is kept; rows in the folder that are not of this set; or a blind run of questions without a time.
    """
    require("the report of an evaluation", "matplotlib")  # said now rather than after hours
    content = plan.content
    if config.blind:
        _check_times(content)
    names = {question.id for question in content.questions}, {video.name for video in content.videos}
    with folder.predictions.appending() as (predictions, answers), folder.videos.appending() as (videos, gone_through):
        found = folder.checked_rows({"predictions": answers, "videos": gone_through}, *names)
        share = _Share(config, plan, predictions, videos, on_progress)
        share.take_up(*found, own_answers=answers)
        share.work(load_model)
    return summarize(config, plan, folder)


def _check_times(content: EvalSet) -> None:
    """Where no video is opened, nobody knows when it ends."""
    at_end = [question.id for question in content.questions if math.isinf(question.time_s)]
    if at_end:
        raise InputError(
            f"--blind: expected a time for every question, as no video is opened; {len(at_end)} are asked at its end, "
            f"the first: {at_end[0]}"
        )


class _Share:
    """The videos of this process; rows go to `predictions` and `videos`, which are open for appending."""

    def __init__(
        self,
        config: EvaluationConfig,
        plan: Plan,
        predictions: IO[bytes],
        videos: IO[bytes],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._config, self._plan, self._on_progress = config, plan, on_progress
        self._predictions, self._videos = predictions, videos
        self._answered: set[str] = set()
        self._open = list(plan.share)
        self._num_bad = self._num_failed_in_a_row = self._num_too_long = 0
        self._withheld: list[Row] = []
        self._progress = Progress(0)

    def take_up(self, answers: Sequence[Row], videos: Sequence[Row], *, own_answers: Sequence[Row]) -> None:
        """Leave out what is done, and go on counting.

        Args:
            answers: rows of all shards: a version that estimates costs otherwise shares out otherwise, and may go on
                with the run.
            videos: likewise.
            own_answers: those of this shard.
        """
        self._answered = {row["id"] for row in answers}
        gone_through = {row["video"] for row in videos if not row["is_bad"]}
        self._open = [
            located
            for located in self._plan.share
            if located.video.name not in gone_through
            or any(question.id not in self._answered for question in located.video.questions)
        ]
        self._num_too_long = len(too_long_rows(own_answers))
        self._progress.num_questions = sum(len(located.video.questions) for located in self._open)

    def work(self, load_model: Callable[[], VideoChatModel]) -> None:
        """Go through the videos that are not finished; the missing ones first, they need no model."""
        missing = self._plan.missing
        if missing:
            check_bad(len(missing), len(self._plan.content.videos), f"{missing[0].problem}", self._config)
        for located in self._open:
            if located.problem is not None:
                self._report_bad(located, located.problem, _Cost(), 0)
        present = [located for located in self._open if located.problem is None]
        if not present:
            return
        private = (self._predictions.fileno(), self._videos.fileno())
        with DecoderProcess(self._config.decode_timeout_s, private) as decoder:
            if any(located.path is not None for located in present):
                decoder.start()
            model = load_model()
            if model.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(model.device)
            for located in present:
                self._answer_video(model, decoder, located)
        self._write_withheld()

    def _write(self, row: Row) -> None:
        """Questions without a finite number wait for a later one with: the row of them that ends a run is no answer."""
        if row.get("error_kind") == NonFiniteError.__name__:
            self._withheld.append(row)
            return
        if too_long_rows([row]):
            self._num_too_long += 1
            check_too_long(self._num_too_long, row, self._plan, self._config)
        self._write_withheld()
        RowFile.append(self._predictions, row)

    def _write_withheld(self) -> None:
        for row in self._withheld:
            RowFile.append(self._predictions, row)
        self._withheld.clear()

    def _answer_video(self, model: VideoChatModel, decoder: DecoderProcess, located: LocatedVideo) -> None:
        config, video, cost, context, frames = self._config, located.video, _Cost(), None, None
        try:
            with ExitStack() as stack:
                if located.path is not None:
                    opened = decoder.open(located.path, video, config.protocol, model.transform, backend=config.backend)
                    frames = stack.enter_context(opened)
                    video = frames.video
                context = make_context(model, frames, config.protocol, [asked for asked, _ in video.moments])
                for row in self._answers(model, context, video, cost):
                    self._write(row)
                problem = None if frames is None else frames.finish()
        except VideoError as error:
            self._report_bad(located, str(error), cost, 0 if context is None else context.num_encoded)
            return
        row = _video_row(located, cost, context.num_encoded, model) | {"problem": problem, "is_bad": False}
        row["num_decoded"] = 0 if frames is None else frames.num_decoded
        row["waited_s"] = 0.0 if frames is None else round(frames.waited_s, 6)
        row["loaded"] = loaded_conditions(model)
        RowFile.append(self._videos, row)
        self._on_progress(self._progress)

    def _answers(self, model: VideoChatModel, context: Context, video: EvalVideo, cost: _Cost) -> Iterator[Row]:
        polls = Polls(lambda poll: self._answer(model, context, poll))
        for asked, question in video.moments:
            start_s = time.perf_counter()
            # Also up to a question that was answered before: frames then go through in the same batches.
            before = context.num_encoded
            context.advance_to(asked)
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            cost.watch_s += time.perf_counter() - start_s
            self._progress.frames_encoded += context.num_encoded - before
            row = None
            if question.id not in self._answered:
                is_poll = asked is not question
                row = polls.take(asked, question) if is_poll else self._answer(model, context, question)
            if row is not None:
                cost.answer_s += row["answer_s"]
                yield _question_row(question, video.name) | row
                cost.answered.add(question.id)
            if question.proactive is None or asked is question.proactive.polls[-1]:
                cost.answered.add(question.id)
                self._progress.questions_done += 1
                self._on_progress(self._progress)

    def _answer(self, model: VideoChatModel, context: Context, question: EvalQuestion) -> Row:
        """Ask a question now: what its row says of the answer."""
        config, start_s = self._config, time.perf_counter()
        way = way_of_answering(question, config.answer_by)
        by_letter, by_text = way == "likelihood", way == "text_likelihood"
        text = question_text(question, config.answer_by, config.task, config.protocol)
        try:
            asked = replace(question, kind=asked_kind(question, config.answer_by))
            view = context.prepare(asked, text, LETTER_PREFIX if by_letter else "")
            prepare_s = time.perf_counter() - start_s
            if by_letter:
                reply = answer_by_likelihood(model, view.prompt, len(question.options), config.generation)
            elif by_text:
                reply = answer_by_text_likelihood(model, view.prompt, question.options)
            else:
                reply = answer_by_generation(model, view.prompt, question.options, config.generation, question.kind)
        except (NoFrameError, NonFiniteError, PromptTooLongError) as error:
            self._check_failure(error)
            return {
                "text": "",
                "predicted_index": None,
                "correct": _verdict(question, None),
                "frames_used": [],
                "num_visual_tokens": 0,
                "first_token_s": None,
                "answer_s": 0.0,
                "error": str(error),
                "error_kind": type(error).__name__,
            }
        self._num_failed_in_a_row = 0
        row: Row = {
            "text": reply.text,
            "predicted_index": reply.option,
            "correct": _verdict(question, reply.option),
            "frames_used": [asdict(frame) for frame in view.frames],
            "num_visual_tokens": view.prompt.layout.num_visual_tokens,
            "first_token_s": None if reply.first_token_s is None else round(prepare_s + reply.first_token_s, 6),
            "answer_s": round(time.perf_counter() - start_s, 6),
        }
        if reply.option_probabilities is not None:
            row["option_probabilities"] = [round(value, 6) for value in reply.option_probabilities]
        return row

    def _check_failure(self, error: Exception) -> None:
        """A model that never gives a number would be asked thousands of questions."""
        if isinstance(error, NonFiniteError):
            self._num_failed_in_a_row += 1
            if self._num_failed_in_a_row >= MAX_FAILED_IN_A_ROW:
                raise InputError(f"{self._num_failed_in_a_row} questions in a row were not answered: {error}")

    def _report_bad(self, located: LocatedVideo, problem: str, cost: _Cost, num_encoded: int) -> None:
        num_unanswered = len(located.video.questions) - len(cost.answered)
        row = _video_row(located, cost, num_encoded, None) | {"problem": problem, "is_bad": True}
        RowFile.append(self._videos, row | {"num_unanswered": num_unanswered})
        self._num_bad += 1
        self._progress.questions_done += num_unanswered
        self._on_progress(self._progress)
        check_bad(self._num_bad, len(self._plan.content.videos), f"{located.video.name}: {problem}", self._config)


def _verdict(question: EvalQuestion, option: int | None) -> bool | None:
    """Whether a reply is right; None for one to an open question, which is scored when all are answered."""
    return option == question.answer_index if question.kind != "open" else None


def _question_row(question: EvalQuestion, video_name: str) -> Row:
    row: Row = {
        "id": question.id,
        "video": video_name,
        "dataset": question.dataset,
        "answer_type": question.answer_type,
        "sub_answer_type": question.sub_answer_type,
        "time_s": question.time_s,
        "question": question.question,
        "options": list(question.options),
        "answer_index": question.answer_index,
        "extra": dict(question.extra),
    }
    if question.source is not None:
        row["source"] = asdict(question.source)
    if question.answer_text is not None:
        row["answer_text"] = question.answer_text
    return row if question.kind == "choice" else row | {"kind": question.kind}


def _video_row(located: LocatedVideo, cost: _Cost, num_encoded: int, model: VideoChatModel | None) -> Row:
    return {
        "video": located.video.name,
        "path": None if located.path is None else str(located.path),
        "num_questions": len(located.video.questions),
        "num_encoded": num_encoded,
        "watch_s": round(cost.watch_s, 6),
        "answer_s": round(cost.answer_s, 6),
        "peak_memory_bytes": _peak_memory(model),
    }


def _peak_memory(model: VideoChatModel | None) -> int | None:
    """Bytes on the accelerator, or of the process where there is none; None where nobody counts."""
    if model is not None and model.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(model.device))
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
