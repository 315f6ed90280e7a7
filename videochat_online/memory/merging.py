"""What the memories share that average frames: a store whose frames count their members, and merging of neighbours.

Averages are computed in fp32 and kept in the features' own type: in bf16 a frame of several hundred members hardly
moves any more. A merged frame carries its newest member's index and time.

Shapes: `N` frames, `C` channels, `H` `W` rows and columns of the token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from videochat_online.errors import InputError
from videochat_online.memory.schedule import Grid
from videochat_online.memory.slots import FrameStore, check_entry
from videochat_online.types import FrameTokens


def average(older: FrameTokens, newer: FrameTokens, content_id: int, weights: tuple[int, int] = (1, 1)) -> FrameTokens:
    """The weighted average of two frames on one grid, as a frame at the newer one's time."""
    older_CHW, newer_CHW = older.tokens_CHW.float(), newer.tokens_CHW.float()
    # As a step from one to the other: the average of two equal frames is exactly the same frame.
    tokens_CHW = newer_CHW + (older_CHW - newer_CHW) * (weights[0] / sum(weights))
    return replace(newer, tokens_CHW=tokens_CHW.to(newer.tokens_CHW.dtype), content_id=content_id)


def merge_neighbours(
    frames: Sequence[FrameTokens], num_left: int, new_id: Callable[[FrameTokens, FrameTokens], int]
) -> list[FrameTokens]:
    """Merge the most similar neighbours until `num_left` frames are left, as MovieChat does.

    Similar is a large inner product of mean tokens, in fp32 and not normalised, so that frames of large features
    merge first; on a tie the earliest pair. Merging is the plain average, whatever was merged before.

    Args:
        frames: frames in time order, on one grid.
        num_left: frames that are left, at least 1.
        new_id: content id of the average of an older and a newer frame.
    """
    left = list(frames)
    if len(left) <= num_left:
        return left
    means = [mean_tokens(frame.tokens_CHW) for frame in left]
    while len(left) > num_left:
        means_NC = torch.stack(means)
        products = (means_NC[:-1] * means_NC[1:]).sum(1).tolist()
        position = products.index(max(products))
        older, newer = left[position : position + 2]
        merged = average(older, newer, new_id(older, newer))
        left[position : position + 2] = [merged]
        means[position : position + 2] = [mean_tokens(merged.tokens_CHW)]
    return left


def mean_tokens(tokens_CHW: Tensor) -> Tensor:
    """Mean token [C] of a frame, in fp32 whatever the features are."""
    return tokens_CHW.mean(dim=(1, 2), dtype=torch.float32)


class MergingStore(FrameStore):
    """A store in time order that takes one frame more than its capacity, so that a merge can make room.

    Each frame has a whole number beside it, which is saved: how many frames were merged in it, or what else its
    memory wants to know of it.
    """

    num_spare = 1

    def __init__(self, capacity: int, grid: Grid) -> None:
        super().__init__(capacity, grid)
        self.numbers: list[int] = []
        # By slot; computed when somebody asks, and forgotten with the slot's content.
        self._means: dict[int, Tensor] = {}

    @property
    def is_overfull(self) -> bool:
        """Whether two frames must become one before `read` may be called."""
        assert self.capacity is not None
        return len(self.entries) > self.capacity

    def insert(self, position: int, frame: FrameTokens, number: int = 1) -> int:
        """As `FrameStore.insert`, with the number that stands beside the frame."""
        slot = super().insert(position, frame)
        self.numbers.insert(position, number)
        self._means.pop(slot, None)
        return slot

    def remove(self, position: int) -> FrameTokens:
        """As `FrameStore.remove`."""
        del self.numbers[position]
        return super().remove(position)

    def merge(self, older: int, newer: int, content_id: int) -> None:
        """Replace the frames at two positions by their average, weighted by their numbers, where the newer one was."""
        weights = (self.numbers[older], self.numbers[newer])
        # Computed before the insert, which may reuse the slot that either frame is a view of.
        merged = average(self._view(older), self._view(newer), content_id, weights)
        self.remove(newer)
        self.remove(older)
        self.insert(newer - 1, merged, sum(weights))

    def merge_most_similar(self, content_id: int) -> None:
        """Merge the neighbours of highest cosine similarity; on a tie the earliest pair."""
        cosines = self.cosines()
        position = cosines.index(max(cosines))
        self.merge(position, position + 1, content_id)

    def frame(self, position: int) -> FrameTokens:
        """A copy of the frame at one position."""
        view = self._view(position)
        return replace(view, tokens_CHW=view.tokens_CHW.clone())

    def means(self) -> Tensor:
        """Mean tokens [N, C] in fp32, in order."""
        for entry in self.entries:
            if entry.slot not in self._means:
                self._means[entry.slot] = mean_tokens(self.slots[entry.slot])
        return torch.stack([self._means[entry.slot] for entry in self.entries])

    def cosines(self) -> list[float]:
        """Cosine similarity of the mean tokens of each frame and the next one, to six decimals.

        What follows is the rounding of fp32: without it, which of two repeated frames is "more similar" is chance.
        """
        means_NC = functional.normalize(self.means(), dim=1)
        # Not a matrix product: autocast and TF32 would round it.
        return [round(value, 6) for value in (means_NC[:-1] * means_NC[1:]).sum(1).tolist()]

    def state(self) -> dict[str, Tensor]:
        """As `FrameStore.state`, with the numbers."""
        return {**super().state(), "number": torch.tensor(self.numbers, dtype=torch.int64)}

    def load(self, state: Mapping[str, Tensor], device: torch.device | None, name: str) -> None:
        """As `FrameStore.load`, with the numbers."""
        super().load(state, device, name)
        check_entry(state["number"], f"{name}.number", (len(self.entries),), torch.int64)
        self.numbers = state["number"].tolist()
        if any(number < 1 for number in self.numbers):
            raise InputError(f"{name}.number of a memory state: expected numbers of at least 1, got {self.numbers}")

    def _view(self, position: int) -> FrameTokens:
        entry = self.entries[position]
        return FrameTokens(self.slots[entry.slot], entry.index, entry.time_s, entry.content_id)
