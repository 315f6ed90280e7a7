r"""A benchmark of one's own from one table: CSV, JSON lines, or a JSON list of rows.

    video,question,time,answer,options,type,group,id
    a.mp4,Where is the cup?,0:05,B,on the table|on the floor,,Places,
    a.mp4,Is the door open?,12.5,no,,,States,
    a.mp4,How many cups are there?,20,3,,,Counts,
    a.mp4,What was put away?,,a red cup,,,Things,

`video`, `question` and `answer` are needed. Rules:

- **Columns** are found under the names in `COLUMNS`, whatever their capitals, blanks and hyphens; others are kept with
  the question (`extra`).
- **Times** are seconds or as a player shows them, `1:05`. Without one a question is asked at the end of its clip
  (`end`), or of the video. `evidence` is when what it asks about was last seen: tables by its age are made of it.
- **Options** are a JSON list, `red|green|blue`, or columns `option_a`, `option_b`, ... (also `a` or `option_1`).
  The answer is one of their letters or texts. Letters before the texts are no part of them, and give their order.
- **Type** is `choice`, `yes/no`, `number` or `open`. Where it does not stand there, options make a choice, an answer of
  Yes, No, True or False a yes/no question, digits a number, anything else an open question. Open questions, and numbers
  that are not whole or below 0, are scored by `open_answers`: by the column `scorer`, or as the run says.
- **Numbers** have a point before decimals and commas between thousands, as JSON and English have them: `1.500` is 1.5,
  `1,500` is 1500, and `1,5` is none.

Of rows that ask the same at the same time, those with another answer than the first cannot be used.

A row that cannot be used is reported with its line, never repaired.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Annotated, Any

from pydantic import BeforeValidator

from videochat_online.documents import MAX_TIME_S, Document, one_of, validated
from videochat_online.errors import InputError, expect, shown
from videochat_online.evaluation.benchmark import YES_NO, EvalQuestion, EvalSet, Source, right_answer
from videochat_online.evaluation.scoring.metrics import EXTRA_KEYS
from videochat_online.evaluation.scoring.open_answers import SCORER_NAMES, parse_number
from videochat_online.evaluation.task import Task
from videochat_online.evaluation.tasks.reading import (
    FoundQuestions,
    FrameRate,
    Stream,
    Words,
    plain_prompt,
    question_id,
)
from videochat_online.evaluation.tasks.table_file import TableRow, read_table
from videochat_online.parts import option
from videochat_online.text.times import seconds_of
from videochat_online.video import TIME_TOLERANCE_S

COLUMNS: dict[str, tuple[str, ...]] = {
    "video": ("video_id", "video_path", "video_name"),
    "question": ("query", "prompt"),
    "answer": ("correct_answer", "ground_truth", "gt"),
    "time": ("time_s", "timestamp", "timestamps", "time_stamp", "question_time", "realtime"),
    "options": ("option", "choices", "candidates"),
    "type": ("kind", "answer_kind"),
    "group": ("category", "question_type", "task_type", "answer_type"),
    "id": ("question_id", "qid"),
    "start": ("start_s", "start_time", "clip_start"),
    "end": ("end_s", "end_time", "clip_end"),
    "evidence": ("evidence_s", "evidence_time"),
    "evidence_age_s": ("evidence_age",),
    "scorer": (),
    "fps": (),
    "dataset": ("source",),
}
"""Columns, and what else they may be called; a table has one of the names."""
NEEDED = ("video", "question", "answer")
TYPES = {"choice": "choice", "multiple_choice": "choice", "yes_no": "yes_no", "number": "number", "open": "open"}
"""Values of the column `type`, with "_" in place of other signs."""
MOST_COUNTED = 10**6
_OPTION = re.compile(r"(?:option_?|choice_)?([a-z])|(?:option|choice)_?(\d{1,2})")
_LETTERED = re.compile(r"\(?([A-Z])[.):]\s+(?=\S)")
_LETTER = re.compile(r"\(?([A-Za-z])[.):]?")
_DIGITS = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
_WORDS_OF_YES_NO = {"yes": "Yes", "true": "Yes", "no": "No", "false": "No"}


class TableTask:
    """The benchmark of a table."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """What can be set of it."""

        file: str = option("", "the table: CSV, JSON lines, or a JSON list of rows")

    def __init__(self, options: Options) -> None:
        self.options = options

    def task(self) -> Task:
        """The benchmark, of which the table is the only file."""
        file = self.options.file
        return Task(name="table", load=load_table, prompt=_prompt, files=(Path(file),) if file else ())


def _as_text(value: Any) -> Any:
    """A cell of JSON as one of CSV has it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, int | float) and math.isfinite(value) else value


