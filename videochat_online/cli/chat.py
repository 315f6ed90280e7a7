"""Answer questions about a video as it plays, or about still images.

    videochat-online chat --model DIR --video PATH --ask "12.5:What is on the table?" "20:And now?"
    videochat-online chat --model DIR --image PATH [PATH ...] --ask "What is this?"

A question is answered from the frames up to its time and from nothing later; with several, each sees the
dialogue before it. Without --ask, questions are read from the terminal. With --json, one line a question:
asked_at_s, question, text, frames_used [{index, time_s, num_tokens}], num_visual_tokens; a question that cannot
be answered has "error" instead of text; a damaged file adds a line with "warning", "decoded" and "declared".
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from videochat_online.cli.options import (
    add_generation_arguments,
    add_memory_arguments,
    add_model_arguments,
    add_strategy_arguments,
    load_model_of,
    memory_of,
    settings_of,
    strategy_of,
)
from videochat_online.errors import InputError, NoFrameError
from videochat_online.memory.settings import MEMORY_SETTINGS
from videochat_online.streaming import ImageChat, StreamingSession
from videochat_online.types import Answer, FrameChunk
from videochat_online.video import VideoSource, open_video, read_ahead, read_image

logger = logging.getLogger(__name__)

READ_CHUNK = 8
"""Frames read at a time: what the vision tower takes at once."""
CHUNKS_AHEAD = 2
"""That are decoded and resized while the model works."""
_ABOUT_FRAMES = ("fps", "source_fps", "memory", *MEMORY_SETTINGS, "strategy", "retrieved_frames", "kv_memory")
"""Flags that have no meaning for images."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--video", metavar="PATH", help="video file, or folder of frames")
    source.add_argument("--image", nargs="+", type=Path, metavar="PATH", help="one or several still images")
    parser.add_argument("--ask", nargs="+", action="extend", metavar="T:QUESTION", help="seconds, colon, question")
    parser.add_argument("--fps", type=float, default=1.0, help="frames a second shown to the model (default: 1)")
    parser.add_argument("--source_fps", type=float, metavar="X", help="rate of a folder of frames (default: 1)")
    parser.add_argument("--backend", default="auto", metavar="NAME", help="video decoder (default: auto)")
    parser.add_argument("--system_message", metavar="TEXT", help="instead of the checkpoint's")
    parser.add_argument("--json", action="store_true", help="one line of JSON a question")
    add_model_arguments(parser)
    add_memory_arguments(parser)
    add_strategy_arguments(parser, with_kv_memory=True)
    add_generation_arguments(parser)
    parser.set_defaults(about_frames={name: parser.get_default(name) for name in _ABOUT_FRAMES})


@dataclass(frozen=True, slots=True)
class TimedQuestion:
    """A question and when it is asked; infinity is the end of the video."""

    time_s: float
    text: str


def parse_question(argument: str) -> TimedQuestion:
    """`12.5:What is it?` -> time and text.

    Raises:
        InputError: no colon, a time that is not a finite number of at least 0, or no text.
    """
    time, colon, text = argument.partition(":")
    try:
        time_s = float(time)
    except ValueError:
        colon = ""
        time_s = math.nan
    if not colon:
        raise InputError(f"--ask: expected SECONDS:QUESTION such as '12.5:What is it?', got {argument!r}")
    if not math.isfinite(time_s) or time_s < 0:
        raise InputError(f"--ask: expected a time of at least 0 seconds, got {time!r} in {argument!r}")
    if not text.strip():
        raise InputError(f"--ask: expected a question after the time, got {argument!r}")
    if not text.isprintable() and any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise InputError(f"--ask: expected valid UTF-8, got {argument!r}")
    return TimedQuestion(time_s, text.strip())


