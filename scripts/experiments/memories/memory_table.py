"""A comparison of memories for people: Markdown tables, and a picture of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = Mapping[str, Any]


def columns(table: Table) -> list[tuple[str, str]]:
    """(detail, age) of each cell, as the runs have them."""
    return [(detail, age) for detail, ages in table["runs"][0]["cells"].items() for age in ages]


def render(report: Mapping[str, Any], where: Mapping[str, Sequence[str]]) -> str:
    """All tables as Markdown."""
    lines = ["# Memories at equal budgets", ""]
    lines += [f"Only questions with {key} = {', '.join(values)}." for key, values in where.items()]
    lines += [
        "Accuracy in percent with 95% intervals of a bootstrap over videos, by detail and age of the evidence.",
        "**bold**: its paired difference to the first row has an interval that excludes 0.",
    ]
    for table in report["tables"]:
        lines += ["", f"## {table['tokens']} tokens, as {table['budget']}", "", *_accuracies(table), "", *_costs(table)]
    return "\n".join(lines) + "\n"


def _accuracies(table: Table) -> list[str]:
    places = columns(table)
    rows = [["", "tokens", "all", *(f"{detail}, {age}" for detail, age in places)]]
    for run in table["runs"]:
        figures = [run["all"], *(run["cells"][detail][age] for detail, age in places)]
        rows.append([run["label"], str(run.get("max_tokens") or "-"), *map(_score, figures)])
    first = table["runs"][0]
    figures = [first["all"], *(first["cells"][detail][age] for detail, age in places)]
    rows.append(["guessing", "", *(f"{one['chance']:.1f}" for one in figures)])
    rows.append(["questions", "", *(f"{one['num_questions']:,}" for one in figures)])
    return _markdown(rows)


def _score(figures: Mapping[str, Any]) -> str:
    mark = "**" if figures["difference"]["excludes_zero"] else ""
    return f"{mark}{figures['accuracy']:.1f}{mark} ({figures['low']:.1f}-{figures['high']:.1f})"


def _costs(table: Table) -> list[str]:
    timed = [run for run in table["runs"] if "cost" in run]
    frames = timed[0]["cost"]["num_frames"]
    rows = [["", "write", "read", f"kept of {frames:,} frames, bytes", "a frame seen", "a remembered token"]]
    for run in timed:
        cost = run["cost"]
        times = [f"{cost['write_ratio']:.2f}", f"{cost['read_ratio']:.2f}"]
        if run is timed[0]:
            times = [f"1 ({cost['write_ms']:.3f} ms)", f"1 ({cost['read_ms']:.3f} ms)"]
        kept = [f"{cost[key]:,.0f}" for key in ("held_bytes", "bytes_per_frame_seen", "bytes_per_token")]
        rows.append([run["label"], *times, *kept])
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---|" + "---:|" * (len(rows[0]) - 1), *lines[1:]]


def draw(report: Mapping[str, Any]) -> Figure:
    """A map for each budget: a row a run, a column a cell, accuracy as colour and as a figure."""
    from matplotlib.figure import Figure

    tables = report["tables"]
    names = [run["label"] for run in tables[0]["runs"]]
    places = columns(tables[0])
    width = 2.2 + len(tables) * (0.9 * len(places) + 0.4)
    figure = Figure(figsize=(max(width, 6), 1.6 + 0.36 * len(names)), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, table in zip(panels, tables, strict=True):
        values = [[run["cells"][detail][age]["accuracy"] for detail, age in places] for run in table["runs"]]
        image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for row, of_run in enumerate(values):
            for column, value in enumerate(of_run):
                colour = "white" if value < 60 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=9)
        cells = [table["runs"][0]["cells"][detail][age] for detail, age in places]
        labels = [
            f"{detail}\n{age}\nn={cell['num_questions']:,}" for (detail, age), cell in zip(places, cells, strict=True)
        ]
        axes.set_xticks(range(len(places)), labels, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.set_title(f"{table['tokens']} tokens ({table['budget']})", fontsize=10)
    figure.colorbar(image, ax=list(panels), label="accuracy, %", shrink=0.8)
    return figure
