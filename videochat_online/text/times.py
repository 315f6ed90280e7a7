"""Times as people write them, alone and before a question; as players show them.

A time is seconds (`12.5`) or what a player's clock shows (`1:05`, `01:05.5`, `1:02:05`): behind a colon stand two
digits, below 60. A question follows a colon; behind a clock's time a blank is enough. A digit straight after a colon
belongs to the time, so that `5:30 who?` is asked at 330 s and `5: 30 who?` at 5 s; what could be read either way is
refused, never cut in two.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from videochat_online.errors import InputError

HALF_WIDTH = str.maketrans("０１２３４５６７８９：；．？／", "0123456789:;.?/")
"""Plain signs for those of Chinese or Japanese keyboards; one character for one, so that places stay the same."""

_SECONDS = r"(?P<alone>[0-9]*\.?[0-9]+)"
_CLOCK = r"(?:(?P<hours>[0-9]+):(?=[0-5][0-9]:))?(?P<minutes>[0-9]+):(?P<seconds>[0-5][0-9](?:\.[0-9]+)?)"
_COLON = r":(?!\.?[0-9])|\s+:(?!\s*\.?[0-9])"
_TIME = re.compile(f"{_SECONDS}|{_CLOCK}")
_TIMED = re.compile(rf"(?:{_CLOCK}(?:{_COLON}|\s(?!\s*:))|{_SECONDS}(?:{_COLON}))(?P<text>.*)", re.DOTALL)
_MORE_OF_A_TIME = re.compile(r"\s*(?::|[-+]?[0-9.]*[0-9]\s*:|0[0-9]\b)")
# Also what is none, such as `-5:`, `12,5:`, `12s:`, `5;`, `inf:` or `[0:07]`: its writer meant one.
_MEANT_AS_TIME = re.compile(r"[^\w\s]*\s*(?:\d\S*?|inf(?:inity)?|nan)\s*[:;]", re.IGNORECASE)

_EXPECTED = (
    "SECONDS:QUESTION such as '12.5:What is it?', or '1:05 What is it?', '1:02:05 What is it?' (two digits below 60 "
    "behind a colon; a question that begins with a number has a blank before it)"
)


@dataclass(frozen=True, slots=True)
class TimedQuestion:
    """A question and when it is asked, in seconds."""

    time_s: float
    text: str


def seconds_of(written: str) -> float:
    """`90`, `1:30` or `0:01:30` -> 90.0.

    Raises:
        InputError: no such time.
    """
    match = _TIME.fullmatch(written.translate(HALF_WIDTH).strip())
    time_s = math.inf if match is None else _seconds(match)
    if not math.isfinite(time_s):
        raise InputError(f"expected a time such as 90, 1:30 or 1:02:30, got {written[:40]!r}")
    return time_s


def timed_question(line: str) -> TimedQuestion | None:
    """`12.5:What is it?` or `1:05 What is it?` -> time and question; None where no time stands before the question.

    Raises:
        InputError: a time that is none, or one without a question.
    """
    line = line.strip()
    plain = line.translate(HALF_WIDTH)
    if _TIME.fullmatch(plain.removesuffix(":").rstrip()):
        raise InputError(f"expected a question after the time, got {line!r}")
    match = _TIMED.fullmatch(plain)
    if match is None:
        if _MEANT_AS_TIME.match(plain) is None:
            return None
        least = "a time of at least 0 seconds, as in " if plain[0] in "-−" else ""
        raise InputError(f"expected {least}{_EXPECTED}, got {line!r}")
    time_s = _seconds(match)
    if not math.isfinite(time_s) or _MORE_OF_A_TIME.match(match["text"]):
        raise InputError(f"expected {_EXPECTED}, got {line!r}")
    return TimedQuestion(time_s, line[match.start("text") :].strip())


def clock_time(time_s: float) -> str:
    """`65.5` -> `1:05.5`, to hundredths of a second; what lies before 0 is shown as 0."""
    seconds, hundredths = divmod(max(0, round(time_s * 100)), 100)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{hundredths:02d}".rstrip("0") if hundredths else ""
    return (f"{hours}:{minutes:02d}" if hours else f"{minutes}") + f":{seconds:02d}{fraction}"


def _seconds(match: re.Match[str]) -> float:
    if match["alone"] is not None:
        return float(match["alone"])
    return 3600.0 * float(match["hours"] or 0) + 60.0 * float(match["minutes"]) + float(match["seconds"])
