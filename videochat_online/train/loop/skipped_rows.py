"""The account of rows that a run could not use, and when there are too many of them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from videochat_online.data import BatchReport, SkippedSample
from videochat_online.errors import InputError
from videochat_online.runs.row_file import RowFile
from videochat_online.train.folder.training_folder import SKIPPED_PREFIX

MIN_ITEMS_FOR_A_VERDICT = 100
"""So many samples (or all there are) are taken as seen before too large a part of them can be bad."""
SLACK = 4.0
"""Standard deviations by which bad samples must outnumber the allowed ones, unless all samples were seen: the first
hundreds of a long run may well hold more of them than the rest."""


class SkippedLog:
    """The account of samples that could not be used; each is written down at once.

    Args:
        folder: the run's folder. The file of a launch before this one is continued.
        process: rank of this process.
        num_items: items in an epoch, over all processes.
        max_fraction: largest part of samples that may be bad; more of them end the run.
        prefix: beginning of the file's name.
    """

    def __init__(
        self, folder: Path, process: int, num_items: int, max_fraction: float, prefix: str = SKIPPED_PREFIX
    ) -> None:
        self.path = folder / f"{prefix}.{process}.jsonl"
        self.num_seen = self.num_bad = 0
        self.num_items = num_items
        self.max_fraction = max_fraction
        self.num_reduced = 0
        self._written: set[tuple[str, int]] = set()
        self._latest: SkippedSample | None = None

    @property
    def num_skipped(self) -> int:
        """Rows that this process could not use since the launch began, each once."""
        return len(self._written)

    def add(self, report: BatchReport) -> None:
        """Count a batch.

        Raises:
            InputError: the disk does not take another line.
        """
        self.num_seen += report.num_items
        self.num_bad += len(report.skipped)
        self.num_reduced += report.num_reduced
        for skipped in report.skipped:
            self._latest = skipped
            key = (skipped.set_name, skipped.row)
            if key not in self._written:
                self._written.add(key)
                try:
                    with self.path.open("ab") as file:
                        RowFile.append(file, dataclasses.asdict(skipped))
                except OSError as error:
                    raise InputError(f"{self.path}: could not be written: {error.strerror}") from error

    def check(self, num_seen: int, num_bad: int) -> None:
        """Whether to go on.

        Args:
            num_seen: samples of all processes so far.
            num_bad: samples of these that could not be used.

        Raises:
            InputError: too many; names the latest of this process.
        """
        allowed = self.max_fraction * max(num_seen, min(self.num_items, MIN_ITEMS_FOR_A_VERDICT))
        is_certain = num_bad > self.max_fraction * max(num_seen, self.num_items)
        if is_certain or num_bad > allowed + SLACK * math.sqrt(allowed):
            latest = self._latest
            example = "" if latest is None else f", the latest: {latest.set_name} row {latest.row}: {latest.reason}"
            raise InputError(
                f"{num_bad} of {num_seen} samples so far cannot be used, of {self.num_items} in all: more than"
                f" max_bad_fraction {self.max_fraction:g} allows; all are listed in"
                f" {self.path.parent}/{SKIPPED_PREFIX}.*.jsonl{example}"
            )


def read_skipped(folder: Path, prefix: str = SKIPPED_PREFIX) -> list[SkippedSample]:
    """What all processes of all launches of a run have skipped, each row once."""
    found: dict[tuple[str, int], SkippedSample] = {}
    for path in sorted(folder.glob(f"{prefix}.*.jsonl")):
        for row in RowFile(path, key="row").readable_rows():  # a process may have been killed while it wrote a line
            skipped = SkippedSample(**row)
            found[skipped.set_name, skipped.row] = skipped
    return [found[key] for key in sorted(found)]
