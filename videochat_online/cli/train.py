"""Train a model, or go on with a run that was interrupted.

    videochat-online train --config FILE [--config_root DIR] [--any_key value]... [--dry_run]
    videochat-online train --keys

Keys are those of the model, of the data, and all of transformers' TrainingArguments; --keys lists them. What is
given on the command line wins over the file. Several processes: see shell/online_4b/.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from videochat_online.errors import InputError
from videochat_online.model.device_and_dtype import silence_accelerator_notice
from videochat_online.train import dry_run, parse_arguments, train
from videochat_online.train.distributed import leave
from videochat_online.train.keys.parsing import describe_keys

ENDED_EARLY_STATUS = 3
"""The run was told to stop before its last step; what waits for its result must not go on."""

TAKES_ANY_FLAG = True
"""The command line hands flags that it does not know on as `options.rest`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand; every key of a run is one more."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML with one key a line")
    parser.add_argument(
        "--config_root", type=Path, metavar="DIR", help="folder that relative paths in FILE are in (default: this one)"
    )
    parser.add_argument("--dry_run", action="store_true", help="check everything but the weights, and write nothing")
    parser.add_argument("--keys", action="store_true", help="list every key, its default and its meaning")


def run(options: argparse.Namespace) -> int:
    """Train; the last line on stdout is one JSON object."""
    if options.keys:
        print(describe_keys())  # noqa: T201
        return 0
    silence_accelerator_notice()  # a run may import it long before it saves
    arguments = parse_arguments(options.config, options.rest, options.config_root)
    if options.dry_run:
        found = dry_run(arguments)
        print(json.dumps(found, indent=2))  # noqa: T201
        lost = []
        for name, one in (*found["sets"].items(), *found.get("held_out", {}).items()):
            for row in one["unusable"][:1]:
                print(f"warning: {name} row {row['row']}: {row['reason']}", file=sys.stderr)  # noqa: T201
            lost += [name] * (len(one["unusable"]) == one["tried"])
        if lost:
            raise InputError(f"{', '.join(lost)}: none of the rows that were tried can be used")
        return 0
    report = train(arguments)
    if arguments.training.process_index == 0:
        summary = {"output_dir": report.output_dir, "steps": report.steps, "skipped": len(report.skipped)}
        summary |= {"last_loss": report.losses[-1]["loss"] if report.losses else None}
        summary |= {"steps_per_second": report.steps_per_second, "status": report.status}
        print(json.dumps(summary))  # noqa: T201
    status = 0 if report.finished else ENDED_EARLY_STATUS
    leave(status)
    return status
