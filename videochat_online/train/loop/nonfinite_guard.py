"""What teaches nothing: batches whose loss or gradients are NaN or infinite, and steps without anything to learn.

Both are counted. Too many such batches end a run. Such a step passes over its rows, so that a run ends where it would
and goes on where it stopped; weights, optimizer and schedule are after it what they were before.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from videochat_online.errors import InputError

MAX_IN_A_ROW = 100
"""So many batches of one process without finite numbers: the weights are spoilt, no further batch will help."""


class FiniteLosses:
    """Keeps numbers that are not finite out of the gradients of a step; other batches count as ever.

    Gradients are replaced as they come, one parameter after the other: a zero loss in place of the bad one would not
    do, since zero times NaN is NaN; and a process that left out its backward pass would be waited for by the others.
    Nothing waits for the device.

    Args:
        network: network as it is trained, adapters included.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._is_finite = torch.tensor(True)
        self._is_bad = torch.tensor(False)
        self._num_batches, self._is_open = 0, False
        self._num_bad = self._in_a_row = self._num_learned = torch.tensor(0)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._usable)

    def begin_step(self) -> None:
        """The next batches are of another optimizer step."""
        self._num_learned = torch.zeros_like(self._num_learned)

    def see(self, loss: Tensor, learns: Tensor | bool = True) -> None:
        """Tell the loss of a batch before its backward pass.

        Args:
            loss: loss of the batch.
            learns: whether anything of it is to be learned.
        """
        self._close()
        self._is_finite = torch.isfinite(loss.detach())
        self._is_bad = ~self._is_finite
        self._is_open = True
        self._num_learned = self._num_learned.to(loss.device) + (self._is_finite & learns)

    def has_learned(self, reduce: Any) -> bool:
        """Whether a batch of the running step, of any process, has something to learn and a finite loss.

        Args:
            reduce: sums a tensor over all processes; each of them has to call.
        """
        return bool(reduce(self._num_learned))

    def _usable(self, gradient: Tensor) -> Tensor:
        is_usable = self._is_finite & torch.isfinite(gradient).all()
        self._is_bad = self._is_bad | ~is_usable
        return torch.where(is_usable, gradient, 0)

    def _close(self) -> None:
        """Count the running batch, if there is one."""
        if not self._is_open:
            return
        self._is_open = False
        self._num_batches += 1
        bad = self._is_bad.long()
        self._num_bad = self._num_bad.to(bad.device) + bad
        self._in_a_row = (self._in_a_row.to(bad.device) + 1) * bad

    def take(self, reduce: Any) -> int:
        """How many batches of all processes were not wholly usable since the last call.

        Args:
            reduce: sums a tensor over all processes; each of them has to call.

        Raises:
            InputError: too many in a row.
        """
        self._close()
        # One process that raised before the others have its numbers would leave them waiting.
        is_spoilt = (self._in_a_row >= MAX_IN_A_ROW).to(self._num_bad)
        num_bad, num_spoilt = reduce(torch.stack((self._num_bad, is_spoilt))).tolist()
        if num_spoilt:
            raise self._diverged(max(MAX_IN_A_ROW, int(self._in_a_row)))
        self._num_bad = torch.zeros_like(self._num_bad)
        return int(num_bad)

    def unlogged(self) -> int:
        """How many batches of this process were not wholly usable since the last `take`."""
        self._close()
        return int(self._num_bad)

    def restore(self, num_bad: int) -> None:
        """Go on with the `unlogged` of the launch before."""
        self._num_bad = self._num_bad + num_bad

    def check_end(self, reduce: Any) -> None:
        """At the end of a run.

        Args:
            reduce: sums a tensor over all processes; each of them has to call.

        Raises:
            InputError: most of the batches of a process were bad, the last of them all: the run has diverged.
        """
        self._close()
        num_in_a_row = int(self._in_a_row)
        has_diverged = num_in_a_row > max(1, self._num_batches // 2)
        num = int(reduce(torch.tensor(num_in_a_row * has_diverged, device=self._in_a_row.device)))
        if num:  # of all processes to which it happened
            raise self._diverged(num)

    def check_weights(self, reduce: Any) -> None:
        """Before weights are saved.

        Raises:
            InputError: some are not finite.
        """
        device = self._is_finite.device
        bad = torch.zeros((), dtype=torch.long, device=device)
        for parameter in self._network.parameters():
            if parameter.requires_grad:
                local = getattr(parameter, "ds_tensor", parameter).detach()  # under ZeRO-3 this process's part
                bad += (~torch.isfinite(local).all()).long().to(device)
        num_bad = int(reduce(bad))
        if num_bad:
            raise InputError(
                f"{num_bad} tensors hold numbers that are not finite: the run has diverged and is not saved; its last"
                " checkpoint is from before"
            )

    def _diverged(self, num: int) -> InputError:
        return InputError(
            f"{num} batches in a row had no finite loss or gradients: lower learning_rate, or look at the model to"
            " start from"
        )


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
