"""Join a language model and a vision tower into a new checkpoint, whose projector has to be trained.

    videochat-online assemble --language_model DIR --vision_tower DIR --output DIR

The language model is any causal one of transformers, or a GGUF file; the vision tower is that of a checkpoint of any
layout that `chat --model` reads, or an InternViT by itself. Dialogues are written as the language model's own tokenizer
writes them. `train` goes on from the result.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from videochat_online.cli.convert import all_or_nothing, check_folders
from videochat_online.cli.options import add_template_argument
from videochat_online.model.checkpoints.assembling import assemble
from videochat_online.model.device_and_dtype import DTYPES
from videochat_online.runs.files import check_writable, share_files
from videochat_online.text.templates import OWN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("--language_model", required=True, metavar="DIR", help="model directory, or a .gguf file")
    parser.add_argument("--vision_tower", required=True, metavar="DIR", help="model directory")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="directory to write; new or empty")
    add_template_argument(parser, OWN, default=OWN)
    parser.add_argument("--system_message", metavar="TEXT", help="in place of the template's")
    parser.add_argument("--image_size", type=int, metavar="N", help="pixels a side of a frame (default: the tower's)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the weights (default: the language model's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the projector (default: 0)")


def run(options: argparse.Namespace) -> int:
    """Load both, join, write, say what was written."""
    output: Path = options.output
    for source in (options.language_model, options.vision_tower):
        check_folders(Path(source).expanduser(), output)
    check_writable(output)
    network, tokenizer = assemble(
        options.language_model,
        options.vision_tower,
        template=options.template,
        system_message=options.system_message,
        image_size=options.image_size,
        dtype=None if options.dtype is None else DTYPES[options.dtype],
        seed=options.seed,
    )
    with all_or_nothing(output):
        network.save_pretrained(output)
        tokenizer.save_pretrained(output)
        share_files(output)
    parts = ("vision_tower", "projector", "language_model")
    sizes = [sum(parameter.numel() for parameter in network.get_submodule(part).parameters()) for part in parts]
    listed = ", ".join(f"{part} {size:,}" for part, size in zip(parts, sizes, strict=True))
    print(f"{output}: {listed} parameters; train the projector next")  # noqa: T201
    return 0
