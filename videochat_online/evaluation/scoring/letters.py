"""Option letters in a reply: which letters on their own stand for an option, and which of them is the answer.

Where B is read, A is: what is special to "A" (and to "I", the ninth) is only whether it is an article or a pronoun.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from string import ascii_uppercase

from videochat_online.evaluation.scoring.replies import WORD, words_of

_LATIN = "A-Za-z0-9À-ɏ"
_TOKEN = re.compile(rf"[{_LATIN}]+(?:['’][{_LATIN}]+)*|\n|\S")
# Not in a word, a contraction ("I'd"), an abbreviation ("e.g.") or a unit ("°C").
_LETTER = re.compile(
    rf"(?<![{_LATIN}°])(?<![{_LATIN}]['’])(?<!\b[A-Za-z]\.)[A-Za-z](?![{_LATIN}]|['’][{_LATIN}]|\.[A-Za-z]\.|\+\+)"
)
_DELIMITER = re.compile(r"[)\]}>\"'`*_”’|$\n\t]|[.,;!?](?:\W|$)|\s*(?:[:=/+&→(\[{|–—]|-+>?\s|$)")
# Between letters that are named together: "A or B", "(A), (B)", "A/B", "option A and option B".
_JOINT = re.compile(
    r"[^\w\n.:;!?]*(?:\b(?:or|and)\b[^\w\n.:;!?]*(?:(?:maybe|perhaps|even|also|\w+ly)\b\W)?)?"
    r"(?:\b(?:option|choice)\b)?[^\w\n.:;!?]*"
)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NOUNS = _set(
    "answer ans option choice letter selection response solution prediction conclusion verdict guess final one"
)
_VERBS = _set("choose chose chosen choosing pick picked picking select selected selecting say")
_VERBS_WITH = _set("go going went stick sticking opt opting vote voting settle settling lean leaning")
_WITH = _set("with for on towards toward")
_SAYS_WHICH = _set("is was be must : = → > - – —")
_GLUE = _NOUNS | _set(
    "is was be would should could must will has to the this these my your i i'd we think believe it it's with for on of"
    " towards toward question video clip above here following correct right best most likely final number therefore"
    " thus so being as follows"
)
_ADVERB = re.compile(r"(?!(?:family|assembly|supply|[a-z]*(?:fly|belly))$)[a-z]{2,}ly")
_ADVERBS = _set("best better most more very")
# After a letter, but neither after the article nor after the pronoun.
_AFTER_BOTH = _set(
    "is isn't as and or if in on at it instead although because since but for from by with to than though when where"
    " which while whereas the this that these those given not he she they here fits matches applies works wins"
)
_AFTER_A = _AFTER_BOTH | _set(
    "so was were wasn't would should could couldn't wouldn't will won't must may might has hasn't had does doesn't did"
    " didn't be based then there who what we you my his her their now too please maybe perhaps can't cannot"
)
# After a letter where no noun follows, as is a share: "which makes A correct", "A 100%".
_JUDGED = _set("correct incorrect right wrong true false best valid invalid likely unlikely plausible")
_PAIRS_AFTER = {("based", "on"), ("due", "to"), ("according", "to"), ("rather", "than"), ("can", "be"), ("can", "not")}
# A third person's verb, such as "describes": what ends like it and stands before one of these is no plural noun.
_VERB = re.compile(r"(?!(?:series|species|news|lens|gas|canvas)$)[a-z]+[^\Wsui]s")
_AFTER_VERB = _set(
    "the a an this that these those what how it his her their its all both everything exactly best better well most"
    " more to with right correct good plausible true accurate"
)
_LETTERED = re.compile(r"\W*[A-Za-z][.):]")
_COMPOUND = re.compile(r"-(?:[A-Za-z]{2}|\d)")
# "Not", then what may announce a letter: "I would never choose option B"; also the second one of "not A or B".
_DENIED = re.compile(
    r"(?:(?:\b(?:not|cannot|never|neither|nor)|n['’]t)(?:[^\w.!?;,]+(?:"
    + "|".join(sorted(_GLUE | _VERBS | _VERBS_WITH, key=len, reverse=True))
    + r")\b)*|\b(?:(?<!other )than|(?:any\w*|every\w*|all) (?:but|other than)|instead of|unlike"
    r"|except|exclud\w+|eliminat\w+|reject\w*|rul\w+ out)"
    r"(?:\s+(?:the|option|choice|answer))*)(?:\W+[a-z]\W+(?:or|nor)\b)*[^\w.!?;]*$",
    re.IGNORECASE,
)
_NOT = re.compile(r"(?:\b(?:not|neither|nor)|n t)$")
_RULED_OUT = re.compile(
    r"(?:(?:[a-z] )*(?:and|or) [a-z] )?(?:(?:(?:is|was|are|were|seems|looks|would be|can|could|can be|could be|does|did"
    r"|do|would|has|will)(?: \w+ly)?"
    r" (?:wrong|incorrect|false|not|never|ruled out|excluded|eliminated|impossible|unlikely))\b"
    r"|cannot\b|(?:isn|wasn|aren|doesn|didn|don|can|couldn|wouldn|hasn|won) t\b)"
)
_VERDICT = re.compile(
    r"(?:(?:is|was|would be|should be|must be|seems|looks|appears)(?: (?:to be|the|my|also))* )?"
    r"(?:(?:most|more|\w+ly) )*(?:best|correct|right|accurate|answer|fits|matches)\b|it is\b"
)
# After a letter: "Is it B? No."
_REJECTED = re.compile(r"[^\w\n?]*\?\W*(?:no(?! doubt)|nope|not|i (?:do not|don['’]t) think so)\b", re.IGNORECASE)
# Before one that takes the place of an earlier answer: "Wait, no, it's C", "but it is C".
_REVISED = re.compile(
    r"\b(?:(?:actually|wait|no|correction|sorry|reflection|thoughts?)[,:–—-]+|(?:actually|but)(?=\W+(?:it|that|this)\b))"
    r"(?:[^\w.!?;]*\b(?:actually|it|that|this|the|answer|option|choice|is|s|must|should|would|has|to|be|rather)\b)*"
    r"[^\w.!?;]*$",
    re.IGNORECASE,
)
# "Q: What is it? A: B", where the first A is none of the options.
_SPOKEN = re.compile(r"(?:\A|\AQ:.*?\s)A:\s+(?=[^\w\s]{0,3}[A-Z](?:[^\w\s'’]|\s*\Z))", re.DOTALL)
_QUESTION = re.compile(r"[^.!?\n]{0,80}\?")


class Rank(IntEnum):
    """Where a letter stands; the highest rank in a reply is what it means.

    From `LEADING` on the last letter of a rank counts; below it a rank has to name one letter only.
    """

    ALONE = 0
    """A capital anywhere."""
    BRACKETED = 1
    LEADING = 2
    """A letter at the beginning of the reply."""
    MENTIONED = 3
    """"Option B"."""
    HEADING = 4
    """A letter at the beginning, before a sign or its option's text: "B. a cup"."""
    CONCLUDED = 5
    """"The answer is B", "I choose B", "B is correct"."""


