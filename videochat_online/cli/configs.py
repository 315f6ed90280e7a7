"""Copy what runs are started from into a folder: configurations, registries and shell scripts.

    videochat-online configs DIR

DIR gets shell/, configs/ and anno_data/; files that are there and differ are left, and named.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from videochat_online.errors import InputError

PACKAGE = Path(__file__).resolve().parent.parent
FOLDERS = ("shell", "configs", "anno_data")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("output", type=Path, metavar="DIR", help="new, or one that holds none of them in another form")


def run(options: argparse.Namespace) -> int:
    """Copy all files, or none."""
    # In a checkout they stand beside the package, in an installation within it.
    root = PACKAGE / "project" if (PACKAGE / "project").is_dir() else PACKAGE.parent
    files = [file for folder in FOLDERS for file in sorted((root / folder).rglob("*")) if file.is_file()]
    targets = {file: options.output / file.relative_to(root) for file in files if "__pycache__" not in file.parts}
    differing = [to for file, to in targets.items() if to.exists() and to.read_bytes() != file.read_bytes()]
    if differing:
        raise InputError(f"{differing[0]}: expected no such file, or the same one, found another; nothing was copied")
    if not targets:
        raise InputError(f"expected {', '.join(FOLDERS)} in {root}, found none")
    for file, target in targets.items():
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    print(f"{len(targets)} files in {options.output}; next: {options.output}/anno_data/README.md")  # noqa: T201
    return 0
