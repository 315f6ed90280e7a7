"""Types of single values in rows and registries, and checks of them.

A check takes the value and what errors call it, and gives the value, or raises InputError.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator

from videochat_online.documents import Document, Text, TimeS, checker
from videochat_online.errors import InputError, shown
from videochat_online.text.times import seconds_of

MAX_PATH = 4096
"""Characters of a path, as Linux has it; a URL is no longer."""


def _path(value: Any) -> str:
    if isinstance(value, str) and len(value) > MAX_PATH:
        raise InputError(f"expected a path of at most {MAX_PATH:,} characters, found {len(value):,}")
    try:
        # Takes the escapes that stand for bytes of a name which is not UTF-8; pydantic's own text would not.
        if isinstance(value, str) and value and b"\0" not in os.fsencode(value):
            return value
    except UnicodeEncodeError:
        pass
    raise InputError(f"expected a path, found {shown(value)}")


def _seconds(value: Any) -> Any:
    try:
        return seconds_of(value) if isinstance(value, str) else value
    except InputError as error:
        raise InputError(f"expected a number, or a time such as 1:05, found {shown(value)}") from error


PathText = Annotated[str, PlainValidator(_path)]
"""A path or URL that the system can look for."""
ClockS = Annotated[TimeS, BeforeValidator(_seconds)]
"""A time in seconds, of a number or of what a clock shows: `65.5`, `"1:05.5"`, `"0:01:05.5"`."""
Fps = Annotated[float, Field(ge=1e-3, le=1e4)]
"""Frames per second, from a picture in a quarter of an hour to a high-speed camera."""
Coordinate = Annotated[float, Field(ge=-1e6, le=1e6)]
"""Pixels of a box: no image is that wide."""

text, path, clock_s = checker(Text), checker(PathText), checker(ClockS)
objects = checker(list[dict[str, Any]])


class Fields(Document, extra="ignore"):
    """What is read of an object in rows of others; `unknown_keys.py` judges its other keys."""
