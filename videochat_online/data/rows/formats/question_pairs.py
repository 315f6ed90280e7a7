"""Rows of VideoChat2-IT: `QA: [{i, q, a}]` about a video or images; the instruction `i` stands before the question."""

from __future__ import annotations

from videochat_online.data.rows.field_types import text
from videochat_online.data.rows.formats.base import Row
from videochat_online.data.rows.formats.object_tracks import is_track
from videochat_online.data.rows.formats.row_media import NOTHING, image_fields, media_key, video_fields
from videochat_online.data.rows.sample import DialogueTurn, Sample
from videochat_online.data.rows.storage import Location
from videochat_online.data.rows.unknown_keys import KEYS, PAIR, check_part_keys, check_row_keys
from videochat_online.errors import InputError, shown


class QuestionPairs:
    """Questions and answers."""

    keys = KEYS

    def claims(self, row: Row) -> bool:
        """Rows with `QA`."""
        return "QA" in row and not is_track(row)

    def parse(self, row: Row, root: Location) -> Sample:
        """Validate a row; InputError names the pair."""
        check_row_keys(row)
        pairs = row.get("QA")
        if not isinstance(pairs, list) or not pairs:
            raise InputError(f"QA: expected a list of questions and answers, found {shown(pairs)}")
        turns = []
        for count, pair in enumerate(pairs, start=1):
            if not isinstance(pair, dict):
                raise InputError(f"QA {count}: expected an object with q and a, found {shown(pair)}")
            check_part_keys(pair, PAIR, f"QA {count}", of_video=row.get("video") not in NOTHING)
            instruction, question = (text(pair.get(key, ""), f"QA {count}: {key}") for key in "iq")
            user = f"{instruction} {question}".strip()
            if not user:
                raise InputError(f"QA {count}: expected an instruction i or a question q, found neither")
            turns.append(DialogueTurn(user, text(pair.get("a"), f"QA {count}: a").strip()))
        shows = media_key(row)
        if shows is None:
            raise InputError("expected video or image beside QA, found neither")
        if shows == "video":
            return Sample(kind="video", turns=tuple(turns), **video_fields(row, root))
        return Sample(kind="image", turns=tuple(turns), **image_fields(row, root))
