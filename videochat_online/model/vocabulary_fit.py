"""A language model's vocabulary made to fit a tokenizer that has learned about pictures."""

from __future__ import annotations

import logging

from transformers import PreTrainedTokenizerBase

from videochat_online.errors import CheckpointError
from videochat_online.model.modeling import VideoChatOnlineForConditionalGeneration
from videochat_online.text import add_special_tokens, visual_token_id

logger = logging.getLogger(__name__)


def fit_vocabulary(
    network: VideoChatOnlineForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, *, grows: bool = True
) -> None:
    """Let a network know the tokens of pictures.

    Args:
        network: its configuration gets the id of <IMG_CONTEXT>.
        tokenizer: the tokenizer that it is used with.
        grows: whether room is made for tokens that are missing; new ones start at the mean of the others.

    Raises:
        CheckpointError: the tokenizer has ids that the language model never embedded, or lacks tokens of pictures.
    """
    num_added = add_special_tokens(tokenizer) if grows else 0
    largest, size = max(tokenizer.get_vocab().values()), network.config.text_config.vocab_size
    if largest >= size:
        if not num_added:
            found = f"{tokenizer.name_or_path} has ids up to {largest}"
            raise CheckpointError(f"tokenizer: {found}, the language model embeds only {size}")
        network.resize_token_embeddings(largest + 1, mean_resizing=False)
        for embeddings in (network.get_input_embeddings(), network.get_output_embeddings()):
            weight = embeddings.get_parameter("weight").data
            weight[size:] = weight[:size].mean(dim=0, keepdim=True)
        logger.warning("added %d tokens for pictures to the vocabulary", num_added)
    network.config.image_token_id = visual_token_id(tokenizer)
