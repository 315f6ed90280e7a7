#!/usr/bin/env python
"""Table of all that differs between our scores and each benchmark's own code, with its size on made-up replies.

    python scripts/tools/official_differences.py --ovobench FILE --streamingbench FILE ... --ovbench FILE ... > table.md

A made-up model picks the right option of six questions in ten, and words all of its replies in one of ten styles. A
size is what the official code gives beyond ours, in points, for each style. The picks are the same for every style and
every time. Benchmarks that are not given are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from made_up_replies import STYLES, Row, made_rows, polled_officially
from videochat_online.evaluation import EvalSet, get_task
from videochat_online.evaluation.official import OFFICIAL
from videochat_online.evaluation.scoring.bootstrap import is_right
from videochat_online.evaluation.tasks.streamingbench import GROUPS, is_published

Measure = Callable[[EvalSet, Sequence[Row], str], float | None]
"""Function of the questions, the rows of one style and its name: points that the official code gives beyond ours."""


def _percent(values: Sequence[bool]) -> float | None:
    return 100 * sum(values) / len(values) if values else None


def parser(task: str, script: str, wanted: Callable[[Row], bool] = lambda row: True) -> Measure:
    """Of the rows that are wanted, all alike: right by the script's rule less right by ours."""

    def measure(content: EvalSet, rows: Sequence[Row], style: str) -> float | None:
        some = [row for row in rows if wanted(row)]
        theirs, ours = (_percent([rule(row) for row in some]) for rule in (OFFICIAL[task].rules[script], is_right))
        return None if theirs is None or ours is None else theirs - ours

    return measure


def averages(task: str, script: str, name: str, other: str) -> Measure:
    """Two averages of the same replies, both by the script's rule."""

    def measure(content: EvalSet, rows: Sequence[Row], style: str) -> float | None:
        scoring = OFFICIAL[task]
        found = {one.name: one.percent for one in scoring.averages(script, rows, scoring.rules[script])}
        first, second = found.get(name), found.get(other)
        return None if first is None or second is None else first - second

    return measure


def totals(task: str, script: str, name: str) -> Measure:
    """One average, by the script's rule less by ours."""

    def measure(content: EvalSet, rows: Sequence[Row], style: str) -> float | None:
        scoring = OFFICIAL[task]
        by_rule = [scoring.averages(script, rows, rule) for rule in (scoring.rules[script], is_right)]
        theirs, ours = ({one.name: one.percent for one in found}.get(name) for found in by_rule)
        return None if theirs is None or ours is None else theirs - ours

    return measure


def poll_rule(content: EvalSet, rows: Sequence[Row], style: str) -> float | None:
    """Polls that end at any "yes" less polls that end at a Yes; both right by time and content."""
    rule = OFFICIAL["streamingbench"].rules["count.py"]
    polled = [row for row in rows if row.get("polls")]
    asked = {question.id: question for question in content.questions}
    theirs = [rule(row | polled_officially(asked[row["id"]], style, 0)) for row in polled]
    ours = [rule(row) for row in polled]
    return None if not polled else 100 * (sum(theirs) - sum(ours)) / len(polled)


def of_all_proactive(content: EvalSet, rows: Sequence[Row], style: str) -> float | None:
    """Contextual with all proactive questions less the same with the 51 published ones."""
    rule = OFFICIAL["streamingbench"].rules["count.py"]
    contextual = [row for row in rows if GROUPS[row["answer_type"]] == "contextual"]
    fewer = [row for row in contextual if not row.get("polls") or is_published(row)]
    some, everything = (_percent([rule(row) for row in part]) for part in (fewer, contextual))
    return None if some is None or everything is None else everything - some


def _is(*kinds: str) -> Callable[[Row], bool]:
    return lambda row: row["kind"] in kinds


Line = tuple[str, str, str, Measure | None]
"""Words for what differs, with us and officially, and how it is measured; None where replies do not decide it."""

