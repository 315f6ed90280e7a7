"""The files that a run is configured by: YAML with a key a line, and where paths in them lead to.

Knows nothing of what the keys mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from videochat_online.errors import InputError, one_line

MAX_DEPTH = 20


def load_yaml(path: Path) -> dict[Any, Any]:
    """Keys and values of a file.

    Raises:
        InputError: no such file, or something else than keys and plain values.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
        _check_yaml(content)
        raw = yaml.safe_load(content)
    except OSError as error:
        raise InputError(f"{path}: expected a config file, found no readable file ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: expected YAML: {one_line(error)}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected `key: value` lines, found {type(raw).__name__}")
    return raw


def _check_yaml(content: str) -> None:
    """A few lines of YAML can unfold to more than memory holds, or nest deeper than Python goes."""
    depth = 0
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"found more than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"found an alias, expected values as they are{event.start_mark}")


def below(root: Path, key: str, value: str) -> str:
    """The value of a key with its relative paths in a folder; a name on the Hub, a URL and a JSON object are none."""

    def in_root(part: str) -> str:
        is_path = "://" not in part and not part.startswith(("{", "~"))
        return str(root / part) if is_path and (not key.endswith("name_or_path") or (root / part).exists()) else part

    parts = value.split(",") if key.endswith("meta_path") else [value]
    return ",".join(in_root(part.strip()) for part in parts)
