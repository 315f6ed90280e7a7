"""Our chat templates in the language that transformers and others lay dialogues out by (`chat_template.jinja`).

One more wording of what `ChatTemplate.render` does, for programs that know nothing of it; whoever writes one compares
the two (`model/checkpoints/hf_export.py`). Images are numbered where there are several, as `ImageChat` numbers them.
"""

from __future__ import annotations

from videochat_online.constants import IMAGE_CONTEXT_TOKEN
from videochat_online.text.templates import ChatTemplate

_COUNT = """\
{%- set images = namespace(total=0, seen=0) -%}
{%- for message in messages if message.content is not string -%}
{%- for part in message.content if part.type == 'image' -%}
{%- set images.total = images.total + 1 -%}
{%- endfor -%}
{%- endfor -%}
"""
_SAID = """\
{%- macro said(content) -%}
{%- if content is string -%}
{{- content -}}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' -%}
{%- set images.seen = images.seen + 1 -%}
{{- 'Image-' ~ images.seen ~ ': ' if images.total > 1 else '' -}}
{{- IMAGE -}}
{%- elif part.type == 'video' -%}
{{- VIDEO -}}
{%- elif part.type == 'text' -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""
_DIALOGUE = """\
{{- START -}}
{%- set system = TOLD if messages and messages[0].role == 'system' else SYSTEM -%}
{%- if system and not TAKES_SYSTEM -%}
{{- raise_exception('expected no system message') -}}
{%- endif -%}
{%- if system or not OMITS_EMPTY_SYSTEM -%}
{{- SYSTEM_START ~ system ~ SYSTEM_END -}}
{%- endif -%}
{%- set opened = namespace(user=(system and FOLDS_SYSTEM)) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{- ('' if opened.user else USER) ~ SIDE ~ USER_END -}}
{%- set opened.user = false -%}
{%- elif message.role == 'assistant' -%}
{{- ASSISTANT ~ REPLY ~ REPLY_END -}}
{%- elif not (message.role == 'system' and loop.first) -%}
{{- raise_exception('expected user and assistant in turns, and at most one system message, the first') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- GENERATE -}}
{%- endif -%}
"""


def jinja_template(template: ChatTemplate, *, system_message: str, start: str, video_token: str) -> str:
    """The source of a `chat_template.jinja`.

    Args:
        template: chat template of ours.
        system_message: system message where a dialogue brings none.
        start: text before everything, such as the token that begins a text.
        video_token: token that stands for a video's frames.
    """
    words = {
        "START": start + template.prompt_start,
        "SYSTEM_START": template.system_prefix,
        "SYSTEM_END": template.system_end,
        "SYSTEM": system_message,
        "USER_END": template.user_end,
        "USER": template.user_prefix,
        "ASSISTANT": template.assistant_prefix + template.reply_prefix,
        "REPLY_END": template.reply_suffix + template.reply_end + template.after_reply,
        "GENERATE": template.assistant_prefix,
        "IMAGE": f"{IMAGE_CONTEXT_TOKEN}\n",
        "VIDEO": f"{video_token}\n",
    }
    side = "said(message.content)"
    sides = {"SIDE": (side, template.trims), "REPLY ": (side, template.trims or template.trims_replies)}
    sides["TOLD"] = ("said(messages[0].content)", template.trims_system)
    dialogue = _DIALOGUE
    for name, (said, trims) in sides.items():
        dialogue = dialogue.replace(name, f"({said} | trim) " if trims else f"{said} ")
    lines = [f"{{%- set {name} = {_quoted(text)} -%}}\n" for name, text in words.items()]
    for name in ("takes_system", "omits_empty_system", "folds_system"):
        lines.append(f"{{%- set {name.upper()} = {str(getattr(template, name)).lower()} -%}}\n")
    return "".join(lines) + _COUNT + _SAID + dialogue


def _quoted(text: str) -> str:
    """A literal of jinja, which reads escapes as Python does."""
    escaped = text.encode("unicode_escape").decode("ascii").replace("'", "\\'")
    return f"'{escaped}'"
