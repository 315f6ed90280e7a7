#!/usr/bin/env python
"""Compare the package with recorded numbers of the reference.

    python scripts/check_golden.py DIR [--kind KIND] [--json]

DIR holds `index.json`, `frames.py`, `models/`, `tokenizers/` and `cases/`. Prints passed/total and the largest
error of each kind; exits 1 when a number is off, 2 when DIR is not such a folder. A case's `tolerance` binds.
An exclusion is (part of) a case where the reference raises or does what we deliberately do not: it is listed
with its reason, and our own value is asserted in its place.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from transformers.utils import logging as transformers_logging

from golden import answer_scoring, batches, chat, data, evaluation_scripts, features, memory, model, text, video
from golden.harness import Case

CHECKS: dict[str, Callable[[Case], None]] = (
    model.CHECKS
    | features.CHECKS
    | memory.CHECKS
    | video.CHECKS
    | text.CHECKS
    | chat.CHECKS
    | answer_scoring.CHECKS
    | evaluation_scripts.CHECKS
    | data.CHECKS
    | batches.CHECKS
)

NOT_COVERED = {"oddity"}
"""Faults of the reference, recorded to be known; any other kind without a check is a mistake in the folder's index."""


def load_cases(root: Path) -> list[Case]:
    """All cases of a folder, each with the folder's own frame generator."""
    index = json.loads((root / "index.json").read_text(encoding="utf-8"))
    frames = _import_file(root / "frames.py")
    return [Case(root=root, entry=entry, frames=frames) for entry in index["cases"]]


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_frames", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_check(case: Case) -> None:
    """Run the check of a case's kind; an exception is a failure of that case, not of the run."""
    try:
        CHECKS[case.entry["kind"]](case)
    except Exception as error:  # a crash of one case must not hide the others
        logging.exception("%s", case.name)
        case.failures.append(f"raised {type(error).__name__}: {error}")
    if case.num_compared == 0 and not case.failures:
        case.failures.append("nothing was compared")


def print_table(by_kind: dict[str, list[Case]], not_covered: dict[str, int], seconds: float) -> None:
    """The score, then exclusions and failures by name."""
    print(f"{'kind':<26}{'passed/total':>14}{'compared':>10}{'largest error':>16}{'excluded':>10}")
    for kind, cases in sorted(by_kind.items()):
        passed = sum(not case.failures for case in cases)
        compared = sum(case.num_compared for case in cases)
        excluded = sum(bool(case.exclusions) for case in cases)
        error = max(case.largest_error for case in cases)
        print(f"{kind:<26}{f'{passed}/{len(cases)}':>14}{compared:>10}{error:>16.3g}{excluded:>10}")
    for kind, count in sorted(not_covered.items()):
        print(f"{kind:<26}{'not covered':>14}{f'({count} cases)':>26}")
    cases = [case for group in by_kind.values() for case in group]
    for title, attribute in (("excluded", "exclusions"), ("FAILED", "failures")):
        for case in cases:
            for line in getattr(case, attribute)[:6]:
                print(f"{title}  {case.name}: {line}")
            if len(getattr(case, attribute)) > 6:
                print(f"{title}  {case.name}: and {len(getattr(case, attribute)) - 6} more")
    print(f"{sum(not case.failures for case in cases)}/{len(cases)} cases passed in {seconds:.0f} s")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run the checks, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kind", choices=sorted(CHECKS), action="append", help="only this kind (repeatable)")
    parser.add_argument("--json", action="store_true", help="one line of JSON per case instead of the table")
    options = parser.parse_args(arguments)
    if not (options.directory / "index.json").is_file():
        print(f"{options.directory}: expected a folder of golden cases with index.json", file=sys.stderr)
        return 2
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    start = time.monotonic()
    by_kind: dict[str, list[Case]] = defaultdict(list)
    not_covered: dict[str, int] = defaultdict(int)
    for case in load_cases(options.directory):
        kind = case.entry["kind"]
        if kind in NOT_COVERED:
            not_covered[kind] += 1
        elif kind not in CHECKS:
            print(
                f"{case.name}: expected one of {sorted(CHECKS | dict.fromkeys(NOT_COVERED))}, found {kind!r}",
                file=sys.stderr,
            )
            return 2
        elif not options.kind or kind in options.kind:
            run_check(case)
            by_kind[kind].append(case)
    if options.json:
        for case in (case for group in by_kind.values() for case in group):
            record = {"name": case.name, "kind": case.entry["kind"], "passed": not case.failures}
            print(
                json.dumps(
                    record
                    | {
                        "largest_error": case.largest_error,
                        "failures": case.failures,
                        "exclusions": case.exclusions,
                    }
                )
            )
    else:
        print_table(by_kind, dict(not_covered), time.monotonic() - start)
    if not by_kind:
        print(f"{options.directory}: expected golden cases to check, found none", file=sys.stderr)
        return 2
    return int(any(case.failures for group in by_kind.values() for case in group))


if __name__ == "__main__":
    sys.exit(main())
