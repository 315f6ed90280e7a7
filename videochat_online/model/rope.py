"""The regime of Phi-3's LongRoPE, fixed for a whole request.

LongRoPE has two sets of frequencies: a short one up to the original maximum length, a long one beyond. Left
alone, transformers chooses in every forward pass from the positions it sees, so a generation that crosses the
maximum mixes keys of both. Here the choice is made once, from the length that prompt and answer can reach,
and holds for every pass of the request. Llama, Qwen and InternLM2 have no such switch.

Shape legend: `B` rows, `L` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# Per context, hence per thread: two sessions may generate in different regimes at once.
_LONG_REGIME: ContextVar[bool | None] = ContextVar("long_regime", default=None)


@contextmanager
def fixed_regime(long: bool | None) -> Iterator[None]:
    """Hold the regime for every forward pass inside. None: by the length of each sequence, pads included."""
    token = _LONG_REGIME.set(long)
    try:
        yield
    finally:
        _LONG_REGIME.reset(token)


def switch_length(language_model: nn.Module) -> int | None:
    """Length above which the language model uses its long frequencies; None where there is no switch."""
    for module in language_model.modules():
        if isinstance(module, LongRotaryEmbedding):
            return module.switch_length
    return None


def sequence_lengths(position_ids: Tensor) -> Tensor:
    """For each token the length of the sequence it belongs to, as far as it is there: [B, L].

    Several sequences may be packed in a row; a new one starts where positions do not go on.
    """
    starts = torch.ones_like(position_ids)
    starts[:, 1:] = position_ids.diff(dim=1) != 1
    sequences = starts.cumsum(dim=1) - 1
    lengths = torch.zeros_like(position_ids).scatter_reduce(1, sequences, position_ids + 1, "amax")
    return lengths.gather(1, sequences)


class LongRotaryEmbedding(nn.Module):
    """Rotary embedding with a short and a long set of frequencies and an explicit choice between them.

    Same numbers as `Phi3RotaryEmbedding`; unlike it, a forward pass changes no buffer, so that concurrent
    requests cannot disturb each other.

    Args:
        config: the language model's, with `rope_parameters` of type "longrope".
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        parameters = config.rope_parameters
        self.switch_length = int(parameters["original_max_position_embeddings"])
        init = ROPE_INIT_FUNCTIONS["longrope"]
        short, self.attention_scaling = init(config, torch.device("cpu"), seq_len=self.switch_length)
        long, _ = init(config, torch.device("cpu"), seq_len=self.switch_length + 1)
        # Kept out of the state dict, and in fp32 whatever the model is cast to.
        self._short, self._long = short.float(), long.float()

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine tables.

        Args:
            x: gives dtype and device.
            position_ids: [B, L].

        Returns:
            Two tensors [B, L, head_dim].
        """
        long = _LONG_REGIME.get()
        if self._short.device != x.device:
            self._short, self._long = self._short.to(x.device), self._long.to(x.device)
        if long is None:
            is_long_BL = sequence_lengths(position_ids) > self.switch_length
            frequencies = torch.where(is_long_BL[..., None], self._long, self._short)
        else:
            frequencies = self._long if long else self._short
        angles = position_ids[..., None].float() * frequencies  # [B, L, head_dim / 2]
        angles = torch.cat((angles, angles), dim=-1)
        scaling = self.attention_scaling
        return (angles.cos() * scaling).to(x.dtype), (angles.sin() * scaling).to(x.dtype)


def use_explicit_regime(language_model: PreTrainedModel) -> None:
    """Give a freshly built language model of LongRoPE type our rotary embedding; leave others as they are."""
    config = language_model.config
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "longrope":
        language_model.model.rotary_emb = LongRotaryEmbedding(config)
