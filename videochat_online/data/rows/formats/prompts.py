"""Rows with one prompt and its answer: `prompt` or `query` beside `response` or `completion`, `system` and `history`.

What they show, and when the prompt is said, stands beside them as in rows with messages. TRL's prompts and completions
that are lists of messages are one dialogue.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from videochat_online.data.rows.formats.base import Row
from videochat_online.data.rows.formats.messages import DIALOGUES, LIST_KEYS, USER_AND_ASSISTANT, messages_sample
from videochat_online.data.rows.sample import Sample
from videochat_online.data.rows.storage import Location
from videochat_online.errors import InputError, shown

_ASKS, _ANSWERS = ("prompt", "query"), ("response", "completion")
_DIALOGUE = replace(USER_AND_ASSISTANT, dialogue="prompt")


class Prompts:
    """Prompts and their answers."""

    keys = {**LIST_KEYS, **dict.fromkeys((*_ASKS, *_ANSWERS, "history", "timestamps"), ())}

    def claims(self, row: Row) -> bool:
        """Rows with both, where no dialogue stands beside them."""
        asks, answers = (any(key in row for key in names) for names in (_ASKS, _ANSWERS))
        return asks and answers and row.keys().isdisjoint((*DIALOGUES, "messages"))

    def parse(self, row: Row, root: Location) -> Sample:
        """Validate a row; InputError names the key."""
        prompt, answer = (self._one_of(row, names) for names in (_ASKS, _ANSWERS))
        history = row.get("history") or []
        if isinstance(prompt, list) and isinstance(answer, list):
            messages = [*prompt, *answer]
            if history or row.get("timestamps") is not None:
                raise InputError("expected history and timestamps beside a prompt that is a text, found a list")
        else:
            messages = []
            if not isinstance(history, list) or not all(isinstance(one, list) and len(one) == 2 for one in history):
                raise InputError(f"history: expected a list of pairs, found {shown(history)}")
            for asked, answered in history:
                messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            messages += [
                {"role": "user", "content": prompt, "timestamps": row.get("timestamps")},
                {"role": "assistant", "content": answer},
            ]
        return messages_sample(row, messages, root, self.keys, _DIALOGUE)

    def _one_of(self, row: Row, names: tuple[str, ...]) -> Any:
        found = [row[name] for name in names if row.get(name) is not None]
        if len(found) != 1:
            raise InputError(f"expected {' or '.join(names)}, found {'both' if found else 'neither'}")
        return found[0]
