"""The one answer parser: from what a model wrote to the option, the Yes or No, or the number it means.

Stricter than the scripts of the reference, which take the article "a" for option A, the first of several
letters for the answer, and any B in a word that follows a blank for option B.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from string import ascii_uppercase

_OPEN, _CLOSE = r"[\(\[\{<\"'`*“‘]", r"[\)\]\}>\"'`*”’]"
# A letter on its own: no letter, digit or apostrophe next to it, brackets and quotes may be.
_LETTER = rf"(?P<open>{_OPEN}*)(?<![A-Za-z0-9])(?P<letter>[A-Za-z])(?![A-Za-z0-9]|['’][A-Za-z])(?P<close>{_CLOSE}*)"
_CUED = re.compile(
    rf"\b(?:answer|option|choice)\b\W{{0,3}}(?:\s*(?:is|was|would be|should be|must be|:|=)\W{{0,3}})?"
    rf"(?:\s*\b(?:option|choice|letter)\b\W{{0,3}})?\s*{_LETTER}",
    re.IGNORECASE,
)
_LEADING = re.compile(rf"\s*{_LETTER}")
_ANYWHERE = re.compile(_LETTER)
_BRACKETED = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]")
_ANOTHER = re.compile(rf"\s*(?:/|\+|&|,|\bor\b|\band\b)\s*(?:\bor\b\s*)?{_OPEN}?(?P<other>[A-Z])(?![A-Za-z0-9])")
_DENIED = re.compile(r"(?:\bnot|n['’]t|\bneither|\bnor)(?:\s+(?:be|option|choice|answer))?\s*$", re.IGNORECASE)
# What may follow a bare "A" that is no article.
_NOT_A_NOUN = re.compile(
    r"\s*\(|\s+(?:is|was|isn|because|since|as|it|this|that|he|she|they|there|would|seems|fits|applies)\b"
)
_RULED_OUT = re.compile(
    r"(?:is|was|seems|would be|can|could) (?:wrong|incorrect|false|not|ruled out)\b|(?:isn|wasn) t\b"
)
_WORD = re.compile(r"(?:(?<![\w.])[+-](?=\d))?[^\W_]+(?:[.,][0-9]+)*|->")
_ENDS = re.compile(r"\s*(?:[.):;!?]|,)?\s*$")
_NUMBER_WORDS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
]  # fmt: skip
_TIMES = {"once": 1, "twice": 2, "thrice": 3}
_WHOLE = re.compile(r"(\d{1,9})(?:\.0{1,2})?x?", re.ASCII)
_YES_OR_NO = re.compile(r"\W*(?:yes\W{0,3}(?:/|or\b|and\b)\W*no|no\W{0,3}(?:/|or\b|and\b)\W*yes)\b", re.IGNORECASE)
_NEGATIONS = {"not", "never", "t", "cannot"}
_DELIMITED = re.compile(r"[.):;,!?](?:\s|$)|\s*[:=]|\s+[-–—]+\s")


def parse_answer(text: str, options: Sequence[str]) -> int | None:
    """Option that a text means, or None where it names none or does not decide between several.

    In this order: the text is an option, word for word; a letter after a cue ("The answer is (C)", the last such
    cue counts; only one after them where the text repeats all options); a letter at the beginning; a single letter
    in brackets; a single capital on its own; a single option whose words occur. Letters beyond the options are none,
    nor are those that are said to be wrong. "A" before a noun is an article.

    Args:
        text: what the model wrote.
        options: texts of the options, without letters.
    """
    text = unicodedata.normalize("NFKC", text).strip()
    letters = ascii_uppercase[: len(options)]
    words, option_words = _words(text), [_words(option) for option in options]
    if words and words in option_words and not re.fullmatch(r"\W*[A-Za-z]\W*", text):
        return option_words.index(words)
    if _lists_all(words, option_words, letters):
        found = _cued(text, letters, option_words, after_list=True)
        return letters.index(found[0]) if len(found) == 1 else None
    for find in (_cued, _leading, _bracketed, _alone):
        found = find(text, letters, option_words)
        if found:
            return letters.index(found[0]) if len(found) == 1 else None
    return _mentioned(words, option_words)


def parse_yes_no(text: str) -> int | None:
    """0 for Yes, 1 for No, None for neither or both.

    The first word decides, or the only one of the two that occurs; a "Y" or "N" counts where it is the whole reply.
    "I would not say yes" is neither.
    """
    words = _words(text).split()
    if not words or _YES_OR_NO.match(text):
        return None
    if words[0] in ("yes", "no"):
        return ("yes", "no").index(words[0])
    if words in (["y"], ["n"]):
        return ("y", "n").index(words[0])
    found = {"yes", "no"} & set(words)
    if found == {"yes"} and _NEGATIONS & set(words[max(0, words.index("yes") - 3) : words.index("yes")]):
        return None
    return ("yes", "no").index(found.pop()) if len(found) == 1 else None


def parse_count(text: str) -> int | None:
    """The number of a reply, in digits or as a word up to twelve; None for none, or several that differ.

    "3.0", "3x" and "twice" are numbers, too; "once" is one where it ends the reply and cannot mean "as soon as".
    """
    found = set()
    words = _words(text).split()
    for place, word in enumerate(words):
        whole = _WHOLE.fullmatch(word)
        if whole is not None:
            found.add(int(whole[1]))
        elif word in _NUMBER_WORDS:
            found.add(_NUMBER_WORDS.index(word))
        elif word in _TIMES and (word != "once" or place == len(words) - 1):
            found.add(_TIMES[word])
    return found.pop() if len(found) == 1 else None


def parse_reply(text: str, options: Sequence[str], kind: str) -> int | None:
    """What a reply to a question of a kind (`records.KINDS`) names; an open question has nothing to be named."""
    if kind == "choice":
        return parse_answer(text, options)
    return {"yes_no": parse_yes_no, "count": parse_count}[kind](text) if kind != "open" else None


def says(text: str, wanted: str) -> bool:
    """Whether the words of a text occur in another, in their order; signs and capitals do not matter."""
    words = _words(wanted)
    return f" {words} " in f" {_words(text)} " if words else wanted.strip() in text


def _words(text: str) -> str:
    """Letters, digits and signs that matter, in small letters, single blanks between."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def _lists_all(words: str, option_words: Sequence[str], letters: str) -> bool:
    """Whether the text repeats all options with their letters instead of choosing."""
    return all(f"{letter.lower()} {option}" in words for letter, option in zip(letters, option_words, strict=True))


