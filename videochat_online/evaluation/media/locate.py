"""Finding the media of annotated videos below a data root, whatever its folders are called.

A video is a file or a folder of frames. Its id is tried as a path below the root, with the endings of videos
where it has none; then the root is walked, once, and the id is looked up by name. Names are compared whole:
an id may begin with "-" or hold dots. Folders of an id are those of its file, as far as the root is above both.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from videochat_online.errors import InputError, VideoError
from videochat_online.evaluation.benchmark import EvalVideo
from videochat_online.video import IMAGE_EXTENSIONS

VIDEO_EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".gif", ".mpg", ".mpeg", ".wmv", ".flv", ".ts")
_MAX_DEPTH = 8


@dataclass(frozen=True)
class LocatedVideo:
    """A video and where it is, or why it cannot be used.

    Attributes:
        video: the video as annotated.
        path: its file or folder of frames; None where it is missing, or not looked for.
        problem: why it is missing, in a line; None where it is not.
    """

    video: EvalVideo
    path: Path | None = None
    problem: str | None = None


class MediaLibrary:
    """Where the videos of a set are.

    Args:
        root: folder with everything somewhere below it.

    Raises:
        InputError: no such folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            found = "a file" if root.exists() else "nothing"
            raise InputError(f"{root}: expected the folder with the videos (--data-root), found {found}")
        self._root = root
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, video: EvalVideo) -> Path:
        """Path of a video file or of a folder of frames.

        Raises:
            VideoError: nothing of that name, or several that nothing tells apart.
        """
        for name in (video.id, *(video.id + extension for extension in VIDEO_EXTENSIONS)):
            if (self._root / name).exists():
                return self._root / name
        return self._choose(video, self._candidates(video))

    def locate(self, video: EvalVideo) -> LocatedVideo:
        """The video with its path, or with what `find` says is wrong."""
        try:
            return LocatedVideo(video, self.find(video))
        except VideoError as error:
            return LocatedVideo(video, problem=str(error))

    def _candidates(self, video: EvalVideo) -> list[Path]:
        if self._by_name is None:
            self._by_name = defaultdict(list)
            for path in _walk(self._root):
                self._by_name[path.name].append(path)
        last, folders = Path(video.id).name, Path(video.id).parent.parts
        named = self._by_name.get(last, [])
        named = named or [path for ending in VIDEO_EXTENSIONS for path in self._by_name.get(last + ending, [])]
        # Another folder's 105.mp4 is another video; the root may be one of the folders that the id names.
        below = {path: path.parent.relative_to(self._root).parts for path in named}
        whole = [path for path in named if (*self._root.resolve().parts, *below[path])[-len(folders) :] == folders]
        found = whole or [path for path in named if below[path] == folders[len(folders) - len(below[path]) :]]
        if folders and named and not found:
            there = ", ".join(map(str, named))
            raise VideoError(f"{video.id}: expected it in {Path(*folders)} below {self._root}, found others: {there}")
        return found if folders else named

    def _choose(self, video: EvalVideo, found: list[Path]) -> Path:
        """Narrow several down: the path the annotation hints at, the dataset's own folder, a folder of frames."""
        if not found:
            raise VideoError(f"{video.id}: expected a video or a folder of frames below {self._root}, found none")
        hinted = [] if video.hint is None else [p for p in found if Path(video.hint).parent.parts == _tail(p, video)]
        own = [p for p in found if video.dataset is not None and video.dataset in _folders(p, self._root)]
        for narrowed in (found, hinted, own, [path for path in own or found if path.is_dir()]):
            if len(narrowed) == 1:
                return narrowed[0]
        raise VideoError(f"{video.id}: expected one place below {self._root}, found {', '.join(map(str, found))}")


def _tail(path: Path, video: EvalVideo) -> tuple[str, ...]:
    """As many last parts of a folder as the hint has."""
    return path.parts[-len(Path(video.hint or "").parent.parts) :]


def _folders(path: Path, root: Path) -> set[str]:
    """Lower-case words of the folders between root and path: AVA, TAO_frames, HiREST-videos."""
    between = path.parent.relative_to(root).as_posix().lower()
    return set(between.replace("-", "/").replace("_", "/").split("/"))


def _walk(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Video files and folders of frames; what lies in a folder of frames is not looked at."""
    folders, videos, has_frames = [], [], False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                ending = os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith(".") or not (entry.is_dir() or entry.is_file()):
                    continue
                if entry.is_dir():
                    folders.append(Path(entry.path))
                elif ending in IMAGE_EXTENSIONS:
                    has_frames = True
                elif ending in VIDEO_EXTENSIONS:
                    videos.append(Path(entry.path))
    except OSError as error:
        raise InputError(f"{folder}: expected a readable folder below the data root ({error.strerror})") from error
    yield from videos
    if has_frames and not videos:  # beside videos, a picture is a thumbnail
        yield folder
        return
    if depth < _MAX_DEPTH:
        for path in sorted(folders):
            yield from _walk(path, depth + 1)
