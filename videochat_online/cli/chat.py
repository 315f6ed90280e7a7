"""Answer questions about a video as it plays, about still images, or about nothing but their text.

    videochat-online chat --model DIR --video PATH --ask "12.5:What is on the table?" "1:05 And now?"
    videochat-online chat --model DIR --image PATH [PATH ...] --ask "What is this?"
    videochat-online chat --model DIR --ask "What is the capital of France?"

A question is answered from the frames up to its time and from nothing later; with several, each sees the
dialogue before it. Its time is seconds and a colon (12.5:), or m:ss or h:mm:ss and a colon or a blank (1:05, 1:02:05);
a digit straight after a colon belongs to the time: "5: 3 people?" is asked at 5 s, "5:3 people?" is refused.

Without --ask, lines are read from the terminal or a pipe: a question with a time plays on to it, one without is asked
at the present time; :help lists the commands (:play [T], :rewind [T], :memory, :reset, :quit).

With --json, one line a question: asked_at_s, question, text, frames_used [{index, time_s, num_tokens}],
num_visual_tokens; a question that cannot be answered has "error" instead of text, one after the video's end has "late";
a damaged file adds a line with "warning", "decoded" and "declared".
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from contextlib import closing

from videochat_online.cli.dialogue.dialogue import Command, LineDialogue, check_utf8, converse, spoken, tell
from videochat_online.cli.dialogue.session_player import VideoPlayer
from videochat_online.cli.dialogue.video_dialogue import VideoDialogue
from videochat_online.cli.options import (
    add_generation_arguments,
    add_memory_arguments,
    add_model_arguments,
    add_strategy_arguments,
    generation_of,
    load_model_of,
    memory_of,
    strategy_of,
)
from videochat_online.cli.parser import Parser
from videochat_online.errors import InputError
from videochat_online.streaming import ImageChat, StreamingSession
from videochat_online.text.times import TimedQuestion, timed_question
from videochat_online.video import VideoSource, open_video, read_image

_ABOUT_FRAMES = (
    "fps",
    "source_fps",
    "zero_start",
    "memory",
    "strategy",
    "kv_memory",
)
"""Flags that have no meaning for images."""


def add_arguments(parser: Parser) -> None:
    """Arguments of the subcommand."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--video", metavar="PATH", help="video file, or folder of frames")
    source.add_argument("--image", nargs="+", metavar="PATH", help="one or several still images")
    parser.add_argument("--ask", nargs="+", action="extend", metavar="T:QUESTION", help="time and question, as above")
    parser.add_argument("--fps", type=float, default=1.0, help="frames a second shown to the model (default: 1)")
    parser.add_argument("--source_fps", type=float, metavar="X", help="rate of a folder of frames (default: 1)")
    parser.add_argument(
        "--zero_start", action="store_true", help="times count from a file's first frame, not by its clock"
    )
    parser.add_argument("--backend", default="auto", metavar="NAME", help="video decoder (default: auto)")
    parser.add_argument("--system_message", metavar="TEXT", help="instead of the checkpoint's")
    parser.add_argument("--json", action="store_true", help="one line of JSON a question")
    add_model_arguments(parser)
    add_memory_arguments(parser)
    add_strategy_arguments(parser, with_kv_memory=True)
    add_generation_arguments(parser)
    parser.set_defaults(about_frames={name: parser.get_default(name) for name in _ABOUT_FRAMES})


def parse_question(argument: str) -> TimedQuestion:
    """`12.5:What is it?` -> time and text.

    Raises:
        InputError: no time, one that is none, or no text.
    """
    try:
        check_utf8(argument)
        question = timed_question(argument)
    except InputError as error:
        raise InputError(f"--ask: {error}") from error
    if question is None:
        raise InputError(f"--ask: expected SECONDS:QUESTION such as '12.5:What is it?', got {argument!r}")
    return question


def run(options: argparse.Namespace) -> int:
    """Check the questions, load the model, answer."""
    if not options.video:
        return _chat_about_images(options)
    if not (math.isfinite(options.fps) and options.fps > 0):
        raise InputError(f"--fps: expected a rate above 0, got {options.fps}")
    questions = sorted(map(parse_question, options.ask or []), key=lambda question: question.time_s)
    settings, strategy = generation_of(options), strategy_of(options)
    # The video first: it fails in milliseconds where it fails, a model takes a while to load.
    with open_video(
        options.video, fps=options.source_fps, backend=options.backend, zero_start=options.zero_start
    ) as source:
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
            dialogue = VideoDialogue(session, player, options.json)
            for question in questions:
                dialogue.ask_at(question)
            if not questions:
                dialogue.begin()
                converse(dialogue)
        source.finish()
        _warn_of_damage(source, dialogue)
    dialogue.check_answers()
    return 0


def _warn_of_damage(source: VideoSource, dialogue: LineDialogue) -> None:
    warning, report = source.report.warning, source.report
    if warning is None:
        return
    tell(f"warning: {source.info.source}: {warning}")
    if dialogue.as_json:
        row = {"warning": warning, "decoded": report.num_decoded, "declared": report.num_declared}
        dialogue.write("", row)


class ImageDialogue(LineDialogue):
    """A conversation about still images, which are all seen before its first question, or without any."""

    not_here = " (others are about videos)"

    def __init__(self, chat: ImageChat, paths: Sequence[str], as_json: bool) -> None:
        super().__init__(as_json)
        self._chat, self._paths = chat, paths

    def _own_commands(self) -> dict[str, Command]:
        return {"reset": Command(":reset", "forget questions and answers, but no image", self._reset)}

    def ask(self, line: str) -> None:
        """Answer a question."""
        text, is_stopped = spoken(self._chat.stream(line), self.stop)
        self.num_answered += 1
        counts = self._chat.tokens_per_image
        row = {"question": line, "text": text, "num_visual_tokens": self._chat.num_visual_tokens}
        row["images"] = [{"path": path, "num_tokens": count} for path, count in zip(self._paths, counts, strict=True)]
        used = f"{len(counts)} images, {self._chat.num_visual_tokens} visual tokens"
        self.write(f"{line}\n  {text}\n  ({used})", row | ({"stopped": True} if is_stopped else {}))

    def _reset(self, _: str) -> None:
        self._chat.forget_dialogue()
        self.write("forgotten: questions and answers; the images are still there", {"command": "reset"})


def _chat_about_images(options: argparse.Namespace) -> int:
    given = [name for name, default in options.about_frames.items() if getattr(options, name) != default]
    given += [f"memory.{name}" for name in options.memory_options]
    given += [f"strategy.{name}" for name in options.strategy_options]
    if given:
        raise InputError(f"--{given[0]}: expected a video, whose frames it is about, got none")
    for question in options.ask or []:
        if not question.strip():
            raise InputError("--ask: expected a question, got an empty one")
    settings = generation_of(options)
    images = [read_image(path) for path in options.image or ()]
    chat = ImageChat(load_model_of(options), images, settings, system_message=options.system_message)
    dialogue = ImageDialogue(chat, options.image or (), options.json)
    for question in options.ask or []:
        dialogue.ask(question)
    if not options.ask:
        converse(dialogue)
    dialogue.check_answers()
    return 0
