"""Frames that show something new: what repeats the last frame that was kept is dropped.

Source: the differential token drop of TimeChat-Online (arXiv 2504.17343), which drops each token that is more similar
than a threshold to the token at the same grid position before it. Our decision: a frame is kept or dropped as a whole,
by the mean of those similarities over its grid, since a remembered frame is a rectangle of tokens; it is compared with
the last frame that was kept, so that slow changes add up. The paper keeps what passes for ever; here the oldest go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from torch.nn import functional

from videochat_online.memory.options import OneGridOptions
from videochat_online.memory.schedule import Count
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.parts import option
from videochat_online.types import FrameTokens


class SimilarityDropMemoryBank(TieredMemoryBank):
    """The last `num_frames` frames that differ from the one kept before them; the oldest leaves first.

    A frame is dropped if the cosine similarity of its tokens to the tokens at the same positions of the last frame that
    was kept (fp32, on the memory's grid), averaged over the grid, is above `threshold`.
    """

    kind = "similarity_drop"

    @dataclass(frozen=True, kw_only=True)
    class Options(OneGridOptions):
        """Options of the memory; its grid is the full one unless another is given."""

        num_frames: Count = option(4, "frames kept")
        threshold: Annotated[float, Ge(-1), Le(1)] = option(
            0.9, "frames more similar are dropped; 1 drops next to none, -1 keeps little but the first frame"
        )

    options: Options

    def _admit(self, level: int, frame: FrameTokens) -> None:
        store = self.stores[level]
        fitted = self._fit(frame, store)
        if len(store):
            last_CHW = store.slots[store.entries[-1].slot].float()
            similarity = functional.cosine_similarity(last_CHW, fitted.tokens_CHW.to(last_CHW), dim=0).mean()
            if float(similarity) > self.options.threshold:
                return
        if store.is_full:
            store.remove(0)
        store.insert(len(store), fitted)
