"""The console script: subcommands, and what becomes of their errors.

Exit status 0: done. 2: the input is wrong, said in one line on stderr. 1: the program failed. 130: interrupted.
"""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType

from videochat_online import __version__
from videochat_online.cli.parser import Parser
from videochat_online.cli.stdout import own_stdout
from videochat_online.errors import InputError

COMMANDS = {
    "chat": "answer questions about a video as it plays, or about still images",
    "convert": "rewrite a checkpoint in our own layout or in the published one",
    "assemble": "join a language model and a vision tower into a new checkpoint",
    "train": "train a model, or go on with a run that was interrupted",
    "evaluate": "answer a benchmark's questions at their moments, score them, write a report",
    "compare": "put finished evaluations side by side: accuracy, differences, age of the evidence",
    "export": "write a finished evaluation as its benchmark's own scoring scripts read it",
    "demo": "open a page in the browser: play a video or a camera, ask while it plays",
    "synthesize": "generate streams with questions whose answers are known, and training rows",
    "configs": "copy configurations, registries and shell scripts into a folder",
    "doctor": "show versions, devices and decoders; check a model directory, training sets or a benchmark",
}
"""Subcommands; each is the module of its name in this package, imported when it is called."""


_UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOSPC, errno.EDQUOT}
_UNUSABLE |= {errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST, errno.ENOENT}
"""Errors that are about a path and not a fault of the program."""
_NEGATIVE_TIME = re.compile(r"-[\w.][\w.+-]*:")


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The command line; only `command` gets its arguments, since they live in a module that takes a while to import."""
    parser = Parser(prog="videochat-online", description="Online video language models: watch, remember, answer.")
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, summary in COMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == command:
            module = _module(name)
            sub.description = module.__doc__
            module.add_arguments(sub)
        sub.add_argument("--debug", action="store_true", help="show tracebacks and debug messages")
    return parser


def parse(given: Sequence[str], command: str | None) -> argparse.Namespace:
    """Parse; flags that a subcommand takes without knowing them (any key of a training run) are `options.rest`."""
    parser = build_parser(command)
    if command not in COMMANDS or not getattr(_module(command), "TAKES_ANY_FLAG", False):
        return parser.parse_args(given)
    options, rest = parser.parse_known_args(given)
    options.rest = rest
    return options


def _module(command: str) -> ModuleType:
    return import_module(f"videochat_online.cli.{command}")


def normalise_flags(arguments: Sequence[str]) -> list[str]:
    """`--max-new-tokens` and `--max_new_tokens` are the same flag; values are left alone.

    A value such as `-1:What?` gets a blank in front, or argparse would take it for a flag and say less about it.
    """
    arguments = [f" {argument}" if _NEGATIVE_TIME.match(argument) else argument for argument in arguments]
    return [
        "--" + name.replace("-", "_") + equals + value if argument.startswith("--") and len(argument) > 2 else argument
        for argument in arguments
        for name, equals, value in [argument[2:].partition("=")]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the exit status."""
    given = normalise_flags(sys.argv[1:] if arguments is None else arguments)
    command = next((argument for argument in given if not argument.startswith("-")), None)
    debug = "--debug" in given
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe that cannot show a character gets its code, not a crash in the middle of an answer.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with own_stdout():
            options = parse(given, command)
            _set_up_logging(debug)
            run: Callable[[argparse.Namespace], int] = _module(options.command).run
            return run(options)
    except InputError as error:
        return _report(error, 2, debug)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A path that cannot be read or written, wherever it is found out; others are faults of the program.
        if error.errno not in _UNUSABLE:
            return _report(error, 1, debug)
        path = error.filename if error.filename is not None else "a file"
        reason = f"{path}: expected a place that can be read or written: {error.strerror}"
        return _report(InputError(reason), 2, debug)
    except Exception as error:  # the last resort of a command line: no traceback unless asked for
        return _report(error, 1, debug)


def _report(error: Exception, status: int, debug: bool) -> int:
    if debug:
        logging.getLogger("videochat_online").exception("%s", type(error).__name__)
    message = " ".join(str(error).split()) or type(error).__name__
    kind = "error" if status == 2 else f"failed ({type(error).__name__}, --debug shows where)"
    print(f"{kind}: {message}", file=sys.stderr)  # noqa: T201
    return status


def _set_up_logging(debug: bool) -> None:
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s: %(message)s")
    if not debug:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        if not sys.stderr.isatty():
            transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
