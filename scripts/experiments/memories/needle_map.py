"""Results of `needle_in_a_haystack.py` for people: a Markdown table, and heat maps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videochat_online.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = Mapping[str, Any]


def read_result(path: Path) -> Result:
    """A `needle.json`; InputError where it is none."""
    try:
        result = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--beside: expected a needle.json, got {path} ({error})") from error
    if not isinstance(result, dict) or not {"label", "cells"} <= set(result):
        raise InputError(f"--beside: expected a needle.json, got {path}, which has no label or no cells")
    return result


def shares(result: Result, key: str) -> tuple[list[int], list[float], list[list[float | None]]]:
    """Lengths, depths, and a row a depth with percent of needles for each length; None where nothing was asked."""
    lengths = sorted({cell["length"] for cell in result["cells"]})
    depths = sorted({cell["depth"] for cell in result["cells"]})
    found = {
        (cell["depth"], cell["length"]): None if cell[key] is None else 100 * cell[key] / cell["num_needles"]
        for cell in result["cells"]
    }
    return lengths, depths, [[found[depth, length] for length in lengths] for depth in depths]


def render(result: Result) -> str:
    """One result as Markdown."""
    lengths, depths, kept = shares(result, "num_kept")
    right = shares(result, "num_right")[2]
    options = ", ".join(f"{name} {value}" for name, value in result["memory_options"].items())
    needles = sum(cell["num_needles"] for cell in result["cells"]) // len(result["cells"])
    lines = [
        f"# {result['label']}: {result['memory']} ({options}), {result['max_tokens']} tokens",
        "",
        f"Haystack {result['haystack']}, {needles} needles a cell, frames on view: {result['shown']}.",
        f"Percent of needles in memory / answered rightly; guessing gives {100 / len(result['options']):.0f}.",
        "",
        f"| depth | {' | '.join(f'{length:,} frames' for length in lengths)} |",
        "|---:|" + "---:|" * len(lengths),
    ]
    for depth, of_kept, of_right in zip(depths, kept, right, strict=True):
        cells = [
            f"{held:.0f} / {'-' if share is None else f'{share:.0f}'}"
            for held, share in zip(of_kept, of_right, strict=True)
        ]
        lines.append(f"| {depth:g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(results: Sequence[Result]) -> Figure:
    """A column a result: above what is in memory, below what is answered rightly (where something was asked)."""
    from matplotlib.figure import Figure

    titles = {"num_kept": "in memory", "num_right": "answered rightly"}
    keys = [key for key in titles if any(cell[key] is not None for result in results for cell in result["cells"])]
    size = (1.2 + 2.7 * len(results), 0.7 + 2.1 * len(keys))
    figure = Figure(figsize=(max(size[0], 4.5), size[1]), dpi=100, layout="constrained")
    panels = figure.subplots(len(keys), len(results), squeeze=False)
    for column, result in enumerate(results):
        for row, key in enumerate(keys):
            axes = panels[row][column]
            lengths, depths, values = shares(result, key)
            filled = [[float("nan") if value is None else value for value in line] for line in values]
            image = axes.imshow(filled, vmin=0, vmax=100, cmap="viridis", aspect="auto")
            for place, line in enumerate(values):
                for at, value in enumerate(line):
                    if value is not None:
                        colour = "white" if value < 60 else "black"
                        axes.text(at, place, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
            axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=7)
            axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths], fontsize=8)
            axes.set_title(f"{result['label']}: {titles[key]}", fontsize=9, parse_math=False)
            if column == 0:
                axes.set_ylabel("depth", fontsize=8)
            if row == len(keys) - 1:
                axes.set_xlabel("frames", fontsize=8)
    figure.colorbar(image, ax=panels, label="% of needles", shrink=0.8)
    return figure
