"""The output folder of an evaluation: what it holds, to whom it belongs, how a broken-off run goes on.

    run.json            settings (what a resumed run must share), command, versions
    predictions.jsonl   a row for each answer, appended as it is given
    videos.jsonl        a row for each video that was gone through: cost, damage, or why it could not be used
    judge.jsonl         a row for each open answer that a judge was asked about: prompt, replies, verdict
    metrics.json, report.md, result.json, plots   when all questions are answered

Shard i of n appends to `shards/i-of-n.predictions.jsonl` and `.videos.jsonl` instead; the shard that finishes
last writes the whole. Nothing that is there is overwritten but the summaries, and those as a whole.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videochat_online.errors import InputError
from videochat_online.memory import MEMORIES
from videochat_online.runs.files import PARTIAL, json_text, read_object, try_lock, write_text
from videochat_online.runs.row_file import Row, RowFile, row_line
from videochat_online.runs.run_folder import RUN_FILE, RunFolder, SettingDifference, differences, in_one_line

logger = logging.getLogger(__name__)

TIMINGS = ("first_token_s", "answer_s")
"""Keys that may differ between two rows of one answer."""

_ONLY_NOTED = ("data_root",)
"""Settings that a run may go on with otherwise: videos that were moved are the same videos."""
_OF_SCORERS = ("scorer", "judge")
"""Settings that decide what open answers count as, and no answer."""


_Numbered = tuple[Path, int, Row]
"""A row with its file and its line in it, from 1."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` (from 0) of `count`."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`0/4` -> the first of four.

        Raises:
            InputError: a text that is not of this form, or an index out of range.
        """
        first, slash, second = text.partition("/")
        if not (slash and first.isdecimal() and second.isdecimal() and int(first) < int(second)):
            raise InputError(f"--shard: expected INDEX/COUNT with an index from 0, such as 0/4, got {text!r}")
        return cls(int(first), int(second))


class EvaluationFolder(RunFolder):
    """The folder of one evaluation, made or taken up again.

    A run without any answer, such as one whose model did not load, gives way to one of other settings.

    Args:
        path: path of a folder that is new, empty, or holds this very run.
        settings: settings that decide the answers, as JSON holds them; compared with what `run.json` says.
        facts: other facts of `run.json`: command, versions, counts.
        shard: the part that this process works on.

    Raises:
        InputError: the folder holds something else, or a run of other settings (each difference is named).
    """

    flag = "--output"

    def __init__(self, path: Path, settings: Mapping[str, Any], facts: Mapping[str, Any], shard: Shard) -> None:
        super().__init__(path)
        self.shard = shard
        self.verdicts = RowFile(path / "judge.jsonl", key="id")
        self.check_free()
        self.make()
        content = {"settings": settings, **facts}
        with _alone(path):
            if not (path / RUN_FILE).exists():
                _write_first(path / RUN_FILE, json_text(content))
            self.run: dict[str, Any] = read_run_file(path / RUN_FILE)
            others = self._other_settings(settings)
            found = self.other_run(others) if others else self._other_sharding()
            if found is not None:
                self._begin_anew(content, found)
            self._take_scorers(settings)
        if shard.count > 1:
            (path / "shards").mkdir(exist_ok=True)
        self.predictions = RowFile(self._file("predictions"), key="id")
        self.videos = RowFile(self._file("videos"), key="video")

    def checked_rows(
        self, own: Mapping[str, list[Row]], questions: Collection[str], videos: Collection[str]
    ) -> tuple[list[Row], list[Row]]:
        """Rows of all shards so far, which somebody else may have put together; warns of those that are there twice.

        Args:
            own: rows of this shard's files, by their kind ("predictions", "videos"): no other process writes them.
            questions: ids that there may be answers to.
            videos: names that there may be rows of.

        Returns:
            What `all_predictions` and `all_videos` give.

        Raises:
            InputError: a row about something else, or two different answers to a question; names file, line and id.
        """
        found: dict[str, list[_Numbered]] = {}
        for name, key, known in (("predictions", "id", questions), ("videos", "video", videos)):
            found[name] = list(self._rows(name, key, own[name]))
            for path, number, row in found[name]:
                if not isinstance(row[key], str) or row[key] not in known:
                    raise InputError(f"{path} line {number}: expected {name} of this set, found {key} {row[key]!r}")
        answers = _one_each(found["predictions"])
        num_doubled = len(found["predictions"]) - len(answers)
        if num_doubled:
            logger.warning("%s: %d rows of answers that are there already are left out", self.path, num_doubled)
        return answers, _latest(found["videos"])

    def all_predictions(self) -> list[Row]:
        """Rows of all shards so far, one a question.

        Raises:
            InputError: two different answers to a question.
        """
        return _one_each(self._rows("predictions", "id"))

    def all_videos(self) -> list[Row]:
        """Of each video the latest row, over all shards."""
        return _latest(self._rows("videos", "video"))

    def write_merged(self, predictions: Sequence[Row], videos: Sequence[Row]) -> None:
        """Put the rows of all shards into one file each; without shards they are there already, perhaps twice.

        Rows that were scored since are other rows, whatever the shards.
        """
        if self.shard.count > 1 or _by_id(self.predictions.rows()) != _by_id(predictions):
            for name, rows in (("predictions", predictions), ("videos", videos)):
                self.write(f"{name}.jsonl", "".join(row_line(row) for row in rows))

    def _file(self, name: str, index: int | None = None) -> Path:
        shard = self.shard
        if shard.count == 1:
            return self.path / f"{name}.jsonl"
        return self.path / "shards" / f"{shard.index if index is None else index}-of-{shard.count}.{name}.jsonl"

    def _rows(self, name: str, key: str, own: list[Row] | None = None) -> Iterator[_Numbered]:
        """Rows of all shards, with their files and lines; those of this one are read unless they are given."""
        for index in range(self.shard.count):
            path = self._file(name, index)
            rows = RowFile(path, key=key).rows() if own is None or index != self.shard.index else own
            for number, row in enumerate(rows, start=1):
                yield path, number, row

    def _other_settings(self, settings: Mapping[str, Any]) -> list[SettingDifference]:
        recorded = self.run["settings"]
        memory = settings["protocol"]["memory"]
        if memory is not None and memory == recorded.get("protocol", {}).get("memory"):
            recorded, settings = (_with_defaults(one, memory) for one in (recorded, settings))
        return [one for one in differences(recorded, settings) if not self._may_change(one)]

    def _may_change(self, found: SettingDifference) -> bool:
        """Whether a setting decides no answer so far: scorers come after the answers, and may come later."""
        if found.name.partition(".")[0] == "judge":
            return found.was == "null" or not any(row["is_right"] is not None for row in self.verdicts.rows())
        return found.name in _ONLY_NOTED or (found.name == "scorer" and found.was == "null")

    def _other_sharding(self) -> str | None:
        """Parts are of one count: otherwise a question could be answered twice."""
        found = sorted({path.name.split(".")[0].split("-of-")[1] for path in self.path.glob("shards/*-of-*.jsonl")})
        if not found and (self.path / "predictions.jsonl").exists():
            found = ["1"]
        others = ", ".join(count for count in found if count != str(self.shard.count))
        expected = f"expected to go on with as many, got {self.shard.count}"
        return f"{self.path} holds a run in {others} shards: {expected}" if others else None

    def _begin_anew(self, content: Mapping[str, Any], found: str) -> None:
        """Make this run of a folder without answers; InputError where there are some, or will be."""
        answers = self._row_files("predictions")
        if (self.path / "metrics.json").exists() or any(
            path.stat().st_size or RowFile(path, key="id").is_open() for path in answers
        ):
            raise InputError(found)
        for path in (*answers, *self._row_files("videos")):
            path.unlink()
        self.write_json(RUN_FILE, content)
        self.run = read_run_file(self.path / RUN_FILE)

    def _take_scorers(self, settings: Mapping[str, Any]) -> None:
        """Settings of scorers that may be given later are those of the run from then on."""
        recorded = self.run["settings"]
        if any(recorded.get(name) != settings.get(name) for name in _OF_SCORERS):
            recorded |= {name: settings.get(name) for name in _OF_SCORERS}
            self.write_json(RUN_FILE, self.run)

    def _row_files(self, name: str) -> list[Path]:
        """Of any number of shards."""
        return [*self.path.glob(f"{name}.jsonl"), *self.path.glob(f"shards/*.{name}.jsonl")]


def _with_defaults(settings: Mapping[str, Any], memory: str) -> dict[str, Any]:
    """Settings with all options of their memory, of which a run records those that were given."""
    defaults = {name: one.default for name, one in MEMORIES.options_of(memory).items() if not one.from_model}
    options = json.loads(json.dumps(defaults)) | settings["protocol"]["memory_options"]
    return {**settings, "protocol": {**settings["protocol"], "memory_options": options}}


def _one_each(rows: Iterable[_Numbered]) -> list[Row]:
    """The first answer to each question; InputError where another one differs."""
    found: dict[str, tuple[str, Row]] = {}
    for path, number, row in rows:
        where, first = found.setdefault(row["id"], (f"{path} line {number}", row))
        others = [one for one in differences(first, row) if one.name not in TIMINGS]
        if others:
            raise InputError(
                f"{path} line {number}: expected one answer to {row['id']}, found another than in {where}: "
                f"{in_one_line(others)}"
            )
    return [row for _, row in found.values()]


def _latest(rows: Iterable[_Numbered]) -> list[Row]:
    """Of each video the last row."""
    return list({row["video"]: row for _, _, row in rows}.values())


def _by_id(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: str(row["id"]))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is within: shards that are started together settle what the folder is of."""
    if os.name == "nt":  # which opens no folders
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try_lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _write_first(path: Path, text: str) -> None:
    """Write a file unless another process was faster, on a file system without locks too."""
    own = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    write_text(own, text)
    try:
        os.link(own, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            own.replace(path)
    own.unlink(missing_ok=True)


def split_answers(rows: Sequence[Row], bad_videos: Collection[str]) -> tuple[list[Row], list[Row]]:
    """Answers that count, and those that do not: a video that turned out bad later on is left out as a whole."""
    counted = [row for row in rows if row["video"] not in bad_videos]
    return counted, [row for row in rows if row["video"] in bad_videos]


def read_run_file(path: Path) -> dict[str, Any]:
    """The `run.json` of a run.

    Raises:
        InputError: it says something else than a run's settings.
    """
    run = read_object(path, "the settings of an evaluation")
    if not isinstance(run.get("settings"), dict):
        raise InputError(f"{path}: expected the settings of an evaluation, found something else")
    return run
