"""Finished runs: what they hold, what they are called, whether they can be held against each other.

Knows the files of a run and the settings that decide answers; computes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from videochat_online.documents import Document, validated
from videochat_online.errors import InputError
from videochat_online.evaluation.run.evaluation_folder import read_run_file, split_answers
from videochat_online.memory import MEMORIES
from videochat_online.memory.labels import label_of
from videochat_online.runs.files import read_object
from videochat_online.runs.row_file import Row, RowFile
from videochat_online.runs.run_folder import SettingDifference, differences

FACTS = ("id", "video", "dataset", "answer_type", "sub_answer_type", "time_s", "question", "answer_index")
"""Keys that every row has about its question; its `extra` may say more."""

_COMPARED_SETTINGS = (
    "task", "model", "model_options", "generation", "answer_by", "protocol", "task_options", "scorer", "judge",
)  # fmt: skip

Count = Annotated[int, Field(ge=0)]


class _Part(Document):
    """A part of a run's files, of any version: what is not read here may be anything."""

    model_config = ConfigDict(extra="ignore")


class _Protocol(_Part):
    setting: str
    causal: bool
    memory: str | None
    memory_options: dict[str, Any]
    strategy: str
    strategy_options: dict[str, Any]
    kv_memory: bool


class _Settings(_Part):
    task: Any
    model: Any
    model_options: Any
    generation: dict[str, Any]
    answer_by: Any
    protocol: _Protocol
    blind: bool
    task_options: dict[str, Any] | None = None


class _Metrics(_Part):
    num_questions: Count
    num_answered: Count
    num_unanswered: Count
    num_bad_videos: Count
    num_left_out: Count
    bad_videos: list[dict[str, Any]]


class _Extra(_Part):
    evidence_age_s: float | None = None


class _OpenRow(_Part):
    """A row of a question that is answered in words, and may have no verdict."""

    id: str
    video: str
    dataset: str | None
    answer_type: str
    sub_answer_type: str
    time_s: float
    question: str
    answer_index: Count
    options: list[Any]
    extra: _Extra
    text: str
    correct: bool | None
    num_visual_tokens: Count


class _CountRow(_OpenRow):
    correct: bool


class _OptionRow(_CountRow):
    options: Annotated[list[Any], Field(min_length=1)]


_ROWS = {"open": _OpenRow, "count": _CountRow}
"""What a row says by its kind; those of other kinds have options."""
_NOT_COMPARED = {
    # The protocol has the length of answers, too.
    "generation": {"max_new_tokens"},
    "protocol": {"memory", "memory_options", "strategy", "strategy_options", "kv_memory"},
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
        num_answers = sum(len(RowFile(path, key="id").rows()) for path in paths)
        counts = run.get("counts")
        total = counts.get("num_questions") if isinstance(counts, dict) else None
        raise InputError(
            f"{folder}: the run is not finished: no metrics.json, {num_answers} answers"
            f"{'' if total is None else f' to {total} questions'}; its evaluate command, given again, goes on"
        )
    path = folder / "metrics.json"
    metrics: _Metrics = validated(_Metrics, read_object(path, "the figures of an evaluation"), f"{path}")
    path = folder / "predictions.jsonl"
    rows = RowFile(path, key="id").rows()
    for number, row in enumerate(rows, start=1):
        validated(_ROWS.get(row.get("kind", ""), _OptionRow), row, f"{path} line {number}")
    num_different = len({row["id"] for row in rows})
    num_answers = metrics.num_answered + metrics.num_left_out
    if not len(rows) == num_different == num_answers:
        raise InputError(
            f"{path}: expected a row for each of {num_answers} answers, found {len(rows)} rows of "
            f"{num_different} questions"
        )
    bad_videos = tuple(str(row.get("video")) for row in metrics.bad_videos)
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
        num_questions=metrics.num_questions,
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
    mark = "" if protocol["causal"] else " (not causal)"
    if settings["blind"]:
        return f"blind{mark}"
    if protocol["memory"] is None:
        return f"{protocol['setting']}{mark}"
    options = protocol["memory_options"]
    parts = [label_of(protocol["memory"], options), "+ kv_memory" if protocol["kv_memory"] else ""]
    if protocol["strategy"] != "direct":
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


def protocol_differences_between(
    runs: Sequence[Run], labels: Sequence[str], baseline: Run
) -> list[tuple[str, SettingDifference]]:
    """Settings in which runs, by their labels, are not like the baseline; memory, strategy and blindness left out."""
    of_baseline = _comparable(baseline.settings)
    return [
        (label, found)
        for label, run in zip(labels, runs, strict=True)
        for found in differences(of_baseline, _comparable(run.settings))
    ]


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be alike: all that decides answers but memory and strategy, and whether there are frames at all."""
    kept = {name: settings.get(name) for name in _COMPARED_SETTINGS}
    for part, names in _NOT_COMPARED.items():
        kept[part] = {name: value for name, value in settings[part].items() if name not in names}
    return kept


def _check_settings(where: str, settings: dict[str, Any]) -> None:
    checked: _Settings = validated(_Settings, settings, where)
    memory = checked.protocol.memory
    if memory in MEMORIES.names():
        known = MEMORIES.options_of(memory)
        for name, value in checked.protocol.memory_options.items():
            if name in known and value is not None and not known[name].from_model:
                known[name].check(value, f"{where}: protocol.memory_options.{name}")
