"""Packages that only some uses need: which extra of this package brings each, and what is said where one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from videochat_online.errors import InputError

EXTRAS = {
    "deepspeed": "train",
    "peft": "train",
    "wandb": "train",
    "matplotlib": "eval",
    "gradio": "demo",
    "fastapi": "demo",
    "starlette": "demo",
    "uvicorn": "demo",
    "anyio": "demo",
    "websockets": "demo",
    "bitsandbytes": "quantization",
    "torchao": "int8",
    "gguf": "gguf",
    "pyarrow": "parquet",
}
"""Extra of `pyproject.toml` that brings a package, by its name."""


def require(what: str, *packages: str) -> None:
    """Look for the packages that a use needs, before work begins.

    Args:
        what: use, as the error calls it: "training".
        packages: names in `EXTRAS`.

    Raises:
        InputError: one is not installed; it names the extra that brings it.
    """
    for package in packages:
        spec = find_spec(package)
        if spec is None or spec.loader is None:  # a mere folder of that name is none
            raise InputError(
                f"{what}: expected {package}, which is not installed: pip install 'videochat-online[{EXTRAS[package]}]'"
            )
