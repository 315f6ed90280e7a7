"""A benchmark before it is run: every video and every archive looked at, in parallel, and the annotations checked.

What would spoil an evaluation is found here, without a model. Owns what is done in which order; single files are
up to `video_check` and `archives`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videochat_online.evaluation.check.annotation_check import Finding, annotation_findings
from videochat_online.evaluation.check.archives import ArchiveFacts, check_archive, find_archives
from videochat_online.evaluation.check.video_check import MediaFacts, check_media
from videochat_online.evaluation.media.locate import LocatedVideo, MediaLibrary
from videochat_online.evaluation.task import Task
from videochat_online.isolation import Lost, result_of, run_isolated

TIME_LIMIT_S = 300.0
"""Given to each video."""
BYTES_PER_SECOND = 10e6
"""Archives get so much more time the larger they are: less than this is a disk that does not answer."""


@dataclass(frozen=True, slots=True)
class InspectedVideo:
    """What was found about a video.

    Attributes:
        name: name of the stream, as in a run's rows.
        num_questions: number of questions about it.
        path: path of the file or folder; None where it is missing.
        facts: frames and length, where it could be opened.
        findings: all that is wrong with it and its questions, or odd.
    """

    name: str
    num_questions: int
    path: Path | None
    facts: MediaFacts
    findings: list[Finding]

    @property
    def problems(self) -> list[Finding]:
        """Findings that would spoil an answer."""
        return [finding for finding in self.findings if not finding.is_note]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "video": self.name,
            "path": None if self.path is None else str(self.path),
            "num_questions": self.num_questions,
            "num_frames": self.facts.num_frames,
            "end_s": self.facts.end_s,
            "problems": [asdict(finding) for finding in self.problems],
            "notes": [asdict(finding) for finding in self.findings if finding.is_note],
        }


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in a benchmark.

    Attributes:
        videos: findings about each video.
        archives: findings about each archive, by its path.
        bad_rows: a line for each annotated row that cannot be used.
    """

    videos: tuple[InspectedVideo, ...]
    archives: dict[Path, ArchiveFacts]
    bad_rows: tuple[str, ...]

    @property
    def num_bad_videos(self) -> int:
        """Videos with a problem of their own or of a question about them."""
        return sum(bool(video.problems) for video in self.videos)

    @property
    def corrupt_archives(self) -> list[Path]:
        """Archives that are broken."""
        return [path for path, facts in self.archives.items() if facts.is_corrupt]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.num_bad_videos or self.corrupt_archives or self.bad_rows)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        kinds = Counter(finding.kind for video in self.videos for finding in video.findings)
        return {
            "num_videos": len(self.videos),
            "num_questions": sum(video.num_questions for video in self.videos),
            "num_bad_videos": self.num_bad_videos,
            "num_bad_rows": len(self.bad_rows),
            "num_corrupt_archives": len(self.corrupt_archives),
            "findings": dict(sorted(kinds.items())),
            "bad_rows": list(self.bad_rows),
            "archives": [
                {"path": str(path), "problem": facts.problem, "is_corrupt": facts.is_corrupt, "holds": list(facts.held)}
                for path, facts in self.archives.items()
            ],
            "videos": [video.as_dict() for video in self.videos],
        }


def inspect_benchmark(
    task: Task,
    annotations: Sequence[Path],
    data_root: Path,
    *,
    num_processes: int = 1,
    time_limit_s: float = TIME_LIMIT_S,
    decode_all: bool = False,
    zero_start: bool = False,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """Look at everything that an evaluation of a benchmark would read.

    Args:
        task: the benchmark.
        annotations: its files.
        data_root: the videos are somewhere below it.
        num_processes: processes that look at files at once; 0 looks in this one, which a file may keep or bring down.
        time_limit_s: seconds for each video, and for each archive with more for its size; then its process is killed.
        decode_all: decode whole videos, not only both ends of what questions need.
        zero_start: times of questions count from a video's first frame.
        on_done: told how many files are done, of how many.

    Raises:
        InputError: annotations or data root that cannot be read at all.
    """
    content, library = task.read(annotations), MediaLibrary(data_root)
    located = [library.locate(video) for video in content.videos]
    missing = [one.video.id for one in located if one.path is None]
    archives = find_archives(data_root, {one.path for one in located if one.path is not None and one.path.is_dir()})
    present = [one for one in located if one.path is not None]
    # Archives first: the longest work.
    calls: list[tuple[Any, ...]] = [(check_archive, path, missing) for path in archives]
    calls += [(check_media, one.path, one.video, decode_all, zero_start) for one in present]
    limits_s = [time_limit_s + path.stat().st_size / BYTES_PER_SECOND for path in archives]
    limits_s += [time_limit_s] * len(present)
    packed: dict[Path, ArchiveFacts] = {}
    media: dict[str, MediaFacts] = {}
    results = (
        run_isolated(_look, calls, num_processes=num_processes, limits_s=limits_s)
        if num_processes
        else enumerate(result_of(_look, call) for call in calls)
    )
    for done, (index, found) in enumerate(results, start=1):
        if index < len(archives):
            packed[archives[index]] = ArchiveFacts(found.reason, True) if isinstance(found, Lost) else found
        else:
            one = present[index - len(archives)]
            if isinstance(found, Lost):
                found = MediaFacts(findings=(Finding("unreadable", f"{one.path}: {found.reason}"),))
            media[one.video.name] = found
        on_done(done, len(calls))
    packed, of_questions = {path: packed[path] for path in archives}, annotation_findings(content)
    inspected = []
    for one in located:
        name, facts = one.video.name, media.get(one.video.name, MediaFacts())
        findings = [*_missing(one, packed), *facts.findings, *of_questions.get(name, ())]
        inspected.append(InspectedVideo(name, len(one.video.questions), one.path, facts, findings))
    return Inspection(tuple(inspected), packed, content.problems)


def _look(check: Callable[..., Any], *arguments: Any) -> Any:
    return check(*arguments)


def _missing(located: LocatedVideo, archives: Mapping[Path, ArchiveFacts]) -> Iterator[Finding]:
    """Why a video is not there, and which archive it waits in."""
    if located.problem is not None:
        reason = located.problem.removeprefix(f"{located.video.id}: ")
        holders = [path for path, facts in archives.items() if located.video.id in facts.held]
        yield Finding("missing", f"{reason}; {holders[0]} holds it and has to be unpacked" if holders else reason)
