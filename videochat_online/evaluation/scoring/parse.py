"""The one answer parser: from what a model wrote to the option, the Yes or No, or the number it means.

Stricter than the scripts of the reference, which take the article "a" for option A, the first of several
letters for the answer, and any B in a word that follows a blank for option B.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from videochat_online.evaluation.scoring.letters import is_ruled_out, letters_in
from videochat_online.evaluation.scoring.replies import conclusion, words_of

_YES_NO = re.compile(
    r"\b(?:(?P<yes>yes|yeah|yep|yup|(?<=is )true)"
    r"|(?P<no>no(?! (?:doubt|idea|clue|question|information))|nope|nah|(?<=is )false))\b"
)
# How a reply may begin that means Yes, or No.
_BEGINS = (
    re.compile(r"\W*(?:yes|yeah|yep|yup|true|correct|i (?:think|believe) so)\b(?!\W{0,3}(?:or\b|/))"),
    re.compile(
        r"\W*(?:(?:no(?! (?:doubt|idea|clue|question|information))|nope|nah|false|incorrect|never"
        r"|not (?:yet|now|really|at all|currently|quite|any ?more)|(?:\w+ly|of course) not(?! yes| no)"
        r"|i (?:do not|don['’]t) (?:think|believe) so)\b(?!\W{0,3}(?:or\b|/)))"
    ),
)
_EITHER = re.compile(r"\b(?:yes\W{0,3}(?:/|or\b|and\b)\W*no|no\W{0,3}(?:/|or\b|and\b)\W*yes)\b")
_ANSWER_IS = re.compile(r"\banswer(?:\W+(?:is|was|would|must|should|be|\w+ly))*\W+")
_NEGATION = re.compile(r"\b(?:not|never|cannot|hardly|neither|nor)\b|n['’]t\b")
_CLAUSE = re.compile(r"[.!?;\n]|\b(?:so|but|hence|thus|therefore)\b")

_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_TIMES = {"one": 1, "a single": 1, "once": 1, "twice": 2, "thrice": 3}
_NUMBER = re.compile(
    rf"""
    # None at all: "not once", "never", "no times".
    (?:\b(?:not|never)|n['’]t)\b(?:\W+(?!and\b|but\b)\w+){{0,4}}?\W+(?:once|a\ single\ time|one\ time)\b
    | \b(?:none|never|no\ (?:times?|occurrences?|instances?|repetitions?))\b
    # In digits: no part of a fraction, a date or a clock, and without a unit.
    | (?<![\w.,:])(?<!\W[+-])(?<!^[+-])x?(?P<digits>\d{{1,9}})(?:\.0{{1,2}})?x?(?![\w%]|[.,:]\d)
      (?!\ ?(?:%|(?:s|secs?|seconds?|min|minutes?|percent|fps)\b))
    | \b(?P<tens>{"|".join(_TENS[2:])})(?:[ \-‐–](?P<unit>{"|".join(_SMALL[1:10])}))?\b(?!-\w)
    | \b(?P<small>{"|".join([_SMALL[0], *_SMALL[2:]])})\b(?!-\w)
    # "Once" that means "as soon as" stands before its clause; "at once" and "once more" are no numbers. "One" and
    # "a single" before a noun count where there is no other number: "one man jumps 3 times".
    | (?<!at\ )\b(?P<times>twice|thrice
      |once(?=\W*$|[^\w\s]|\s+(?:or|and|in|at|on|during|only|per|every|before|after|by)\b)
      |(?:one|a\ single)(?=\W*$|[^\w\s]|\s+(?:or|to|and|times?)\b))\b
    | \b(?P<maybe>one|a\ single)\b
    """,
    re.VERBOSE,
)
_NO_EXACT_NUMBER = re.compile(r"\b(?:(?:more|less|fewer) than|hundreds?|thousands?|millions?|dozens?|half)\b")
_PRONOUN = re.compile(
    r"\b(?:(?:no|the|this|that|each|every|any|some|which|another|other) one\b"
    r"|(?<!-)one (?:of|another|by|after|can|could|should|would|must|may|might|has|sees)\b)"
)


def parse_answer(text: str, options: Sequence[str]) -> int | None:
    """Option that a text means, or None where it names none or does not decide between several.

    Reasoning in tags is left out, and what is tagged as the answer decides (`replies.conclusion`). Of the rest: the
    text is an option, word for word; or the letter that stands highest in `letters.Rank`; or the single option whose
    words occur. Letters beyond the options are none, nor are those that are said to be wrong, nor an article "A" or a
    pronoun "I". Where the text repeats all options, only a letter with a cue after them counts.

    Args:
        text: text that the model wrote.
        options: texts of the options, without letters.
    """
    text = conclusion(text)
    words, option_words = words_of(text), [words_of(option) for option in options]
    if len("".join(words)) > 1 and words in option_words:
        same = [i for i, option in enumerate(option_words) if option == words]
        return _sole([i for i in same if options[i].strip() == text] or same)
    named, is_list = letters_in(text, options)
    if named or is_list:
        return _sole([ascii_uppercase.index(letter) for letter in named])
    return _mentioned(words, option_words)


def parse_yes_no(text: str) -> int | None:
    """0 for Yes, 1 for No, None for neither or both.

    How the reply begins decides, or how it goes on after its last "answer is" ("True" and "Not yet" are answers, too);
    else the only one of the two that occurs. A "Y" or "N" counts where it is the whole reply. One after a negation in
    its own clause is neither: "I would not say yes".
    """
    text = conclusion(text).casefold()
    words = words_of(text)
    if words in (("y",), ("n",)):
        return "yn".index(words[0])
    if _EITHER.search(text):
        return None
    for start in [0, *(match.end() for match in _ANSWER_IS.finditer(text))][::-1]:
        for index, begins in enumerate(_BEGINS):
            if begins.match(text, start):
                return index
    found = set()
    for match in _YES_NO.finditer(text):
        before = text[: match.start()]
        if re.search(r"[,:]\W*$", before) or not _NEGATION.search(_CLAUSE.split(before)[-1]):
            found.add(int(match["no"] is not None))
    return _sole(sorted(found))


def parse_count(text: str) -> int | None:
    """The number of a reply, in digits or in words up to ninety-nine; None for none, or several that differ.

    "3.0", "3x", "twice", "a single time" and "never" are numbers, too. "One" counts where there is no other and it is
    no pronoun, "once" where it cannot mean "as soon as".
    """
    text = _PRONOUN.sub("someone", conclusion(text).casefold())
    if _NO_EXACT_NUMBER.search(text):
        return None
    found, maybe = set(), set()
    for match in _NUMBER.finditer(text):
        if match["digits"]:
            found.add(int(match["digits"]))
        elif match["tens"]:
            found.add(10 * _TENS.index(match["tens"]) + (_SMALL.index(match["unit"]) if match["unit"] else 0))
        elif match["maybe"]:
            maybe.add(1)
        else:
            found.add(_SMALL.index(match["small"]) if match["small"] else _TIMES.get(str(match["times"]), 0))
    return _sole(sorted(found or maybe))


def parse_reply(text: str, options: Sequence[str], kind: str) -> int | None:
    """What a reply to a question of a kind (`benchmark.KINDS`) names; an open question has nothing to be named."""
    if kind == "choice":
        return parse_answer(text, options)
    return {"yes_no": parse_yes_no, "count": parse_count}[kind](text) if kind != "open" else None


def says(text: str, wanted: str) -> bool:
    """Whether the words of a text occur in another, in their order; signs and capitals do not matter."""
    words = " ".join(words_of(wanted))
    return f" {words} " in f" {' '.join(words_of(text))} " if words else wanted.strip() in text


def _sole(found: Sequence[int]) -> int | None:
    return found[0] if len(found) == 1 else None


def _mentioned(words: Sequence[str], option_words: Sequence[Sequence[str]]) -> int | None:
    """The option whose words occur; one inside another gives way to the longer one."""
    text, options = f" {' '.join(words)} ", [f" {' '.join(option)} " for option in option_words]
    found = [i for i, option in enumerate(options) if option.strip() and option in text]
    found = [i for i in found if not is_ruled_out(*text.split(options[i], 1))]
    return _sole([i for i in found if not any(i != j and options[i] in options[j] for j in found)])
