"""MVBench and VideoMME in the words of the released VideoChat-Online scripts.

Owns which tasks of lmms-eval have published words, and how a document of theirs becomes a question. Everything around
the question (system message, "Answer:", frames, memory, length of the answer) is the protocol `REFERENCE` of
`offline`. Knows lmms-eval's names and documents, and does not import it.

    MVBench   {"video": "166583.webm", "question": "What is ...?", "candidates": ["red", "blue"], "answer": "red"}
    VideoMME  {"videoID": "fFjv93ACGo8", "question": "When ...?", "options": ["A. Apples.", ...], "answer": "C", ...}

Source: the released scripts for MVBench and VideoMME. They ask VideoMME without its subtitles.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from videochat_online.errors import InputError
from videochat_online.text.questions import multiple_choice_question


def check_published(task: str) -> None:
    """Do nothing for a task that has published words.

    Raises:
        InputError: any other, such as one with subtitles: names those that have.
    """
    if task != "videomme" and not task.startswith("mvbench_"):
        raise InputError(
            f"protocol=reference: expected a task with published words, mvbench or videomme, got {task}"
            " (protocol=lmms_eval asks in the task's own words)"
        )


def published_question(task: str, doc: Mapping[str, Any]) -> str:
    """A document's question and options as the released scripts write them, up to the "Answer:".

    Raises:
        InputError: a task without published words, or a document without question and options.
    """
    check_published(task)
    key = "options" if task == "videomme" else "candidates"
    question, options = doc.get("question"), doc.get(key)
    if not isinstance(question, str):
        raise InputError(f"question: expected a text, got {question!r}")
    if not isinstance(options, (list, tuple)) or not options or not all(isinstance(one, str) for one in options):
        raise InputError(f"{key}: expected a list of texts, got {options!r}")
    return multiple_choice_question(question, _without_letters(options) if task == "videomme" else options)


def _without_letters(options: list[str] | tuple[str, ...]) -> list[str]:
    # A sign as well: "Apples" and "Bananas" begin with these letters, too.
    heads = [{f"{letter}{sign}" for sign in ".):"} for letter in ascii_uppercase[: len(options)]]
    if not all(option[:2] in head for option, head in zip(options, heads, strict=False)):
        raise InputError(f"options: expected texts that begin with A. B. and so on, got {list(options)!r}")
    # Three characters, as the script cuts: whatever stands there.
    return [option[3:] for option in options]
