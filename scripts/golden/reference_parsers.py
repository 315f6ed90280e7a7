"""How the released scripts read a reply, said again slowly, and why a reading of ours may be another.

Four scripts, four readings: the sliding window's and Video-MME's (`first_capital`), the single-question script's,
which is lmms-eval's, too (`single_letter`), the multi-turn script's (`sign_after_paren`), MVBench's (`first_words`).
A difference is judged by what stands in the reply, so that it is one for any reply, and any parser of ours.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

SIGNS = ';/[]"{}()=+\\_-><@`,?!'
"""Signs that the single-question script takes out."""

MOST_PERIODS = 32
"""It takes out so many: a flag stands where the number goes."""


def first_capital(text: str) -> str | None:
    """The first capital of A to D anywhere, be it in a word; its own "Answer:" is taken out before."""
    rest = re.sub("Best answer:Best option:|Answer:", "", text)
    return next((sign for sign in rest if sign in "ABCD"), None)


def single_letter(text: str) -> tuple[str | None, str]:
    """The letter of A to E that a text begins with, or the first on its own; and what the script leaves of the text.

    The first counts where a period and more come after it; the case of either does not matter. What is left is
    compared where there is no letter.
    """
    begun = re.fullmatch(r"([a-e])\.\s*[^\n]+", text.strip(), re.IGNORECASE)
    if begun:
        return begun[1].upper(), ""
    flat = text.replace("\n", " ").replace("\t", " ").strip()
    joins = re.search(r"\d,\d", flat) is not None
    left = flat
    for sign in SIGNS:
        beside_blank = f"{sign} " in flat or f" {sign}" in flat
        left = left.replace(sign, "" if joins or beside_blank else " ")
    left = re.sub(r"\.(?!\d)", "", left, count=MOST_PERIODS)
    for sign in "'\")(":
        left = left.strip(sign)
    left = left.strip().lower()
    found = re.search(r"\b[a-e]\b", left)
    return (found[0].upper() if found else None), left


def one_paren(text: str) -> str:
    """A text that begins with parentheses, "(Answer:" perhaps before them, begins with one of them alone."""
    rest = text.lstrip()
    if text.startswith("(Answer:") and text.removeprefix("(Answer:").lstrip().startswith("("):
        rest = text.removeprefix("(Answer:").lstrip()
    return "(" + rest.lstrip("(") if rest.startswith("(") else text


def after_paren(text: str) -> str:
    """A reply as the multi-turn script completes it: its first line, after the parenthesis of the cue."""
    return one_paren("(" + text.strip().split("\n")[0])


def sign_after_paren(text: str) -> str | None:
    """What stands directly after the parenthesis, if it is a capital letter."""
    sign = after_paren(text)[1:2]
    return sign if sign and sign in ascii_uppercase else None


def first_words(text: str, right: str) -> bool:
    """Whether one of the first words, of reply and right answer, is part of the other; an empty one always is."""
    said, wanted = text.replace("Answer: ", "").lower().split(" ")[0], right.lower().split(" ")[0]
    return said.replace(".", "") in wanted or wanted in said


@dataclass(frozen=True)
class Standing:
    """A letter in a text with no other letter or digit next to it.

    Attributes:
        letter: letter as a capital.
        is_small: whether it was written small.
        in_word: a period, an apostrophe or a hyphen ties it to more.
        is_article: an A before a blank and a word, in small letters if it is a capital itself.
        is_loose: a small one after other words, none of which announces an answer.
        in_script: written in another script's width, or between its letters.
    """

    letter: str
    is_small: bool
    in_word: bool
    is_article: bool
    is_loose: bool
    in_script: bool


ANNOUNCED = re.compile(
    r"answer|option|choice|letter|cho+se|pick|select|say|correct|\b(?:is|it['’]s|go with)\b", re.IGNORECASE
)
"""Words that say that a letter follows."""

DENIAL = re.compile(
    r"\b(?:not|nor|neither|never|cannot|wrong|false|incorrect|unlike(?:ly)?|impossible|except|than|instead"
    r"|(?:exclud|eliminat|reject|discard|dismiss)\w*|rul(?:e|es|ed|ing) out)\b|n['’]t\b",
    re.IGNORECASE,
)
"""Words that say of a letter that it is not the one."""


def standing_letters(text: str) -> list[Standing]:
    """All of a text."""
    found = []
    plain = unicodedata.normalize("NFKC", text)
    for match in re.finditer(r"(?<![A-Za-z0-9])[A-Za-z](?![A-Za-z0-9])", plain):
        sign, before, after = match[0], plain[: match.start()], plain[match.end() :]
        tied = re.search(r"[A-Za-z0-9][.'’-]$", before) or re.match(r"[.'’-][A-Za-z0-9]", after)
        foreign = any(beside.isalpha() for beside in (before[-1:], after[:1])) or sign not in text
        article = re.match(r"a +[A-Za-z]|A +(?!(?:and|or)\b)[a-z]", sign + after) is not None
        loose = sign.islower() and re.search(r"\w[^\w(\[]*$", before) is not None and not ANNOUNCED.search(before)
        found.append(Standing(sign.upper(), sign.islower(), tied is not None, article, loose, foreign))
    return found


def without_reasoning(text: str) -> str:
    """A reply without what stands between think tags; the opening one may be part of the prompt."""
    return re.sub(r"(?s)^.*</think>|<think>.*?(</think>|$)", " ", text)


def why_different(
    text: str, theirs: str | None, ours: str | None, options: Sequence[str], *, at_once: bool = False
) -> str | None:
    """Why ours need not read what the reference reads; None where there is no reason.

    Args:
        text: the reply.
        theirs: letter that the reference reads, None for none.
        ours: the same of ours, another one.
        options: texts of the options.
        at_once: the reference looks at the beginning of the reply only.
    """
    letters = ascii_uppercase[: len(options)]
    answer = without_reasoning(text)
    anywhere = standing_letters(answer)
    standing = [one for one in anywhere if one.letter in letters]
    own_text = ours is not None and options[letters.index(ours)].casefold() in answer.casefold()
    of_ours = [one for one in standing if one.letter == ours]
    if ours is not None and not own_text and not of_ours:
        return None  # ours makes it up
    if theirs is None:
        return _why_unread(of_ours, ours, own_text) or ("the letter comes later" if at_once else None)
    of_theirs = [one for one in standing if one.letter == theirs and not one.in_word]
    others = {one.letter for one in standing if not one.is_article and not one.in_word}
    if of_theirs and all(one.is_small for one in of_theirs):  # small letters list more than options
        others |= {one.letter for one in anywhere if one.is_small and not one.is_article}
    reasons = {
        "there is no such option": theirs not in letters,
        "reasoning is no answer": theirs in {one.letter for one in standing_letters(text)} and not of_theirs,
        "a letter inside a word is no letter": not of_theirs,
        "a small letter that no word announces is no letter": all(one.is_loose for one in of_theirs),
        "an article is no letter": all(one.is_article for one in of_theirs),
        "of several letters the first need not be the one that is meant": len(others) > 1,
        "a letter that is denied is no answer": DENIAL.search(answer),
        "an option's own text is an answer": own_text,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _why_unread(of_ours: Sequence[Standing], ours: str | None, own_text: bool) -> str | None:
    """Why the reference reads nothing where ours reads a letter."""
    reasons = {
        "a letter between signs of another script is a letter": any(one.in_script for one in of_ours),
        "a small letter on its own is a letter": any(one.is_small and not one.is_article for one in of_ours),
        "an option's own text is an answer": own_text,
        "there are more than four letters": ours is not None and ours > "D",
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
