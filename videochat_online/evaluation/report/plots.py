"""Pictures of runs. matplotlib is imported only when one is drawn: it takes a second, and a font cache."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from videochat_online.errors import InputError
from videochat_online.evaluation.compare.compare import ComparedRun, compared_run
from videochat_online.runs.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# Okabe and Ito's colours, which people with any colour vision tell apart; markers do so in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX*<>"
_WIDTHS, _SIZES = (4.0, 1.5), (11.0, 4.5)
"""Points of the first and the last outline of a radar, and of its markers: those that coincide are all seen."""
_DASHES = ("solid", (0, (6, 3)), (0, (3, 2)), (0, (1, 1.5)))
_CHANCE: dict[str, Any] = {"label": "chance", "color": "0.4", "linestyle": "--", "linewidth": 1.2}
_SPREAD, _MOST_APART = 0.5, 0.08
"""Width that the runs' points share in a band, which is 1 wide, and most of it between two: bars side by side."""
_LEGEND_WIDTH, _ENTRY_WIDTH = 96, 8
"""Letters in a row of the legend, and what an entry takes besides its own."""
MIN_CORNERS = 3
"""Answer types that a radar needs to enclose anything."""
_LONG_NAME = 14
_NUM_BINS = 40
_SLOW = 2.0
"""Answers that took longer than so many times the 95th percentile share the last bar: they would squeeze the rest."""


def accuracy_by_age(runs: Sequence[ComparedRun]) -> Figure:
    """Accuracy of each run over the age of the evidence, with 95% intervals; chance is dashed.

    The figure is 8 x 5 inches and belongs to no window: it draws with Agg wherever it is.

    Raises:
        InputError: no question says how old its evidence is.
    """
    bands = runs[0].groups.get("evidence_age_s")
    if bands is None:
        raise InputError("a plot by age of the evidence: expected questions with evidence_age_s, found none")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    apart = min(_MOST_APART, _SPREAD / len(runs))
    drawn: list[Any] = []
    for index, run in enumerate(runs):
        scores = [figures.score for figures in run.groups["evidence_age_s"].values()]
        places = np.arange(len(scores)) + apart * (index - (len(runs) - 1) / 2)
        # An interval of percentiles need not hold the accuracy itself; a bar cannot have negative length.
        bars = [[max(0.0, one.accuracy - one.low), max(0.0, one.high - one.accuracy)] for one in scores]
        style = {"markersize": 5, "linewidth": 1.5, "elinewidth": 1, "capsize": 2, **_look(index, run)}
        drawn.append(axes.errorbar(places, [one.accuracy for one in scores], yerr=np.transpose(bars), **style))
    edges = np.repeat(np.arange(len(bands) + 1) - 0.5, 2)[1:-1]
    drawn += axes.plot(edges, np.repeat([figures.chance for figures in bands.values()], 2), **_CHANCE)
    names = [f"{name.removesuffix(' s')}\n{figures.score.num_questions:,} questions" for name, figures in bands.items()]
    axes.set_xticks(range(len(bands)), names)
    axes.set_xlim(-0.5, len(bands) - 0.5)
    axes.set_ylim(0, 102)
    axes.set_xlabel("age of the evidence, seconds")
    axes.set_ylabel("accuracy, %")
    _lighten(axes)
    _add_legend(figure, drawn, [*(run.label for run in runs), "chance"])
    return figure


def _look(index: int, run: ComparedRun) -> dict[str, Any]:
    """What a run is drawn with, of those that are drawn together."""
    return {
        "label": run.label,
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
    }


