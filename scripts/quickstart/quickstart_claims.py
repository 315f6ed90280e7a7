"""What the quickstart's runs have to show: two tables, a plot, and claims that three seeds bore out."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path

from quickstart_phases import LABELS
from videochat_online.evaluation import Comparison, compare_runs
from videochat_online.evaluation.compare.compare_report import render_comparison
from videochat_online.evaluation.report.plots import accuracy_by_age, save_figure

SAME_MODEL = ("pyramid", "fifo", "uniform", "recent", "recent_4", "blind")
ORDER_TITLE = "How the stream began"
PARTS: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "quickstart": {ORDER_TITLE: {"template": ("first_shape", "first_place")}},
    "full": {
        f"{detail.capitalize()} patterns": {"template": ("pattern_now", "pattern_was"), "detail": (detail,)}
        for detail in ("fine", "coarse")
    },
}
"""Questions that get tables of their own."""


@dataclass(frozen=True)
class Claim:
    """A figure and what it has to be."""

    text: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the figure is within its bounds."""
        value = round(self.value, 9)  # 70.1 - 30.1 is a little less than 40
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def bound(self) -> str:
        """Words for the bound."""
        return f"at least {self.least:g}" if self.most is None else f"at most {self.most:g}"

    def __str__(self) -> str:
        # Rounded away from what was hoped for: a figure that fails never looks like its bound.
        rounding = ROUND_FLOOR if self.most is None else ROUND_CEILING
        value = Decimal(str(round(self.value, 9))).quantize(Decimal("0.01"), rounding)
        return f"{'ok    ' if self.holds else 'FAILED'} {self.text}: {value}, expected {self.bound}"


def claims(overall: Comparison, past: Comparison) -> list[Claim]:
    """What has to hold, with differences in points.

    Args:
        overall: comparison on all questions.
        past: comparison on the questions about how the stream began.
    """
    on_past = {run.label: run.overall for run in past.runs}
    everywhere = {run.label: run.overall for run in overall.runs}

    def lead(figures: dict[str, float], other: str) -> float:
        return figures[LABELS["pyramid"]] - figures[LABELS[other]]

    past_scores = {label: figures.score.accuracy for label, figures in on_past.items()}
    all_scores = {label: figures.score.accuracy for label, figures in everywhere.items()}
    blind = everywhere[LABELS["blind"]]
    from_chance = abs(blind.score.accuracy - blind.chance) / blind.chance_standard_error
    result = [
        Claim("how it began, pyramid, percent", past_scores[LABELS["pyramid"]], least=80),
        Claim("how it began, pyramid over recent 6", lead(past_scores, "recent"), least=40),
        Claim("how it began, pyramid over recent 4", lead(past_scores, "recent_4"), least=40),
        Claim("how it began, pyramid over FIFO pyramid", lead(past_scores, "fifo"), least=10),
        Claim("all questions, pyramid over blind", lead(all_scores, "blind"), least=30),
        Claim("all questions, blind, standard errors from chance", from_chance, most=3),
    ]
    if LABELS["scratch"] in all_scores:
        result.append(
            Claim("all questions, pyramid over the same without stage 1", lead(all_scores, "scratch"), least=0)
        )
    return result


def show_comparison(output: Path, *, preset: str, with_scratch: bool) -> bool:
    """Print tables and claims, write `comparison.md` and `accuracy_by_age.png`; returns whether all claims hold.

    Args:
        output: folder that the files go to, and that the evaluations are in: `runs`, by the names of `LABELS`.
        preset: preset of the streams; claims are made about "quickstart" only.
        with_scratch: compare with the model that was trained without stage 1, too; done as well where there is one.

    Raises:
        InputError: a run is missing, not finished, or has left out questions.
    """
    runs = output / "runs"
    with_scratch = with_scratch or (runs / "scratch" / "metrics.json").is_file()
    names = [*SAME_MODEL, "sliding_window", *(["scratch"] if with_scratch else [])]

    def compared(names: Sequence[str], where: Mapping[str, Sequence[str]] | None = None) -> Comparison:
        folders, labels = [runs / name for name in names], [LABELS[name] for name in names]
        return compare_runs(folders, labels=labels, across_protocols=True, where=where)

    tables = {"All questions": compared(names)}
    tables |= {title: compared(names, where) for title, where in PARTS[preset].items()}
    plotted = PARTS[preset].get(ORDER_TITLE)
    save_figure(accuracy_by_age(compared(SAME_MODEL, plotted).runs), output / "accuracy_by_age.png")
    text = "\n".join(render_comparison(table, heading=title) for title, table in tables.items())
    found = claims(tables["All questions"], tables[ORDER_TITLE]) if ORDER_TITLE in tables else []
    verdict = "\n".join(map(str, found))
    if found:
        text += f"\n# Claims\n\n```text\n{verdict}\n```\n"
    (output / "comparison.md").write_text(text, encoding="utf-8")
    sys.stdout.write(f"{text}\ntables: {output / 'comparison.md'}, plot: {output / 'accuracy_by_age.png'}\n")
    return all(claim.holds for claim in found)
