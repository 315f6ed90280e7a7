"""Chat about still images, cut into tiles as in training, or about nothing but text."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial

import torch
from PIL import Image

from videochat_online.model.loading import VideoChatModel
from videochat_online.streaming.generate import GenerationSettings, result_of, stream_text
from videochat_online.streaming.question_prompt import Prompt, build_prompt
from videochat_online.text import check_text
from videochat_online.types import Segment, Turn


class ImageChat:
    """A dialogue about still images, each encoded once whatever the number of questions; without any, about text.

    Args:
        model: model, which other dialogues may share.
        images: RGB images; none for a dialogue about text.
        settings: settings by which answers are generated.
        system_message: None takes the checkpoint's own.
    """

    def __init__(
        self,
        model: VideoChatModel,
        images: Sequence[Image.Image] = (),
        settings: GenerationSettings | None = None,
        *,
        system_message: str | None = None,
    ) -> None:
        self.model = model
        self.settings = settings or GenerationSettings()
        self._system_message = None if system_message is None else check_text(system_message, "system message")
        with torch.inference_mode():
            self._visuals = [model.backbone.image(image) for image in images]
        self._wording = model.backbone.image_wording
        self._turns: list[Turn] = []

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens of all images together."""
        return sum(len(tokens) for tokens in self._visuals)

    @property
    def tokens_per_image(self) -> tuple[int, ...]:
        """Visual tokens of each image."""
        return tuple(len(tokens) for tokens in self._visuals)

    def ask(self, question: str) -> str:
        """Answer a question about the images and remember the exchange.

        Raises:
            InputError: half of a surrogate pair in the question.
        """
        return result_of(self.stream(question))

    def stream(self, question: str) -> Generator[str, None, str]:
        """Like `ask`, piece by piece. Closing the iterator stops; what was said so far is then the answer."""
        return stream_text(self.model, self.prepare(question), self.settings, partial(self._record, question))

    def _record(self, question: str, text: str) -> str:
        self._turns.append(Turn(self._user(question), text))
        return text

    def forget_dialogue(self) -> None:
        """Forget the questions asked so far, and keep the images."""
        self._turns.clear()

    def prepare(self, question: str) -> Prompt:
        """Lay out the prompt of a question, without answering."""
        check_text(question, "question")
        turns = [*self._turns, Turn(self._user(question))]
        message = self._system_message
        return build_prompt(self.model, turns, self._visuals, wording=self._wording, system_message=message)

    def _user(self, question: str) -> tuple[Segment, ...]:
        if self._turns or not self._visuals:
            return (question,)
        return (*self._wording.images(self.tokens_per_image), question)
