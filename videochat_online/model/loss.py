"""Cross-entropy of a causal language model without the logits of a whole row.

Only supervised positions go through the head, in a fixed number of chunks, and each chunk's logits are computed again
in the backward pass: at no time are there more than those of one chunk. The number of calls of the head does not depend
on the data, since under ZeRO-3 each call gathers the head's weight and all processes have to gather equally often.

Knows no kind of language model: what stands between layers and logits (scaling, soft-capping) is the model's own
forward pass, run on top of hidden states. Whether that is all there is to its loss is tried out once, on small numbers.

Shape legend: `B` rows, `L` tokens, `N` supervised positions, `D` width of the language model.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from videochat_online.constants import IGNORE_INDEX

NUM_CHUNKS = 16
"""Calls of the head for one batch: `scripts/benchmarks/benchmark_loss.py`."""

Head = Callable[[Tensor], Tensor]
"""Logits [N, vocabulary] of hidden states [N, D]."""


@dataclass(frozen=True)  # without slots: DeepSpeed looks through what a forward pass returns
class TokenScores:
    """How well the supervised tokens of each row were foreseen.

    Attributes:
        loss_sum: summed cross-entropy of each row, fp32 [B].
        num_right: positions of each row where the token was the likeliest, int64 [B].
        num_tokens: supervised positions of each row, int64 [B].
    """

    loss_sum: Tensor
    num_right: Tensor
    num_tokens: Tensor


def chunked_loss(
    head: Head,
    hidden_BLD: Tensor,
    labels_BL: Tensor,
    num_items: Tensor | float | None = None,
    *,
    num_chunks: int = NUM_CHUNKS,
) -> Tensor:
    """Mean cross-entropy of the next token, as transformers has it for causal language models.

    Args:
        head: differentiable.
        hidden_BLD: last hidden states [B, L, D].
        labels_BL: ids [B, L], -100 where there is no loss; each is learned from the position before it.
        num_items: divisor of the sum; the number of supervised positions by default.
        num_chunks: calls of the head.

    Returns:
        The loss, fp32. Where nothing is supervised 0, with gradients of 0.
    """
    positions_N, labels_N = _supervised(labels_BL.to(hidden_BLD.device))
    total = hidden_BLD.new_zeros((), dtype=torch.float32)
    for hidden_ND, target_N in _chunks(hidden_BLD, positions_N, labels_N, num_chunks):
        total = total + checkpoint(_loss_sum, head, hidden_ND, target_N, use_reentrant=False)
    if isinstance(num_items, Tensor):
        num_items = num_items.to(total.device)
    return total / (max(1, len(positions_N)) if num_items is None else num_items)


@torch.no_grad()
def score_tokens(head: Head, hidden_BLD: Tensor, labels_BL: Tensor) -> TokenScores:
    """Loss and hits of each row; arguments as of `chunked_loss`. No gradients."""
    labels_BL = labels_BL.to(hidden_BLD.device)
    positions_N, labels_N = _supervised(labels_BL)
    losses, hits = [], []
    for hidden_ND, target_N in _chunks(hidden_BLD, positions_N, labels_N, NUM_CHUNKS):
        logits = head(hidden_ND).float()  # [N, vocabulary]
        losses.append(cross_entropy(logits, target_N, reduction="none"))
        hits.append(logits.argmax(dim=-1) == target_N)
    rows_N, num_rows = positions_N // labels_BL.shape[1], labels_BL.shape[0]
    hit_N = torch.cat(hits).long()
    counts = torch.zeros(num_rows, dtype=torch.long, device=rows_N.device)
    return TokenScores(
        loss_sum=torch.zeros(num_rows, device=rows_N.device).index_add(0, rows_N, torch.cat(losses)),
        num_right=counts.index_add(0, rows_N, hit_N),
        num_tokens=counts.index_add(0, rows_N, torch.ones_like(hit_N)),
    )


def _supervised(labels_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Positions in the flat batch [N] that learn the token after them, and these tokens [N]."""
    next_tokens = pad(labels_BL, (0, 1), value=IGNORE_INDEX)[:, 1:].flatten()  # [B L]
    positions_N = (next_tokens != IGNORE_INDEX).nonzero()[:, 0]  # the one wait for the device
    return positions_N, next_tokens[positions_N]


