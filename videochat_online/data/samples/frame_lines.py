"""Tokens of the lines around frames, counted once for each number of a frame and each number of digits of its time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from videochat_online.text import PromptCounter, turn_segments
from videochat_online.types import FrameUse, Turn

MAX_DIGITS = 8
"""Digits of whole seconds: more than three years."""

NUM_TIMES = 1000
"""Number of times of as many digits that are tried for the one with the most tokens."""

_POWERS = 10.0 ** np.arange(1, MAX_DIGITS)


class FrameLines:
    """Lines such as `Frame12 at 11.5s: <img></img>` and `Frame12: <img></img>`.

    A time is known about: of all that have as many digits it is taken for the one with the most tokens.

    Args:
        prompts: counts.
    """

    def __init__(self, prompts: PromptCounter) -> None:
        self._prompts = prompts
        self._by_index = {with_times: np.zeros(0, dtype=np.int64) for with_times in (False, True)}
        self._longest: list[tuple[float, int]] = []

    def tokens(self, indices_T: np.ndarray, times_T: np.ndarray | None = None) -> np.ndarray:
        """Tokens of lines without their visual ones, where each follows another line.

        Args:
            indices_T: numbers of frames, from 0.
            times_T: seconds; without them lines have no time.
        """
        if not len(indices_T):
            return np.zeros(0, dtype=np.int64)
        by_index = self._of_indices(int(indices_T.max()) + 1, times_T is not None)[indices_T]
        if times_T is None:
            return by_index
        digits_T = np.searchsorted(_POWERS, times_T, side="right")
        more = [self._longest_of(digits)[1] for digits in range(int(digits_T.max()) + 1)]
        return by_index + np.array(more)[digits_T]

    def frame(self, index: int, time_s: float | None = None) -> FrameUse:
        """A frame of one visual token, with the time that `tokens` takes."""
        if time_s is None:
            return FrameUse(index, 0.0, 1)
        return FrameUse(index, self._longest_of(int(np.searchsorted(_POWERS, time_s, side="right")))[0], 1)

    def _of_indices(self, num: int, with_times: bool) -> np.ndarray:
        known = self._by_index[with_times]
        if len(known) < num:
            more = [FrameUse(index, 0.0, 1) for index in range(len(known), 2 * num)]
            known = self._by_index[with_times] = np.append(known, self._count(more, with_times))
        return known

    def _longest_of(self, digits: int) -> tuple[float, int]:
        while len(self._longest) <= digits:
            self._longest.append(self._find_longest(len(self._longest)))
        return self._longest[digits]

    def _find_longest(self, digits: int) -> tuple[float, int]:
        """Of times with so many digits after the first: the one of the most tokens, and how many more than 0.0 has."""
        lowest, count = (10 ** (digits + 1) if digits else 0), (9 * 10 ** (digits + 1) if digits else 100)
        step = 1 if count <= NUM_TIMES else 9973  # spread, in all digits
        times_s = [(lowest + number * step % count) / 10 for number in range(min(count, NUM_TIMES))]
        zero, *counted = self._count([FrameUse(1, time_s, 1) for time_s in (0.0, *times_s)], True).tolist()
        longest = max(range(len(counted)), key=counted.__getitem__)
        return times_s[longest], counted[longest] - zero

    def _count(self, frames: Sequence[FrameUse], with_times: bool) -> np.ndarray:
        first = FrameUse(0, 0.0, 1)
        shown = [[first], *([first, frame] for frame in frames)]
        turns = [Turn(turn_segments(some, "x", with_times=with_times), "x") for some in shown]
        alone, *counted = self._prompts.count([self._prompts.outline([turn]) for turn in turns])
        return np.array(counted, dtype=np.int64) - alone - 1
