"""Text: chat templates, tokenisers, and the one layout of a prompt."""

from videochat_online.text.control_tokens import check_text, encode_text, encode_with_offsets
from videochat_online.text.counting import PromptCounter, PromptOutline
from videochat_online.text.prompt import (
    PromptLayout,
    frame_segments,
    layout_prompt,
    split_placeholders,
    trimmed,
    truncate_layout,
    turn_segments,
)
from videochat_online.text.sentencepiece_tokenizer import SentencePieceTokenizer
from videochat_online.text.templates import TEMPLATES, ChatTemplate, get_template, stored_template
from videochat_online.text.tokenizer import (
    add_special_tokens,
    end_token_id,
    image_context_id,
    load_tokenizer,
    stop_token_ids,
    token_id,
)

__all__ = [
    "TEMPLATES",
    "ChatTemplate",
    "PromptCounter",
    "PromptLayout",
    "PromptOutline",
    "SentencePieceTokenizer",
    "add_special_tokens",
    "check_text",
    "encode_text",
    "encode_with_offsets",
    "end_token_id",
    "frame_segments",
    "get_template",
    "layout_prompt",
    "load_tokenizer",
    "image_context_id",
    "split_placeholders",
    "stop_token_ids",
    "stored_template",
    "token_id",
    "trimmed",
    "truncate_layout",
    "turn_segments",
]