@dataclass(frozen=True, slots=True)
class _Letter:
    letter: str
    start: int
    end: int
    rank: Rank
    is_denied: bool


class _Reply:
    """A text by its tokens, to judge what stands around a letter, and by its words, to find texts of options."""

    def __init__(self, text: str, options: Sequence[str]) -> None:
        self.text, self.option_words = text, [words_of(option) for option in options]
        matches = list(_TOKEN.finditer(text))
        self.tokens, self.starts = [match[0].casefold() for match in matches], [match.start() for match in matches]
        self.first = next((index for index, token in enumerate(self.tokens) if token[0].isalnum()), 0)
        words = list(WORD.finditer(text))
        self.words, self.word_starts = [match[0].casefold() for match in words], [match.start() for match in words]
        self.within_options = self._within_options(options)
        self.list_ends: dict[str, int] = {}
        """Position of the last word of an option's text, for options whose text follows their letter."""

    def _within_options(self, options: Sequence[str]) -> set[int]:
        """Where the words of options' texts stand.

        Not the first word of a text, which may as well be the letter before a shorter one, unless the text itself
        begins with a letter as options do ("(E) The pantry").
        """
        within: set[int] = set()
        for option, words in zip(options, self.option_words, strict=True):
            if len(words) < 2 or words[0] not in self.words:
                continue
            hidden = 0 if _LETTERED.match(option) else 1
            for index, word in enumerate(self.words):
                if word == words[0] and tuple(self.words[index : index + len(words)]) == words:
                    within.update(self.word_starts[index + hidden : index + len(words)])
        return within

    def letters(self) -> list[_Letter]:
        """The letters of options, an article or a pronoun not among them."""
        found = (self._letter(match) for match in _LETTER.finditer(self.text))
        return [letter for letter in found if letter is not None]

    def _letter(self, match: re.Match[str]) -> _Letter | None:
        letter, start, end = match[0].upper(), match.start(), match.end()
        index = ascii_uppercase.index(letter)
        if index >= len(self.option_words) or start in self.within_options:
            return None
        token, after = bisect_left(self.starts, start), bisect_left(self.word_starts, end)
        option = self.option_words[index]
        has_text = bool(option) and tuple(self.words[after : after + len(option)]) == option
        if has_text:
            self.list_ends.setdefault(letter, self.word_starts[after + len(option) - 1])
            self.within_options.add(self.word_starts[after])  # which may be a letter, too
        is_delimited = _DELIMITER.match(self.text, end) is not None
        is_leading, cue = token <= self.first, self._cue(token)
        in_brackets = self._token(token - 1) in ("(", "[") and self._token(token + 1) in (")", "]")
        if match[0].islower():
            is_letter = (has_text or is_delimited) and (is_leading or in_brackets or cue is not None)
            is_letter |= cue is not None and not self._is_other_word(letter, token, after, is_cued=False)
        else:
            is_letter = has_text or not self._is_other_word(letter, token, after, is_cued=cue is not None)
        if not is_letter or (not is_delimited and self._begins_option(letter, after)):
            return None
        next_word = after + len(option) * has_text
        follows = " ".join(self.words[next_word : next_word + 8])
        before = self.text[max(0, start - 80) : start]
        is_verdict = _VERDICT.match(follows) and not _QUESTION.match(self.text, end)
        if is_verdict or ((has_text or is_delimited) and _REVISED.search(before)):
            cue = Rank.CONCLUDED
        ranks = [Rank.ALONE, *([Rank.BRACKETED] if in_brackets else []), *([cue] if cue is not None else [])]
        if is_leading:
            ranks.append(Rank.HEADING if has_text or is_delimited else Rank.LEADING)
        if max(ranks) is Rank.ALONE and _COMPOUND.match(self.text, end):
            return None
        is_denied = bool(_DENIED.search(before) or _RULED_OUT.match(follows) or _REJECTED.match(self.text, end))
        return _Letter(letter, start, end, max(ranks), is_denied)

    def _token(self, index: int) -> str:
        return self.tokens[index] if 0 <= index < len(self.tokens) else ""

    def _begins_option(self, letter: str, after: int) -> bool:
        """Whether the letter and what follows are the first words of an option: the article of "A cup of tea"."""
        follows = (letter.lower(), *self.words[after : after + 2])
        return any(len(option) > 1 and option[:3] == follows[: len(option)] for option in self.option_words)

    def _cue(self, token: int) -> Rank | None:
        """What words before a letter announce it, if any: the nearest one that is not mere glue decides."""
        says_which = is_named = has_with = False
        for index in range(token - 1, max(token - 16, -1), -1):
            word = self.tokens[index]
            if word in _VERBS or (word in _VERBS_WITH and has_with) or (word in _NOUNS and says_which):
                return Rank.CONCLUDED
            if word in ".!?;" or (word[0].isalnum() and word not in _GLUE and not word.endswith("ly")):
                break
            is_named |= word in _NOUNS and word != "one"
            says_which |= word in _SAYS_WHICH
            has_with |= word in _WITH
        return Rank.MENTIONED if is_named else None

    def _is_other_word(self, letter: str, token: int, after: int, *, is_cued: bool) -> bool:
        """Whether a capital is the article "A" or the pronoun "I".

        With a word after it, that is. A capital "A" after a cue in the middle of a sentence is no article; elsewhere
        it depends on whether the word after it can follow an article.
        """
        index = token + 1
        follows = self._token(index)
        if letter not in "AI" or not follows[:1].isalnum() or self.text[self.starts[token] + 1] != " ":
            return False
        previous = self._token(token - 1)
        if letter == "A" and is_cued and (previous[-1:].isalnum() or previous == ","):
            return False
        while self._token(index) in _ADVERBS or _ADVERB.fullmatch(self._token(index)):
            index += 1
        word, following = self._token(index), self._token(index + 1)
        if not word[:1].isalnum():
            return False
        is_heading = following == ":" and self.text[self.starts[index]].isupper()
        ends = self._token(index + 2) if following == "%" else following
        is_judged = (word in _JUDGED or following == "%") and not ends[:1].isalnum()
        if is_heading or is_judged or (word, following) in _PAIRS_AFTER:
            return False
        if _VERB.fullmatch(word) and (following in _AFTER_VERB or _ADVERB.fullmatch(following)):
            return False
        # Before a vowel the article is "an".
        before_vowel = letter == "A" and word[0] in "aeio" and not word.startswith(("eu", "one", "once"))
        return not before_vowel and word not in (_AFTER_A if letter == "A" else _AFTER_BOTH)


