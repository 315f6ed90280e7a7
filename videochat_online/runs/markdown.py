"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "---:") -> str:
    """A table whose first column stands on the left, the others as `align` says: numbers on the right."""
    ruler = "|---" + f"|{align}" * (len(head) - 1) + "|"
    first, *rest = (f"| {' | '.join(map(cell, row))} |" for row in (head, *rows))
    return "\n".join([first, ruler, *rest])


def cell(text: str) -> str:
    """A text as a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
