"""FlashAttention 2's functions in plain torch, for any device and precision, and a way past transformers' checks.

Restates what the package documents: rows of queries and keys of different lengths are aligned at their ends (bottom
right) where attention is causal; a window counts keys to the left and right of that place, -1 has no bound; few key
heads serve several query heads; queries without any key give 0. `flash_attn_varlen_func` takes rows one after another,
whose borders are `cu_seqlens`, and stands for `flash_attn_func` as well.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils as flash_utils
from transformers import modeling_utils
from transformers.integrations import flash_attention

CALLS: list[tuple[str, int, tuple[int, ...]]] = []
"""Calls: the function, the number of queries in all, and the borders of rows that it was given."""


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool, window: tuple[int, int], softcap: float
):
    """Of one row: [Lq, H, E] and [Lk, G, E]."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhe,khe->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    place = torch.arange(len(q), device=q.device)[:, None] + len(k) - len(q)
    distance = torch.arange(len(k), device=q.device)[None] - place  # of a key to the right of the query
    left, right = window
    right = 0 if causal else right
    seen = torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        seen &= distance >= -left
    if right >= 0:
        seen &= distance <= right
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    weights = scores.float().softmax(-1).to(v.dtype) * seen.any(1)[None, :, None]
    return torch.einsum("hqk,khe->qhe", weights, v)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int = 0,
    max_seqlen_k: int = 0,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """Attention within rows that stand one after another: [tokens, heads, E]; without borders of rows of one length:
    [B, L, heads, E].
    """
    assert dropout_p == 0
    if cu_seqlens_q is None or cu_seqlens_k is None:
        CALLS.append(("rows", q.shape[0] * q.shape[1], ()))
        rows = [(q[row], k[row], v[row]) for row in range(len(q))]
    else:
        borders_q, borders_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
        assert (borders_q[0], borders_q[-1], borders_k[-1]) == (0, len(q), len(k))
        lengths = [(cu_seqlens_q, max_seqlen_q), (cu_seqlens_k, max_seqlen_k)]
        assert all(cu.dtype == torch.int32 and int(cu.diff().max()) <= int(longest) for cu, longest in lengths)
        CALLS.append(("borders", len(q), tuple(borders_q)))
        sizes_q, sizes_k = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
        rows = list(zip(q.split(sizes_q), k.split(sizes_k), v.split(sizes_k), strict=True))
    parts = [_attend(*row, softmax_scale, causal, window_size, softcap) for row in rows]
    return torch.stack(parts) if cu_seqlens_q is None else torch.cat(parts)


flash_attn_func = flash_attn_varlen_func


@contextmanager
def installed(patch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int, tuple[int, ...]]]]:
    """`attn_implementation="flash_attention_2"` works inside, on the CPU and in fp32; gives the calls."""
    package, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    functions: dict[str, Any] = {
        "flash_attn_func": flash_attn_func,
        "flash_attn_varlen_func": flash_attn_varlen_func,
        "flash_attn_with_kvcache": None,
    }
    vars(package).update(functions)
    # transformers keeps functions of the same names and meaning for versions without them.
    vars(padding).update(pad_input=flash_utils._pad_input, unpad_input=flash_utils._unpad_input)
    patch.setitem(sys.modules, "flash_attn", package)
    patch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    patch.setattr(flash_utils, "is_flash_attn_2_available", lambda *a, **k: True)
    patch.setattr(flash_utils, "_loaded_implementation", None)
    patch.setattr(flash_attention, "_use_top_left_mask", False)
    patch.setattr(modeling_utils, "is_flash_attn_greater_or_equal", lambda version: True)
    entry = flash_utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    here = ((lambda: True, "cpu"),)
    patch.setitem(entry, "general_availability_check", lambda *a, **k: True)
    patch.setitem(entry, "supported_devices", here)
    CALLS.clear()
    yield CALLS
