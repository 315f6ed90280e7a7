"""Rewrite a checkpoint in our own layout, in the published one, or in that of transformers' own InternVL.

    videochat-online convert SRC DST --format native|original|hf

Reads every layout that `chat --model` reads; adapters of a LoRA-wrapped checkpoint are merged.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from videochat_online.errors import CheckpointError, InputError
from videochat_online.model import VideoChatOnlineForConditionalGeneration, export_original, load_network
from videochat_online.model.checkpoints.hf_export import check_export, export_hf, probe_logits, text_side
from videochat_online.model.checkpoints.model_card import write_card
from videochat_online.model.checkpoints.weight_files import is_failed_write
from videochat_online.model.network_loading import load_config
from videochat_online.runs.files import check_writable, share_files
from videochat_online.text import load_tokenizer, visual_token_id

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("source", type=Path, metavar="SRC", help="model directory")
    parser.add_argument("destination", type=Path, metavar="DST", help="directory to write; must be new or empty")
    parser.add_argument("--format", required=True, choices=("native", "original", "hf"))
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="LoRA adapters of PEFT for it, merged")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="take the tokenizer from another directory")


def run(options: argparse.Namespace) -> int:
    """Load strictly, write, say what was written."""
    source, destination = options.source, options.destination
    check_folders(source, destination)
    load_config(source)  # what is no model is named as one, not by the tokenizer that it lacks
    is_required = options.tokenizer is not None or options.format == "hf"
    tokenizer = _tokenizer(options.tokenizer or source, is_required)
    check_writable(destination)
    network = load_network(source, adapter=options.adapter)
    num_parameters, config, dtype, note = network.num_parameters(), network.config, network.dtype, ""
    with all_or_nothing(destination):
        if options.format == "hf":
            expected = _write_hf(network, destination, tokenizer)
            del network  # or the weights would be in memory twice
            gap = check_export(destination, expected, config, dtype)
            note = f"; read back by transformers, its logits differ by {gap:.1e} at most"
        else:
            _write_ours(options.format, network, destination, tokenizer)
        write_card(destination, options.format, source=source)
        share_files(destination)
    print(f"{destination}: {num_parameters:,} parameters in the {options.format} layout{note}")  # noqa: T201
    return 0


def check_folders(source: Path, destination: Path) -> None:
    """InputError for a destination with something in it, or inside of what is read."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination}: expected a new or empty directory to write to, found something in it")
    if source.is_dir() and destination.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{destination}: expected a directory outside {source}, which would hold two models")


@contextmanager
def all_or_nothing(destination: Path) -> Iterator[None]:
    """Nothing stays of what fails: it would be in the way of another try, and could be taken for a model."""
    was_there = destination.exists()
    try:
        yield
    except BaseException as error:
        shutil.rmtree(destination, ignore_errors=True)
        if was_there:
            destination.mkdir(exist_ok=True)
        if is_failed_write(error):  # what is read was read before
            raise InputError(f"{destination}: cannot be written: {error}") from error
        raise


def _write_hf(
    network: VideoChatOnlineForConditionalGeneration, destination: Path, tokenizer: PreTrainedTokenizerBase | None
) -> Tensor:
    """Write, and return the logits by which the result is checked."""
    assert tokenizer is not None
    text = text_side(tokenizer, network.config)
    network.eval()
    network.config.image_token_id = visual_token_id(tokenizer)
    expected = probe_logits(network, network.config)
    export_hf(network, text, destination)
    return expected


def _write_ours(
    layout: str,
    network: VideoChatOnlineForConditionalGeneration,
    destination: Path,
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    if tokenizer is not None:
        # Written into the configuration, or the Auto classes would not know it.
        network.config.image_token_id = None
        with suppress(CheckpointError):  # the tokenizer has none
            network.config.image_token_id = visual_token_id(tokenizer)
    if layout == "native":
        network.save_pretrained(destination)
    else:
        export_original(network, destination)
    if tokenizer is not None:
        tokenizer.save_pretrained(destination)


def _tokenizer(directory: Path, required: bool) -> PreTrainedTokenizerBase | None:
    """Loaded before anything is written."""
    try:
        return load_tokenizer(directory)
    except InputError as error:
        if required or not directory.is_dir():
            raise
        logger.warning("no tokenizer written: %s", error)
        return None
