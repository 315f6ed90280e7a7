"""Text: chat templates, tokenisers, and the one layout of a prompt."""

from videochat_online.text.control_tokens import check_text, encode_text, encode_with_offsets
from videochat_online.text.counting import PromptCounter, PromptOutline
from videochat_online.text.prompt import (
    PromptLayout,
    layout_prompt,
    split_placeholders,
    trimmed,
    truncate_layout,
)
from videochat_online.text.sentencepiece_tokenizer import SentencePieceTokenizer
from videochat_online.text.templates import TEMPLATES, ChatTemplate, get_template, stored_template
from videochat_online.text.tokenizer import (
    add_special_tokens,
    end_token_id,
    load_tokenizer,
    stop_token_ids,
    token_id,
    visual_token_id,
)
from videochat_online.text.wording import INTERNVL, Wording

__all__ = [
    "INTERNVL",
    "TEMPLATES",
    "ChatTemplate",
    "PromptCounter",
    "PromptLayout",
    "PromptOutline",
    "SentencePieceTokenizer",
    "add_special_tokens",
    "Wording",
    "check_text",
    "encode_text",
    "encode_with_offsets",
    "end_token_id",
    "get_template",
    "layout_prompt",
    "load_tokenizer",
    "split_placeholders",
    "stop_token_ids",
    "stored_template",
    "token_id",
    "trimmed",
    "truncate_layout",
    "visual_token_id",
]
