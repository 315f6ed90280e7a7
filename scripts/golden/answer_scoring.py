"""Golden checks of answer parsing and scoring.

The reference has several parsers, with faults that ours does not share. Each is said again slowly
(`reference_parsers.py`): the restatement must give what was recorded, and where ours reads something
else, the reply must say why.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from string import ascii_uppercase
from typing import Any

from videochat_online.evaluation import compute_metrics, get_task, parse_answer

from .harness import Case
from .reference_parsers import after_paren, first_capital, first_words, one_paren, single_letter, why_different

Row = dict[str, Any]

FIRST_CAPITAL_LETTERS, SINGLE_LETTERS = 4, 5
"""Letters that the two parsers know."""


def check_scoring(case: Case) -> None:
    """Parsed letters, or scores of predictions against right answers."""
    recorded = case.recorded
    if isinstance(recorded, dict):
        _check_benchmark(case, recorded)
    elif "text" in recorded[0]:
        _check_letters(case, recorded)
    else:
        _check_pairs(case, recorded)


def check_reading(
    case: Case, text: str, theirs: str | None, options: Sequence[str], *, at_once: bool = False
) -> str | None:
    """Our letter of a reply: the reference's, or another for a reason that stands in the reply (`why_different`)."""
    place = parse_answer(text, options)
    ours = None if place is None else ascii_uppercase[place]
    if ours == theirs:
        case.exact(f"{text!r}", ours, theirs)
        return ours
    reason = why_different(text, theirs, ours, options, at_once=at_once)
    if reason is None:
        case.exact(f"{text!r}, and nothing in it says why", ours, theirs)
    else:
        case.exclude(f"{text!r}: the reference reads {theirs}, we {ours}: {reason}")
        case.exact(f"{text!r}, a reason", reason is None, False)
    return ours


def neutral_options(texts: Sequence[str], count: int) -> list[str]:
    """Options of which no text speaks: what remains are the letters."""
    length = 1
    while any("qz" * length in text.casefold() for text in texts):
        length += 1
    return ["qz" * length + ascii_uppercase[number].lower() * 2 for number in range(count)]


def _check_letters(case: Case, rows: list[Row]) -> None:
    options = neutral_options([row["text"] for row in rows], FIRST_CAPITAL_LETTERS)
    for row in rows:
        text = row["text"]
        case.exact(f"{text!r}, restated", first_capital(text), row["out"])
        for key, recorded in row.items():
            restated = {"remove_extra_open_parens": one_paren, "multiturn_wrapped": after_paren}.get(key)
            if restated is not None:
                case.exact(f"{text!r} {key}, restated", restated(text), recorded)
            elif key.startswith("check_ans_"):
                right = key.removeprefix("check_ans_")
                case.exact(f"{text!r} {key}, restated", first_words(text, right), recorded)
        check_reading(case, text, row["out"], options)


def _check_pairs(case: Case, rows: list[Row]) -> None:
    """A prediction is right where it means the letter of the right answer."""
    texts = [row[key] for row in rows for key in ("pred", "gt")]
    options = neutral_options(texts, SINGLE_LETTERS)
    ours = {text: check_reading(case, text, single_letter(text)[0], options) for text in dict.fromkeys(texts)}
    for row in rows:
        label = f"{row['pred']!r} for {row['gt']!r}"
        theirs = single_letter(row["pred"])
        case.exact(f"{label}, restated", _scores(row["pred"], row["gt"]), row["score"])
        if single_letter(row["gt"])[0] is None:
            case.exclude(f"{label}: the right answer names no option; our annotations cannot")
        elif theirs[0] == ours[row["pred"]] and single_letter(row["gt"])[0] == ours[row["gt"]]:
            case.exact(label, int(ours[row["pred"]] == ours[row["gt"]]), row["score"])


def _scores(reply: str, right: str) -> int:
    """1 where both give one letter, or, without letters, one text."""
    said, wanted = single_letter(reply), single_letter(right)
    return int(said[0] == wanted[0] and (said[0] is not None or said[1] == wanted[1]))


def _check_benchmark(case: Case, recorded: Row) -> None:
    rows, scores = [], []
    for number, item in enumerate(recorded["items"]):
        doc, text, result = item["doc"], item["pred"], item["result"]
        options = doc["candidates"]
        label = f"item {number}, {text!r}"
        case.exact(f"{label} recorded reply", result["pred_answer"], text)
        if text != "":
            scores.append(result["score"])
        if doc["answer"] not in options:
            case.exclude(f"{label}: the right answer is not among the options; our loader refuses such a row")
            case.exact(label, (result["gt_answer"], result["score"]), (None, 0))
            continue
        right = ascii_uppercase[options.index(doc["answer"])]
        case.exact(f"{label} right answer", right, result["gt_answer"])
        case.exact(f"{label}, restated", _scores(text, right), result["score"])
        ours = check_reading(case, text, single_letter(text)[0], options)
        rows.append(
            {**doc, "video": str(number), "dataset": None, "options": options, "correct": ours == right}
            | {"predicted_index": None if ours is None else ascii_uppercase.index(ours)}
        )
    case.close("recorded average, restated", recorded["aggregate"], _percent(scores), atol=1e-9)
    _check_printed(case, recorded)
    micro = compute_metrics(rows, get_task("ovbench"))["micro_average"] if rows else {"accuracy": 0.0}
    case.close("micro average", micro["accuracy"], _percent([row["correct"] for row in rows]), atol=1e-3)
    case.exclude("aggregate: the reference leaves empty predictions out of the denominator; with us they are wrong")


def _check_printed(case: Case, recorded: Row) -> None:
    """What the reference prints of a run: how many of all, and of each type, are right by its own scores."""
    case.exact("average of nothing", recorded.get("aggregate_empty", 0), 0)
    by_name: dict[str, list[int]] = defaultdict(list)
    for item in recorded["items"]:
        doc, result = item["doc"], item["result"]
        names = ["", f"Task {doc['answer_type']}", f"Subtask {doc['sub_answer_type']}"]
        types = {key: doc[key] for key in ("answer_type", "sub_answer_type")}
        case.exact("recorded types", {key: result.get(key, doc[key]) for key in types}, types)
        for name in names if item["pred"] != "" else ():
            by_name[name].append(result["score"])
    for line in re.finditer(r"(?m)^<(?:((?:Task|Subtask) .*)>|<<) (.*)$", recorded.get("printed", "")):
        scores = by_name.pop(line[1] or "", [])
        numbers = [float(number) for number in re.findall(r": *([\d.]+)", line[2])]
        case.close(f"printed {line[0].strip()}", numbers, [len(scores), sum(scores), _percent(scores)], atol=0.0051)
    if "printed" in recorded:
        case.exact("types that are not printed", sorted(by_name), [])


def _percent(scores: Sequence[int]) -> float:
    return 100 * sum(scores) / len(scores) if scores else 0.0


CHECKS: dict[str, Callable[[Case], None]] = {"scoring": check_scoring}
