"""Questions about a whole video or about still images, as offline benchmarks ask them: each on its own.

Owns the published setting of offline benchmarks and the way from what a benchmark shows (a path, images, nothing)
to a prompt. The frames of a video are kept for the next question as long as the video stays the same. Knows no
benchmark and no other program.

Source: the released evaluation of VideoChat-Online on MVBench and VideoMME: every n-th frame, about 4 a second, the
centres of 1,800 segments of a longer video, in a pyramid memory of 24/24/144 frames (9,984 tokens).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from videochat_online.errors import InputError
from videochat_online.evaluation.benchmark import EvalVideo
from videochat_online.evaluation.media.protocol_frames import VideoFrames
from videochat_online.evaluation.protocol import EvalProtocol
from videochat_online.model import VideoChatModel
from videochat_online.streaming import GenerationSettings, ImageChat, StreamingSession
from videochat_online.streaming.generate import answer_pieces, continuation_log_likelihoods, generate_ids
from videochat_online.streaming.question_prompt import Prompt, build_prompt, reply_ids
from videochat_online.text.questions import OFFLINE_SUFFIX, OVBENCH_SYSTEM_MESSAGE
from videochat_online.types import Turn
from videochat_online.video import IMAGE_EXTENSIONS, read_image

logger = logging.getLogger(__name__)

OFFLINE = EvalProtocol(
    setting="offline",
    fps=4.0,
    memory="pyramid",
    memory_options={"capacities": (24, 24, 144), "policy": "reference"},
    window_s=None,
    max_frames=1800,
    with_times=False,
    system_message=None,
    kind_system_messages={},
    suffix="",
    max_new_tokens=20,
)
"""The published setting, but for the words: the question's text is the benchmark's own."""
REFERENCE = replace(
    OFFLINE, causal=False, frame_times="end", system_message=OVBENCH_SYSTEM_MESSAGE, suffix=OFFLINE_SUFFIX
)
"""Protocol with the words of the released scripts for MVBench and VideoMME, too, and answers of at least one token."""
OFFLINE_PROTOCOLS = {"lmms_eval": OFFLINE, "reference": REFERENCE}
"""Protocols by name: whose words the questions have."""


class OfflineAnswerer:
    """Asks a model about one video or some images at a time.

    Args:
        model: model that answers.
        protocol: protocol with frames, memory, and the text before and after the question.
        backend: decoder of video files, a name in `video.BACKENDS` or "auto".
        folder_fps: frames a second of a video that is a folder of frames.
    """

    def __init__(
        self,
        model: VideoChatModel,
        protocol: EvalProtocol = OFFLINE,
        *,
        backend: str = "auto",
        folder_fps: float | None = None,
    ) -> None:
        # Nor do the published scripts trim what they ask: "Answer:  \n" keeps its end.
        self.model, self.protocol = model if protocol.causal else model.untrimmed(), protocol
        self._backend, self._folder_fps = backend, folder_fps
        protocol.make_memory(model.frames.grid, model.frames.memory_intervals)  # a bad option is said at once
        protocol.make_strategy()
        self._watched: tuple[tuple[Path, int | None], StreamingSession] | None = None

    @property
    def generation(self) -> GenerationSettings:
        """How the protocol answers: greedily, with its least and most new tokens."""
        protocol = self.protocol
        return GenerationSettings(max_new_tokens=protocol.max_new_tokens, min_new_tokens=protocol.min_new_tokens)

    def answer(self, text: str, visuals: Sequence[Any], settings: GenerationSettings, until: Sequence[str] = ()) -> str:
        """Generate an answer.

        Args:
            text: the question.
            visuals: a video, images or nothing, see `prompt`.
            settings: settings by which ids are chosen.
            until: the answer ends before the first of these; blanks at its beginning do not count.

        Raises:
            InputError: visuals that cannot be read or used, or a prompt longer than the context.
        """
        answer = ""
        for piece in answer_pieces(self.model, self.prompt(text, visuals), settings):
            answer = (answer + piece).lstrip()
            ends = [start for stop in until if stop and (start := answer.find(stop)) >= 0]
            if ends:
                return answer[: min(ends)].strip()
        return answer.strip()

    def losses(self, text: str, visuals: Sequence[Any], replies: Sequence[str]) -> list[tuple[float, bool]]:
        """For each reply its negative log-likelihood, averaged over its tokens and its end, and whether it is greedy.

        Raises:
            InputError: errors of `answer`.
        """
        language_model, prompt = self.model.language_model, self.prompt(text, visuals)
        ids = [reply_ids(self.model, reply) for reply in replies]
        sums = continuation_log_likelihoods(language_model, prompt.tokens, ids, prompt.contrasts).tolist()
        longest = GenerationSettings(max_new_tokens=max(map(len, ids)))
        stop_ids, contrasts = self.model.stop_ids, prompt.contrasts
        greedy = tuple(generate_ids(language_model, prompt.tokens, stop_ids, longest, contrasts=contrasts))
        return [(-total / len(reply), greedy[: len(reply)] == reply) for total, reply in zip(sums, ids, strict=True)]

    def prompt(self, text: str, visuals: Sequence[Any]) -> Prompt:
        """Lay out a question after what it is about.

        Args:
            text: the question.
            visuals: nothing; images (PIL, or paths of image files); or one video: the path of a file or of a folder
                of frames, or {"video_path": path, "timestep": index of the last frame to be seen}.

        Raises:
            InputError: anything else, or what cannot be read.
        """
        text += self.protocol.suffix
        if not visuals:
            return build_prompt(self.model, [Turn((text,))], [], system_message=self.protocol.system_message)
        images = [image for visual in visuals if (image := _image(visual)) is not None]
        if len(images) == len(visuals):
            return ImageChat(self.model, images, system_message=self.protocol.system_message).prepare(text)
        if len(visuals) > 1:
            raise InputError(f"expected one video or some images, got {len(visuals)} of which {len(images)} are images")
        return self._watch(*_video(visuals[0])).prepare(text).prompt

    def _watch(self, path: Path, last_index: int | None) -> StreamingSession:
        """A session that has seen the video; nothing is asked of it, so that questions leave no trace."""
        if self._watched is not None and self._watched[0] == (path, last_index):
            return self._watched[1]
        self._watched = None  # the memory of one video at a time
        model, protocol = self.model, self.protocol
        video = EvalVideo(
            name=str(path), id=str(path), clip_s=(0.0, math.inf), fps=self._folder_fps, dataset=None, questions=()
        )
        session = StreamingSession(
            model,
            protocol.make_memory(model.frames.grid, model.frames.memory_intervals),
            system_message=protocol.system_message,
            with_times=protocol.with_times,
            strategy=protocol.make_strategy(),
        )
        with VideoFrames(path, video, protocol, backend=self._backend) as frames:
            for group in frames.read(frames.offline_indices(last_index)):
                session.push(np.stack([frame.pixels_HWC for frame in group]), [frame.time_s for frame in group])
            if frames.problem:
                logger.warning("%s: %s; answered from what can be read", path, frames.problem)
        self._watched = ((path, last_index), session)
        return session


def _image(visual: Any) -> Image.Image | None:
    if isinstance(visual, Image.Image):
        return visual
    if isinstance(visual, (str, Path)) and Path(visual).suffix.lower() in IMAGE_EXTENSIONS:
        return read_image(visual)
    return None


def _video(visual: Any) -> tuple[Path, int | None]:
    if isinstance(visual, (str, Path)):
        return Path(visual), None
    # MovieChat's breakpoint mode; its "time" counts frames: github.com/wenhaochai/MovieChat/issues/82
    if isinstance(visual, Mapping) and visual.keys() == {"video_path", "timestep"}:
        return Path(visual["video_path"]), int(visual["timestep"])
    found = f"keys {sorted(visual)}" if isinstance(visual, Mapping) else type(visual).__name__
    raise InputError(f"expected a video's path, images, or video_path and timestep, got {found}")
