"""Pictures of a comparison. matplotlib is imported only when one is drawn: it takes a second, and a font cache."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from videochat_online.errors import InputError
from videochat_online.evaluation.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision tell apart; markers do so in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX*<>"
_SPREAD, _MOST_APART = 0.5, 0.08
"""Width that the runs' points share in a band, which is 1 wide, and most of it between two: bars side by side."""
_LEGEND_WIDTH, _ENTRY_WIDTH = 96, 8
"""Letters in a row of the legend, and what an entry takes besides its own."""


def accuracy_by_age(comparison: Comparison) -> Figure:
    """Accuracy of each run over the age of the evidence, with 95% intervals; chance is dashed.

    The figure is 8 x 5 inches and belongs to no window: it draws with Agg wherever it is.

    Raises:
        InputError: no question says how old its evidence is.
    """
    if "evidence_age_s" not in comparison.runs[0].groups:
        raise InputError("a plot by age of the evidence: expected questions with evidence_age_s, found none")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    num_runs = len(comparison.runs)
    apart = min(_MOST_APART, _SPREAD / num_runs)
    lines_of_runs = []
    for place, run in enumerate(comparison.runs):
        scores = [figures.score for figures in run.groups["evidence_age_s"].values()]
        drawn = axes.errorbar(
            [band + apart * (place - (num_runs - 1) / 2) for band in range(len(scores))],
            [score.accuracy for score in scores],
            # An interval of percentiles need not hold the accuracy itself; a bar cannot have negative length.
            yerr=[
                [max(0.0, score.accuracy - score.low) for score in scores],
                [max(0.0, score.high - score.accuracy) for score in scores],
            ],
            label=run.label,
            color=_COLOURS[place % len(_COLOURS)],
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=5,
            linewidth=1.5,
            elinewidth=1,
            capsize=2,
        )
        lines_of_runs.append(drawn)
    bands = comparison.runs[0].groups["evidence_age_s"]
    edges = [edge for band in range(len(bands)) for edge in (band - 0.5, band + 0.5)]
    chances = [figures.chance for figures in bands.values() for _ in range(2)]
    (line_of_chance,) = axes.plot(edges, chances, linestyle="--", color="0.4", linewidth=1.2)
    names = [f"{name.removesuffix(' s')}\n{figures.score.num_questions:,} questions" for name, figures in bands.items()]
    axes.set_xticks(range(len(bands)), names)
    axes.set_xlim(-0.5, len(bands) - 0.5)
    axes.set_ylim(0, 102)
    axes.set_xlabel("age of the evidence, seconds")
    axes.set_ylabel("accuracy, %")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _add_legend(figure, [*lines_of_runs, line_of_chance], [*(run.label for run in comparison.runs), "chance"])
    return figure


def _add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Above the plot, with the labels as they are: matplotlib leaves "_a" out and takes "$a$" for a formula."""
    num_columns = _LEGEND_WIDTH // (max(map(len, labels)) + _ENTRY_WIDTH)
    legend = figure.legend(
        handles,
        ["shown"] * len(labels),
        loc="outside upper center",
        ncols=max(1, min(4, num_columns)),
        frameon=False,
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)


def plot_accuracy_by_age(comparison: Comparison, path: Path) -> None:
    """Write `accuracy_by_age` as a PNG file of less than 100 KB.

    Raises:
        InputError: as there.
        OSError: the file cannot be written.
    """
    drawn = BytesIO()
    accuracy_by_age(comparison).savefig(drawn, format="png")
    # A palette keeps the file at a third of its size, however many runs there are.
    Image.open(drawn).convert("RGB").quantize(256).save(path, format="PNG", optimize=True)
