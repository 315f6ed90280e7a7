"""Rows with `messages` of user and assistant, as ms-swift, TRL and the Hugging Face hub have them.

What is shown stands in lists beside them, `videos` or `images`, and at `<video>` or `<image>` in the texts; or a
content is a list of parts, of which some are pictures: `{"type": "video", "video": "a.mp4"}`, or `{"type": "video"}`
for the next of the row's list. A row shows one video, or images. Nothing is dropped in silence: sound, tools, boxes and
answers that are not to be learned are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from videochat_online.constants import IMAGE_PLACEHOLDER
from videochat_online.data.rows.field_types import objects, path, text
from videochat_online.data.rows.formats.base import Row
from videochat_online.data.rows.formats.conversations import DialogueKeys, dialogue_sample, parse_dialogue
from videochat_online.data.rows.sample import VIDEO_PLACEHOLDER, Sample
from videochat_online.data.rows.storage import Location
from videochat_online.data.rows.unknown_keys import KEYS, check_row_keys, says
from videochat_online.errors import InputError, shown

MESSAGE_KEYS = ("role", "content", "timestamps", "loss", "weight")
DIALOGUES = ("conversations", "QA", "image_bboxes", "query_template")
"""Keys of formats whose rows may have had others beside them since before there were messages here."""
LIST_KEYS = {**KEYS, "images": (), "videos": (), "system": (), "label": ()}
"""Keys of a row beside its messages, which may have lists of what it shows."""

USER_AND_ASSISTANT = DialogueKeys(
    dialogue="messages", role="role", text="content", known=MESSAGE_KEYS, user=("user",), assistant=("assistant",)
)
_PLACEHOLDERS = {"image": IMAGE_PLACEHOLDER, "video": VIDEO_PLACEHOLDER}
_PATHS = ("path", "url")
"""Keys of a part or of a list's object that hold its path, beside the name of its own kind."""
_OF_VIDEO = {"start": "start", "video_start": "start", "end": "end", "video_end": "end", "fps": "fps"}
_SAMPLING: tuple[str, ...] = ("nframes", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels")
_SAMPLING += ("resized_height", "resized_width")
"""How another trainer samples what is shown: here the run says so for all rows."""
_REFUSED = {
    **dict.fromkeys(("audios", "audio", "tools", "objects"), "nothing is done with it"),
    **dict.fromkeys(("rejected", "rejected_response", "rejected_messages"), "preferences are not learned"),
}
"""Keys of a row that would be lost, and why they are."""

Medium = Mapping[str, Any]
"""Keys of a plain row about one file: `path`, and of a video `start`, `end` and `fps`."""


class Messages:
    """Dialogues of user and assistant."""

    keys = {**LIST_KEYS, "messages": MESSAGE_KEYS}

    def claims(self, row: Row) -> bool:
        """Rows with `messages`, where no dialogue of another format stands beside them."""
        return "messages" in row and row.keys().isdisjoint(DIALOGUES)

    def parse(self, row: Row, root: Location) -> Sample:
        """Validate a row; InputError names the message."""
        return messages_sample(row, row.get("messages"), root, self.keys, USER_AND_ASSISTANT)


def messages_sample(row: Row, messages: Any, root: Location, row_keys: Mapping[str, Any], keys: DialogueKeys) -> Sample:
    """The sample of a row's messages.

    Args:
        row: says what is shown.
        messages: the dialogue.
        root: folder that paths are relative to.
        row_keys: keys of the row that are read.
        keys: how the dialogue is written.

    Raises:
        InputError: names what is wrong, or is not understood.
    """
    for key, reason in _REFUSED.items():
        if says(row.get(key)):
            raise InputError(f"{key}: expected none, as {reason}, found {shown(row[key])}")
    if row.get("label") not in (None, True, 1, "1", "true", "True"):
        raise InputError(f"label: expected true, as all answers are learned, found {shown(row['label'])}")
    messages = objects(messages, keys.dialogue)
    if row.get("system") not in (None, ""):
        if messages and messages[0].get("role") == "system":
            raise InputError("system: expected it in the row or in its messages, found both")
        messages = [{"role": "system", "content": row["system"]}, *messages]
    in_parts: list[tuple[str, Medium | None]] = []
    flat = [_flat(message, f"{keys.dialogue} {number}", in_parts) for number, message in enumerate(messages, start=1)]
    plain = _plain_row(row, in_parts, row_keys)
    check_row_keys(plain)
    system_message, turns = parse_dialogue(flat, keys, of_video=plain["video"] is not None)
    sample = dialogue_sample(plain, root, system_message, turns)
    other = VIDEO_PLACEHOLDER if sample.kind == "image" else IMAGE_PLACEHOLDER
    if any(other in turn.user for turn in turns):
        raise InputError(f"{keys.dialogue}: expected no {other} in a row of kind {sample.kind}, found one")
    return sample


def _flat(message: Mapping[str, Any], where: str, in_parts: list[tuple[str, Medium | None]]) -> dict[str, Any]:
    """A message whose content is a text; what its parts show is added to `in_parts`."""
    if message.get("tool_calls"):
        raise InputError(f"{where}: tool_calls: expected none, as nothing is done with them")
    for key in ("loss", "weight") if message.get("role") == "assistant" else ():
        if message.get(key) not in (None, True):
            raise InputError(f"{where}: {key}: expected true, as all answers are learned, found {shown(message[key])}")
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    texts: list[str] = []
    for number, part in enumerate(content, start=1):
        here = f"{where}: part {number}"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            others = [key for key, value in part.items() if key not in ("type", "text") and says(value)]
            if others:  # a time stands beside the content, a picture in a part of its own
                raise InputError(f"{here}: expected a text and nothing beside it, found {shown(others[0])}")
            said = text(part.get("text"), here)
            # Frame lines, and images before a text, end in a line break.
            is_after = texts and texts[-1] in _PLACEHOLDERS.values() and not said.startswith("\n")
            texts.append(f"\n{said}" if is_after else said)
        elif kind in ("image", "video"):
            if message.get("role") != "user":
                raise InputError(f"{here}: expected what is shown in messages of user, found {shown(part)}")
            in_parts.append((kind, _medium({k: v for k, v in part.items() if k != "type"}, kind, here)))
            if texts and texts[-1] in _PLACEHOLDERS.values():
                texts.append("\n")
            texts.append(_PLACEHOLDERS[kind])
        else:
            found = shown(kind if isinstance(part, dict) else part)
            raise InputError(f"{here}: expected text, image or video, found {found}")
    return {**message, "content": "".join(texts)}


def _medium(raw: Any, kind: str, where: str) -> Medium | None:
    """What one object or path names; None where it names nothing, and so stands for the next of a list."""
    if isinstance(raw, str):
        raw = {"path": raw}
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected a path, or an object with one, found {shown(raw)}")
    if isinstance(raw.get(kind), dict):
        raw = {**{key: value for key, value in raw.items() if key != kind}, **raw[kind]}
    raw = {key: value for key, value in raw.items() if value is not None and key not in _SAMPLING}
    known = _OF_VIDEO if kind == "video" else {}
    for key in raw:
        if key not in (kind, *_PATHS, *known):
            raise InputError(f"{where}: unknown key {shown(key)}; known are {', '.join((kind, *_PATHS, *known))}")
    named = [raw.pop(key) for key in (kind, *_PATHS) if key in raw]
    if len(named) > 1 or not (named or not raw):
        raise InputError(f"{where}: expected one path, found {len(named)}")
    if not named:
        return None
    medium = {known[key]: value for key, value in raw.items()}
    if len(medium) < len(raw):
        raise InputError(f"{where}: expected one start and one end, found several")
    return {"path": path(named[0], where).removeprefix("file://"), **medium}


def _plain_row(row: Row, in_parts: list[tuple[str, Medium | None]], row_keys: Mapping[str, Any]) -> dict[str, Any]:
    """The row with what it shows at `image` or `video`, wherever it named it, and without its dialogue."""
    listed = [(kind, one) for kind in ("image", "video") for one in _listed(row, kind)]
    named = [(kind, one) for kind, one in in_parts if one is not None]
    if named and (listed or len(named) < len(in_parts)):
        raise InputError(f"expected a path at each part of a content, or at none, found {len(named)} and a list")
    if in_parts and not named and [kind for kind, _ in in_parts] != [kind for kind, _ in listed]:
        found = ", ".join(f"{sum(one == kind for one, _ in listed)} {kind}s" for kind in ("image", "video"))
        asked = ", ".join(f"{sum(one == kind for one, _ in in_parts)} {kind}s" for kind in ("image", "video"))
        raise InputError(f"expected as many as the contents show, {asked}, found {found}")
    media = named or listed
    plain = {key: value for key, value in row.items() if key in KEYS or key not in row_keys}
    plain |= {"image": None, "video": None}
    kinds = {kind for kind, _ in media}
    if len(kinds) > 1:
        raise InputError("expected images or a video, found both")
    if kinds == {"image"}:
        plain["image"] = [one["path"] for _, one in media]
    elif kinds:
        if len(media) > 1:
            raise InputError(f"videos: expected one video, found {len(media)}")
        ((_, video),) = media
        for key, value in video.items():
            name = "video" if key == "path" else key
            if plain.get(name) is not None:
                raise InputError(f"{name}: expected it beside the video or in the row, found both")
            plain[name] = value
    return plain


def _listed(row: Row, kind: str) -> list[Medium]:
    """What a row lists, at `videos` or `video`, at `images` or `image`."""
    found = [(key, row[key]) for key in (f"{kind}s", kind) if row.get(key) not in (None, "", [])]
    if len(found) > 1:
        raise InputError(f"expected {kind}s or {kind}, found both")
    media = []
    for key, raw in found:
        for number, one in enumerate(raw if isinstance(raw, list) else [raw], start=1):
            if isinstance(one, list):
                raise InputError(f"{key} {number}: expected one file or one folder of frames, found a list")
            medium = _medium(one, kind, f"{key} {number}")
            if medium is None:
                raise InputError(f"{key} {number}: expected a path, found {shown(one)}")
            media.append(medium)
    return media
