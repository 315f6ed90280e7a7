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

import contextlib
import json
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from videochat_online.errors import InputError
from videochat_online.utils import check_writable

try:
    import fcntl
except ImportError:  # not on Windows; two runs of one shard are then not kept apart
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

Row = dict[str, Any]

TIMINGS = ("first_token_s", "answer_s")
"""What may differ between two rows of one answer."""

_ONLY_NOTED = ("data_root",)
"""Settings that a run may go on with otherwise: videos that were moved are the same videos."""
_OF_SCORERS = ("scorer", "judge")
"""Settings that decide what open answers count as, and no answer."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` (from 0) of `count`."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`0/4` -> the first of four.

        Raises:
            InputError: not of this form, or out of range.
        """
        first, slash, second = text.partition("/")
        if not (slash and first.isdecimal() and second.isdecimal() and int(first) < int(second)):
            raise InputError(f"--shard: expected INDEX/COUNT with an index from 0, such as 0/4, got {text!r}")
        return cls(int(first), int(second))


class RunFolder:
    """The folder of one run, made or taken up again.

    A run without any answer, such as one whose model did not load, gives way to one of other settings.

    Args:
        path: new, empty, or holding this very run.
        settings: what decides the answers, as JSON holds it; compared with what `run.json` says.
        facts: what else `run.json` says: command, versions, counts.
        shard: which part this process works on.

    Raises:
        InputError: the folder holds something else, or a run of other settings (each difference is named).
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], facts: Mapping[str, Any], shard: Shard) -> None:
        self.path, self.shard = path, shard
        self.verdicts = RowFile(path / "judge.jsonl", key="id")
        _check_is_ours(path)
        check_writable(path)
        path.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"settings": settings, **facts}, indent=2) + "\n"
        with _alone(path):
            if not (path / "run.json").exists():
                _create(path / "run.json", text)
            self.run: dict[str, Any] = read_run_file(path / "run.json")
            found = self._other_settings(settings) or self._other_sharding()
            if found is not None:
                self._begin_anew(text, found)
            self._take_scorers(settings)
        if shard.count > 1:
            (path / "shards").mkdir(exist_ok=True)
        self.predictions = RowFile(self._file("predictions"), key="id")
        self.videos = RowFile(self._file("videos"), key="video")

    def check_rows(self, questions: Collection[str], videos: Collection[str]) -> None:
        """Look at what somebody else may have put together; warns of rows that are there twice.

        Args:
            questions: ids that there may be answers to.
            videos: names that there may be rows of.

        Raises:
            InputError: a row about something else, or two different answers to a question; names file, line and id.
        """
        num_rows = 0
        for name, key, known in (("predictions", "id", questions), ("videos", "video", videos)):
            for path in self._parts(name):
                for number, row in enumerate(RowFile(path, key=key).rows(), start=1):
                    if not isinstance(row[key], str) or row[key] not in known:
                        raise InputError(f"{path} line {number}: expected {name} of this set, found {key} {row[key]!r}")
                    num_rows += name == "predictions"
        num_doubled = num_rows - len(self.all_predictions())
        if num_doubled:
            logger.warning("%s: %d rows of answers that are there already are left out", self.path, num_doubled)

    def all_predictions(self) -> list[Row]:
        """Rows of all shards so far, one a question.

        Raises:
            InputError: two different answers to a question.
        """
        found: dict[str, tuple[str, Row]] = {}
        for path in self._parts("predictions"):
            for number, row in enumerate(RowFile(path, key="id").rows(), start=1):
                where, first = found.setdefault(row["id"], (f"{path} line {number}", row))
                if first is row:
                    continue
                others = [f"{name}: {a}, now {b}" for name, a, b in differences(first, row) if name not in TIMINGS]
                if others:
                    raise InputError(
                        f"{path} line {number}: expected one answer to {row['id']}, found another than in {where}: "
                        f"{'; '.join(others)}"
                    )
        return [row for _, row in found.values()]

    def all_videos(self) -> list[Row]:
        """Of each video the latest row, over all shards."""
        latest = {row["video"]: row for path in self._parts("videos") for row in RowFile(path, key="video").rows()}
        return list(latest.values())

    def write_merged(self, predictions: Sequence[Row], videos: Sequence[Row]) -> None:
        """Put the rows of all shards into one file each; without shards they are there already, perhaps twice.

        Rows that were scored since are other rows, whatever the shards.
        """
        if self.shard.count > 1 or _by_id(self.predictions.rows()) != _by_id(predictions):
            for name, rows in (("predictions", predictions), ("videos", videos)):
                self.write(f"{name}.jsonl", "".join(_line(row) for row in rows))

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder as a whole."""
        partial = self.path / f"{name}.{os.getpid()}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, self.path / name)

    def _file(self, name: str, index: int | None = None) -> Path:
        shard = self.shard
        if shard.count == 1:
            return self.path / f"{name}.jsonl"
        return self.path / "shards" / f"{shard.index if index is None else index}-of-{shard.count}.{name}.jsonl"

    def _parts(self, name: str) -> list[Path]:
        paths = [self._file(name, index) for index in range(self.shard.count)]
        return [path for path in paths if path.exists()]

    def _other_settings(self, settings: Mapping[str, Any]) -> str | None:
        compared = differences(self.run["settings"], settings)
        found = [f"{name}: {a} there, {b} here" for name, a, b in compared if not self._may_change(name, a)]
        return f"{self.path} holds a run of other settings: {'; '.join(found)}" if found else None

    def _may_change(self, name: str, there: str) -> bool:
        """Whether a setting decides nothing that is there: scorers come after the answers, and may come later."""
        if name.partition(".")[0] == "judge":
            return there == "null" or not any(row["is_right"] is not None for row in self.verdicts.rows())
        return name in _ONLY_NOTED or (name == "scorer" and there == "null")

    def _other_sharding(self) -> str | None:
        """Parts are of one count: otherwise a question could be answered twice."""
        found = sorted({path.name.split(".")[0].split("-of-")[1] for path in self.path.glob("shards/*-of-*.jsonl")})
        if not found and (self.path / "predictions.jsonl").exists():
            found = ["1"]
        others = ", ".join(count for count in found if count != str(self.shard.count))
        expected = f"expected to go on with as many, got {self.shard.count}"
        return f"{self.path} holds a run in {others} shards: {expected}" if others else None

    def _begin_anew(self, text: str, found: str) -> None:
        """Make this run of a folder without answers; InputError where there are some, or will be."""
        answers = self._row_files("predictions")
        if (self.path / "metrics.json").exists() or any(path.stat().st_size or _is_locked(path) for path in answers):
            raise InputError(found)
        for path in (*answers, *self._row_files("videos")):
            path.unlink()
        self.write("run.json", text)
        self.run = read_run_file(self.path / "run.json")

    def _take_scorers(self, settings: Mapping[str, Any]) -> None:
        """Settings of scorers that may be given later are those of the run from then on."""
        there = self.run["settings"]
        if any(there.get(name) != settings.get(name) for name in _OF_SCORERS):
            kept = {name: value for name, value in there.items() if name not in _OF_SCORERS}
            given = {name: settings[name] for name in _OF_SCORERS if name in settings}
            self.run["settings"] = kept | given
            self.write("run.json", json.dumps(self.run, indent=2) + "\n")

    def _row_files(self, name: str) -> list[Path]:
        """Of any number of shards."""
        return [*self.path.glob(f"{name}.jsonl"), *self.path.glob(f"shards/*.{name}.jsonl")]


