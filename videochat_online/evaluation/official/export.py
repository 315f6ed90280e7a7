"""A finished run as the files that its benchmark's own scripts read.

The annotation files are read again: the scripts want all that stands in them. They are told by the run and must be
the very ones that it answered. Nothing is written before everything is known to fit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from videochat_online.errors import InputError
from videochat_online.evaluation.compare.finished_runs import Run, listed, read_run
from videochat_online.evaluation.official.official_rules import Exported
from videochat_online.evaluation.official.scores import OFFICIAL, rules_of
from videochat_online.evaluation.run.evaluation_folder import read_run_file
from videochat_online.evaluation.tasks import get_task
from videochat_online.runs.files import check_writable, file_digest, read_json, write_text


@dataclass(frozen=True, slots=True)
class Export:
    """What was written.

    Attributes:
        paths: files that were written.
        notes: a line for each thing that is not in them, or not as it was answered.
    """

    paths: tuple[Path, ...]
    notes: tuple[str, ...]


def export_run(
    folder: Path,
    output: Path,
    format: str,
    *,
    annotations: Sequence[Path] | None = None,
    model_name: str | None = None,
    partial: bool = False,
) -> Export:
    """Write a run as official scripts read it.

    Args:
        folder: folder of the run.
        output: a new or empty folder.
        format: name of the benchmark, which has to be the run's.
        annotations: the files that the run answered; None for where they were then.
        model_name: name of the model in the files; None for the last part of the run's.
        partial: write a run that could not use some videos, without replies to the questions about them.

    Raises:
        InputError: a run that is not finished, lacks videos, or is of another task; other annotation files; a folder
            that holds something.
    """
    run = read_run(folder)
    if run.settings["task"] != format:
        task = run.settings["task"]
        lacking = "" if task in OFFICIAL else ", which has no official format"
        raise InputError(f"--format {format}: expected a run of {format}, {folder} is one of {task}{lacking}")
    rules = rules_of(run)
    _check_whole(run, partial)
    _check_output(output, folder)
    name = _model_name(run, model_name)
    paths = _annotation_paths(run, annotations)
    task = get_task(format)
    content = task.read(paths)
    if run.settings.get("max_videos") is not None:
        content = replace(content, videos=content.videos[: run.settings["max_videos"]])
    questions = {question.source: question for question in content.questions if question.source is not None}
    at = {question.id: source for source, question in questions.items()}
    unknown = [row for row in run.rows if row["id"] not in at]
    if unknown:
        raise InputError(f"{folder}: expected answers to the annotated questions, found one to {unknown[0]['id']}")
    exported = Exported(
        run=run,
        model=name,
        annotations={path.name: read_json(path, "annotations") for path in paths},
        questions=questions,
        rows={at[row["id"]]: row for row in run.rows},
    )
    files = rules.files(exported)
    for path, made in files.items():
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        text = made if isinstance(made, str) else json.dumps(made, ensure_ascii=False) + "\n"
        write_text(output / path, text)
    notes = _notes(run, content.problems, rules.skips)
    return Export(tuple(output / path for path in files), tuple(notes))


def _check_whole(run: Run, partial: bool) -> None:
    num_missing = run.num_questions - len(run.rows)
    if num_missing and not partial:
        raise InputError(
            f"{run.folder}: the run is not whole: {num_missing} of {run.num_questions} questions have no answer, since "
            f"{len(run.bad_videos)} videos could not be used: {listed(run.bad_videos)} (--partial exports the others)"
        )


def _check_output(output: Path, folder: Path) -> None:
    if output.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"--output: expected a folder outside the run, got {output} in {folder}")
    names = sorted(entry.name for entry in output.iterdir()) if output.is_dir() else []
    if names or output.is_file():
        found = f"{len(names)} entries in it, such as {names[0]}" if names else "a file"
        raise InputError(f"{output}: expected a new or empty folder, found {found}")
    check_writable(output)


def _model_name(run: Run, given: str | None) -> str:
    name = Path(str(run.settings["model"])).name if given is None else given
    if not name.strip() or "/" in name or "\\" in name or name.startswith("."):
        raise InputError(f"--model_name: expected a name that a file can have, got {name!r}")
    return name


def _annotation_paths(run: Run, given: Sequence[Path] | None) -> list[Path]:
    """The files that the run answered, in its order, told by their content."""
    wanted: list[dict[str, Any]] = run.settings.get("annotations") or []
    there = given or [Path(path) for path in read_run_file(run.folder / "run.json").get("annotation_paths") or ()]
    if not there:
        raise InputError(f"--annotations: expected the files that {run.folder} answered, it says no path of its own")
    for path in there:
        if not path.is_file():
            raise InputError(f"--annotations: expected the files that {run.folder} answered, {path} is none")
    digests = {file_digest(path)[:16]: path for path in there}
    for one in wanted:
        if one["sha256"] not in digests:
            shown = ", ".join(map(str, there))
            raise InputError(
                f"--annotations: expected {one['file']} as {run.folder} answered it (sha256 {one['sha256']}), found "
                f"another content in {shown}"
            )
    found = [digests[one["sha256"]] for one in wanted]
    names = [path.name for path in found]
    if len(set(names)) < len(names):
        raise InputError(f"--annotations: expected files of different names, got {', '.join(names)}")
    return found


def _notes(run: Run, problems: Sequence[str], skips: str) -> list[str]:
    notes = []
    if problems:
        notes.append(f"{len(problems)} annotated questions cannot be used and have no reply; the first: {problems[0]}")
    num_missing = run.num_questions - len(run.rows)
    if num_missing:
        notes.append(
            f"{num_missing} questions about {len(run.bad_videos)} videos that could not be used have no reply; the "
            f"official code {skips}"
        )
    failed = [row for row in run.rows if not row["text"] and not row.get("polls")]
    if failed:
        notes.append(
            f"{len(failed)} questions have an empty reply, which counts as wrong; the first: {failed[0]['id']}"
        )
    return notes
