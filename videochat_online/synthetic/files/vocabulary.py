"""All words that can occur in a data set, for a tokenizer that knows words only."""

from __future__ import annotations

import re
from string import ascii_uppercase

from videochat_online.synthetic.files.training_clips import CAPTION_QUESTION, COLOUR_QUESTION, IMAGE_QUESTION
from videochat_online.synthetic.questions.facts_several import DISTANCES
from videochat_online.synthetic.questions.question_templates import TEMPLATES
from videochat_online.synthetic.scene.episodes import BUILDERS, COUNTS
from videochat_online.synthetic.scene.one_shape import OPTIONS
from videochat_online.synthetic.scene.words import (
    ACTIONS,
    PATTERNS,
    SEVERAL_COLOURS,
    SEVERAL_SHAPES,
    SINGLE_COLOURS,
    SINGLE_SHAPES,
    SPANS,
)
from videochat_online.text.questions import (
    BEST_OPTION_PREFIX,
    OFFLINE_SUFFIX,
    OVBENCH_SYSTEM_MESSAGE,
    SLIDING_WINDOW_SUFFIX,
    STREAMING_SUFFIX,
    ovbench_question,
)

WORD_PATTERN = r"[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]"
"""A word is a run of letters, a digit, or a single other sign; blanks and line ends are between words."""

_PROMPT_TEXTS = (
    OVBENCH_SYSTEM_MESSAGE,
    ovbench_question("", list(ascii_uppercase[:4]), asked_at_s=0.0),
    STREAMING_SUFFIX,
    SLIDING_WINDOW_SUFFIX,
    OFFLINE_SUFFIX,
    BEST_OPTION_PREFIX,
    "Frame1 at 0.0s:",
    "0123456789",
    ", then",
)


def words_in(text: str) -> list[str]:
    """The words of a text in order, as `WORD_PATTERN` cuts them."""
    return re.findall(WORD_PATTERN, text)


def vocabulary(world: str) -> list[str]:
    """Every word of a world's questions, answers and captions and of the prompts around them, sorted."""
    if world == "single":
        names = (*SINGLE_COLOURS, *SINGLE_SHAPES)
        texts = [TEMPLATES[name].text for name in OPTIONS]
        texts += [option for options in OPTIONS.values() for option in options]
        texts += [CAPTION_QUESTION, COLOUR_QUESTION, IMAGE_QUESTION]
    else:
        names = (*SEVERAL_COLOURS, *SEVERAL_SHAPES, *PATTERNS, *ACTIONS)
        texts = [TEMPLATES[name].text for name in BUILDERS]
        texts += [*SPANS, *DISTANCES, *COUNTS, IMAGE_QUESTION, "Yes", "No", "row", "column", "to"]
    texts = [re.sub(r"\{\w+\}", "", text) for text in texts]
    return sorted({word for text in (*names, *texts, *_PROMPT_TEXTS) for word in words_in(text)})