def _as_seconds(value: Any) -> float:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise InputError(f"expected a time such as 90, 1:30 or 1:02:30, found {shown(value)}")
    seconds = seconds_of(str(value))
    if seconds > MAX_TIME_S:
        raise InputError(f"expected at most {MAX_TIME_S:,.0f} seconds, found {shown(value)}: a time in other units?")
    return seconds


def _as_options(value: Any) -> Any:
    """A JSON list, texts between bars, or cells of columns of their own."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.startswith("[") else value.split("|")
        except ValueError as error:
            raise InputError(f"expected a JSON list, found one that cannot be read: {error}") from error
    if not isinstance(value, list) or not 2 <= len(value) <= len(ascii_uppercase):
        raise InputError(f"expected 2 to 26 texts, as in red|green|blue, found {shown(value)}")
    return [text.strip() if isinstance(text := _as_text(one), str) else text for one in value]


def _as_kind(value: Any) -> str:
    kind = TYPES.get(_plain(str(value)))
    if kind is None:
        raise InputError(f"expected choice, yes/no, number or open, found {shown(value)}")
    return kind


Cell = Annotated[Words, BeforeValidator(_as_text)]
CellTime = Annotated[float, BeforeValidator(_as_seconds)]


class _Cells(Document):
    """Cells of a row by the names in `COLUMNS`."""

    video: Cell
    question: Cell
    answer: Cell
    time: CellTime | None = None
    options: Annotated[list[Words], BeforeValidator(_as_options)] = []
    type: Annotated[str, BeforeValidator(_as_kind)] | None = None
    group: Cell | None = None
    id: Cell | None = None
    start: CellTime = 0.0
    end: CellTime | None = None
    evidence: CellTime | None = None
    evidence_age_s: CellTime | None = None
    scorer: Annotated[str, one_of(SCORER_NAMES)] | None = None
    fps: Annotated[FrameRate, BeforeValidator(lambda value: parse_number(str(value)))] | None = None
    dataset: Cell | None = None

    @property
    def stream(self) -> Stream:
        """What the question is about."""
        expected = f"a time after the start, {self.start:g} s"
        expect(self.end is None or self.start < self.end, "end", expected, self.end)
        return Stream(self.video, self.start, self.end, self.fps, self.dataset and self.dataset.lower())


def load_table(paths: Sequence[Path]) -> EvalSet:
    """Read tables.

    Raises:
        InputError: a file that cannot be read, lacks needed columns, or holds no question that can be used.
    """
    found = FoundQuestions()
    notes: list[str] = []
    answers: dict[Any, tuple[str, str]] = {}
    for path in paths:
        names, rows = read_table(path)
        columns = _columns(names, path)
        if columns.unread:
            notes.append(f"{path.name}: columns that are kept with the questions and not read: {columns.unread}")
        for index, row in enumerate(rows):
            where = f"{path.name}{row.where}"
            with found.row(where):
                stream, question = _read_row(row, columns)
                is_own = columns.known.get("id") not in row.cells or not found.has(question.id)
                expect(is_own, "id", "one of its own", question.id)
                asked = stream, question.time_s, question.question, question.options
                answer = right_answer(question.kind, question.options, question.answer_index, question.answer_text)
                place, other = answers.setdefault(asked, (where, answer))
                expected = f"{other!r} as in {place}, which asks the same at the same time"
                expect(other == answer, "answer", expected, answer)
                found.add(stream, replace(question, source=Source(path.name, index)))
    return found.content(paths, "a table", notes=notes)


@dataclass(frozen=True, slots=True)
class _Columns:
    """What the columns of a table are.

    Attributes:
        known: column of a file for each name in `COLUMNS` that it has.
        options: columns with an option each, in order.
        others: all other columns.
    """

    known: Mapping[str, str]
    options: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def unread(self) -> str:
        """Names of the columns that neither the questions nor the tables of a report are made of."""
        return ", ".join(column for column in self.others if column not in EXTRA_KEYS)

    def cells(self, row: TableRow) -> dict[str, Any]:
        """Cells by the names in `COLUMNS`, without those that are empty; columns of options make one list."""
        cells = {name: row.cells[column] for name, column in self.known.items() if column in row.cells}
        listed = [row.cells.get(column) for column in self.options]
        while listed and listed[-1] is None:
            listed.pop()
        expect(
            not listed or "options" not in cells, "options", "one list, or columns of their own", cells.get("options")
        )
        return cells | ({"options": listed} if listed else {})


def _columns(names: Sequence[str], path: Path) -> _Columns:
    plain: dict[str, str] = {}
    for name in names:
        other = plain.setdefault(_plain(name), name)
        if other != name:
            raise InputError(f"{path}: expected each column once, found {other!r} and {name!r}")
    known: dict[str, str] = {}
    for name, aliases in COLUMNS.items():
        found = [plain[one] for one in (name, *aliases) if one in plain]
        if len(found) > 1:
            raise InputError(f"{path}: expected one column of {name}, found {' and '.join(found)}")
        if found:
            known[name] = found[0]
    missing = [name for name in NEEDED if name not in known]
    if missing:
        needed = ", ".join(f"{name} (or {', '.join(COLUMNS[name])})" for name in missing)
        raise InputError(f"{path}: expected the columns {needed}; found {', '.join(names)}")
    numbered: dict[int, str] = {}
    for name, column in plain.items():
        if column not in known.values() and (match := _OPTION.fullmatch(name)):
            number = ascii_lowercase.index(match[1]) + 1 if match[1] else int(match[2])
            if number in numbered:
                both = f"{numbered[number]} and {column}"
                raise InputError(f"{path}: expected one column for each option, found {both} for one")
            numbered[number] = column
    if numbered and all(len(column) == 1 for column in numbered.values()) and not {1, 2} <= numbered.keys():
        numbered = {}  # a letter alone may be anything
    first = min(numbered, default=1)
    if first > 1 or sorted(numbered) != list(range(first, first + len(numbered))):
        raise InputError(
            f"{path}: expected option columns from a (or 1, or 0) on, found {', '.join(numbered.values())}"
        )
    options = tuple(numbered[number] for number in sorted(numbered))
    return _Columns(known, options, tuple(name for name in names if name not in {*known.values(), *options}))


def _plain(name: str) -> str:
    """`Clip-Start` and `clip start` are `clip_start`; of a type, `Yes/No` is `yes_no`."""
    return re.sub(r"[^\w]+", "_", name.strip().lower()).strip("_")


def _read_row(row: TableRow, columns: _Columns) -> tuple[Stream, EvalQuestion]:
    if row.problem is not None:
        raise InputError(row.problem)
    cells: _Cells = validated(_Cells, columns.cells(row))
    stream = cells.stream
    time_s, extra = _times(cells)
    options, has_letters = _without_letters(cells.options)
    kind = _kind(cells)
    expect(cells.scorer is None or kind == "open", "scorer", "none, as the question is not open", cells.scorer)
    group = cells.group or kind.replace("yes_no", "yes/no")
    question = EvalQuestion(
        id=cells.id or question_id(stream.id, time_s, cells.question, options),
        time_s=time_s,
        question=cells.question,
        options=options,
        answer_index=0,
        answer_type=group,
        sub_answer_type=group,
        dataset=stream.dataset,
        extra={name: row.cells[name] for name in columns.others if name in row.cells} | extra,
        scorer=cells.scorer,
    )
    if kind == "choice":
        return stream, replace(question, answer_index=_option_of(options, cells.answer, has_letters))
    return stream, _answered(question, kind, cells.answer)


def _times(cells: _Cells) -> tuple[float, dict[str, float]]:
    """When a question is asked, and the age of its evidence if that is known."""
    end_s = math.inf if cells.end is None else cells.end
    time_s = end_s if cells.time is None else cells.time
    is_within = cells.start - TIME_TOLERANCE_S <= time_s <= end_s + TIME_TOLERANCE_S
    expect(is_within, "time", f"one within the clip, {cells.start:g} to {end_s:g} s", cells.time)
    age_s, evidence_s = cells.evidence_age_s, cells.evidence
    if evidence_s is not None:
        expect(age_s is None, "evidence", "none beside evidence_age_s", evidence_s)
        expect(math.isfinite(time_s), "evidence", "none, as the question has no time", evidence_s)
        expect(evidence_s <= time_s, "evidence", f"a time up to the question's, {time_s:g} s", evidence_s)
        age_s = round(time_s - evidence_s, 6)
    return time_s, {} if age_s is None else {"evidence_age_s": age_s}


def _without_letters(texts: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """Texts of the options in the order of the letters before them, if those are A, B, C, ..., each once.

    Returns:
        The texts, and whether an answer may be a letter: not where several begin with letters that are others.
    """
    lettered = {match[1]: text[match.end() :] for text in texts if (match := _LETTERED.match(text))}
    if sorted(lettered) == list(ascii_uppercase[: len(texts)]):
        return tuple(lettered[letter] for letter in sorted(lettered)), True
    return tuple(texts), sum(_LETTERED.match(text) is not None for text in texts) <= 1


def _yes_no(answer: str) -> str | None:
    return _WORDS_OF_YES_NO.get(answer.casefold().rstrip(".!"))


def _kind(cells: _Cells) -> str:
    """The type that stands there, or that the answer is clearly of."""
    kind, has_options = cells.type, bool(cells.options)
    if kind is None:
        if has_options:
            return "choice"
        return "yes_no" if _yes_no(cells.answer) else "number" if _DIGITS.fullmatch(cells.answer) else "open"
    expected = "2 to 26 texts" if kind == "choice" else f"none with {kind}"
    expect((kind == "choice") == has_options, "options", expected, cells.options)
    return kind


def _answered(question: EvalQuestion, kind: str, answer: str) -> EvalQuestion:
    """The question with its right answer, as its kind has it."""
    if kind == "yes_no":
        word = _yes_no(answer)
        expect(word is not None, "answer", "Yes or No", answer)
        return replace(question, kind=kind, options=YES_NO, answer_index=YES_NO.index(str(word)))
    scorer = question.scorer
    if kind == "number" or scorer == "number":
        number = parse_number(answer) if " " not in answer else None
        expect(number is not None, "answer", "a number such as 3, 1,200 or 2.5", answer)
        if kind == "number" and number is not None:
            if number.is_integer() and 0 <= number <= MOST_COUNTED:
                return replace(question, kind="count", answer_index=int(number))
            scorer = "number"
    return replace(question, kind="open", answer_text=answer, scorer=scorer)


def _option_of(options: Sequence[str], answer: str, has_letters: bool) -> int:
    """Index of the option that an answer names, by its text, its letter, or both."""
    letters = ascii_uppercase[: len(options)]
    found = {index for index, option in enumerate(options) if option == answer}
    expected = f"the text of one option, as their letters are not {letters[0]} to {letters[-1]}, each once"
    if has_letters:
        expected = f"one of the letters {letters}, or the text of one option"
        alone, before = _LETTER.fullmatch(answer), _LETTERED.match(answer)
        for index, letter in enumerate(letters):
            is_alone = alone is not None and letter == alone[1].upper()
            is_before = before is not None and (letter, options[index]) == (before[1], answer[before.end() :])
            found |= {index} if is_alone or is_before else set()
    expect(len(found) == 1, "answer", expected, answer)
    return found.pop()


def _prompt(question: EvalQuestion) -> str:
    text = plain_prompt(question)
    # Only before the video was looked at.
    return text.replace("Question at infs:", "Question at the end:", 1) if math.isinf(question.time_s) else text


__all__ = ["COLUMNS", "TableTask", "load_table"]
