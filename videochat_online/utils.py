"""Small things that belong to no layer."""

from __future__ import annotations

import logging


def silence_accelerator_notice() -> None:
    """Keep DeepSpeed from announcing on stdout that it found no GPU.

    transformers imports DeepSpeed when it saves a model; where stdout carries JSON, the notice breaks it.
    """
    notice = "Setting accelerator to CPU"
    logging.getLogger("DeepSpeed").addFilter(lambda record: not record.getMessage().startswith(notice))
