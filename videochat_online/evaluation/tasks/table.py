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
  The answer is one of their letters or texts.
- **Type** is `choice`, `yes/no`, `number` or `open`. Where it does not stand there, options make a choice, an answer of
  Yes or No a yes/no question, digits a number, anything else an open question. Open questions, and numbers that are not
  whole or below 0, are scored by `open_answers`: by the column `scorer`, or as the run says.

A row that cannot be used is reported with its line, never repaired.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from videochat_online.errors import InputError
from videochat_online.evaluation.benchmark import YES_NO, EvalQuestion, EvalSet, Source
from videochat_online.evaluation.scoring.open_answers import SCORER_NAMES, parse_number
from videochat_online.evaluation.task import Task
from videochat_online.evaluation.tasks.reading import (
    Stream,
    expect,
    expect_questions,
    expect_readable,
    question_id,
    videos_of_streams,
)
from videochat_online.evaluation.tasks.table_file import TableRow, read_table
from videochat_online.parts import option
from videochat_online.text import check_text
from videochat_online.text.questions import ovbench_question
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


def load_table(paths: Sequence[Path]) -> EvalSet:
    """Read tables.

    Raises:
        InputError: a file that cannot be read, lacks needed columns, or holds no question that can be used.
    """
    streams: dict[Stream, list[EvalQuestion]] = {}
    problems: list[str] = []
    seen: Counter[str] = Counter()
    for path in paths:
        names, rows = read_table(path)
        columns = _columns(names, path)
        for index, row in enumerate(rows):
            try:
                stream, question = _read_row(row, columns)
                expect("id" not in columns.cells(row) or not seen[question.id], "id", "one of its own", question.id)
            except InputError as error:
                problems.append(f"{path.name}{row.where}: {error}")
                continue
            seen[question.id] += 1
            again = f"-{seen[question.id]}" if seen[question.id] > 1 else ""
            question = replace(question, id=f"{question.id}{again}", source=Source(path.name, index))
            streams.setdefault(stream, []).append(question)
    expect_questions(streams, paths, "a table", problems)
    return EvalSet(videos_of_streams(streams), tuple(problems))


@dataclass(frozen=True, slots=True)
class _Columns:
    """What the columns of a table are.

    Attributes:
        known: column of a file for each name in `COLUMNS` that it has.
        options: columns with an option each, in order.
    """

    known: Mapping[str, str]
    options: tuple[str, ...]

    def cells(self, row: TableRow) -> dict[str, Any]:
        """Cells by the names in `COLUMNS`, without those that are empty."""
        return {name: row.cells[column] for name, column in self.known.items() if column in row.cells}

    def others(self, row: TableRow) -> dict[str, Any]:
        """Cells of all other columns."""
        named = {*self.known.values(), *self.options}
        return {column: value for column, value in row.cells.items() if column not in named}


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
            numbered[ascii_lowercase.index(match[1]) + 1 if match[1] else int(match[2])] = column
    if numbered and all(len(column) == 1 for column in numbered.values()) and not {1, 2} <= numbered.keys():
        numbered = {}  # a letter alone may be anything
    first = min(numbered, default=1)
    if first > 1 or sorted(numbered) != list(range(first, first + len(numbered))):
        raise InputError(
            f"{path}: expected option columns from a (or 1, or 0) on, found {', '.join(numbered.values())}"
        )
    return _Columns(known, tuple(numbered[number] for number in sorted(numbered)))


def _plain(name: str) -> str:
    """`Clip-Start` and `clip start` are `clip_start`; of a type, `Yes/No` is `yes_no`."""
    return re.sub(r"[^\w]+", "_", name.strip().lower()).strip("_")


def _read_row(row: TableRow, columns: _Columns) -> tuple[Stream, EvalQuestion]:
    if row.problem is not None:
        raise InputError(row.problem)
    cells = columns.cells(row)
    stream = _stream(cells)
    text, options = _text_of(cells, "question"), _options(cells, [row.cells.get(name) for name in columns.options])
    answer = _text_of(cells, "answer")
    expect_readable(text, *options)
    time_s, extra = _times(cells, stream)
    kind = _kind(cells, options, answer)
    scorer = cells.get("scorer")
    if scorer is not None:
        expect(kind == "open", "scorer", "none, as the question is not open", scorer)
        expect(scorer in SCORER_NAMES, "scorer", f"one of {', '.join(SCORER_NAMES)}", scorer)
    group = _text_of(cells, "group") if "group" in cells else kind.replace("yes_no", "yes/no")
    question = EvalQuestion(
        id=_text_of(cells, "id") if "id" in cells else question_id(stream.id, time_s, text, options),
        time_s=time_s,
        question=text,
        options=options,
        answer_index=0,
        answer_type=group,
        sub_answer_type=group,
        dataset=stream.dataset,
        extra=columns.others(row) | extra,
        scorer=scorer,
    )
    return stream, _answered(question, kind, answer)


def _stream(cells: Mapping[str, Any]) -> Stream:
    start_s, end_s = _time_of(cells, "start") or 0.0, _time_of(cells, "end")
    expect(end_s is None or start_s < end_s, "end", f"a time after the start, {start_s:g} s", cells.get("end"))
    fps = None if "fps" not in cells else parse_number(str(cells["fps"]))
    expect("fps" not in cells or (fps is not None and fps > 0), "fps", "a number above 0", cells.get("fps"))
    dataset = _text_of(cells, "dataset").lower() if "dataset" in cells else None
    return Stream(_text_of(cells, "video"), start_s, end_s, fps, dataset)


