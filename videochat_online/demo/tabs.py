"""What the page's buttons do: which stream belongs to which tab, and what is opened in it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from videochat_online.demo.examples import make_example
from videochat_online.errors import InputError, shown
from videochat_online.memory.labels import largest_size, settings_of
from videochat_online.serving.api.schemas import bounded_memories
from videochat_online.serving.sources.file_source import FilePlayer
from videochat_online.serving.sources.named_sources import NamedSource
from videochat_online.serving.sources.remote_source import RemotePlayer
from videochat_online.serving.sources.uploads import AcceptedUpload, UploadLimits, accept_upload
from videochat_online.serving.streams.image_dialogue import LiveImages
from videochat_online.serving.streams.live_answer import LiveAnswer
from videochat_online.serving.streams.live_stream import make_stream_memory
from videochat_online.serving.streams.pool import PoolEntry, StreamPool
from videochat_online.serving.streams.stream_options import MAX_REMEMBERED, StreamOptions
from videochat_online.synthetic.questions.question_templates import Question
from videochat_online.text.questions import STREAMING_SUFFIX, multiple_choice_question, ovbench_question
from videochat_online.video import read_image

MAX_IMAGES = 8
"""Largest number of images in one dialogue."""

EXAMINED_AT_ONCE = 2
"""Uploads; each may take gigabytes while it is looked at."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What a server allows.

    Attributes:
        limits: limits of what may be uploaded.
        sources: cameras, videos and folders of frames that the operator lets viewers watch.
        defaults: options by which a stream is watched unless the viewer chooses.
    """

    limits: UploadLimits = field(default_factory=UploadLimits)
    sources: tuple[NamedSource, ...] = ()
    defaults: StreamOptions = field(default_factory=StreamOptions)


@dataclass
class Viewer:
    """One tab: at most one stream at a time.

    Attributes:
        stream_id: id of its stream; None before the first and after the last.
        kind: "file" (or a named source), "camera" or "images".
        fps: frames a second that the model sees.
        questions: questions that the clip is known to answer.
        is_gone: the tab was closed; what was on its way is opened for nobody.
    """

    stream_id: str | None = None
    kind: str = ""
    fps: float = 1.0
    questions: tuple[Question, ...] = ()
    is_gone: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Viewers:
    """All tabs of one server.

    Args:
        pool: the streams.
        options: options that say what is allowed.

    Raises:
        InputError: the memory that streams have by default does not take its options.
    """

    def __init__(self, pool: StreamPool, options: DemoOptions) -> None:
        self.pool, self.options = pool, options
        # A memory that cannot be made is the operator's mistake, not the first viewer's.
        make_stream_memory(pool.model, options.defaults)
        self._viewers: dict[str, Viewer] = {}
        self._lock = threading.Lock()
        self._examining = threading.BoundedSemaphore(EXAMINED_AT_ONCE)

    def of(self, tab: str) -> Viewer:
        """The viewer of a tab."""
        with self._lock:
            return self._viewers.setdefault(tab, Viewer())

    def entry(self, tab: str) -> PoolEntry:
        """A tab's stream.

        Raises:
            InputError: nothing is being watched, or not any more.
        """
        name = self.of(tab).stream_id
        if name is None:
            raise InputError("nothing is being watched yet: choose an example, a video, the camera or images")
        return self.pool.find(name)

    def leave(self, tab: str) -> None:
        """Close the stream of a tab that was closed."""
        with self._lock:
            viewer = self._viewers.pop(tab, None)
        if viewer is not None:
            with viewer.lock:
                viewer.is_gone = True
                self._close(viewer)

    def open_example(self, tab: str, title: str, options: StreamOptions) -> None:
        """Play a generated clip."""
        viewer = self.of(tab)

        def begin(entry: PoolEntry) -> None:
            path = entry.folder / "example.mp4"
            viewer.questions = make_example(title, path)
            self._play(entry, path)

        self._open(viewer, "file", options, begin)

    def open_upload(self, tab: str, path: Path, options: StreamOptions) -> None:
        """Play an uploaded video, after a look at it by a process that can be killed."""
        viewer = self.of(tab)
        with self._examined([path]) as (upload,):
            if upload.kind != "video":
                raise InputError(f"{upload.name}: expected a video, found an image: see the tab Images")

            def begin(entry: PoolEntry) -> None:
                kept = entry.folder / upload.path.name
                upload.path.rename(kept)
                self._play(entry, kept)

            self._open(viewer, "file", options, begin)

    def open_camera(self, tab: str, options: StreamOptions) -> None:
        """Take what the page's camera sends."""
        self._open(self.of(tab), "camera", options)

    def open_source(self, tab: str, name: str, options: StreamOptions) -> None:
        """Watch what the operator has named so."""
        sources = {source.name: source for source in self.options.sources}
        if name not in sources:
            raise InputError(f"source: expected one of {', '.join(sources) or 'none'}, found {shown(name)}")
        source = sources[name]

        def begin(entry: PoolEntry) -> None:
            if source.is_remote:
                entry.player = RemotePlayer(source, entry.stream)
            else:
                self._play(entry, Path(source.address))

        self._open(self.of(tab), "file", options, begin)

    def open_images(self, tab: str, paths: Sequence[Path], options: StreamOptions) -> None:
        """Chat about uploaded images."""
        if not 1 <= len(paths) <= MAX_IMAGES:
            raise InputError(f"expected 1 to {MAX_IMAGES} images, got {len(paths)}")
        viewer = self.of(tab)
        with self._examined(paths) as uploads:
            for upload in uploads:
                if upload.kind != "image":
                    raise InputError(f"{upload.name}: expected an image, found a video: see the tab Upload")
            images = [read_image(upload.path) for upload in uploads]
        self._open(viewer, "images", options, images=images)

    @contextmanager
    def _examined(self, paths: Sequence[Path]) -> Iterator[list[AcceptedUpload]]:
        """Uploads in a folder of their own, for as long as the block lasts; what is being watched goes on meanwhile."""
        folder = self.pool.make_folder()
        try:
            # At once, and whatever it is: what is refused goes with the folder, and another viewer's upload of the same
            # name and content would have the same path.
            moved = [folder / f"upload_{number}" for number in range(len(paths))]
            for path, to in zip(paths, moved, strict=True):
                if path.is_file():
                    path.rename(to)
            with self._examining:
                limits = self.options.limits
                uploads = [accept_upload(to, path.name, folder, limits) for path, to in zip(paths, moved, strict=True)]
            yield uploads
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _open(
        self,
        viewer: Viewer,
        kind: str,
        options: StreamOptions,
        begin: Callable[[PoolEntry], None] | None = None,
        images: Sequence[Image.Image] | None = None,
    ) -> None:
        """Open a stream instead of the one before it, which is closed when nothing stands against the new one."""
        make_stream_memory(self.pool.model, options)
        with viewer.lock:
            if viewer.is_gone:
                raise InputError("the page was closed meanwhile")
            self._close(viewer)
            entry = self.pool.open(options, images)
            viewer.kind, viewer.fps, viewer.questions = kind, options.fps, ()
            try:
                if begin is not None:
                    begin(entry)
            except Exception:
                self.pool.close(entry.id)
                raise
            viewer.stream_id = entry.id

    def _close(self, viewer: Viewer) -> None:
        if viewer.stream_id is not None:
            self.pool.close(viewer.stream_id)
            viewer.stream_id = None

    def _play(self, entry: PoolEntry, path: Path) -> None:
        player = FilePlayer(path, entry.stream)
        entry.player = player
        player.play()

    def ask(self, tab: str, question: str, options: Sequence[str]) -> Iterator[tuple[LiveAnswer, ...]]:
        """Ask, and give the dialogue again and again while the answer grows."""
        entry = self.entry(tab)
        options = options if question.strip() else ()  # without a question they are none either
        answer = entry.dialogue.ask(_multiple_choice(question.strip(), options, entry) if options else question)
        yield entry.dialogue.answers
        for _ in answer.pieces():
            yield entry.dialogue.answers
        yield entry.dialogue.answers


