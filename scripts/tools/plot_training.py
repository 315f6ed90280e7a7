#!/usr/bin/env python
"""A run's curves: losses of training and of each held-out set, token accuracy, learning rate.

    python scripts/tools/plot_training.py RUN [RUN ...] --output curves.png

RUN is an `output_dir`: of a finished run its report.json is read, of one under way its newest trainer_state.json.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from videochat_online.errors import InputError

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which people with any colour vision tell apart. The first is that of all held-out rows."""
STYLES = ("solid", "dashed", "dotted", "dashdot")
"""Line styles of runs."""


def read_entries(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Log entries of a run in their order, and its best step where it has one.

    Raises:
        InputError: the folder has neither file.
    """
    if (run / "report.json").is_file():
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        return [*report["losses"], *report.get("validation", [])], report.get("best")
    states = sorted(run.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name.split("-")[1]))
    if not states:
        raise InputError(f"{run}: expected report.json or a checkpoint of a run, found neither")
    return json.loads(states[-1].read_text(encoding="utf-8"))["log_history"], None


def curve(entries: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a key; what is not finite is left out."""
    points = [(entry["step"], entry[key]) for entry in entries if entry.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def curve_names(entries: list[dict[str, Any]], figure: str) -> dict[str, str]:
    """Label and key of a figure over all held-out rows, where it has any, and of each set, in alphabetical order."""
    keys = {key for entry in entries for key in entry if key.startswith("eval_") and key.endswith(f"_{figure}")}
    labels = {key.removeprefix("eval_").removesuffix(figure).rstrip("_"): key for key in keys}
    return {label or "held out": labels[label] for label in sorted(labels)}


def between_decades(axes: Axes, value: float, _: int | None = None) -> str:
    """What stands at a minor tick of a logarithmic axis: over more than a decade only at 2 and 5, not to overlap."""
    low, high = axes.get_ylim()
    return f"{value:g}" if high < 10 * low or f"{value:e}"[0] in "25" else ""


def draw(runs: list[Path]) -> Figure:
    """Curves of all runs: a colour for each curve, a line style for each run."""
    figure = Figure(figsize=(8, 8), dpi=100, layout="constrained")
    losses, accuracy, rate = figure.subplots(3, sharex=True, height_ratios=(3, 2, 1))
    for style, run in zip(STYLES, runs, strict=False):
        entries, best = read_entries(run)
        of_run = f" ({run.name})" if len(runs) > 1 else ""
        losses.plot(*curve(entries, "loss"), color="0.6", linestyle=style, label=f"training{of_run}")
        for axes, name in ((losses, "loss"), (accuracy, "token_accuracy")):
            for place, (label, key) in enumerate(curve_names(entries, name).items()):
                look = {"color": COLOURS[place % len(COLOURS)], "linestyle": style, "marker": "o", "markersize": 4}
                # Over all: beneath the sets, which may well lie on it.
                width = 1.2 if place else 4.0
                axes.plot(*curve(entries, key), label=f"{label}{of_run}", linewidth=width, **look)
        if best is not None:
            losses.axvline(best["step"], color="0.8", zorder=0, label=f"best {best['metric']}{of_run}")
        rate.plot(*curve(entries, "learning_rate"), color="0.4", linestyle=style)
    losses.set_yscale("log")
    losses.yaxis.set_major_formatter("{x:g}")
    losses.yaxis.set_minor_formatter(partial(between_decades, losses))
    losses.set_ylabel("loss per token")
    accuracy.set_ylabel("token accuracy")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("optimizer step")
    for axes in (losses, accuracy):
        axes.grid(alpha=0.3, which="both")
        if axes.lines:
            axes.legend(fontsize="small")
    return figure


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--output", type=Path, required=True, help="picture, PNG or SVG")
    options = parser.parse_args()
    if len(options.runs) > len(STYLES):
        parser.error(f"expected at most {len(STYLES)} runs, found {len(options.runs)}")
    try:
        draw(options.runs).savefig(options.output)
    except InputError as error:
        parser.error(str(error))
    except (OSError, ValueError) as error:  # no such folder, or a format that matplotlib does not write
        parser.error(f"--output: expected a picture that can be written: {error}")


if __name__ == "__main__":
    main()
