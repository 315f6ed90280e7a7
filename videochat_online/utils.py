"""Small things that belong to no layer."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from upath import UPath


def file_digest(path: Path | UPath) -> str:
    """SHA-256 of a file in hexadecimal; it may be larger than memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def silence_accelerator_notice() -> None:
    """Keep DeepSpeed from announcing on stdout that it found no GPU.

    transformers imports DeepSpeed when it saves a model; where stdout carries JSON, the notice breaks it.
    """
    notice = "Setting accelerator to CPU"
    logging.getLogger("DeepSpeed").addFilter(lambda record: not record.getMessage().startswith(notice))