def _times(cells: Mapping[str, Any], stream: Stream) -> tuple[float, dict[str, float]]:
    """When a question is asked, and the age of its evidence if that is known."""
    end_s = math.inf if stream.end_s is None else stream.end_s
    time_s = _time_of(cells, "time")
    time_s = end_s if time_s is None else time_s
    is_within = stream.start_s - TIME_TOLERANCE_S <= time_s <= end_s + TIME_TOLERANCE_S
    expect(is_within, "time", f"one within the clip, {stream.start_s:g} to {end_s:g} s", cells.get("time"))
    evidence_s, age_s = _time_of(cells, "evidence"), _time_of(cells, "evidence_age_s")
    if evidence_s is not None:
        expect(age_s is None, "evidence", "none beside evidence_age_s", cells["evidence"])
        expect(math.isfinite(time_s), "evidence", "none, as the question has no time", cells["evidence"])
        expect(evidence_s <= time_s, "evidence", f"a time up to the question's, {time_s:g} s", cells["evidence"])
        age_s = round(time_s - evidence_s, 6)
    return time_s, {} if age_s is None else {"evidence_age_s": age_s}


def _time_of(cells: Mapping[str, Any], name: str) -> float | None:
    value = cells.get(name)
    if value is None:
        return None
    is_time = isinstance(value, str | int | float) and not isinstance(value, bool)
    expect(is_time, name, "a time such as 90, 1:30 or 1:02:30", value)
    try:
        return seconds_of(str(value))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _text_of(cells: Mapping[str, Any], name: str) -> str:
    value = cells.get(name)
    is_text = isinstance(value, str | int | float) and value == value
    expect(is_text, name, "a text", value)
    return check_text({True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value), name)


def _options(cells: Mapping[str, Any], of_columns: Sequence[Any]) -> tuple[str, ...]:
    """Texts of the options, without letters where all have theirs; none for a question without."""
    listed = cells.get("options")
    while of_columns and of_columns[-1] is None:
        of_columns = of_columns[:-1]
    if listed is None and not of_columns:
        return ()
    expect(not (listed is not None and of_columns), "options", "one list, or columns of their own", listed)
    found = listed if listed is not None else list(of_columns)
    if isinstance(found, str):
        try:
            found = json.loads(found) if found.startswith("[") else found.split("|")
        except ValueError as error:
            raise InputError(f"options: expected a JSON list, got one that cannot be read: {error}") from error
    good = isinstance(found, list) and all(isinstance(one, str | int | float) and str(one).strip() for one in found)
    expect(good and 2 <= len(found) <= len(ascii_uppercase), "options", "2 to 26 texts, as in red|green|blue", found)
    texts = [str(one).strip() for one in found]
    letters = [match[1] if (match := _LETTERED.match(text)) else None for text in texts]
    if letters == list(ascii_uppercase[: len(texts)]):
        texts = [_LETTERED.sub("", text, count=1) for text in texts]
    return tuple(texts)


def _kind(cells: Mapping[str, Any], options: Sequence[str], answer: str) -> str:
    """The type that stands there, or that the answer is clearly of."""
    if "type" not in cells:
        is_yes_no = answer.casefold() in ("yes", "no")
        return "choice" if options else "yes_no" if is_yes_no else "number" if _DIGITS.fullmatch(answer) else "open"
    kind = TYPES.get(_plain(str(cells["type"])))
    expect(kind is not None, "type", "choice, yes/no, number or open", cells["type"])
    is_choice = kind == "choice"
    expect(is_choice == bool(options), "options", "2 to 26 texts" if is_choice else f"none with {kind}", list(options))
    return str(kind)


def _answered(question: EvalQuestion, kind: str, answer: str) -> EvalQuestion:
    """The question with its right answer, as its kind has it."""
    if kind == "choice":
        return replace(question, answer_index=_option_of(question.options, answer))
    if kind == "yes_no":
        word = answer.casefold().rstrip(".")
        expect(word in ("yes", "no", "true", "false"), "answer", "Yes or No", answer)
        index = YES_NO.index("Yes" if word in ("yes", "true") else "No")
        return replace(question, kind=kind, options=YES_NO, answer_index=index)
    scorer = question.scorer
    if kind == "number" or scorer == "number":
        number = parse_number(answer) if _DIGITS.fullmatch(answer) or " " not in answer else None
        expect(number is not None, "answer", "a number", answer)
        if kind == "number" and number is not None:
            if number.is_integer() and 0 <= number <= MOST_COUNTED:
                return replace(question, kind="count", answer_index=int(number))
            scorer = "number"
    return replace(question, kind="open", answer_text=answer, scorer=scorer)


def _option_of(options: Sequence[str], answer: str) -> int:
    """Index of the option that an answer names, by its text or its letter."""
    letter = _LETTER.fullmatch(answer)
    found = set() if letter is None else {ascii_uppercase.index(letter[1].upper())} & set(range(len(options)))
    found |= {index for index, option in enumerate(options) if option in (answer, _LETTERED.sub("", answer, count=1))}
    expected = f"one of the letters {ascii_uppercase[: len(options)]}, or the text of one option"
    expect(len(found) == 1, "answer", expected, answer)
    return found.pop()


def _prompt(question: EvalQuestion) -> str:
    shown = question.options if question.kind == "choice" else ()
    text = ovbench_question(question.question, shown, asked_at_s=question.time_s)
    # Only before the video was looked at.
    return text.replace("Question at infs:", "Question at the end:", 1) if math.isinf(question.time_s) else text


__all__ = ["COLUMNS", "TableTask", "load_table"]
