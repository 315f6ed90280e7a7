"""A validated sample -> what the model is trained on: ids, labels, pixels, and how each frame is pooled.

Knows tokenizer, template, token grid and schedule as it is given them; knows nothing of networks, registries
or batches.

Shape legend: `T` frames or tiles, `S` pixels a side.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerBase

from videochat_online.data.rows.sample import Sample
from videochat_online.data.samples.pixel_reader import Pixels
from videochat_online.data.samples.sample_reader import AS_THE_RUN, SampleReader, SetOptions
from videochat_online.text import ChatTemplate, layout_prompt, truncate_layout

JPEG_QUALITIES = (75, 100)
"""Lowest and highest quality of the degradation by `data_augment`."""


@dataclass(frozen=True, slots=True)
class Example:
    """One sample, ready for a batch.

    Attributes:
        input_ids: the prompt, with the image token where a visual token stands.
        labels: labels, one for each of `input_ids`; IGNORE_INDEX where nothing is learned. Not shifted.
        pixels_TSSC: frames or tiles in order of appearance, uint8 [T, S, S, 3], not normalised; None for a text.
        pool_ratios: pooling of each of the T.
        is_reduced: whether it has fewer frames or tiles than it should, since its pack has no room for more.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    pixels_TSSC: Pixels | None
    pool_ratios: tuple[int, ...]
    is_reduced: bool = False

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleEncoder(SampleReader):
    """Everything that turns samples into examples.

    Attributes:
        tokenizer: result of `load_tokenizer`, with the image tokens.
        template: chat template of the checkpoint.
        system_message: None takes the template's own.
        max_length: longest prompt, in tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    system_message: str | None
    max_length: int

    def encode(self, sample: Sample, rng: random.Random, of_set: SetOptions = AS_THE_RUN) -> Example:
        """Read what the sample shows and tokenize its dialogue.

        Args:
            sample: validated sample.
            rng: generator of all draws for this sample in this epoch.
            of_set: options of the sample's set.

        Raises:
            InputError: errors of `read`; or a prompt that is too long to keep its frames and something to learn.
        """
        read = self.read(sample, rng, of_set)
        layout = layout_prompt(
            read.turns,
            tokenizer=self.tokenizer,
            template=self.template,
            system_message=self.system_message if sample.system_message is None else sample.system_message,
        )
        layout = truncate_layout(layout, self.max_length)
        pixels_TSSC = read.pixels_TSSC
        if pixels_TSSC is None or not len(pixels_TSSC):
            return Example(layout.input_ids, layout.labels, None, ())
        if of_set.data_augment:
            pixels_TSSC = _degrade(pixels_TSSC, rng)
        return Example(layout.input_ids, layout.labels, self.reader.transform.resized(pixels_TSSC), read.ratios)


def _degrade(pixels_TSSC: Pixels, rng: random.Random) -> Pixels:
    """Each picture through JPEG of a random quality."""
    degraded = np.empty_like(pixels_TSSC)
    for index, pixels_SSC in enumerate(pixels_TSSC):
        buffer = io.BytesIO()
        Image.fromarray(pixels_SSC).save(buffer, format="JPEG", quality=rng.randint(*JPEG_QUALITIES))
        degraded[index] = np.asarray(Image.open(buffer))
    return degraded
