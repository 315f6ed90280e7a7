"""Single values of a row or a registry: what is expected of each, and what was found, in a short line."""

from __future__ import annotations

import os
from typing import Any

from videochat_online.errors import InputError, shown
from videochat_online.text import check_text
from videochat_online.text.times import seconds_of

MAX_TEXT = 1_000_000
"""Characters of one text in a row: tens of times the longest prompt. Tokenizing more can take minutes."""

MAX_PATH = 4096
"""Characters of a path, as Linux has it; a URL is no longer."""

MAX_TIME_S = 1e6
"""Eleven days: no video is that long, and a larger number is a time in other units."""

FPS_RANGE = (1e-3, 1e4)
"""Frames per second, from a picture in a quarter of an hour to a high-speed camera."""

MAX_COORDINATE = 1e6
"""Pixels of a box: no image is that wide."""


def text(value: Any, where: str) -> str:
    """A text that a tokenizer takes.

    Raises:
        InputError: another type, too long, or half of a surrogate pair, which JSON can hold and UTF-8 cannot.
    """
    if not isinstance(value, str):
        raise InputError(f"{where}: expected a text, found {shown(value)}")
    if len(value) > MAX_TEXT:
        raise InputError(f"{where}: expected a text of at most {MAX_TEXT:,} characters, found {len(value):,}")
    return check_text(value, where)


def path(value: Any, where: str) -> str:
    """A path or URL that the system can look for.

    Raises:
        InputError: another type, empty, too long, or with characters that no name has.
    """
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: expected a path, found {shown(value)}")
    if len(value) > MAX_PATH:
        raise InputError(f"{where}: expected a path of at most {MAX_PATH:,} characters, found {len(value):,}")
    try:
        name = os.fsencode(value)  # takes the escapes that stand for bytes of a name which is not UTF-8
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: expected a path, found {shown(value)}") from error
    if b"\0" in name:
        raise InputError(f"{where}: expected a path, found {shown(value)}")
    return value


def number(value: Any, where: str, *, lowest: float, highest: float) -> float:
    """A number within a range.

    Raises:
        InputError: another type, not finite, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{where}: expected a number, found {shown(value)}")
    if not lowest <= value <= highest:  # whole numbers of JSON may be too large for a float
        raise InputError(f"{where}: expected a number {span(lowest, highest)}, found {shown(value)}")
    return value


def time_s(value: Any, where: str) -> float:
    """A time in seconds, at least 0.

    Raises:
        InputError: a value of another type, or a number that is not finite, below 0 or above `MAX_TIME_S`.
    """
    return number(value, where, lowest=0.0, highest=MAX_TIME_S)


def clock_s(value: Any, where: str) -> float:
    """A time in seconds, at least 0, of a number or of what a clock shows: `65.5`, `"1:05.5"`, `"0:01:05.5"`.

    Raises:
        InputError: as `number`, or a text that is no time.
    """
    if not isinstance(value, str):
        return time_s(value, where)
    try:
        seconds = seconds_of(value)
    except InputError as error:
        raise InputError(f"{where}: expected a number, or a time such as 1:05, found {shown(value)}") from error
    return time_s(seconds, where)


def span(lowest: float, highest: float) -> str:
    """A range as an error says it."""
    return " ".join(f"{word} {end:,.12g}" for word, end in (("from", lowest), ("to", highest)))