def _lighten(axes: Any) -> None:
    """Lines of the grid behind what is drawn, and no frame above and on the right."""
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Above the plot, with the labels as they are: matplotlib leaves "_a" out and takes "$a$" for a formula."""
    num_columns = _LEGEND_WIDTH // (max(map(len, labels)) + _ENTRY_WIDTH)
    legend = figure.legend(
        handles, ["shown"] * len(labels), loc="outside upper center", ncols=max(1, min(4, num_columns)), frameon=False
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)


def accuracy_by_type(runs: Sequence[ComparedRun]) -> Figure:
    """A radar: accuracy of each run at each answer type; chance is dashed. 7 x 6 inches, drawn as `accuracy_by_age`.

    Raises:
        InputError: questions of fewer than three answer types.
    """
    kinds = runs[0].groups["answer_type"]
    if len(kinds) < MIN_CORNERS:
        raise InputError(f"a radar by answer type: expected at least {MIN_CORNERS} types, found {', '.join(kinds)}")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), dpi=100, layout="constrained")
    axes: Any = figure.add_subplot(projection="polar")
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    angles = [2 * np.pi * corner / len(kinds) for corner in range(len(kinds))]

    def outline(values: Sequence[float], **style: Any) -> Any:
        (line,) = axes.plot([*angles, angles[0]], [*values, values[0]], clip_on=False, **style)
        return line

    lines = []
    for index, run in enumerate(runs):
        values = [figures.score.accuracy for figures in run.groups["answer_type"].values()]
        share = index / (len(runs) - 1) if len(runs) > 1 else 1.0
        width, size = (first + share * (last - first) for first, last in (_WIDTHS, _SIZES))
        dashes = _DASHES[index % len(_DASHES)]
        lines.append(outline(values, markersize=size, linewidth=width, linestyle=dashes, **_look(index, run)))
    lines.append(outline([figures.chance for figures in kinds.values()], **_CHANCE))
    names = [f"{_broken(kind)}\n{figures.score.num_questions:,} questions" for kind, figures in kinds.items()]
    axes.set_xticks(angles, names)
    for angle, text in zip(angles, axes.get_xticklabels(), strict=True):
        right, up = np.sin(angle), np.cos(angle)
        text.set_horizontalalignment("center" if abs(right) < 0.1 else "left" if right > 0 else "right")
        text.set_verticalalignment("center" if abs(up) < 0.9 else "bottom" if up > 0 else "top")
    axes.set_ylim(0, 100)
    axes.set_rgrids(range(20, 101, 20), [f"{percent}%" for percent in range(20, 101, 20)], angle=180 / len(kinds))
    axes.tick_params(axis="y", labelsize=8, labelcolor="0.35")
    axes.grid(color="0.88")
    axes.spines["polar"].set_color("0.6")
    _add_legend(figure, lines, [*(run.label for run in runs), "chance"])
    return figure


def first_token_times(waits_s: Sequence[float]) -> Figure:
    """Histogram of the seconds from a question to the first token of its answer, with median and 95th percentile.

    7 x 4 inches, drawn as `accuracy_by_age`; `waits_s` must not be empty.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    median_s, slow_s = np.percentile(waits_s, (50, 95))
    top_s = min(max(waits_s), _SLOW * slow_s)
    num_slower = sum(wait_s > top_s for wait_s in waits_s)
    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.hist(np.clip(waits_s, None, top_s), bins=_NUM_BINS, range=(0, top_s or 1), color=_COLOURS[5])
    marks = [
        axes.axvline(median_s, color=_COLOURS[0], linewidth=1.5),
        axes.axvline(slow_s, color=_COLOURS[1], linewidth=1.5, linestyle="--"),
    ]
    more = f" (the last bar: {num_slower:,} slower ones, up to {max(waits_s):.3g} s)" if num_slower else ""
    axes.set_xlabel(f"time to the first token, seconds{more}")
    axes.set_ylabel("questions")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0, top_s or 1)
    _lighten(axes)
    _add_legend(figure, marks, [f"median {median_s:.3g} s", f"95th percentile {slow_s:.3g} s"])
    return figure


def plot_run(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Draw what a run's answers allow, into its folder; gives titles and file names.

    Args:
        folder: the run's folder.
        rows: rows of `predictions.jsonl`.
    """
    waits_s = [row["first_token_s"] for row in rows if row["first_token_s"] is not None]
    drawn: dict[str, tuple[str, Figure]] = {}
    try:
        scored = [dict(row) for row in rows if row["correct"] is not None]
        if scored:
            run = compared_run("accuracy", folder, scored)
            if len(run.groups["answer_type"]) >= MIN_CORNERS:
                drawn["Accuracy by answer type"] = ("types.png", accuracy_by_type([run]))
            if "evidence_age_s" in run.groups:
                drawn["Accuracy by age of the evidence"] = ("ages.png", accuracy_by_age([run]))
        if waits_s:
            drawn["Time to the first token"] = ("first_token.png", first_token_times(waits_s))
    except ImportError as error:
        # The figures of a long run are worth more than its pictures.
        logger.warning("no plots in %s: %s", folder, error)
        return {}
    for name, figure in drawn.values():
        save_figure(figure, folder / name)
    return {title: name for title, (name, _) in drawn.items()}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file of less than 100 KB.

    Raises:
        OSError: the file cannot be written.
    """
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    # A palette keeps the file at a third of its size, however many runs there are.
    with written_whole(path) as partial:
        Image.open(drawn).convert("RGB").quantize(256).save(partial, format="PNG", optimize=True)


def _broken(name: str) -> str:
    """A long name in two lines, as even as they come: SpatioTemporalPerception -> SpatioTemporal / Perception."""
    starts = [match.start() for match in re.finditer(r"(?<=[^A-Z])[A-Z]", name)]
    if len(name) <= _LONG_NAME or not starts:
        return name
    middle = min(starts, key=lambda start: max(start, len(name) - start))
    return f"{name[:middle]}\n{name[middle:]}"
