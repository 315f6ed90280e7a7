"""Examples -> one batch of tensors: padded side by side, or packed one after another.

Shape legend: `T` frames or tiles, `S` pixels a side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from videochat_online.constants import IGNORE_INDEX
from videochat_online.data.batches.training_dataset import SkippedSample
from videochat_online.data.samples.encoding import Example

BATCH_REPORT = "batch_report"
"""Key of a batch under which its `BatchReport` travels; the trainer takes it out before the model sees it."""


@dataclass(frozen=True, slots=True)
class BatchReport:
    """How many items a batch was asked for, which of them could not be used, and how many have fewer pictures."""

    num_items: int
    skipped: tuple[SkippedSample, ...]
    num_reduced: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Collator:
    """Pads on the right, with no attention on pads; frames of all samples stand in one tensor.

    A batch without any frame gets a blank one whose visual tokens are pads: without it the processes of a
    distributed step would not run the same parts of the model. Nothing attends to those tokens and nothing is
    learned from them.

    Pixels stay bytes, as the reader has them: who moves a batch to a device normalises them there.

    With `pad_id=0`, `image_token_id=9`, and a question about one frame (of 4 tokens, pooled by 2 to 1) beside a text:

        >>> frame = np.zeros((1, 56, 56, 3), np.uint8)
        >>> collate([Example((1, 9, 5, 7), (-100, -100, -100, 7), frame, (2,)), Example((1, 8), (-100, 8), None, ())])
        {'input_ids': tensor([[1, 9, 5, 7], [1, 8, 0, 0]]),
         'labels': tensor([[-100, -100, -100, 7], [-100, 8, -100, -100]]),
         'attention_mask': tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
         'pixel_values': bytes of shape [1, 56, 56, 3],
         'pool_ratios': (2,),
         'batch_report': BatchReport(num_items=2, skipped=(), num_reduced=0)}

    Attributes:
        pad_id: any id; it is never attended to.
        image_token_id: id of <IMG_CONTEXT>.
        image_size: pixels a side of a blank frame.
        blank_ratio: pooling of a blank frame.
        num_blank_tokens: number of visual tokens of a pooled blank frame.
    """

    pad_id: int
    image_token_id: int
    image_size: int
    blank_ratio: int
    num_blank_tokens: int

    def __call__(self, items: Sequence[Example | SkippedSample]) -> dict[str, Any]:
        """Batch the usable items; without any, one that nothing is learned from."""
        examples, skipped = _split(items)
        examples = examples or [Example((self.pad_id,), (IGNORE_INDEX,), None, ())]
        ids, labels = [example.input_ids for example in examples], [example.labels for example in examples]
        masks = [(1,) * len(example) for example in examples]
        if not any(example.pool_ratios for example in examples):
            blank = self._blank()
            ids[0] += blank.input_ids
            labels[0] += blank.labels
            masks[0] += (0,) * len(blank)
            examples.append(blank)
        return {
            "input_ids": _padded(ids, self.pad_id),
            "labels": _padded(labels, IGNORE_INDEX),
            "attention_mask": _padded(masks, 0),
            **_pictures(examples),
            BATCH_REPORT: BatchReport(len(items), skipped),
        }

    def pack(self, packs: Iterable[Sequence[Example | SkippedSample]]) -> dict[str, Any]:
        """Put all examples of a batch of packs one after another into one row, without padding.

        Positions count from 0 in each example. That, and that there is no attention mask, is what transformers
        knows packed rows by: no example attends to another. A row without any frame gets an example of nothing
        but a blank one.

            >>> question, text = Example((1, 9, 5), (-100, -100, 5), frame, (2,)), Example((1, 8), (-100, 8), None, ())
            >>> collator.pack([(question, text)])
            {'input_ids': tensor([[1, 9, 5, 1, 8]]),
             'labels': tensor([[-100, -100, 5, -100, 8]]),
             'position_ids': tensor([[0, 1, 2, 0, 1]]),
             'pixel_values': bytes of shape [1, 56, 56, 3],
             'pool_ratios': (2,),
             'batch_report': BatchReport(num_items=2, skipped=(), num_reduced=0)}
        """
        items = list(chain.from_iterable(packs))
        examples, skipped = _split(items)
        if not any(example.pool_ratios for example in examples):
            examples.append(self._blank())
        ids = list(chain.from_iterable(example.input_ids for example in examples))
        # The first token of an example would be learned from the last of the one before.
        labels = [(IGNORE_INDEX, *example.labels[1:]) for example in examples]
        return {
            "input_ids": torch.tensor([ids]),
            "labels": torch.tensor([list(chain.from_iterable(labels))]),
            "position_ids": torch.cat([torch.arange(len(example)) for example in examples])[None],
            **_pictures(examples),
            BATCH_REPORT: BatchReport(len(items), skipped, sum(example.is_reduced for example in examples)),
        }

    def _blank(self) -> Example:
        """A blank frame alone, from which nothing is learned."""
        ids = (self.image_token_id,) * self.num_blank_tokens
        frame_TSSC = np.zeros((1, self.image_size, self.image_size, 3), np.uint8)
        return Example(ids, (IGNORE_INDEX,) * len(ids), frame_TSSC, (self.blank_ratio,))


def _split(items: Sequence[Example | SkippedSample]) -> tuple[list[Example], tuple[SkippedSample, ...]]:
    """The usable items, and the others."""
    examples = [item for item in items if isinstance(item, Example)]
    return examples, tuple(item for item in items if isinstance(item, SkippedSample))


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of numbers as one int64 tensor [rows, longest], filled up on the right."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def _pictures(examples: Sequence[Example]) -> dict[str, Any]:
    """Pixels of all examples [T, S, S, 3], and by how much each of the T is pooled."""
    pixels = [example.pixels_TSSC for example in examples if example.pixels_TSSC is not None]
    return {
        "pixel_values": torch.from_numpy(np.concatenate(pixels)),
        "pool_ratios": tuple(ratio for example in examples for ratio in example.pool_ratios),
    }
