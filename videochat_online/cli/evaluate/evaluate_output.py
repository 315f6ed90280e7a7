"""What `evaluate` tells people and programs: counts before a run, progress on the way, figures at its end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from videochat_online.evaluation import EvaluationConfig, Outcome, Progress
from videochat_online.runs.progress import progress


def show_counts(counts: dict[str, Any], as_json: bool) -> None:
    """What a set has and lacks, of `--dry_run`."""
    if as_json:
        _write(json.dumps(counts, ensure_ascii=False))
        return
    _write(f"{_numbers(counts)}, {counts['num_bad_rows']} rows unusable")
    if counts["num_without_scorer"]:
        _write(f"of the open questions {counts['num_without_scorer']} without a scorer: in no figure (--scorer)")
    if "shard" in counts:
        shard = counts["shard"]
        _write(f"shard {shard['index']}/{shard['count']} of them: {_numbers(shard)}")
    for name, count in counts["cells"].items():
        _write(f"  {name}: {count}")
    for problem in (*counts["missing_videos"], *counts["bad_rows"]):
        _write(f"  unusable: {problem}")
    for note in counts["notes"]:
        _write(f"  note: {note}")
    for number, shown in enumerate(counts.get("shown", ()), start=1):
        _show_question(number, shown)


def _show_question(number: int, shown: dict[str, Any]) -> None:
    """A question of `--dry_run N`, its prompt indented."""
    _write(f"\n[{number}] {shown['kind']}: {shown['id']}")
    asked_at = "its end" if shown["time_s"] is None else f"{shown['time_s']:g} s"
    _write(f"  video: {shown['video']}, asked at {asked_at}, answered by {shown['answer_by']}")
    if "polled_at_s" in shown:
        times_s = shown["polled_at_s"]
        _write(f"  polled {len(times_s)} times, {times_s[0]:g} to {times_s[-1]:g} s; the first poll is below")
    _write(f"  expected: {shown['expected']}{f' (scorer {name})' if (name := shown['scorer']) else ''}")
    seen, used, most = shown["frames_seen"], shown["frames_used"], shown["max_visual_tokens"]
    if seen is not None:
        span = f", {seen[0]:.1f} to {seen[-1]:.1f} s" if seen else ""
        _write(f"  frames that may be seen: {len(seen)}{span}")
    if used is not None:
        times = " ".join(f"{time_s:.1f}" for _, time_s, _ in used)
        _write(f"  frames in the prompt, if all decode: {len(used)}{f', at {times} s' if used else ''}")
    visual = shown["num_visual_tokens"]
    visual = visual if visual is not None else "an unknown number" if most is None else f"at most {most}"
    text = "an unknown number" if shown["num_text_tokens"] is None else shown["num_text_tokens"]
    lines = "" if used is not None else " (without the lines of frames)"
    _write(f"  tokens: {text} of text{lines}, {visual} of frames")
    for line in shown["unknown"]:
        _write(f"  not known: {line}")
    _write("  prompt:" if shown["num_text_tokens"] is not None else "  text of the question:")
    for line in shown["prompt"].split("\n"):
        _write(f"    | {line}")


def _numbers(counts: dict[str, Any]) -> str:
    missing = counts["num_missing_videos"]
    looked_for = "videos not looked for (no --data_root)" if missing is None else f"{missing} videos missing"
    return f"{counts['num_videos']} videos, {counts['num_questions']} questions; {looked_for}"


def show_outcome(outcome: Outcome, config: EvaluationConfig, as_json: bool) -> None:
    """What a run came to, warnings on stderr."""
    for line in (*outcome.bad_videos, *outcome.remarks):
        print(f"warning: {line}", file=sys.stderr)  # noqa: T201
    metrics = outcome.metrics
    if metrics is None:
        shares = {"num_answered": outcome.num_answered, "num_open": outcome.num_open}
        said = f"{config.output}: {outcome.num_answered} answers, {outcome.num_open} still open in other shards"
        _write(json.dumps(shares) if as_json else said)
        return
    if as_json:
        _write(json.dumps(metrics, ensure_ascii=False))
        return
    score = metrics["cell_average"]
    shown = "no answer was scored" if metrics["num_answered"] else "nothing was answered"
    if score is not None:
        name = metrics["average_titles"].get("cell_average", "mean of the cells")
        shown = (
            f"{score['accuracy']:.1f} ({score['low']:.1f} - {score['high']:.1f}) {name},"
            f" {metrics['micro_average']['accuracy']:.1f} over all {metrics['micro_average']['num_questions']} answers"
        )
    for name, average in metrics.get("averages", {}).items():
        if average is not None:
            _write(f"{average['accuracy']:.1f} ({average['low']:.1f} - {average['high']:.1f}) {name}")
        elif name in metrics["lacking"]:
            _write(f"- {name}: incomplete, lacks {', '.join(metrics['lacking'][name])}")
    mark = "" if metrics["causal"] else ", not causal"
    _write(f"{shown}{mark}\n{config.output / 'report.md'}")


@contextmanager
def show_progress() -> Iterator[Callable[[Progress], None]]:
    """Progress on stderr, and frames a second; those of the running video count, so that it moves within a long one."""
    started = time.monotonic()
    with progress("questions") as tell:

        def update(now: Progress) -> None:
            rate = now.frames_encoded / max(time.monotonic() - started, 1e-9)
            tell(now.questions_done, now.num_questions, f"{rate:.1f} frames/s")

        yield update


def _write(line: str) -> None:
    print(line, flush=True)  # noqa: T201
