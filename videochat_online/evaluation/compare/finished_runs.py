"""Finished runs: what they hold, what they are called, whether they can be held against each other.

Knows the files of a run and the settings that decide answers; computes nothing.
"""

from __future__ import annotations

import reprlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from videochat_online.errors import InputError
from videochat_online.evaluation.run.evaluation_folder import PredictionFile, read_run_file, split_answers
from videochat_online.memory.labels import label_of
from videochat_online.runs.files import read_object
from videochat_online.runs.row_file import Row
from videochat_online.runs.run_folder import differences

FACTS = ("id", "video", "dataset", "answer_type", "sub_answer_type", "time_s", "question", "answer_index")
"""Keys that every row has about its question; its `extra` may say more."""

_COMPARED_SETTINGS = ("task", "model", "model_options", "generation", "answer_by", "protocol")
_COMPARED_IF_GIVEN = ("task_options", "scorer", "judge")

_Rule = tuple[Callable[[Any], bool], str]
"""Test of whether a value of a file can be used, and words for what is expected of it."""
_ANY: _Rule = (lambda value: True, "anything")
_TEXT: _Rule = (lambda value: isinstance(value, str), "a text")
_TEXT_OR_NULL: _Rule = (lambda value: value is None or isinstance(value, str), "a text or null")
_FLAG: _Rule = (lambda value: isinstance(value, bool), "true or false")
_FLAG_OR_NULL: _Rule = (lambda value: value is None or isinstance(value, bool), "true, false or null")
_COUNT: _Rule = (lambda value: type(value) is int and value >= 0, "a whole number of at least 0")
_NUMBER: _Rule = (lambda value: type(value) in (int, float) and abs(value) <= sys.float_info.max, "a number")
_NUMBER_OR_NULL: _Rule = (lambda value: value is None or _NUMBER[0](value), "a number or null")
_OBJECT: _Rule = (lambda value: isinstance(value, dict), "an object")
_LIST: _Rule = (lambda value: isinstance(value, list) and len(value) > 0, "a list that is not empty")
_ANY_LIST: _Rule = (lambda value: isinstance(value, list), "a list")
_LIST_OR_NULL: _Rule = (lambda value: value is None or isinstance(value, list), "a list or null")
_OBJECTS: _Rule = (
    lambda value: isinstance(value, list) and all(isinstance(one, dict) for one in value),
    "a list of objects",
)

