"""A finished run by its benchmark's own rules, beside what we read in the same replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videochat_online.errors import InputError
from videochat_online.evaluation.compare.finished_runs import Run, labels_of, listed, read_run
from videochat_online.evaluation.official.official_ovbench import OVBENCH_RULES
from videochat_online.evaluation.official.official_ovobench import OVOBENCH_RULES
from videochat_online.evaluation.official.official_rules import OfficialAverage, OfficialRules
from videochat_online.evaluation.official.official_streamingbench import STREAMINGBENCH_RULES
from videochat_online.evaluation.scoring.bootstrap import is_right
from videochat_online.runs.markdown import markdown_table

OFFICIAL: dict[str, OfficialRules] = {
    "ovbench": OVBENCH_RULES,
    "ovobench": OVOBENCH_RULES,
    "streamingbench": STREAMINGBENCH_RULES,
}
"""Rules of each benchmark's own scripts, by the name of the task."""


@dataclass(frozen=True, slots=True)
class ScriptScores:
    """What one of a benchmark's scripts makes of a run, beside what our parser does.

    Attributes:
        figures: each average by the script's rule and by what the run itself says, the most important first.
        only_official: number of replies that are right by the script's rule and wrong by ours.
        only_ours: the other way round.
    """

    figures: tuple[tuple[OfficialAverage, OfficialAverage], ...]
    only_official: int
    only_ours: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        figures = {
            theirs.name: {
                "title": theirs.title,
                "official": round(theirs.percent, 4),
                "ours": round(ours.percent, 4),
                "num_questions": theirs.num_questions,
            }
            for theirs, ours in self.figures
        }
        return {"figures": figures, "only_official": self.only_official, "only_ours": self.only_ours}


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialScores:
    """A run by official rules.

    Attributes:
        label: its name.
        run: the run; its rows are the questions with a reply.
        scripts: scores by the name of each script, the one that decides first.
    """

    label: str
    run: Run
    scripts: Mapping[str, ScriptScores]

    @property
    def num_unanswered(self) -> int:
        """Questions about videos that could not be used."""
        return self.run.num_questions - len(self.run.rows)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "label": self.label,
            "folder": str(self.run.folder),
            "task": self.run.settings["task"],
            "num_questions": len(self.run.rows),
            "num_unanswered": self.num_unanswered,
            "bad_videos": list(self.run.bad_videos),
            "scripts": {name: script.as_dict() for name, script in self.scripts.items()},
        }


def official_scores(folders: Sequence[Path], labels: Sequence[str] | None = None) -> list[OfficialScores]:
    """Score finished runs by their benchmarks' own rules, each run by itself.

    Args:
        folders: folders of the runs.
        labels: a name for each; None derives them from memories and strategies.

    Raises:
        InputError: no finished run, the same one twice, labels that do not fit, or a run that has no official score:
            of another task, of questions of one's own, or without replies in words.
    """
    runs = [read_run(folder) for folder in folders]
    return [_scored(run, label) for run, label in zip(runs, labels_of(runs, labels), strict=True)]


def _scored(run: Run, label: str) -> OfficialScores:
    rules = rules_of(run)
    scripts = {}
    for name, rule in rules.rules.items():
        theirs, ours = (rules.averages(name, run.rows, one) for one in (rule, is_right))
        judged = [(rule(row), is_right(row)) for row in run.rows]
        pairs = tuple(zip(theirs, ours, strict=True))
        scripts[name] = ScriptScores(pairs, judged.count((True, False)), judged.count((False, True)))
    return OfficialScores(label=label, run=run, scripts=scripts)


def rules_of(run: Run) -> OfficialRules:
    """The rules of a run's benchmark.

    Raises:
        InputError: it has none, or the run's replies cannot be scored by them; names the run and what is in the way.
    """
    task, answer_by = run.settings["task"], run.settings["answer_by"]
    if task not in OFFICIAL:
        raise InputError(
            f"{run.folder}: expected a run of {', '.join(OFFICIAL)}, which have official scores, got {task!r}"
        )
    if answer_by != "generation":
        raise InputError(
            f"{run.folder}: official scores need what the model wrote (--answer_by generation), got {answer_by!r}"
        )
    rules = OFFICIAL[task]
    others = [row for row in run.rows if not rules.reads(row)]
    if others:
        raise InputError(
            f"{run.folder}: expected questions of {task}, which have official scores, found {len(others)} others, "
            f"such as {others[0]['id']} ({others[0]['answer_type']}, dataset {others[0]['dataset']})"
        )
    for row in run.rows:
        if row.get("polls") and not row.keys() >= {"output", "output_s", "due_s"}:
            raise InputError(
                f"{run.folder}: {row['id']}: expected its row to say `output`, found none: answer it again"
            )
    return rules


def render_official(runs: Sequence[OfficialScores]) -> str:
    """Markdown: a section for each run, a table for each script."""
    parts = ["# Official scores", "Percent. Both columns are the benchmark's own averages: they differ by the parser."]
    for run in runs:
        parts += [f"## {run.label}", _about(run)]
        for name, script in run.scripts.items():
            head = [f"`{name}`", "official", "ours", "difference", "questions"]
            parts.append(markdown_table(head, [_cells(theirs, ours) for theirs, ours in script.figures]))
            parts.append(
                f"Right by `{name}` alone: {script.only_official:,} replies; by our parser alone: {script.only_ours:,}."
            )
    return "\n\n".join(parts) + "\n"


def _cells(theirs: OfficialAverage, ours: OfficialAverage) -> list[str]:
    # Rounded first: figures that only differ in how they were summed up differ by +0.00.
    official, own = round(theirs.percent, 4), round(ours.percent, 4)
    percents = f"{official:.2f}", f"{own:.2f}", f"{official - own:+.2f}"
    return [theirs.title, *percents, f"{theirs.num_questions:,}"]


def _about(scores: OfficialScores) -> str:
    run, task = scores.run, scores.run.settings["task"]
    text = f"`{task}`, {len(run.rows):,} replies."
    if scores.num_unanswered:
        text += (
            f" Not in these figures: {scores.num_unanswered:,} questions about videos that could not be used"
            f" ({listed(run.bad_videos)}); the official code {OFFICIAL[task].skips}."
        )
    return text
