"""Open streams: a bounded number of them, each of one viewer, freed when it is closed or left alone."""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from videochat_online.errors import InputError
from videochat_online.model import VideoChatModel
from videochat_online.serving.sources.player import Player
from videochat_online.serving.streams.fair_lock import ModelGate
from videochat_online.serving.streams.image_dialogue import LiveImages
from videochat_online.serving.streams.live_answer import UnknownStreamError
from videochat_online.serving.streams.live_stream import LiveStream
from videochat_online.serving.streams.stream_options import StreamOptions

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 5.0
"""Seconds between two looks for streams that nobody uses any more."""


class BusyError(InputError):
    """As many streams, or viewers of one, as there may be; another try may find fewer."""


@dataclass
class PoolEntry:
    """A viewer's stream with what belongs to it.

    Attributes:
        id: id that is hard to guess; whoever has it may use the stream.
        dialogue: takes frames and questions, or is about images and takes questions only.
        folder: folder of this viewer's files; removed with the stream.
        player: plays the file or source that is watched; None for frames that come from elsewhere.
        opened_s: time at which the stream was opened, as `time.monotonic` gives it.
        used_s: time at which the stream was last used, in seconds of the pool's clock.
        lock: held while a frame is given the present time and put in: two at once must not cross.
    """

    id: str
    dialogue: LiveStream | LiveImages
    folder: Path
    player: Player | None = None
    opened_s: float = field(default_factory=time.monotonic)
    used_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def stream(self) -> LiveStream:
        """What takes frames.

        Raises:
            InputError: it is a dialogue about images.
        """
        if isinstance(self.dialogue, LiveImages):
            raise InputError("expected a stream, found a dialogue about images: it takes questions only")
        return self.dialogue

    def close(self) -> None:
        """End everything, remove the viewer's files."""
        if self.player is not None:
            self.player.close()
        self.dialogue.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class StreamPool:
    """All streams of one server, and the model that they share.

    Args:
        model: model that all streams share.
        max_streams: streams at once.
        idle_s: seconds after which a stream that nobody uses is closed.
        now: clock of idle time, in seconds.
    """

    def __init__(
        self,
        model: VideoChatModel,
        *,
        max_streams: int = 8,
        idle_s: float = 120.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_streams < 1:
            raise InputError(f"max_streams: expected at least 1, got {max_streams}")
        if not idle_s > 0:
            raise InputError(f"idle_s: expected a time above 0 s, got {idle_s}")
        self.model, self.gate = model, ModelGate()
        self.max_streams, self.idle_s = max_streams, idle_s
        self._now = now
        self._folder = Path(tempfile.mkdtemp(prefix="videochat_online_"))
        self._entries: dict[str, PoolEntry] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._reaper = threading.Thread(target=self._reap_for_ever, name="reaper", daemon=True)
        self._reaper.start()

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    def open(self, options: StreamOptions, images: Sequence[Image.Image] | None = None) -> PoolEntry:
        """A new stream, or a dialogue about images.

        Raises:
            BusyError: there are `max_streams` already.
            InputError: options that the memory does not take, or the server is shutting down.
        """
        self.reap()
        with self._lock:
            if self._closed.is_set():
                raise InputError("the server is shutting down")
            if len(self._entries) >= self.max_streams:
                raise BusyError(f"all {self.max_streams} places are taken: try again in a minute")
            dialogue: LiveStream | LiveImages
            if images is None:
                dialogue = LiveStream(self.model, options, self.gate)
            else:
                dialogue = LiveImages(self.model, images, options, self.gate)
            folder = self.make_folder()
            entry = PoolEntry(id=folder.name, dialogue=dialogue, folder=folder, used_s=self._now())
            self._entries[entry.id] = entry
            return entry

    def make_folder(self) -> Path:
        """A new folder for files of one viewer; what is left in it goes with the server."""
        folder = self._folder / secrets.token_urlsafe(18)
        folder.mkdir()
        return folder

    def find(self, name: str) -> PoolEntry:
        """The stream of that id, which counts as used.

        Raises:
            UnknownStreamError: there is none.
        """
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                raise UnknownStreamError("no such stream: it was closed, or left alone for too long")
            entry.used_s = self._now()
            return entry

    def close(self, name: str) -> None:
        """End a stream, so that another may be opened; nothing happens if there is none."""
        with self._lock:
            entry = self._entries.pop(name, None)
        if entry is not None:
            entry.close()

    def reap(self) -> None:
        """Close the streams that nobody has used for too long."""
        with self._lock:
            late_s = self._now() - self.idle_s
            idle = [name for name, entry in self._entries.items() if entry.used_s < late_s]
        for name in idle:
            logger.info("closing a stream that nobody has used for %g s", self.idle_s)
            self.close(name)

    def close_all(self) -> None:
        """End every stream; none can be opened after that."""
        self._closed.set()
        with self._lock:
            names = list(self._entries)
        for name in names:
            self.close(name)
        self._reaper.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _reap_for_ever(self) -> None:
        while not self._closed.wait(SECONDS_BETWEEN_LOOKS):
            self.reap()
