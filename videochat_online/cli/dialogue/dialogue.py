"""A conversation, line by line: what is a question, what is a command, and what becomes of errors.

The same from a terminal and from a pipe, except that a terminal is shown a prompt (on stderr: stdout has the answers
alone). An error does not end a conversation. Knows nothing of videos; see `video_dialogue`.
"""

from __future__ import annotations

import io
import json
import re
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from videochat_online.errors import InputError
from videochat_online.text import check_text
from videochat_online.text.times import HALF_WIDTH, seconds_of

ALIASES = {"h": "help", "?": "help", "exit": "quit", "q": "quit"}
"""Other names of commands."""
PLAIN = ("help", "quit")
"""Commands that are understood without a mark, where nothing else stands in the line."""

MARKS = (":", "/", "\\")
"""A line that begins with one of them is a command, and nothing else."""

_COMMAND = re.compile(
    r"(?:[:/\\]\s*|--?)?(?P<word>[a-z]+|\?)(?:\(\))?[.!;]*(?:\s+(?P<rest>.*))?", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Command:
    """What can be typed instead of a question.

    Attributes:
        usage: name, and what may stand behind it.
        meaning: help text of one line.
        act: takes what stands behind the name; None: the command ends the conversation.
    """

    usage: str
    meaning: str
    act: Callable[[str], None] | None


class LineDialogue(ABC):
    """A conversation about something.

    Args:
        as_json: write a line of JSON for each line that is read, rather than text for people.

    Attributes:
        num_answered: questions.
        refusals: why the others, and commands, were not taken.
        stop: asked while something takes long: whether it is to be given up.
    """

    not_here = ""
    """Text that is added to the list of commands when another one is refused."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.num_answered = 0
        self.refusals: list[str] = []
        self.stop: Callable[[], bool] = lambda: False
        self.commands = {
            "help": Command(":help", "this list", self._help),
            **self._own_commands(),
            "quit": Command(":quit", "end; so does the end of the input (Ctrl-D)", None),
        }

    @abstractmethod
    def _own_commands(self) -> dict[str, Command]:
        """Commands besides help and quit, by name."""

    @abstractmethod
    def ask(self, line: str) -> None:
        """Answer a line that is no command."""

    @property
    def prompt(self) -> str:
        """What stands before a line at a terminal."""
        return "> "

    def take(self, line: str) -> bool:
        """Do what a line says; whether the conversation goes on.

        Raises:
            InputError: it cannot be done.
        """
        check_utf8(line)
        found = command_of(line, self.commands, self.not_here)
        if found is None:
            self.ask(line)
            return True
        name, rest = found
        command = self.commands[name]
        if rest and " " not in command.usage:
            raise InputError(f"{command.usage}: expected nothing behind it, got {rest!r}")
        if command.act is not None:
            command.act(rest)
        return command.act is not None

    def write(self, readable: str, row: dict[str, Any]) -> None:
        """One answer: for people, or as a line of JSON."""
        print(json.dumps(row) if self.as_json else readable, flush=True)  # noqa: T201

    def refuse(self, line: str, error: InputError) -> None:
        """Say why a line is not done: on stderr, and with JSON as its line, too."""
        self.refusals.append(" ".join(str(error).split()))
        tell(f"error: {self.refusals[-1]}")
        if self.as_json:
            self.write("", {"line": line, "error": self.refusals[-1]})

    def check_answers(self) -> None:
        """InputError, so that the exit status says so, where something was refused and no question answered."""
        if self.refusals and not self.num_answered:
            raise InputError(f"no question was answered; refused: {len(self.refusals)}, the first: {self.refusals[0]}")

    def _help(self, _: str) -> None:
        width = max(len(command.usage) for command in self.commands.values())
        lines = [f"{command.usage:{width}}  {command.meaning}" for command in self.commands.values()]
        self.write("\n".join(lines), {"command": "help", "lines": lines})


def converse(dialogue: LineDialogue) -> None:
    """Take lines until one ends the conversation, or the input does. Empty ones are passed over.

    Ctrl-C stops what is being watched or said; again, or at the prompt, it ends the program.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is no text is refused as any other
    while (line := _next_line(dialogue.prompt)) is not None:
        try:
            with stoppable() as dialogue.stop:
                if line and not dialogue.take(line):
                    return
        except InputError as error:
            dialogue.refuse(line, error)


def command_of(line: str, commands: dict[str, Command], not_here: str = "") -> tuple[str, str] | None:
    """Name of a command and what stands behind it; None for a question.

    Raises:
        InputError: a line that begins with `:` or `/` and is no command, or a command that does not.
    """
    plain = line.translate(HALF_WIDTH).strip()
    match = _COMMAND.fullmatch(plain)
    word, rest = ("", "") if match is None else (match["word"].lower(), (match["rest"] or "").strip())
    name, is_marked = ALIASES.get(word, word), plain.startswith(MARKS)
    if name in commands and (is_marked or (name in PLAIN and not rest)):
        return name, rest
    if is_marked:
        listed = ", ".join(command.usage for command in commands.values())
        raise InputError(f"expected a question or one of {listed}{not_here}, got {line!r}")
    if name in commands and name not in PLAIN and (not rest or _is_time(rest)):
        raise InputError(f"expected a question, or ':{line}' for the command, got {line!r}")
    return None


def check_utf8(line: str) -> None:
    """InputError for what was typed in another encoding: Python holds such bytes as halves of surrogate pairs."""
    try:
        check_text(line, "line")
    except InputError as error:
        raise InputError(f"expected valid UTF-8, got {line!r}") from error


def spoken(pieces: Generator[str, None, Any], stop: Callable[[], bool]) -> tuple[str, bool]:
    """An answer from its pieces, and whether it was stopped before its end."""
    said, is_stopped = [], False
    for piece in pieces:
        said.append(piece)
        if stop():
            is_stopped = True
            break
    pieces.close()
    return "".join(said).strip(), is_stopped


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C, rather than break off somewhere between two frames or two layers; a second one breaks off."""
    noted: list[int] = []

    def note(number: int, _: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before)


def tell(message: str) -> None:
    """Say something on stderr."""
    print(message, file=sys.stderr, flush=True)  # noqa: T201


def _is_time(written: str) -> bool:
    try:
        seconds_of(written)
    except InputError:
        return False
    return True


def _next_line(prompt: str) -> str | None:
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(prompt, end="", file=sys.stderr, flush=True)  # noqa: T201
    try:
        return input().strip().removeprefix("\ufeff")  # the mark that files from Windows begin with
    except EOFError:
        if is_terminal:
            tell("")
        return None
