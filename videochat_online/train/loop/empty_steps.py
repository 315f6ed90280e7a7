"""Steps that have nothing to learn from: how many there are, and means without them.

Such a step passes over its rows, so that a run ends where it would and goes on where it stopped; weights, optimizer and
schedule are after it what they were before.
"""

from __future__ import annotations

import math


class StepAccount:
    """Which steps of a launch learn.

    Attributes:
        is_empty: whether nothing is learned in the running step.
    """

    def __init__(self) -> None:
        self.is_empty = False
        self._num_steps = self._num_empty = 0
        self._num_logged = self._num_logged_empty = 0

    def begin(self) -> None:
        """The next step."""
        self._num_steps += 1
        self.is_empty = False

    def empty(self) -> None:
        """The running step learns nothing."""
        self.is_empty = True
        self._num_empty += 1

    def take(self, mean: float) -> tuple[float, int]:
        """The mean of the steps since the last call that learned, NaN without any; and how many did not.

        Args:
            mean: mean over all of them, the others being zero.
        """
        steps, empty = self.unlogged()
        self._num_logged, self._num_logged_empty = self._num_steps, self._num_empty
        return _without(mean, steps, empty), empty

    def unlogged(self) -> tuple[int, int]:
        """How many steps there were since the last `take`, and how many of them learned nothing."""
        return self._num_steps - self._num_logged, self._num_empty - self._num_logged_empty

    def restore(self, num_steps: int, num_empty: int) -> None:
        """Go on with the `unlogged` of the launch before, whose steps are none of this one."""
        self._num_logged, self._num_logged_empty = -num_steps, -num_empty

    def of_launch(self, mean: float) -> float:
        """The same for all steps."""
        return _without(mean, self._num_steps, self._num_empty)


def _without(mean: float, num: int, num_empty: int) -> float:
    return mean * num / (num - num_empty) if num > num_empty else math.nan
