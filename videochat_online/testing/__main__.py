"""Make a tiny model with random weights: every part of the real one, in two megabytes and without a download.

    python -m videochat_online.testing DIR [--llm phi3|qwen2|qwen3|llama] [--image_size 112] [--seed 0]
    python -m videochat_online.testing DIR --family llava_onevision|longva|llava_video|qwen3_vl|qwen3_vl_moe [--seed 0]

For tests and for trying the commands. It has learned nothing: its answers are noise, but the same for a seed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from videochat_online.testing.tiny_backbones import FAMILIES, make_tiny_backbone
from videochat_online.testing.tiny_model import LLMS, make_tiny_model


def main() -> None:
    """Parse the command line and write the model."""
    parser = argparse.ArgumentParser(
        "python -m videochat_online.testing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--llm", choices=LLMS, default="phi3")
    parser.add_argument("--image_size", type=int, default=112, help="pixels; a multiple of 56 keeps three tiers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", choices=FAMILIES, help="another family than InternVL")
    options = parser.parse_args()
    if options.family is None:
        make_tiny_model(options.directory, options.llm, options.image_size, options.seed)
    else:
        make_tiny_backbone(options.directory, options.family, options.seed)
    size = sum(file.stat().st_size for file in options.directory.iterdir())
    kind = options.family or options.llm
    sys.stdout.write(f"{options.directory}: tiny {kind} model, {size / 1e6:.1f} MB, random weights\n")


if __name__ == "__main__":
    main()