def _chunks(hidden_BLD: Tensor, positions_N: Tensor, target_N: Tensor, num: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Always so many parts, about equal, some of them empty where there is little."""
    hidden_ND = hidden_BLD.flatten(0, 1).index_select(0, positions_N)
    return zip(hidden_ND.tensor_split(num), target_N.tensor_split(num), strict=True)


def _loss_sum(head: Head, hidden_ND: Tensor, target_N: Tensor) -> Tensor:
    return cross_entropy(head(hidden_ND).float(), target_N, reduction="sum")


class _StandIn(nn.Module):
    """A function that stands in for a module, called with names. The module's numbers can be read, not its parts."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__["_module"] = module  # not a child
        self._function = function

    def forward(self, *arguments: Any, **options: Any) -> Any:
        names = list(inspect.signature(type(self._module).forward).parameters)[1:]
        return self._function(**dict(zip(names, arguments, strict=False)), **options)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if callable(value):
            raise AttributeError(name)
        return value


class _Untold(BaseModelOutputWithPast):
    """Output of the layers whose other fields are NaN: a loss that reads anything but hidden states becomes NaN."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return (torch.full((1, 1), torch.nan),)


class HeadFinder:
    """Finds what makes logits of last hidden states. Holds whether the last language model asked about has that."""

    def __init__(self) -> None:
        self._asked: tuple[Any, ...] = ()
        self._is_plain = False

    def find(self, language_model: PreTrainedModel) -> Head | None:
        """All of a language model's forward pass that comes after its layers (`base_model`).

        None where hidden states and labels alone do not make its loss, or where somebody has replaced its forward
        pass: then only that may compute it.
        """
        if "forward" in vars(language_model):
            return None
        asked = (type(language_model), language_model.loss_function, str(language_model.config))
        if asked != self._asked:
            self._asked, self._is_plain = asked, _is_plain(language_model)
        return _head(language_model) if self._is_plain else None


def _head(language_model: PreTrainedModel) -> Head:
    layers = language_model.base_model
    top = _with(language_model, {language_model.base_model_prefix: _StandIn(layers, _as_output)})
    forward = type(language_model).forward  # not the module: hooks are of the whole model

    def head(hidden_ND: Tensor) -> Tensor:
        logits: Tensor = forward(top, inputs_embeds=hidden_ND[None]).logits[0]
        return logits

    return head


def _as_output(*, inputs_embeds: Tensor, **options: Any) -> _Untold:
    return _Untold(last_hidden_state=inputs_embeds)


def _with(language_model: PreTrainedModel, modules: dict[str, nn.Module]) -> PreTrainedModel:
    """The same object but for some of its direct children; the rest is shared."""
    other = copy.copy(language_model)
    other.__dict__["_modules"] = {**language_model._modules, **modules}
    return other


def _is_plain(language_model: PreTrainedModel) -> bool:
    """Whether the loss is the cross-entropy of logits that are made of each last hidden state by itself.

    Tried with stand-ins for layers and head, so that no weight is touched (under ZeRO-3 they are elsewhere).
    """
    children = {id(module): name for name, module in language_model.named_children()}
    layers, head = (children.get(id(m)) for m in (language_model.base_model, language_model.get_output_embeddings()))
    if layers is None or head is None:
        return False
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
            return _try_out(language_model, layers, head)
    except Exception:  # whatever does not take hidden states like this is no such model
        return False


def _try_out(language_model: PreTrainedModel, layers: str, head: str) -> bool:
    num_words = language_model.config.get_text_config().vocab_size
    draw = torch.Generator("cpu").manual_seed(0)
    hidden, embeds, weight = (torch.randn(shape, generator=draw) for shape in ((1, 5, 4), (1, 5, 4), (num_words, 4)))
    given = {
        "inputs_embeds": embeds,
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0]]),
        "position_ids": torch.tensor([[0, 1, 0, 1, 2]]),
        "use_cache": False,
    }
    got: dict[str, Any] = {}

    def output(**options: Any) -> _Untold:
        got.update(options)
        return _Untold(last_hidden_state=hidden)

    def logits_of(**options: Any) -> Tensor:
        (last,) = options.values()
        return 4 * linear(last, weight)

    below, above = language_model.get_submodule(layers), language_model.get_submodule(head)
    with_head = _with(language_model, {head: _StandIn(above, logits_of)})
    top = _with(with_head, {layers: _StandIn(below, output)})
    bottomless = _with(with_head, {layers: _StandIn(below, _as_output)})
    forward = type(language_model).forward
    labels = torch.tensor([[0, IGNORE_INDEX, 1, num_words - 1, IGNORE_INDEX]])
    outputs = forward(top, **given, labels=labels)
    if any(got.pop(name, None) is not value for name, value in given.items()):
        return False
    if any(value is not None and value is not False for value in got.values()):
        return False
    order = torch.tensor([3, 0, 4, 2, 1])
    logits = forward(bottomless, inputs_embeds=hidden[:, order]).logits
    summed = forward(top, **given, labels=labels, num_items_in_batch=7).loss
    pairs = (
        (logits, outputs.logits[:, order]),
        (outputs.loss, chunked_loss(lambda x: x, outputs.logits, labels, num_chunks=1)),
        (summed, chunked_loss(lambda x: x, outputs.logits, labels, 7, num_chunks=1)),
    )
    return all(torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in pairs)
