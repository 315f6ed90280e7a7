"""Keys of a row that nobody reads: which of them are a time, a clip or media under another name, and so an error.

A row would be learned without them: with a misspelt time from the whole video, which shows the future. Published sets
have many keys that say nothing of what is shown (id, source, dataset, duration, ...): those are told, and stop nobody.
What a key is follows from the words in its name and from what it holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from videochat_online.documents import MAX_TIME_S
from videochat_online.errors import InputError, shown

_DECIDING: tuple[str, ...] = ("image", "video", "clip", "start", "end", "fps", "need_reset_timestamp")
_DECIDING += ("conversations", "QA", "all_image_files", "image_bboxes", "query_template")
ROW = (*_DECIDING, "width", "height")
"""Keys of a row, whatever its format."""
MESSAGE = ("from", "value", "timestamps")
PAIR = ("i", "q", "a")
KEYS: dict[str, tuple[str, ...]] = {**dict.fromkeys(ROW, ()), "conversations": MESSAGE, "QA": PAIR}
"""Keys of rows with a dialogue, questions or a track, and of the objects in their lists."""

LIKE_MEDIA = re.compile(
    r"(image|img|picture|photo|video|vid|frame|media)s?([_ -]?(path|file|folder|name|url|list)s?)?", re.I
)
"""Keys of other formats; a row with one of them shows something, and is not to be learned as a text."""
_MANY_MEDIA = re.compile(r"(images|imgs?|pictures?|photos?|videos|vids|frames)([_ -]?list)?", re.I)
"""Keys that show more than `image` or `video`; a path, a name, an id or a URL says the same once more."""
_VIDEO_FILE = r"mp4|mkv|webm|mov|avi|m4v|mpe?g|m2ts|wmv|flv|ogv|3gp"
_MEDIA_FILE = re.compile(rf"\S+\.({_VIDEO_FILE}|gif|jpe?g?|png|webp|bmp|tiff?|avif|heic|pp?m)", re.I)

SECONDS_SINCE_1970 = 1e8
"""A number from here on is a date, of 1973 or later."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_TIME = re.compile(
    r"t|ts|pts|at|when|time\w*|\w*times?|\w*stamps?|seconds?|secs?|ms|msecs?|millis\w*|minutes?|moment|offset|starts?"
    r"|ends?|begins?|stops?|clips?|segments?|spans?|intervals?|windows?|ranges?|trim\w*|st|et|s|e|from|to|until|till|upto"
    r"|before|after|cutoff|cut|seek|sub(clip|segment)s?|boundar\w*|bounds?|clock|now"
)
_FRAME = re.compile(r"frames?|frame(idx|index|id|no|number)")
_RATE, _OF_SOURCE = re.compile(r"\w*fps|framerate|rate"), re.compile(r"orig\w*|source|native|raw")
_RESET = re.compile(r"\w*reset\w*")
_MEASURE = re.compile(
    r"durations?|len|length|nums?|numbers?|counts?|totals?|ids?|idx|index|uids?|names?|sizes?|created|creation|updated"
    r"|upload\w*|modified|cost|elapsed|run|runtime|scores?|sim|similarity|tokens?|latency|generation|inference|taken"
    r"|timezone"
)
"""Words of keys that say how long, how many, how good or which; they hold numbers, too."""
_OF_MESSAGE = re.compile(
    rf"{_MEASURE.pattern}|loss|weights?|turns?|rounds?|ratings?|confidence|prob\w*|labels?|level|rank"
)
"""Numbers of a message that are no time; `elapsed` and `runtime` may be one there."""
_LATER = re.compile(r"elapsed|run|runtime")
_DATE = re.compile(r"\s*\d{4}-\d\d.*|\s*\d{1,2}/\d{1,2}/\d{2,4}.*", re.DOTALL)
_CLOCK = r"\d+(:\d\d){0,2}(\.\d+)?\s*(s|secs?|seconds?|ms)?"
_NUMBERED = re.compile(r"0\d+|\d{6,}")
"""Digits that are a name rather than seconds."""
_TIME_TEXT = re.compile(rf"\s*\W?{_CLOCK}(\s*(-|~|to|,)+\s*{_CLOCK})?\W?\s*", re.I)


