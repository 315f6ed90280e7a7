"""Merging instead of dropping: the most similar neighbours become one frame.

Source: the ablation "token merging" of VideoChat-Online (arXiv 2501.00584), which stands for the merging of MovieChat
(arXiv 2307.16449) and of ToMe (arXiv 2210.09461). From ToMe: merging by cosine similarity, with weights carried. Our
decision: whole frames merge, token by token of their grids, and only with their neighbour in time. Merging single
tokens, as ToMe does, would leave frames that are no rectangle of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from videochat_online.memory.merging import MergingStore
from videochat_online.memory.options import OneGridOptions
from videochat_online.memory.schedule import Count
from videochat_online.memory.slots import FrameStore
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.parts import option
from videochat_online.types import FrameTokens


class TokenMergingMemoryBank(TieredMemoryBank):
    """At most `num_frames` frames; beyond that the two most similar neighbours become their weighted average.

    A frame that arrives takes part at once. Similar is the cosine of mean tokens (fp32; the earliest pair on a tie).
    A frame's weight is the number of frames merged in it. A merged frame has its newest member's index and time and a
    new, negative content id. With `num_frames=1` all is one average.
    """

    kind = "token_merging"

    @dataclass(frozen=True, kw_only=True)
    class Options(OneGridOptions):
        """Options of the memory; its grid is half the full one unless another is given."""

        ratio = 2
        num_frames: Count = option(13, "frames kept")

    options: Options

    def _empty_stores(self) -> list[FrameStore]:
        return [MergingStore(self.options.num_frames, self._grid)]

    def _admit(self, level: int, frame: FrameTokens) -> None:
        store = cast(MergingStore, self.stores[level])
        store.insert(len(store), self._fit(frame, store))
        if store.is_overfull:
            store.merge_most_similar(self._new_content_id())
