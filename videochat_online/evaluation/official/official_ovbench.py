"""OVBench as the three scripts released with VideoChat-Online read it; each has a parser and an average of its own.

- `stream_single`: the letter of "B. text"; else the first of a to e, in either case, that stands alone once signs are
  gone. Averages over kinds of question.
- `sliding_window`: the first capital A to D, also inside a word, once phrases such as "The answer is" are gone.
  Averages over answers.
- `stream_multiturn`: the character after the "(" that the reply was begun with. Averages over answers.

The published average is the mean of the sixteen cells. The sliding window's script stops at a reply without a letter,
the other two count it as wrong: here it is wrong by all.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from functools import partial
from string import ascii_uppercase
from typing import Any

from videochat_online.evaluation.official.official_rules import Exported, OfficialAverage, OfficialRules, Rule, rows_by
from videochat_online.evaluation.scoring.averages import cell_of
from videochat_online.evaluation.tasks.ovbench import OVBENCH
from videochat_online.runs.row_file import Row
from videochat_online.text.questions import option_line

_PHRASES = (
    "The best answer is", "The correct answer is", "The answer is", "The answer",
    "The best option isThe correct option is", "Best answer:Best option:", "Answer:",
)  # fmt: skip
"""Two of them are pairs that lack a comma in the script, and never occur."""
_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_MOST_PERIODS = 32
"""The script hands a flag of `re` over as the number of replacements."""


def single_answer(text: str) -> str:
    """What the single-question script compares: a letter, or the text itself in small letters."""
    match = re.match(r"([A-E])\.\s*(.+)$", text.strip(), re.IGNORECASE)
    if match is not None:
        return match[1].upper()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    has_thousands = re.search(r"\d,\d", text) is not None
    signs = {ord(s): None if has_thousands or f"{s} " in text or f" {s}" in text else " " for s in _SIGNS}
    text = re.sub(r"\.(?!\d)", "", text.translate(signs), count=_MOST_PERIODS)
    for ends in ("'", '"', ")", "("):
        text = text.strip(ends)
    text = text.strip().lower()
    letter = re.search(r"\b([A-E])\b", text, re.IGNORECASE)
    return text if letter is None else letter[1].upper()


def window_answer(text: str) -> str | None:
    """The letter that the sliding window's script finds."""
    text = text.strip()
    for phrase in _PHRASES:
        text = text.replace(phrase, "").strip()
    letter = re.search("[ABCD]", text)
    return None if letter is None else letter[0]


def multiturn_answer(text: str) -> str | None:
    """The character that the multi-turn script takes, of a reply that it has begun with "("."""
    begun = "(" + text.strip().split("\n")[0]
    letter = re.sub(r"^(\(Answer:)?\s*\(+", "(", begun)[1:2]
    return letter or None


def _right_letter(row: Row) -> str:
    return ascii_uppercase[row["answer_index"]]


def _right_option(row: Row) -> str:
    return option_line(row["answer_index"], row["options"][row["answer_index"]])


def single_is_right(row: Row) -> bool:
    """By the single-question script."""
    return single_answer(row["text"]) == single_answer(_right_option(row))


def window_is_right(row: Row) -> bool:
    """By the sliding window's script."""
    return window_answer(row["text"]) == _right_letter(row)


def multiturn_is_right(row: Row) -> bool:
    """By the multi-turn script."""
    return multiturn_answer(row["text"]) == _right_letter(row)


def _averages(script: str, rows: Sequence[Row], rule: Rule) -> list[OfficialAverage]:
    """A script's own average, the published one by its rule, and what the script prints beside them."""
    kinds, cells, types = (
        [OfficialAverage.of_rows(str(name), str(name), some, rule) for name, some in rows_by(rows, key).items()]
        for key in (_kind, partial(cell_of, OVBENCH), lambda row: row["answer_type"])
    )
    own = (
        OfficialAverage.of_parts("Avg", f'"Avg": mean of {len(kinds)} kinds', kinds)
        if script == "stream_single"
        else OfficialAverage.of_rows("Avg", '"Avg": all answers alike', rows, rule)
    )
    title = f"published average: mean of {len(cells)} of {len(OVBENCH.cells)} cells"
    return [own, OfficialAverage.of_parts("cell_average", title, cells), *sorted(types, key=lambda one: one.name)]


def _kind(row: Row) -> tuple[str, str]:
    return row["answer_type"], row["sub_answer_type"]


def _files(exported: Exported) -> dict[str, Any]:
    """What the script of the run's setting leaves: its answers, and `ovbench_result_final`."""
    rows = [exported.rows[source] for source in exported.questions if source in exported.rows]
    asked = {row["id"]: OVBENCH.prompt(exported.questions[source]) for source, row in exported.rows.items()}
    protocol = exported.run.settings["protocol"]
    if protocol["setting"] != "sliding_window":
        made = [
            {
                "question": asked[row["id"]],
                "score": int(single_is_right(row)),
                "pred": row["text"],
                "gt": _right_option(row),
                "task_type": row["answer_type"],
                "sub_task_type": row["sub_answer_type"],
            }
            for row in rows
        ]
        return {"ovbench.json": made, "ovbench_result_final.csv": _table(rows)}
    outputs = [
        {
            "question": asked[row["id"]],
            "pred": window_answer(row["text"]),
            "gt": _right_letter(row),
            "task_type": row["answer_type"],
        }
        for row in rows
    ]
    own, _, *types = _averages("sliding_window", rows, window_is_right)
    final = {**{one.name: one.percent for one in types}, "Avg": own.percent, "total": len(rows)}
    window = "all" if protocol["window_s"] is None else f"{protocol['window_s']:g}"
    name = f"ovbench_fps{protocol['fps']:g}_f{protocol['max_frames']}_window{window}.json"
    return {name: outputs, "ovbench_result_final.json": final}


def _table(rows: Sequence[Row]) -> str:
    """Kinds in two lines, then their accuracies, which the script writes twice."""
    kinds = sorted(rows_by(rows, _kind).items())
    values = [f"{OfficialAverage.of_rows('', '', some, single_is_right).percent:.2f}" for _, some in kinds]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([[kind for (kind, _), _ in kinds], [kind for (_, kind), _ in kinds], values, values])
    return text.getvalue()


OVBENCH_RULES = OfficialRules(
    rules={"stream_single": single_is_right, "sliding_window": window_is_right, "stream_multiturn": multiturn_is_right},
    averages=_averages,
    files=_files,
    reads=lambda row: cell_of(OVBENCH, row) in OVBENCH.cells and row.get("kind", "choice") == "choice",
    skips="stop at them",
)