_SETTINGS = {**dict.fromkeys(_COMPARED_SETTINGS, _ANY), "generation": _OBJECT, "protocol": _OBJECT, "blind": _FLAG}
_MEMORY_AND_STRATEGY = {
    "memory": _TEXT_OR_NULL,
    "memory_options": _OBJECT,
    "strategy": _TEXT,
    "strategy_options": _OBJECT,
    "kv_memory": _FLAG,
}
_PROTOCOL = {"setting": _TEXT, **_MEMORY_AND_STRATEGY}
_METRICS = {
    **dict.fromkeys(("num_questions", "num_answered", "num_unanswered", "num_bad_videos", "num_left_out"), _COUNT),
    "bad_videos": _OBJECTS,
}
_ROW = {
    **dict.fromkeys(FACTS, _TEXT),
    "dataset": _TEXT_OR_NULL,
    "time_s": _NUMBER,
    "answer_index": _COUNT,
    "options": _LIST,
    "extra": _OBJECT,
    "text": _TEXT,
    "correct": _FLAG,
    "num_visual_tokens": _COUNT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished evaluation.

    Attributes:
        folder: the run's folder, as given.
        settings: settings that decided its answers, from `run.json`.
        rows: rows of `predictions.jsonl`, one a question about a video that could be used.
        num_questions: number in its set, with those about videos that could not be used.
        bad_videos: names of these.
        unscored: ids of open questions that nothing says to be right or wrong; they have no row.
    """

    folder: Path
    settings: Mapping[str, Any]
    rows: tuple[Row, ...]
    num_questions: int
    bad_videos: tuple[str, ...] = ()
    unscored: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ProtocolDifference:
    """A setting in which a run is not like the baseline; both values as short JSON."""

    label: str
    setting: str
    baseline_value: str
    value: str


def read_run(folder: Path) -> Run:
    """A finished run.

    Raises:
        InputError: no run, one that is not finished or answered nothing, or files that say something else than a
            run's: names the file, the line and the key.
    """
    if not (folder / "run.json").is_file():
        found = "no run.json in it" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: expected the output folder of an evaluation, found {found}")
    run = read_run_file(folder / "run.json")
    settings: dict[str, Any] = run["settings"]
    _check_settings(f"{folder / 'run.json'}: settings", settings)
    if not (folder / "metrics.json").is_file():
        paths = [folder / "predictions.jsonl", *folder.glob("shards/*.predictions.jsonl")]
        num_answers = sum(len(PredictionFile(path).rows()) for path in paths)
        counts = run.get("counts")
        total = counts.get("num_questions") if isinstance(counts, dict) else None
        raise InputError(
            f"{folder}: the run is not finished: no metrics.json, {num_answers} answers"
            f"{'' if total is None else f' to {total} questions'}; its evaluate command, given again, goes on"
        )
    metrics = _read_metrics(folder / "metrics.json")
    path = folder / "predictions.jsonl"
    rows = PredictionFile(path).rows()
    for number, row in enumerate(rows, start=1):
        _check_row(f"{path} line {number}", row)
    num_different = len({row["id"] for row in rows})
    num_answers = metrics["num_answered"] + metrics["num_left_out"]
    if not len(rows) == num_different == num_answers:
        raise InputError(
            f"{path}: expected a row for each of {num_answers} answers, found {len(rows)} rows of "
            f"{num_different} questions"
        )
    bad_videos = tuple(str(row.get("video")) for row in metrics["bad_videos"])
    counted, _ = split_answers(rows, bad_videos)
    if not counted:
        raise InputError(f"{folder}: expected answers, found none about a video that could be used")
    scored = tuple(row for row in counted if row["correct"] is not None)
    if not scored:
        raise InputError(f"{folder}: expected answers that are right or wrong, found {len(counted)} without a score")
    return Run(
        folder=folder,
        settings=settings,
        rows=scored,
        num_questions=metrics["num_questions"],
        bad_videos=bad_videos,
        unscored=frozenset(row["id"] for row in counted if row["correct"] is None),
    )


def without_unscored(runs: Sequence[Run]) -> tuple[list[Run], int]:
    """Runs without the questions that one of them has no score for, and how many those are."""
    unscored = frozenset().union(*(run.unscored for run in runs))
    kept = [replace(run, rows=tuple(row for row in run.rows if row["id"] not in unscored)) for run in runs]
    return kept, len(unscored)


def default_label(settings: Mapping[str, Any]) -> str:
    """What a run remembered: "pyramid 4/4/16", "window 6", "keep_all", "blind", or a setting without a memory.

    A strategy other than "direct" follows, or "kv_memory": "pyramid 4/4/16 + retrieval 8". A run that is not causal
    says so.
    """
    protocol = settings["protocol"]
    mark = "" if protocol.get("causal", True) else " (not causal)"
    if settings["blind"]:
        return f"blind{mark}"
    if protocol["memory"] is None:
        return f"{protocol['setting']}{mark}"
    options = protocol["memory_options"]
    parts = [label_of(protocol["memory"], options), "+ kv_memory" if protocol.get("kv_memory") else ""]
    if protocol.get("strategy", "direct") != "direct":
        parts += ["+", protocol["strategy"], *map(str, protocol["strategy_options"].values())]
    return " ".join(filter(None, parts)) + mark


def labels_of(runs: Sequence[Run], given: Sequence[str] | None) -> list[str]:
    """A name for each run, no two alike.

    Raises:
        InputError: one of the runs twice, or labels that do not fit them.
    """
    for folder, count in Counter(run.folder.resolve() for run in runs).items():
        if count > 1:
            raise InputError(f"{folder}: expected each run once, got it {count} times")
    if given is None:
        labels = [default_label(run.settings) for run in runs]
        # Alike by their memories: the folder tells them apart, by its name if that is enough.
        for suffixes in ([run.folder.resolve().name for run in runs], [str(run.folder) for run in runs]):
            counts = Counter(labels)
            labels = [
                f"{label} ({suffix})" if counts[label] > 1 else label
                for label, suffix in zip(labels, suffixes, strict=True)
            ]
        return labels
    if len(given) != len(runs):
        raise InputError(f"--labels: expected {len(runs)}, one for each run, got {len(given)}")
    for label, count in Counter(given).items():
        if count > 1:
            raise InputError(f"--labels: expected a different one for each run, got {label!r} {count} times")
    return list(given)


MOST_LISTED = 20
"""Largest number of values or videos that an error lists, when a wrong one was asked for or some are missing."""
_OF_A_QUESTION = ("question", "options", "time_s", "answer_index", "answer_text")


def common_questions(runs: Sequence[Run], baseline: Run, *, only_common: bool = False) -> list[Row]:
    """Rows of the baseline whose questions all runs answered: by id, question, options, time and right answer.

    Args:
        runs: runs to be compared.
        baseline: the one of them that the others are compared with.
        only_common: whether a run may have answered more or fewer than the baseline.

    Raises:
        InputError: the runs did not answer the same questions: how many, and the first of them or the videos that one
            of the runs could not use; or none that is common to all.
    """
    for run in runs:
        _check_same_questions(run, baseline, only_common)
    common = set.intersection(*({row["id"] for row in run.rows} for run in runs))
    if not common:
        raise InputError(f"--common_questions: expected questions that all {len(runs)} runs answered, found none")
    return [row for row in baseline.rows if row["id"] in common]


def _check_same_questions(run: Run, baseline: Run, only_common: bool) -> None:
    here, there = ({row["id"]: row for row in some.rows} for some in (run, baseline))
    missing = [row for row in baseline.rows if row["id"] not in here]
    added = [row for row in run.rows if row["id"] not in there]
    judged = [
        row for row in run.rows if any(there.get(row["id"], row).get(key) != row.get(key) for key in _OF_A_QUESTION)
    ]
    differing = [*judged] if only_common else [*missing, *added, *judged]
    if not differing:
        return
    first = differing[0]
    where = f"{first['id']} ({first['question']!r} about {first['video']} at {first['time_s']:g} s)"
    said = (
        f"{run.folder} and {baseline.folder} did not answer the same questions: {len(missing)} only in "
        f"{baseline.folder}, {len(added)} only in {run.folder}, {len(judged)} with another question, time or right "
        f"answer; the first: {where}"
    )
    lost = [
        f"{some.folder} could not use {listed(unused)}"
        for some, rows in ((run, missing), (baseline, added))
        if (unused := sorted({row["video"] for row in rows} & set(some.bad_videos)))
    ]
    hint = "" if judged else " (--common_questions compares those that all runs answered)"
    raise InputError("; ".join([said, *lost]) + hint)


def listed(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    rest = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + rest


def protocol_differences_between(runs: Sequence[Run], labels: Sequence[str], baseline: Run) -> list[ProtocolDifference]:
    """Settings in which runs are not like the baseline, memory, strategy and blindness left out."""
    of_baseline = _comparable(baseline.settings)
    return [
        ProtocolDifference(label, found.name, found.was, found.now)
        for label, run in zip(labels, runs, strict=True)
        for found in differences(of_baseline, _comparable(run.settings))
    ]


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be alike: all that decides answers but memory and strategy, and whether there are frames at all."""
    kept = {name: settings[name] for name in _COMPARED_SETTINGS}
    kept |= {name: settings.get(name) for name in _COMPARED_IF_GIVEN}
    # The protocol has the length of answers, too.
    left_out = {"protocol": tuple(_MEMORY_AND_STRATEGY), "generation": ("max_new_tokens",)}
    for part, names in left_out.items():
        kept[part] = {name: value for name, value in kept[part].items() if name not in names}
    return kept


def _read_metrics(path: Path) -> dict[str, Any]:
    metrics = read_object(path, "the figures of an evaluation")
    metrics.setdefault("num_left_out", 0)  # runs from before such answers were left out
    _expect(path, metrics, _METRICS)
    return metrics


def _check_settings(where: str, settings: dict[str, Any]) -> None:
    _expect(where, settings, _SETTINGS | ({"task_options": _OBJECT} if "task_options" in settings else {}))
    protocol = settings["protocol"]
    _expect(f"{where}: protocol", protocol, _PROTOCOL)
    if "capacities" in protocol["memory_options"]:
        _expect(f"{where}: protocol: memory_options", protocol["memory_options"], {"capacities": _LIST_OR_NULL})


def _check_row(where: str, row: Row) -> None:
    has_options = row.get("kind") not in ("count", "open")
    of_kind = {} if has_options else {"options": _ANY_LIST}
    if row.get("kind") == "open":
        of_kind |= {"correct": _FLAG_OR_NULL}
    _expect(where, row, {**_ROW, **of_kind})
    if "evidence_age_s" in row["extra"]:
        _expect(f"{where}: extra", row["extra"], {"evidence_age_s": _NUMBER_OR_NULL})


def _expect(where: Path | str, values: Any, rules: Mapping[str, _Rule]) -> None:
    missing = [key for key in rules if key not in values] if isinstance(values, dict) else list(rules)
    if missing:
        raise InputError(f"{where}: expected {', '.join(missing)}, found no such entry")
    for key, (is_right, expected) in rules.items():
        if not is_right(values[key]):
            raise InputError(f"{where}: {key}: expected {expected}, found {reprlib.repr(values[key])}")