def check_row_keys(row: Mapping[str, Any]) -> None:
    """Fail on a key of a row that would change what is shown, or when, if it were known.

    Raises:
        InputError: names the key and the known one that it may stand for.
    """
    shows_image, shows_video = (says(row.get(key)) for key in ("image", "video"))
    for key, value in row.items():
        if key in ROW or not says(value):
            continue
        words = _words(key)
        if LIKE_MEDIA.fullmatch(key) and not _is_number(value) and value not in (row.get("image"), row.get("video")):
            if not shows_image and not shows_video:
                raise InputError(f"expected pictures at image, or a video at video, found {shown(key)}")
            if _MANY_MEDIA.fullmatch(key):
                raise InputError(f"expected all that is shown at image or video, found {shown(key)} beside it")
        if not shows_image and not shows_video and _is_media_file(value):
            raise InputError(f"expected pictures at image, or a video at video, found a file at {shown(key)}")
        meant = None if _any(_MEASURE, words) else _meant(key)
        if meant is not None:
            raise _unknown(key, meant)
        if not shows_video:
            continue
        if _is_time(value) and _any(_TIME, words) and not _any(_MEASURE, words):
            raise _unknown(key, "clip", "timestamps")
        if value is True and _any(_RESET, words):
            raise _unknown(key, "need_reset_timestamp")
        is_folder = isinstance(row["video"], str) and not _MEDIA_FILE.fullmatch(row["video"])
        is_rate = _is_number(value) and _any(_RATE, words) and not _any(_OF_SOURCE, words)
        if is_folder and row.get("fps") is None and is_rate:
            raise _unknown(key, "fps")


def check_part_keys(
    part: Mapping[str, Any], known: tuple[str, ...], where: str, *, of_video: bool, asks: bool = True
) -> None:
    """The same for a message of a dialogue or a pair of a question and an answer, where any time says when it is said.

    Args:
        part: a message or a pair of the row.
        known: keys that are read.
        where: names the part.
        of_video: the row shows a video, so that a time says what of it had been seen.
        asks: a question, at which any number that is not known to be something else may be its time.

    Raises:
        InputError: names the key.
    """
    for key, value in part.items():
        if key in known or not says(value):
            continue
        if of_video and _may_be_time(key, value, asks):
            if known == PAIR:
                raise InputError(f"{where}: unknown key {shown(key)}; a time belongs to a human turn of conversations")
            raise _unknown(key, "timestamps", where=where)
        if known == PAIR and key.lower() in ("instruction", "question", "answer"):
            raise _unknown(key, key.lower()[0], where=where)
        if LIKE_MEDIA.fullmatch(key) and not _is_number(value):
            raise InputError(f"{where}: expected what is shown at image or video of the row, found {shown(key)}")


def _may_be_time(key: str, value: Any, asks: bool) -> bool:
    """Whether a key of a message tells when it is said: by its name whatever it holds, or by what it holds."""
    words = _words(key)
    is_measured = _any(_OF_MESSAGE, [word for word in words if not _LATER.fullmatch(word)])
    is_named = _any(_FRAME, words) or (_any(_TIME, words) and not is_measured)
    if is_named or get_close_matches(key.lower(), ["timestamps"], 1, 0.7):
        is_date = isinstance(value, str) and bool(_DATE.fullmatch(value))
        return not is_date and not (_is_number(value) and abs(value) >= SECONDS_SINCE_1970)
    return asks and not is_measured and _is_time(value)


def _unknown(key: str, *meant: str, where: str = "") -> InputError:
    prefix = f"{where}: " if where else ""
    return InputError(f"{prefix}unknown key {shown(key)}; did you mean {' or '.join(map(repr, meant))}?")


@lru_cache(maxsize=4096)  # few keys, in every row
def _meant(key: str) -> str | None:
    """The deciding key that a name is near to, or has the letters of."""
    names = {name.lower(): name for name in _DECIDING}
    near = [key.lower()] if key.lower() in names else []
    near += get_close_matches(key.lower(), [name for name in names if len(name) > 3], 1, 0.85)
    near += [name for name in names if len(name) > 3 and sorted(name) == sorted(key.lower())]
    return names[near[0]] if near else None


def says(value: Any) -> bool:
    """Whether what a key holds says anything."""
    return value is not False and value not in (None, "", [], {}, [None])


def _words(key: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(key)]


def _any(pattern: re.Pattern[str], words: list[str]) -> bool:
    return any(pattern.fullmatch(word) for word in words)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_time(value: Any) -> bool:
    """Whether a value can be seconds or a clock of a video, or several; a date or the seconds since 1970 cannot."""
    if isinstance(value, dict):
        return any(_is_time(item) for item in value.values())
    if isinstance(value, list):
        return any(_is_time(item) for item in value)
    if isinstance(value, str):
        return bool(_TIME_TEXT.fullmatch(value)) and not _NUMBERED.fullmatch(value.strip())
    return _is_number(value) and abs(value) <= MAX_TIME_S


def _is_media_file(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return any(isinstance(item, str) and bool(_MEDIA_FILE.fullmatch(item)) for item in items)