class VideoPlayer:
    """Plays a video into a session up to the times that questions are asked at, and never further."""

    def __init__(self, source: VideoSource, session: StreamingSession, fps: float, show_progress: bool) -> None:
        self._source, self._session = source, session
        self._chunks = read_ahead(self._squares(fps), CHUNKS_AHEAD)
        self._held: FrameChunk | None = None
        self._progress = Progress(
            TextColumn("watching"),
            BarColumn(),
            TextColumn("{task.completed:.0f} s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not show_progress,
        )

    def _squares(self, fps: float) -> Iterator[FrameChunk]:
        """What the vision tower takes; a session leaves squares as they are."""
        for chunk in self._source.read(fps=fps, chunk=READ_CHUNK):
            yield FrameChunk(self._session.model.transform.squares(chunk.pixels_THWC), chunk.times_s)

    def close(self) -> None:
        """Decode no further."""
        self._chunks.close()

    def play_until(self, time_s: float) -> None:
        """Push every sampled frame that starts at or before `time_s`."""
        with self._progress:
            task = self._progress.add_task(
                "", total=self._end_of(time_s), completed=int(self._session.last_time_s or 0)
            )
            while True:
                chunk = self._held or next(self._chunks, None)
                self._held = None
                if chunk is None:
                    return
                seen = sum(time <= time_s for time in chunk.times_s)
                if seen:
                    self._session.push(chunk.pixels_THWC[:seen], chunk.times_s[:seen])
                    self._progress.update(task, completed=chunk.times_s[seen - 1])
                if seen < len(chunk):
                    self._held = FrameChunk(chunk.pixels_THWC[seen:], chunk.times_s[seen:])
                    return

    def _end_of(self, time_s: float) -> float | None:
        duration = self._source.info.duration_s
        return min((t for t in (time_s, duration) if t is not None and math.isfinite(t)), default=None)


def run(options: argparse.Namespace) -> int:
    """Check the questions, load the model, answer."""
    if options.image:
        return _chat_about_images(options)
    if not (math.isfinite(options.fps) and options.fps > 0):
        raise InputError(f"--fps: expected a rate above 0, got {options.fps}")
    questions = sorted(map(parse_question, options.ask or []), key=lambda question: question.time_s)
    settings, strategy = settings_of(options), strategy_of(options)
    # The video first: it fails in milliseconds where it fails, a model takes a while to load.
    with open_video(options.video, fps=options.source_fps, backend=options.backend) as source:
        memory = memory_of(options)
        session = StreamingSession(
            load_model_of(options),
            memory,
            system_message=options.system_message,
            settings=settings,
            strategy=strategy,
            kv_memory=bool(options.kv_memory),
        )
        with closing(VideoPlayer(source, session, options.fps, show_progress=sys.stderr.isatty())) as player:
            if options.ask:
                for question in questions:
                    _answer(session, player, question, options.json)
            else:
                _converse(session, player, options.json)
        source.finish()
        _warn_of_damage(source, options.json)
    return 0


def _answer(session: StreamingSession, player: VideoPlayer, question: TimedQuestion, as_json: bool) -> None:
    player.play_until(question.time_s)
    at_s = question.time_s if math.isfinite(question.time_s) else None
    try:
        answer = session.ask(question.text, at_s=at_s)
    except NoFrameError as error:
        row = {"asked_at_s": at_s, "question": question.text, "error": str(error)}
        _write(json.dumps(row) if as_json else f"[{at_s} s] {question.text}\n  error: {error}")
        return
    _write(json.dumps(_row(answer)) if as_json else _readable(answer))


def _row(answer: Answer) -> dict[str, Any]:
    return {
        "asked_at_s": answer.asked_at_s,
        "question": answer.question,
        "text": answer.text,
        "frames_used": [asdict(frame) for frame in answer.frames_used],
        "num_visual_tokens": answer.num_visual_tokens,
    }


def _readable(answer: Answer) -> str:
    used = f"{len(answer.frames_used)} frames, {answer.num_visual_tokens} visual tokens"
    return f"[{answer.asked_at_s:g} s] {answer.question}\n  {answer.text}\n  ({used})"


def _converse(session: StreamingSession, player: VideoPlayer, as_json: bool) -> None:
    """Read questions until the input ends; a bare question is asked at the end of the video."""
    if sys.stdin.isatty():
        _write("Ask 'SECONDS:QUESTION', or just a question about the whole video. An empty line ends.")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not line:
            return
        try:
            question = parse_question(line) if _starts_with_number(line) else TimedQuestion(math.inf, line)
            _answer(session, player, question, as_json)
        except InputError as error:
            # A slip in a conversation does not end it; the same line as an argument would.
            print(f"error: {error}", file=sys.stderr)  # noqa: T201


def _starts_with_number(line: str) -> bool:
    try:
        float(line.partition(":")[0])
    except ValueError:
        return False
    return True


def _warn_of_damage(source: VideoSource, as_json: bool) -> None:
    problem, report = source.report.problem, source.report
    if problem is None:
        return
    print(f"warning: {source.info.source}: {problem}", file=sys.stderr)  # noqa: T201
    if as_json:
        _write(json.dumps({"warning": problem, "decoded": report.num_decoded, "declared": report.num_declared}))


def _chat_about_images(options: argparse.Namespace) -> int:
    for name, default in options.about_frames.items():
        if getattr(options, name) != default:
            raise InputError(f"--{name}: expected a video, whose frames it is about, got images")
    questions: deque[str] = deque(options.ask or [])
    if any(not question.strip() for question in questions):
        raise InputError("--ask: expected a question, got an empty one")
    settings = settings_of(options)
    images = [read_image(path) for path in options.image]
    chat = ImageChat(load_model_of(options), images, settings, system_message=options.system_message)
    for question in questions or iter(_typed_question, ""):
        text = chat.ask(question)
        row = {"question": question, "text": text, "num_visual_tokens": chat.num_visual_tokens}
        row["images"] = [
            {"path": str(path), "num_tokens": count}
            for path, count in zip(options.image, chat.tokens_per_image, strict=True)
        ]
        readable = f"{question}\n  {text}\n  ({len(images)} images, {chat.num_visual_tokens} visual tokens)"
        _write(json.dumps(row) if options.json else readable)
    return 0


def _typed_question() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _write(line: str) -> None:
    print(line, flush=True)  # noqa: T201
