#!/usr/bin/env python
"""Tables of what can be set of memories and strategies, from the code into the documents.

    python scripts/tools/option_tables.py docs/memories.md

Replaces what stands between `<!-- options of KIND -->` and `<!-- end -->`, KIND being memory or strategy.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from videochat_online.memory import MEMORIES
from videochat_online.parts import PartKind
from videochat_online.streaming import STRATEGIES

KINDS = {kind.name: kind for kind in (MEMORIES, STRATEGIES)}
PLACE = re.compile(r"(?<=<!-- options of )(\w+) -->\n.*?(?=<!-- end -->)", re.DOTALL)


def table(kind: PartKind) -> str:
    """Markdown: a row for each option of the built-in parts; parts of the same options share theirs."""
    rows = [f"| {kind.name.capitalize()} | Option | Default | Values | Meaning |", "|---|---|---|---|---|"]
    options = {name: [one for one in kind.options_of(name).values() if not one.from_model] for name in kind.built_in}
    for name, own in options.items():
        alike = [other for other in options if own and options[other] == own]
        if alike and alike[0] != name:
            continue
        names = ", ".join(f"`{each}`" for each in alike or [name])
        cells = [(f"`{one.name}`", f"`{one.written(one.default)}`", one.expected, one.help) for one in own]
        rows += [f"| {names} | {' | '.join(each)} |" for each in cells or [("none", "", "", "")]]
    return "\n".join(rows) + "\n"


def with_tables(text: str) -> str:
    """A document with the tables of now."""
    return PLACE.sub(lambda found: f"{found[1]} -->\n{table(KINDS[found[1]])}", text)


def main() -> None:
    """Rewrite the documents that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", nargs="+", type=Path, metavar="FILE")
    for path in parser.parse_args().documents:
        path.write_text(with_tables(path.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
