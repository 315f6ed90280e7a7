"""Weights in 8 bits, on any device (torchao): each row of a matrix as int8 with a scale of its own.

Activations keep their precision, and a weight is scaled back where it is multiplied: half the memory of bfloat16 for
answers that differ a little. Embeddings, heads, the projector and norms stay exact: small, or all answers go through
them.
"""

from __future__ import annotations

from videochat_online.model.modeling import VideoChatOnlineForConditionalGeneration


def quantize_weights(network: VideoChatOnlineForConditionalGeneration, part: str) -> None:
    """Replace the matrices of a part's layers, for good: such a network cannot be trained or saved.

    Args:
        network: network on its device, in its dtype.
        part: a name in `compiling.PARTS`.
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layers = {"vision": [network.vision_tower], "language": [network.language_model.model]}
    for module in layers.get(part) or sum(layers.values(), []):
        # Without `set_inductor_config` nothing of the process's own settings changes.
        quantize_(module, Int8WeightOnlyConfig(set_inductor_config=False))