def letters_in(text: str, options: Sequence[str]) -> tuple[list[str], bool]:
    """Letters that a reply decides for: none, one, or several that it does not decide between.

    Returns:
        The letters, and whether the text repeats all options, so that none of their texts is an answer.
    """
    spoken = _SPOKEN.match(text)
    if spoken is not None and words_of(text[spoken.end() :])[:1] != words_of(options[0])[:1]:
        text = text[spoken.end() :]
    reply, letters = _Reply(text, options), ascii_uppercase[: len(options)]
    if reply.words and all(len(word) == 1 and word.upper() in letters for word in reply.words):
        named = reply.words[0].upper()  # whose text may be a letter, too: "A. D"
        if len(reply.words) == 2 and reply.option_words[letters.index(named)] == (reply.words[1],):
            return [named], False
        return sorted({word.upper() for word in reply.words}), False
    found = reply.letters()
    is_list = len(reply.list_ends) == len(letters) > 1
    if is_list:
        list_end = max(reply.list_ends.values())
        found = [one for one in found if one.start > list_end and one.rank in (Rank.MENTIONED, Rank.CONCLUDED)]
    groups: list[list[_Letter]] = []
    for one in found:
        if groups and _JOINT.fullmatch(text, groups[-1][-1].end, one.start):
            groups[-1].append(one)
        else:
            groups.append([one])
    groups = [left for group in groups if (left := [one for one in group if not one.is_denied])]
    if not groups:
        return [], is_list
    ranks = [max(one.rank for one in group) for group in groups]
    top = max(ranks)
    highest = [group for group, rank in zip(groups, ranks, strict=True) if rank == top]
    deciding = highest[-1] if top >= Rank.LEADING else [one for group in highest for one in group]
    return sorted({one.letter for one in deciding}), is_list


def is_ruled_out(before: str, after: str) -> bool:
    """Whether the words around an option's text say that it is not the answer."""
    return bool(_NOT.search(before) or _RULED_OUT.match(after))
