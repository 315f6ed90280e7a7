"""The words of the synthetic worlds and what they look like: colours, shapes, cells, patterns.

Every text of a question is made of these and of the templates' fixed words, so the vocabulary is closed.
"""

from __future__ import annotations

from videochat_online.errors import InputError

Cell = tuple[int, int]
"""(row, column) of the grid, from the top left."""

RGB: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 230),
    "yellow": (230, 210, 40),
    "purple": (165, 60, 205),
    "cyan": (50, 205, 215),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}
"""Far apart even at a quarter of the colour resolution, as video stores it."""

SINGLE_COLOURS = tuple(RGB)
SINGLE_SHAPES = ("block", "dot", "bar", "pole")
SEVERAL_COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
"""Colours without white and black, which are those of a flash and of the patterns."""
SEVERAL_SHAPES = ("square", "circle", "diamond", "cross")
PATTERNS = ("upright lines", "level lines", "checks", "weave")
ACTIONS = ("shake", "hop", "pulse")
SPANS = ("1 or 2 seconds", "3 or 4 seconds", "5 or 6 seconds", "7 or 8 seconds")

QUADRANTS: dict[Cell, str] = {(0, 0): "left top", (0, 1): "right top", (1, 0): "left bottom", (1, 1): "right bottom"}


def cell_name(cell: Cell, cells_per_side: int) -> str:
    """A cell in words: "left top" on a grid of two, "row 1 column 3" on a finer one."""
    if cells_per_side == 2:
        return QUADRANTS[cell]
    return f"row {cell[0] + 1} column {cell[1] + 1}"


def all_cells(cells_per_side: int) -> tuple[Cell, ...]:
    """Every cell of the grid, row by row."""
    return tuple((row, column) for row in range(cells_per_side) for column in range(cells_per_side))


def span_name(seconds: float) -> str:
    """The one of `SPANS` that a duration of 1 to 8 seconds falls into.

    Raises:
        InputError: a duration that none of them covers.
    """
    index = (round(seconds) - 1) // 2
    if not 0 <= index < len(SPANS):
        raise InputError(f"duration: expected 1 to 8 seconds, got {seconds:g}")
    return SPANS[index]
