"""What `videochat-online doctor --registry` finds, as a table and as a report."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from videochat_online.cli.options import check_report_path, processes_of
from videochat_online.data import load_registries
from videochat_online.data.batches.registry_check import SetInspection, inspect_sets
from videochat_online.data.samples.sample_reader import check_reader
from videochat_online.errors import InputError
from videochat_online.model import VideoChatOnlineConfig
from videochat_online.model.network_loading import load_config, resolve_checkpoint
from videochat_online.runs.progress import progress

PROBLEMS_SHOWN, KEYS_SHOWN = 5, 8


def add_registry_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that go with `--registry`."""
    group = parser.add_argument_group("training sets")
    group.add_argument("--registry", metavar="FILE", help="read every row of its sets; several with commas between")
    group.add_argument("--max_rows", type=int, metavar="N", help="of each set, drawn at random (default: all)")
    group.add_argument(
        "--processes", type=int, metavar="N", help="that read at once; 0: this one does (default: one for each core)"
    )
    group.add_argument("--sampling_method", default="fps1", metavar="NAME", help="as of a training run (default: fps1)")
    group.add_argument("--max_num_frame", type=int, default=64, metavar="N", help="likewise (default: 64)")
    group.add_argument("--max_overrun_s", type=float, default=1.0, metavar="X", help="likewise (default: 1)")
    group.add_argument("--report", type=Path, metavar="FILE.json", help="write everything that was found")


def inspect_registries(options: argparse.Namespace) -> dict[str, SetInspection]:
    """Inspect the sets, with progress on stderr.

    Raises:
        InputError: a registry that cannot be read, a number out of range, or no place for the report:
            before the first row is read.
    """
    # Rows are read as training reads them, which not every installation can.
    from videochat_online.train.keys.arguments import DataArguments
    from videochat_online.train.setup.model_setup import make_reader

    if options.max_rows is not None and options.max_rows < 1:
        raise InputError(f"--max_rows: expected at least 1, got {options.max_rows}")
    num_processes = processes_of(options)
    check_report_path(options.report)
    entries = load_registries(options.registry, check=False)
    config = VideoChatOnlineConfig()
    if options.model:
        config = load_config(resolve_checkpoint(options.model, with_weights=False))
    keys = ("sampling_method", "max_num_frame", "max_overrun_s")
    reader = make_reader(config, DataArguments(**{key: getattr(options, key) for key in keys}))
    check_reader(reader)
    with progress("rows") as tell:
        return inspect_sets(entries, reader, max_rows=options.max_rows, num_processes=num_processes, on_row=tell)


def registry_text(found: Mapping[str, SetInspection]) -> str:
    """A line for each set, then the first problems of each."""
    lines = [f"{'set':<32} {'rows':>9} {'read':>9} {'unusable':>9} {'pictures':>10}  kinds"]
    for name, one in found.items():
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(one.kinds.items()))
        lines.append(
            f"{name:<32} {one.rows:>9,} {one.inspected:>9,} {len(one.problems):>9,} {one.num_pictures:>10,}  {kinds}"
        )
    for name, one in found.items():
        if one.problem is not None:
            lines.append(f"{name}: {one.problem}")
            continue
        if one.unread_keys:
            keys = ", ".join(f"{key} ({count:,})" for key, count in one.unread_keys.most_common(KEYS_SHOWN))
            more = len(one.unread_keys) - KEYS_SHOWN
            lines.append(f"{name}: warning: keys that are not read: {keys}" + (f" and {more} more" if more > 0 else ""))
        for row, note in one.notes[:PROBLEMS_SHOWN]:
            lines.append(f"{name} row {row}: warning: {note}")
        if len(one.notes) > PROBLEMS_SHOWN:
            lines.append(f"{name}: and {len(one.notes) - PROBLEMS_SHOWN:,} more warnings; --report FILE.json lists all")
        if len(one.problems) == one.inspected:
            lines.append(f"{name}: expected rows that can be used, found none among {one.inspected:,}")
        for row, reason in one.problems[:PROBLEMS_SHOWN]:
            lines.append(f"{name} row {row}: {reason}")
        if len(one.problems) > PROBLEMS_SHOWN:
            lines.append(f"{name}: and {len(one.problems) - PROBLEMS_SHOWN:,} more; --report FILE.json lists all")
    # A name that is not UTF-8 is in a reason as halves of surrogate pairs, which no terminal takes.
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


def registry_problem(found: Mapping[str, SetInspection]) -> str | None:
    """All that is wrong in one line; None if nothing is."""
    lost = [name for name, one in found.items() if one.problem is not None]
    num_bad, num_read = sum(len(one.problems) for one in found.values()), sum(one.inspected for one in found.values())
    problems = [f"{', '.join(lost)}: expected sets that can be read"] if lost else []
    problems += [f"{num_bad} of {num_read} rows cannot be used"] if num_bad else []
    return "; ".join(problems) or None
