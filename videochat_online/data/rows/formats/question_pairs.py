"""Rows of VideoChat2-IT: `QA: [{i, q, a}]` about a video or images; the instruction `i` stands before the question."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from videochat_online.data.rows.field_types import Fields
from videochat_online.data.rows.formats.base import Row
from videochat_online.data.rows.formats.conversations import dialogue_sample
from videochat_online.data.rows.formats.object_tracks import is_track
from videochat_online.data.rows.formats.row_media import NOTHING, media_key
from videochat_online.data.rows.sample import DialogueTurn, Sample
from videochat_online.data.rows.storage import Location
from videochat_online.data.rows.unknown_keys import KEYS, PAIR, check_part_keys, check_row_keys
from videochat_online.documents import Text, checker, validated
from videochat_online.errors import InputError


class _Pair(Fields):
    i: Text = ""
    q: Text = ""
    a: Text


_pairs = checker(Annotated[list[dict[str, Any]], Field(min_length=1)])


class QuestionPairs:
    """Questions and answers."""

    keys = KEYS

    def claims(self, row: Row) -> bool:
        """Rows with `QA`."""
        return "QA" in row and not is_track(row)

    def parse(self, row: Row, root: Location) -> Sample:
        """Validate a row; InputError names the pair."""
        check_row_keys(row)
        turns = []
        for count, raw in enumerate(_pairs(row.get("QA"), "QA"), start=1):
            check_part_keys(raw, PAIR, f"QA {count}", of_video=row.get("video") not in NOTHING)
            pair: _Pair = validated(_Pair, raw, f"QA {count}")
            user = f"{pair.i} {pair.q}".strip()
            if not user:
                raise InputError(f"QA {count}: expected an instruction i or a question q, found neither")
            turns.append(DialogueTurn(user, pair.a.strip()))
        if media_key(row) is None:
            raise InputError("expected video or image beside QA, found neither")
        return dialogue_sample(row, root, None, tuple(turns))
