"""Batches whose loss is NaN or infinite: they teach nothing, they are counted, and too many in a row end a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from videochat_online.errors import InputError

MAX_IN_A_ROW = 100
"""So many batches of one process without a finite loss: the weights are spoilt, no further batch will help."""


class FiniteLosses:
    """Keeps a batch whose loss is not finite out of the gradients of its step; other batches count as ever.

    Gradients are replaced as they come, one parameter after the other: a zero loss in place of the bad one would not
    do, since zero times NaN is NaN; and a process that left out its way back would be waited for by the others.
    Nothing waits for the device.

    Args:
        network: as it is trained, adapters included.
    """

    def __init__(self, network: nn.Module) -> None:
        self._is_finite = torch.tensor(True)
        self._num_bad = torch.tensor(0)
        self._in_a_row = torch.tensor(0)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._usable)

    def see(self, loss: Tensor) -> None:
        """Tell the loss of a batch before its way back."""
        self._is_finite = torch.isfinite(loss.detach())
        bad = (~self._is_finite).long()
        self._num_bad = self._num_bad.to(bad.device) + bad
        self._in_a_row = (self._in_a_row.to(bad.device) + 1) * bad

    def _usable(self, gradient: Tensor) -> Tensor:
        return torch.where(self._is_finite, gradient, 0)

    def take(self, reduce: Any) -> dict[str, float]:
        """How many batches of all processes had to be left out since the last call, for a log; empty where none.

        Args:
            reduce: sums a tensor over all processes; each of them has to call.

        Raises:
            InputError: too many in a row.
        """
        if int(self._in_a_row) >= MAX_IN_A_ROW:
            raise InputError(
                f"the loss of {int(self._in_a_row)} batches in a row was not finite: lower learning_rate, or look at"
                " the model to start from"
            )
        num_bad = int(reduce(self._num_bad))
        self._num_bad = torch.zeros_like(self._num_bad)
        return {"nonfinite_batches": num_bad} if num_bad else {}