class RowFile:
    """A file of JSON lines that grows a row at a time and survives being killed."""

    def __init__(self, path: Path, *, key: str) -> None:
        self.path, self._key = path, key

    def rows(self) -> list[Row]:
        """Rows that were written whole.

        Raises:
            InputError: a broken line that is not the last one.
        """
        return self._read()[0]

    @contextlib.contextmanager
    def appending(self, *, wait: bool = False) -> Iterator[IO[bytes]]:
        """Open for `append`; a last line that was only half written is dropped first.

        Args:
            wait: until no other process is writing it.

        Raises:
            InputError: another process is writing it.
        """
        with open(self.path, "ab") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise InputError(f"{self.path}: another process is writing this run (or this shard)") from error
                except OSError:
                    pass  # a file system without locks
            file.truncate(self._read()[1])
            yield file

    @staticmethod
    def append(file: IO[bytes], row: Row) -> None:
        """Write a row and hand it to the system, which keeps it if this process dies."""
        file.write(_line(row).encode())
        file.flush()

    def _read(self) -> tuple[list[Row], int]:
        """Whole rows, and the bytes they take."""
        if not self.path.exists():
            return [], 0
        rows, size = [], 0
        lines = self.path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                row = _as_now(json.loads(line))
                is_whole = line.endswith(b"\n") and isinstance(row, dict) and self._key in row
            except ValueError:
                is_whole = False
            if not is_whole and number == len(lines):
                break
            if not is_whole:
                raise InputError(f"{self.path} line {number}: expected a JSON object with {self._key!r}")
            rows.append(row)
            size += len(line)
        return rows, size


