"""Golden checks of answer parsing and scoring.

The reference has three parsers, with faults that ours does not share; each difference is listed here with what we
say instead, so that a new one cannot hide among them.
"""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_uppercase
from typing import Any

from videochat_online.evaluation import compute_metrics, get_task, parse_answer

from .harness import Case

NEUTRAL_OPTIONS = ("first", "second", "third", "fourth")
"""Options whose words occur in no recorded answer: what remains are the letters."""

# Text -> our letter (None: no option), and why it is not the recorded one.
SMALL = "a small letter on its own is a letter"
SEVERAL = "two letters are no choice"
INSIDE = "a letter inside a word is no letter"
ARTICLE = "an article is no letter"
SCRIPT = "a letter between signs of another script is a letter"
FIRST = "the letter that was chosen, not one of the words before it"
DIFFERENT: dict[str, tuple[str | None, str]] = {
    "b": ("B", SMALL), " b. walking": ("B", SMALL), "d)": ("D", SMALL), "\uff22": ("B", SMALL),
    "A/B": (None, SEVERAL), "A or B": (None, SEVERAL), "B+C": (None, SEVERAL), "The person at A. is B": (None, SEVERAL),
    "a. b. c.": (None, SEVERAL),
    "ABCD": (None, INSIDE), "CAB": (None, INSIDE), "The answer Because": (None, INSIDE), "ab": (None, INSIDE),
    "b.x": (None, INSIDE),
    "The option is A person walking": (None, ARTICLE), "It is a cat": (None, ARTICLE), "a man": (None, ARTICLE),
    "Best answer: A": ("A", FIRST), "答案是B": ("B", SCRIPT), "选B": ("B", SCRIPT),
}  # fmt: skip


def check_scoring(case: Case) -> None:
    """Parsed letters, or scores of predictions against right answers."""
    recorded = case.recorded
    if isinstance(recorded, dict):
        _check_benchmark(case, recorded)
    elif "text" in recorded[0]:
        _check_letters(case, recorded)
    else:
        _check_pairs(case, recorded)


def _letter(text: str) -> str | None:
    place = parse_answer(text, NEUTRAL_OPTIONS)
    return None if place is None else ascii_uppercase[place]


def _check_letters(case: Case, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        text = row["text"]
        if text in DIFFERENT and DIFFERENT[text][0] != row["out"]:
            ours, reason = DIFFERENT[text]
            case.exclude(f"{text!r}: the reference reads {row['out']}, we {ours}: {reason}")
            case.exact(f"{text!r}, ours", _letter(text), ours)
        else:
            case.exact(f"{text!r}", _letter(text), row["out"])


def _check_pairs(case: Case, rows: list[dict[str, Any]]) -> None:
    """A prediction is right where it means the letter of the right answer."""
    for row in rows:
        label, ours = f"{row['pred']!r} for {row['gt']!r}", _letter(row["pred"])
        right = _letter(row["gt"])
        if right is None:
            case.exclude(f"{label}: the right answer names no option; our annotations cannot")
            continue
        score = int(ours == right)
        if score != row["score"]:
            reason = DIFFERENT.get(row["pred"], (None, "the reference compares other letters"))[1]
            case.exclude(f"{label}: the reference scores {row['score']}, we {score}: {reason}")
            case.exact(f"{label}, ours", ours, DIFFERENT.get(row["pred"], ("not listed",))[0])
        else:
            case.exact(label, score, row["score"])


def _check_benchmark(case: Case, recorded: dict[str, Any]) -> None:
    rows = []
    for number, item in enumerate(recorded["items"]):
        doc, text = item["doc"], item["pred"]
        label = f"item {number}, {text!r}"
        if doc["answer"] not in doc["candidates"]:
            case.exclude(f"{label}: the right answer is not among the options; our loader refuses such a row")
            case.exact(label, item["result"]["score"], 0)
            continue
        ours = parse_answer(text, doc["candidates"])
        right = doc["candidates"].index(doc["answer"])
        score, theirs = int(ours == right), item["result"]["score"]
        rows.append(
            {**doc, "video": str(number), "dataset": None, "options": doc["candidates"], "correct": bool(score)}
            | {"predicted_index": ours}
        )
        if score == theirs:
            case.exact(label, score, theirs)
        else:
            by_text = ours is not None and doc["candidates"][ours].casefold() in text.casefold()
            case.exclude(f"{label}: the reference scores {theirs}, we {score}: an option's own text, or a listed case")
            case.exact(f"{label}, ours", by_text or text in DIFFERENT, True)
    micro = compute_metrics(rows, get_task("ovbench"))["micro_average"]
    case.close("micro average", micro["accuracy"], 100 * sum(row["correct"] for row in rows) / len(rows), atol=1e-3)
    case.exclude("aggregate: the reference leaves empty predictions out of the denominator; with us they are wrong")


CHECKS: dict[str, Callable[[Case], None]] = {"scoring": check_scoring}