def _multiple_choice(question: str, options: Sequence[str], entry: PoolEntry) -> str:
    """As in the benchmarks of streams, which models of this kind are trained for; images have no time."""
    if isinstance(entry.dialogue, LiveImages):
        return multiple_choice_question(question, options)
    asked_at_s = round(entry.dialogue.status().time_s, 1)
    return ovbench_question(question, options, asked_at_s=asked_at_s) + STREAMING_SUFFIX


def memories_of(defaults: StreamOptions) -> tuple[str, ...]:
    """Names of the memories that viewers may choose; one that grows for ever, or an import path, is the operator's."""
    return tuple(dict.fromkeys([*bounded_memories(), defaults.memory]))


def form_options(defaults: StreamOptions, chosen: dict[str, Any]) -> StreamOptions:
    """Options from the page's fields; empty ones are the defaults.

    Raises:
        InputError: a value that is not of its kind, or out of its range.
    """
    kinds: dict[str, Callable[[Any], Any]] = {"max_new_tokens": int, "temperature": float, "top_p": float, "seed": int}
    given = {key: kind(chosen[key]) for key, kind in kinds.items() if chosen[key] is not None}
    if not chosen["seed"]:  # the page sends 0 for an empty field
        given.pop("seed", None)
    memory: str = chosen["memory"]
    if memory not in (known := memories_of(defaults)):
        raise InputError(f"memory: expected one of {', '.join(known)}, found {shown(memory)}")
    memory_options = dict(defaults.memory_options) if memory == defaults.memory else {}
    for name, setting in settings_of(memory).items():
        if chosen[f"{memory}.{name}"].strip():
            memory_options[name] = setting.parse(chosen[f"{memory}.{name}"], name)
    num_frames, most = largest_size(memory_options), max(MAX_REMEMBERED, largest_size(defaults.memory_options))
    if num_frames > most:
        raise InputError(f"memory: expected at most {most} frames, got {num_frames}")
    return replace(
        defaults,
        fps=float(chosen["fps"]),
        memory=memory,
        memory_options=memory_options,
        system_message=chosen["system_message"].strip() or defaults.system_message,
        generation=replace(defaults.generation, **given),
    )
