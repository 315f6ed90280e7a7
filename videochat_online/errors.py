"""Errors of the package: each names the thing, what was expected and what was found; values as they quote them.

The command line prints an `InputError` as one line and exits with status 2; anything else is a failure of
the program and exits with status 1.
"""

from __future__ import annotations

from typing import Any


class InputError(ValueError):
    """Something the caller gave is wrong: a path, a flag, a row, a checkpoint, a state."""


class VideoError(InputError):
    """A video, image or frame folder cannot be read, or holds no frame that decodes."""


class CheckpointError(InputError):
    """A model directory does not hold what its configuration promises."""


class NoFrameError(InputError):
    """A question was asked before the first frame arrived."""


class PromptTooLongError(InputError):
    """A prompt and its answer have more tokens than the language model has positions."""


class NonFiniteError(InputError):
    """The model's numbers are NaN or infinite: broken weights, or a dtype too small for them."""


def one_line(error: BaseException, most: int | None = None) -> str:
    """What an error says, without its line breaks, and no more than so many characters of it."""
    return " ".join(str(error).split())[:most]


def expect(holds: bool, name: str, expected: str, found: Any) -> None:
    """Raise an `InputError` that names a thing, what it should be and what it is, unless `holds`."""
    if not holds:
        raise InputError(f"{name}: expected {expected}, found {shown(found)}")


def shown(value: Any) -> str:
    """A value as an error quotes it."""
    return "none" if value is None else cut(repr(value))


def cut(long: str) -> str:
    """At most 60 characters, for errors; without halves of surrogate pairs, which no file or terminal takes."""
    return (long if len(long) <= 60 else f"{long[:57]}...").encode("utf-8", "backslashreplace").decode()
