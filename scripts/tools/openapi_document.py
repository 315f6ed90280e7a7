#!/usr/bin/env python
"""The OpenAPI document of the HTTP API, from its code into a file.

python scripts/tools/openapi_document.py docs/openapi.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from videochat_online.serving.api.routes import make_api


def openapi_document() -> dict[str, Any]:
    """The document; routes are made without streams to serve."""
    no_pool: Any = None
    return make_api(no_pool).openapi()


def main() -> None:
    """Write the document to the file that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.parse_args().file.write_text(json.dumps(openapi_document(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
