"""Whether an open answer is right, by a rule: the same words, the words within it, the same number.

Knows texts only. Which scorer a question has is decided by `plan`, what a judge says is in `judge`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable

from videochat_online.evaluation.scoring.parse import parse_count, says

JUDGE = "judge"
_ARTICLE = re.compile(r"\b(?:a|an|the)\b\s*(?=\w)", re.IGNORECASE)
_DIGITS = re.compile(r"(?<![\w.])(?<!\d,)[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w]|[.,]\d)", re.ASCII)


def is_exact(text: str, answer: str) -> bool:
    """Whether two texts have the same words in the same order; capitals, signs and articles do not matter."""
    text, answer = (_ARTICLE.sub("", unicodedata.normalize("NFKC", one)).strip() for one in (text, answer))
    return bool(text) and says(text, answer) and says(answer, text)


def contains(text: str, answer: str) -> bool:
    """Whether the words of the right answer occur in a text, in their order."""
    return bool(text.strip()) and says(text, answer)


def is_number(text: str, answer: str) -> bool:
    """Whether a text names the number that the right answer names, in digits or words."""
    found, wanted = parse_number(text), parse_number(answer)
    return found is not None and wanted is not None and math.isclose(found, wanted, rel_tol=1e-9)


def parse_number(text: str) -> float | None:
    """The number of a text: "2.5", "-3", "1,200", "three"; None for none, or several that differ."""
    text = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-")
    found = {float(digits.replace(",", "")) for digits in _DIGITS.findall(text)}
    words = _DIGITS.sub(" ", text)
    in_words = parse_count(words)
    if in_words is None and any(parse_count(word) is not None for word in words.split()):
        return None  # several words that are numbers, and not the same
    found |= {float(in_words)} if in_words is not None else set()
    return found.pop() if len(found) == 1 else None


SCORERS: dict[str, Callable[[str, str], bool]] = {"exact": is_exact, "contains": contains, "number": is_number}
"""Tests of a reply against the right answer. `judge` stands beside them: it is asked, not computed."""

SCORER_NAMES = (*SCORERS, JUDGE)