LINES: dict[str, tuple[Line, ...]] = {
    "ovobench": (
        (
            "options",
            "one answer is read",
            "right if the letter occurs anywhere in the reply",
            parser("ovobench", "score.py", _is("choice")),
        ),
        (
            "counts",
            "a number, in digits or words",
            "all digits of the reply in a row; words are none",
            parser("ovobench", "score.py", _is("count")),
        ),
        (
            "Yes or No",
            "what the reply says, in either case",
            'right if "Yes" or "No" occurs, with its capital (also in "Not"), or is "Y" or "N"',
            parser("ovobench", "score.py", _is("yes_no")),
        ),
        (
            "all of these",
            "total: mean of three groups",
            "the same total",
            totals("ovobench", "score.py", "three_way_total"),
        ),
        (
            "total",
            "mean of three groups, as in the published tables",
            '"Total Avg." of `score.py`: mean of twelve tasks',
            averages("ovobench", "score.py", "total_of_tasks", "three_way_total"),
        ),
        (
            "fractional times",
            "frames that start at or before the time",
            "clips end at the next whole second (`--protocol reference`): {fractional:,} of {questions:,} see more",
            None,
        ),
        ("frames", "the setting's, at most 64 in `sliding_window`", "as many as each model takes", None),
        (
            "wording",
            "options as OVBench's; other kinds worded anew",
            "prompts of their own, no system message",
            None,
        ),
        ("unusable videos", "left out and listed", "no reply, wrong", None),
    ),
    "streamingbench": (
        (
            "options",
            "one answer is read",
            "the first character of the reply",
            parser("streamingbench", "count.py", _is("choice")),
        ),
        (
            "proactive output",
            "what the run counts as right",
            "in time, and the output as it is spelled, capitals included",
            parser("streamingbench", "count.py", _is("open")),
        ),
        ("polls", "the reply says Yes", 'any reply with "yes" in it ends the polls', poll_rule),
        ("all of these", "overall", "the same average", totals("streamingbench", "count.py", "overall")),
        (
            "proactive, by time alone",
            "contextual by time and content",
            "by time alone, as in the paper's tables",
            averages("streamingbench", "count.py", "contextual_by_time", "contextual"),
        ),
        (
            "proactive questions",
            "contextual with {published}, as published; `contextual_250` with all",
            "`count.py` counts all {proactive} that are asked",
            of_all_proactive,
        ),
        (
            "averages",
            "groups of tasks, all questions alike",
            "`count.py`: accuracy of each task alone",
            None,
        ),
        (
            "refused rows",
            "{refused} of {annotated:,} questions are not asked",
            "asked with the first four pieces as options, or with the whole video",
            None,
        ),
        (
            "empty replies",
            "wrong",
            "`count.py` stops; left out of sqa; exported as a blank, which is wrong",
            None,
        ),
        ("last frame", "the one that starts at the time", "clips end before it (`--protocol reference`)", None),
        ("frames", "the setting's, at most 64 in `sliding_window`", "as many as each model takes", None),
        ("wording", "options as OVBench's; polls worded anew", "prompts of their own", None),
        (
            "earlier questions (sqa)",
            "the right option is repeated",
            "all options are repeated, and the right letter",
            None,
        ),
    ),
    "ovbench": (
        (
            "`stream_single`",
            "one answer is read",
            "the first a to e that stands alone, in either case (also the article)",
            parser("ovbench", "stream_single"),
        ),
        (
            "`sliding_window`",
            "one answer is read",
            "the first capital A to D, also in a word; the script stops where there is none",
            parser("ovbench", "sliding_window"),
        ),
        (
            "`stream_multiturn`",
            "one answer is read",
            'the character after "(" at the beginning of the reply',
            parser("ovbench", "stream_multiturn"),
        ),
        (
            "average, `stream_single`",
            "mean of sixteen cells, as published",
            '"Avg": mean of kinds',
            averages("ovbench", "stream_single", "Avg", "cell_average"),
        ),
        (
            "average, `sliding_window`",
            "mean of sixteen cells, as published",
            '"Avg": all answers alike',
            averages("ovbench", "sliding_window", "Avg", "cell_average"),
        ),
        (
            "frames",
            "`--protocol causal`: none after the question",
            "those of `--protocol reference`",
            None,
        ),
    ),
}


def table(task: str, paths: Sequence[Path]) -> Iterator[str]:
    """Lines of the table about one benchmark."""
    content = get_task(task).read(paths)
    facts = _facts_of(content)
    rows = {style: made_rows(content, style) for style in STYLES}
    for name, ours, theirs, measure in LINES[task]:
        sizes = [None if measure is None else measure(content, rows[style], style) for style in STYLES]
        cells = ["" if size is None else f"{size:+.1f}".replace("-0.0", "0.0").replace("+0.0", "0.0") for size in sizes]
        yield f"| {task} | {name} | {ours.format(**facts)} | {theirs.format(**facts)} | {' | '.join(cells)} |"


def _facts_of(content: EvalSet) -> Mapping[str, int]:
    asked = content.questions
    named = [{"video": video.name, "time_s": one.time_s} for video in content.videos for one in video.questions]
    return {
        "questions": len(asked),
        "fractional": sum(one.time_s % 1 > 0 for one in asked),
        "refused": len(content.problems),
        "annotated": len(asked) + len(content.problems),
        "proactive": sum(one.proactive is not None for one in asked),
        "published": sum(map(is_published, named)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for task in LINES:
        options.add_argument(f"--{task}", nargs="+", type=Path, default=[], metavar="FILE", help="annotation files")
    given = vars(options.parse_args(arguments))
    print("| | differs | ours | official |", *(f"{style} |" for style in STYLES))
    print("|---|---|---|---|" + "---:|" * len(STYLES))
    for task in LINES:
        if given[task]:
            print("\n".join(table(task, given[task])))


if __name__ == "__main__":
    main()
