#!/usr/bin/env python
"""Configuration of the published 4B model, without its weights: to plan runs with, or to time with random ones.

    python scripts/tools/published_size.py outputs/published_size
    videochat-online train --config configs/train/stage1.yaml --dry_run \
        --model_name_or_path outputs/published_size --meta_path REGISTRY.json

Sizes are those of InternVL2-4B (InternViT-300M, Phi-3-mini-128k); the tokenizer is the tiny one, which splits text into
more tokens than the real one does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from videochat_online.testing import build_tiny_tokenizer, published_config


def main() -> int:
    """Write config.json and the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    published_config().save_pretrained(directory)
    build_tiny_tokenizer().save_pretrained(directory)
    print(f"{directory}: configuration of 4.15 billion parameters, no weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
