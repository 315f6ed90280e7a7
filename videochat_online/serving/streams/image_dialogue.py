"""Chat about still images, with the questions, answers and turns of a stream but without its time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from videochat_online.errors import InputError
from videochat_online.model import VideoChatModel
from videochat_online.serving.streams.fair_lock import ModelGate
from videochat_online.serving.streams.image_bytes import VIEW_PX, to_jpeg
from videochat_online.serving.streams.live_answer import (
    SECONDS_TO_END,
    LiveAnswer,
    LiveDialogue,
    Pieces,
)
from videochat_online.serving.streams.stream_options import StreamOptions
from videochat_online.streaming import ImageChat


class LiveImages(LiveDialogue):
    """One viewer's dialogue about images; the model sees them when the first question is asked.

    Args:
        model: model that all dialogues and streams share.
        images: RGB images.
        options: options, of which those of generation and the system message count.
        gate: gate that says whose turn it is at the model.
    """

    def __init__(
        self, model: VideoChatModel, images: Sequence[Image.Image], options: StreamOptions, gate: ModelGate
    ) -> None:
        if not images:
            raise InputError("expected at least one image, got none")
        super().__init__(options, gate)
        self._model, self._images = model, list(images)
        self._chat: ImageChat | None = None

    @property
    def num_images(self) -> int:
        """How many there are."""
        return len(self._images)

    def ask(self, question: str) -> LiveAnswer:
        """Ask about the images.

        Raises:
            InputError: an empty question, an answer is still being given, or the dialogue is closed.
        """
        with self._changed:
            self._check_open()
            answer = self._add_question(question, None)
        self._speak(answer, lambda: self._begin(answer.question))
        return answer

    def _begin(self, question: str) -> Pieces:
        if self._chat is None:
            options = self.options
            self._chat = ImageChat(self._model, self._images, options.generation, system_message=options.system_message)
        return self._chat.stream(question)

    def forget_dialogue(self) -> None:
        """Begin a new dialogue about the same images.

        Raises:
            InputError: an answer is still being given, or the dialogue is closed.
        """
        with self._changed:
            self._check_open()
            self._check_silent()
            self._answers.clear()
            if self._chat is not None:
                self._chat.forget_dialogue()

    def picture(self) -> bytes:
        """The images side by side, as JPEG."""
        height = min(image.height for image in self._images)
        scaled = [image.resize((max(1, round(image.width * height / image.height)), height)) for image in self._images]
        return to_jpeg(np.concatenate([np.asarray(image) for image in scaled], axis=1), VIEW_PX)

    def close(self) -> None:
        """Stop the answer and let go of the images."""
        self.is_closed = True
        self.stop_answer()
        if self._speaker is not None:
            self._speaker.join(SECONDS_TO_END)
        self._chat = None