def _as_now(row: Any) -> Any:
    """A row of a polled question as it is written now: once it was right by its timing alone."""
    if not isinstance(row, dict) or not row.get("polls") or not isinstance(row.get("correct"), bool):
        return row
    row.setdefault("in_time", row["correct"])
    return row | {"correct": row["correct"] and bool(row.get("output_correct"))}


def _by_id(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: str(row["id"]))


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is within: shards that are started together settle what the folder is of."""
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _is_locked(path: Path) -> bool:
    """Whether a process is `appending`."""
    if fcntl is not None:
        with open(path, "rb") as file, contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def _check_is_ours(path: Path) -> None:
    if not path.exists():
        return
    names = [] if not path.is_dir() else [entry.name for entry in path.iterdir() if ".partial" not in entry.name]
    if not path.is_dir() or (names and not (path / "run.json").exists()):
        found = f"{len(names)} other entries ({sorted(names)[0]})" if names else "a file"
        raise InputError(f"{path}: expected a new or empty folder, or one that holds this run, found {found}")


def _create(path: Path, text: str) -> None:
    """Create a whole file unless another process was faster."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            os.replace(partial, path)
    partial.unlink(missing_ok=True)


def split_answers(rows: Sequence[Row], bad_videos: Collection[str]) -> tuple[list[Row], list[Row]]:
    """Answers that count, and those that do not: a video that turned out bad later on is left out as a whole."""
    counted = [row for row in rows if row["video"] not in bad_videos]
    return counted, [row for row in rows if row["video"] in bad_videos]


def read_run_file(path: Path) -> dict[str, Any]:
    """What a run's `run.json` says, and what it meant where it was written before there was another way.

    Raises:
        InputError: it says something else than a run's settings.
    """
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(run, dict) and isinstance(run.get("settings"), dict):
            protocol = run["settings"].get("protocol")
            if isinstance(protocol, dict):
                earlier = {"causal": True, "clips": False, "strategy": "direct", "strategy_options": {}}
                earlier |= {"kv_memory": False, "zero_start": False, "step_rounding": "nearest"}
                earlier |= {"kind_system_messages": {}, "own_starts": not _showed_more(run["settings"])}
                run["settings"]["protocol"] = earlier | protocol
            return run
    except ValueError:
        pass
    raise InputError(f"{path}: expected the settings of an evaluation, found something else")


def _showed_more(settings: Mapping[str, Any]) -> bool:
    """Whether a run from before questions had starts of their own may have shown what was before them."""
    had_windows = settings["protocol"].get("memory") is None and not settings.get("blind")
    return settings.get("task") == "streamingbench" and had_windows


def differences(there: Any, here: Any, name: str = "") -> list[tuple[str, str, str]]:
    """`("protocol.fps", "8.0", "4.0")` for each value of two settings that differs, as short JSON."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted({*there, *here})
        return [
            found for key in keys for found in differences(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if there == here else [(name, _short(there), _short(here))]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def timestamp() -> str:
    """Now, for `run.json`."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
