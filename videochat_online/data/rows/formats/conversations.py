"""Rows with a dialogue: LLaVA's, about images, a video or nothing, and online ones, whose human turns have times.

Owns the dialogue itself, a list of messages that take turns, for all formats that have one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videochat_online.data.rows.field_types import clock_s, objects, text
from videochat_online.data.rows.formats.base import Row
from videochat_online.data.rows.formats.object_tracks import is_track
from videochat_online.data.rows.formats.row_media import NOTHING, image_fields, media_key, video_fields
from videochat_online.data.rows.sample import VIDEO_PLACEHOLDER, DialogueTurn, Kind, Sample
from videochat_online.data.rows.storage import Location
from videochat_online.data.rows.unknown_keys import KEYS, MESSAGE, check_part_keys, check_row_keys
from videochat_online.errors import InputError, shown


class Conversations:
    """Dialogues of human and gpt."""

    keys = KEYS

    def claims(self, row: Row) -> bool:
        """Rows with `conversations`."""
        return "conversations" in row and not is_track(row)

    def parse(self, row: Row, root: Location) -> Sample:
        """Validate a row; InputError names the turn."""
        check_row_keys(row)
        of_video = row.get("video") not in NOTHING
        system_message, turns = parse_dialogue(row.get("conversations"), _HUMAN_AND_GPT, of_video=of_video)
        return dialogue_sample(row, root, system_message, turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogueKeys:
    """How a format writes a dialogue.

    Attributes:
        dialogue: key of the row that holds it.
        role: key of a message that says whose it is.
        text: key of a message that holds what is said.
        known: all keys of a message that are read.
        user: names of who asks; errors have the first.
        assistant: names of who answers; errors have the first.
    """

    dialogue: str
    role: str
    text: str
    known: tuple[str, ...]
    user: tuple[str, ...]
    assistant: tuple[str, ...]


_HUMAN_AND_GPT = DialogueKeys(
    dialogue="conversations",
    role="from",
    text="value",
    known=MESSAGE,
    user=("human", "user"),
    assistant=("gpt", "assistant"),
)


def dialogue_sample(row: Row, root: Location, system_message: str | None, turns: tuple[DialogueTurn, ...]) -> Sample:
    """The sample of a dialogue about what a row names at `image` or `video`.

    Raises:
        InputError: names the key.
    """
    is_timed = any(turn.time_s is not None for turn in turns)
    shows = media_key(row)
    if shows == "video":
        kind: Kind = "online" if is_timed else "video"
        return Sample(kind=kind, turns=turns, system_message=system_message, **video_fields(row, root))
    if is_timed:
        raise InputError("expected a video beside timestamps, found none")
    if shows is None and _wants_video(row, turns):
        raise InputError(
            f"video: expected a path, as the text says {VIDEO_PLACEHOLDER}, found {shown(row.get('video', 'none'))}"
        )
    if shows is None:
        return Sample(kind="text", turns=turns, system_message=system_message)
    return Sample(kind="image", turns=turns, system_message=system_message, **image_fields(row, root))


def _wants_video(row: Row, turns: Sequence[DialogueTurn]) -> bool:
    """Whether a text speaks of its video: at all beside an empty `video`, else with a line of its own at its beginning.

    A text about HTML may hold the same tag.
    """
    if "video" in row:
        return any(VIDEO_PLACEHOLDER in turn.user for turn in turns)
    return turns[0].user.startswith(f"{VIDEO_PLACEHOLDER}\n") or turns[0].user.endswith(f"\n{VIDEO_PLACEHOLDER}")


def parse_dialogue(raw: Any, keys: DialogueKeys, *, of_video: bool) -> tuple[str | None, tuple[DialogueTurn, ...]]:
    """System message, if there is one, and turns of a list of messages.

    Args:
        raw: messages of user and assistant in turn; one of the system may stand before them.
        keys: how they are written.
        of_video: the row shows a video, so that a number at a message may be its time.

    Raises:
        InputError: names the turn.
    """
    user, assistant = keys.user[0], keys.assistant[0]
    system_message, messages = None, objects(raw, keys.dialogue)
    if messages and messages[0].get(keys.role) == "system":
        _check_unsaid(messages[0], None, keys, f"{keys.dialogue}: system", of_video=of_video)
        system_message = text(messages.pop(0).get(keys.text), f"{keys.dialogue}: system")
    if not messages or len(messages) % 2:
        raise InputError(f"{keys.dialogue}: expected pairs of {user} and {assistant}, found {len(messages)} messages")
    turns = []
    for first in range(0, len(messages), 2):
        where = f"{keys.dialogue}: turn {first // 2 + 1}"
        asked, reply = messages[first : first + 2]
        for message, names in ((asked, keys.user), (reply, keys.assistant)):
            if message.get(keys.role) not in names:
                raise InputError(f"{where}: expected {names[0]}, found {shown(message.get(keys.role))}")
        check_part_keys(asked, keys.known, f"{where}: {user}", of_video=of_video)
        said = asked.get("timestamps")
        said_s = None if said is None else clock_s(said, f"{where}: timestamps")
        _check_unsaid(reply, said, keys, f"{where}: {assistant}", of_video=of_video)
        user_text = text(asked.get(keys.text), f"{where}: {user}")
        turns.append(DialogueTurn(user_text, text(reply.get(keys.text), f"{where}: {assistant}"), said_s))
    return system_message, tuple(turns)


def _check_unsaid(message: Mapping[str, Any], said: Any, keys: DialogueKeys, where: str, *, of_video: bool) -> None:
    """Refuse a time at an answer unless it repeats its question's: nothing would be done with it."""
    check_part_keys(message, keys.known, where, of_video=of_video, asks=False)
    found = message.get("timestamps")
    is_same = found in (None, said)
    if not is_same and isinstance(found, str | float | int) and said is not None:  # perhaps in the other form
        is_same = clock_s(found, f"{where}: timestamps") == clock_s(said, where)
    if not is_same:
        raise InputError(f"{where}: timestamps: expected none but the question's, {shown(said)}, found {shown(found)}")
