"""Rewrite a checkpoint in our own layout or in the published one.

    videochat-online convert SRC DST --format native|original

Reads every layout that `chat --model` reads; adapters of a LoRA-wrapped checkpoint are merged.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from videochat_online.errors import InputError
from videochat_online.model import export_original, load_network
from videochat_online.text import load_tokenizer
from videochat_online.utils import check_writable, share_files

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("source", type=Path, metavar="SRC", help="model directory")
    parser.add_argument("destination", type=Path, metavar="DST", help="directory to write; must be new or empty")
    parser.add_argument("--format", required=True, choices=("native", "original"))
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="take the tokenizer from another directory")


def run(options: argparse.Namespace) -> int:
    """Load strictly, write, say what was written."""
    destination: Path = options.destination
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination}: expected a new or empty directory to write to, found something in it")
    tokenizer = _tokenizer(options.tokenizer or options.source, required=options.tokenizer is not None)
    check_writable(destination)
    network = load_network(options.source)
    if options.format == "native":
        network.save_pretrained(destination)
    else:
        export_original(network, destination)
    if tokenizer is not None:
        tokenizer.save_pretrained(destination)
    share_files(destination)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{destination}: {num_parameters:,} parameters in the {options.format} layout")  # noqa: T201
    return 0


def _tokenizer(directory: Path, required: bool) -> PreTrainedTokenizerBase | None:
    """Loaded before anything is written: a half-written destination would be in the way of another try."""
    try:
        return load_tokenizer(directory)
    except InputError as error:
        if required or not directory.is_dir():
            raise
        logger.warning("no tokenizer written: %s", error)
        return None