def _cued(text: str, letters: str, option_words: Sequence[str], *, after_list: bool = False) -> list[str]:
    found: list[str] = []
    for match in _CUED.finditer(text):
        if after_list and not _lists_all(_words(text[: match.start()]), option_words, letters):
            continue
        named = _named(match, text, letters, option_words)
        found = named or found
    return found


def _leading(text: str, letters: str, option_words: Sequence[str]) -> list[str]:
    match = _LEADING.match(text)
    if match is None:
        return []
    named = _named(match, text, letters, option_words)
    # "a. b. c." is a list, not a choice.
    if match["letter"].islower() and len({m["letter"] for m in _ANYWHERE.finditer(text)} - {"a"}) > 1:
        return []
    return named


def _bracketed(text: str, letters: str, option_words: Sequence[str]) -> list[str]:
    found = [match for match in _BRACKETED.finditer(text) if match[1].upper() in letters]
    return sorted({m[1].upper() for m in found if not _is_denied(m, text, option_words[letters.index(m[1].upper())])})


def _alone(text: str, letters: str, option_words: Sequence[str]) -> list[str]:
    found = set()
    for match in _ANYWHERE.finditer(text):
        if match["letter"].isupper():
            found.update(_named(match, text, letters, option_words))
    return sorted(found)


def _named(match: re.Match[str], text: str, letters: str, option_words: Sequence[str]) -> list[str]:
    """Letters that a match stands for: none for an article, several for "A or B"."""
    letter, rest = match["letter"].upper(), text[match.end() :]
    if letter not in letters or _is_denied(match, text, option_words[letters.index(letter)]):
        return []
    is_marked = bool(match["open"] or match["close"] or _ENDS.match(rest) or _DELIMITED.match(rest))
    is_article = letter in "AI" and not (
        "\n" in rest[:1] or "\t" in rest[:1] or _NOT_A_NOUN.match(rest) or _ANOTHER.match(rest)
    )
    follows, option = _words(rest), option_words[letters.index(letter)]
    repeats = bool(follows) and follows.startswith(option or "\0")
    if not (is_marked or repeats or (match["letter"].isupper() and not is_article)):
        return []
    another = _ANOTHER.match(rest)
    others = [another["other"]] if another is not None and another["other"] in letters else []
    return sorted({letter, *others})


def _is_denied(match: re.Match[str], text: str, option: str) -> bool:
    """Whether a letter stands after a "not", or before an "is wrong", the words of its option perhaps between."""
    follows = _words(text[match.end() :])
    return bool(_DENIED.search(text[: match.start()]) or _RULED_OUT.match(follows.removeprefix(option).lstrip()))


def _mentioned(words: str, option_words: Sequence[str]) -> int | None:
    """The option whose words occur; one inside another gives way to the longer one."""
    after = {i: f" {words} ".partition(f" {option} ")[1:] for i, option in enumerate(option_words) if option}
    found = [i for i, (option, rest) in after.items() if option and not _RULED_OUT.match(rest)]
    longest = [i for i in found if not any(i != j and option_words[i] in option_words[j] for j in found)]
    return longest[0] if len(longest) == 1 else None
