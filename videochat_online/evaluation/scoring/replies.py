"""What a reply concludes, and its words: what every parser of answers begins with."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# <think>, </thinking>, <|begin_of_thought|>, [THINK], <answer>, <|end_of_box|>: the name says what is within. So it
# does after <|channel|> (any but the final one is thought), up to the next tag or <channel|>.
_PART = re.compile(
    r"[<\[◁]\|?(?P<end>/|end_?)?(?:[a-z]+[_:])*(?:"
    r"(?P<thought>think|thought|reason|rationale|reflect|analysis|scratchpad)|(?:answer|solution|conclusion|box)"
    r")[\w:]*\|?[>\]▷]"
    r"|<\|channel\|?>\s*(?:final|(?P<channel>[a-z]+))[^<\n]*(?:<\|message\|>)?|(?P<left><channel\|>)",
    re.IGNORECASE,
)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
# Any other tag, and LaTeX commands. A letter between angle brackets is a tag where that is closed, too, or a text
# follows a small one at once; else a letter.
_TAG = re.compile(
    r"<(?!\|?[A-Za-z]\|?>)[/|A-Za-z_][^<>\n]{0,60}>|<([A-Za-z])>(?=[^<>]*</\1>)|<[a-z]>(?=\w)|\\[A-Za-z]+(?=\s*\{)"
)
WORD = re.compile(r"(?:(?<![\w.])[+-](?=\d))?[^\W_]+(?:[.,][0-9]+)*|->")


def conclusion(text: str) -> str:
    """The part of a reply that is its answer, in compatibility form (NFKC), with a line break for each tag.

    Reasoning in tags is no part of it, neither where a template opened the tag nor where the reply ends within. What
    is tagged as the answer, or boxed in LaTeX, is all of it; the last such part, where there are several.
    """
    text = unicodedata.normalize("NFKC", text)
    parts: list[tuple[str, str]] = []
    kind, start = "", 0
    for tag in _PART.finditer(text):
        is_thought = tag["thought"] or tag["channel"] or tag["left"]
        name, part = "thought" if is_thought else "answer", text[start : tag.start()]
        start = tag.end()
        if not tag["end"] and not tag["left"]:
            parts.append((kind, part))
            kind = name
        elif name == "answer" and kind != "thought":
            parts.append((name, part))
            kind = ""
        elif name == "thought":
            if kind != name:  # opened by the template, so all of it was thought
                parts.clear()
            kind = ""
    parts.append((kind, text[start:]))
    answers = [part for kind, part in parts if kind == "answer" and part.strip()]
    text = answers[-1] if answers else "\n".join(part for kind, part in parts if not kind)
    boxed = [part for part in _BOXED.findall(text) if part.strip()]
    return _TAG.sub("\n", boxed[-1] if boxed else text).strip()


@lru_cache(maxsize=4096)
def words_of(text: str) -> tuple[str, ...]:
    """Letters, digits and signs that matter, in small letters."""
    return tuple(WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
