"""Raw rows of annotation files -> one validated, frozen `Sample`, whatever the format.

Owns the formats (each a function below): LLaVA dialogues about images or a video, VideoChat2-IT questions and
answers, online dialogues whose human turns carry times, object tracks, plain text. Rows are read, never
changed. Knows nothing of frames, tokens or templates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from videochat_online.data.storage import Location, location
from videochat_online.errors import InputError

Kind = Literal["text", "image", "video", "online", "tracking"]
Row = Mapping[str, Any]

MAX_TEXT = 1_000_000
"""Characters of one text in a row: tens of times the longest prompt. Tokenizing more can take minutes."""

_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


@dataclass(frozen=True, slots=True)
class DialogueTurn:
    """One exchange as annotated: placeholders still in the text.

    Attributes:
        user: what the human says.
        assistant: what the model is to say.
        time_s: online rows: when it is said, in seconds of the video (of the clip, where times are reset).
    """

    user: str
    assistant: str
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class BoxAt:
    """Where a tracked object is: the annotator's numbers, as they are to be written."""

    time_s: float
    box: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One row, validated.

    Attributes:
        kind: what its prompt looks like.
        turns: the dialogue; empty for a track, whose dialogue depends on the frame that is asked about.
        media: images in order; one video or frame folder; the image files of a track.
        clip_s: part of the video that counts; None for all of it.
        reset_times: times count from the clip's first frame.
        fps: frame rate of a frame folder, where the row says.
        system_message: None takes the checkpoint's own.
        boxes: of a track, one for each of `media`.
        query: of a track, with `<bbox>` where the asked box goes.
        sizes: width and height of each image, where the row says; for estimating lengths.
    """

    kind: Kind
    turns: tuple[DialogueTurn, ...] = ()
    media: tuple[Location, ...] = ()
    clip_s: tuple[float, float] | None = None
    reset_times: bool = False
    fps: float | None = None
    system_message: str | None = None
    boxes: tuple[BoxAt, ...] = ()
    query: str = ""
    sizes: tuple[tuple[int, int], ...] = ()


def parse_row(row: Row, root: Location) -> Sample:
    """Validate a row of any known format.

    Args:
        row: as read.
        root: what its paths are relative to.

    Raises:
        InputError: says what was expected and found; the caller knows the set and the row's number.
    """
    if "query_template" in row or "image_bboxes" in row:
        return _tracking(row, root)
    if "QA" in row:
        return _questions(row, root)
    if "conversations" not in row:
        found = _cut(", ".join(row)) or "an empty row"
        raise InputError(f"expected conversations, QA or image_bboxes, found {found}")
    system_message, turns = _dialogue(row["conversations"])
    if "video" in row:
        kind: Kind = "online" if any(turn.time_s is not None for turn in turns) else "video"
        if kind == "online":
            _check_times(turns)
        return Sample(kind=kind, turns=turns, system_message=system_message, **_video(row, root))
    images = _images(row, root)
    kind = "image" if images else "text"
    return Sample(kind=kind, turns=turns, media=images, system_message=system_message, sizes=_sizes(row, len(images)))


def _questions(row: Row, root: Location) -> Sample:
    """VideoChat2-IT: `QA: [{i, q, a}]`; the instruction `i` stands before the question."""
    pairs = row["QA"]
    if not isinstance(pairs, list) or not pairs:
        raise InputError(f"QA: expected a list of questions and answers, found {_shown(pairs)}")
    turns = []
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, dict):
            raise InputError(f"QA {number}: expected an object with q and a, found {_shown(pair)}")
        instruction, question = (_text(pair.get(key, ""), f"QA {number}: {key}") for key in "iq")
        user = f"{instruction} {question}".strip()
        if not user:
            raise InputError(f"QA {number}: expected an instruction i or a question q, found neither")
        turns.append(DialogueTurn(user, _text(pair.get("a"), f"QA {number}: a").strip()))
    if "video" in row:
        return Sample(kind="video", turns=tuple(turns), **_video(row, root))
    images = _images(row, root)
    if not images:
        raise InputError("expected video or image beside QA, found neither")
    return Sample(kind="image", turns=tuple(turns), media=images, sizes=_sizes(row, len(images)))


def _tracking(row: Row, root: Location) -> Sample:
    """Object tracks: an image file and a box for each time."""
    folder = location(_path(row, "video"), root)
    names, boxes, query = row.get("all_image_files"), row.get("image_bboxes"), row.get("query_template")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"all_image_files: expected a list of file names, found {_shown(names)}")
    if not isinstance(boxes, list) or len(boxes) != len(names):
        count = len(boxes) if isinstance(boxes, list) else 0
        raise InputError(f"image_bboxes: expected {len(names)} boxes, one for each image file, found {count}")
    text = _text(query.get("value") if isinstance(query, dict) else query, "query_template")
    if "<bbox>" not in text:
        raise InputError(f"query_template: expected <bbox> where the asked box goes, found {text!r}")
    return Sample(
        kind="tracking",
        media=tuple(folder / name for name in names),
        boxes=tuple(_box(box, number) for number, box in enumerate(boxes)),
        query=text,
    )


def _box(raw: Any, number: int) -> BoxAt:
    where = f"image_bboxes {number}"
    if not isinstance(raw, dict) or not isinstance(raw.get("bbox"), list) or len(raw["bbox"]) != 4:
        raise InputError(f"{where}: expected timestamp and bbox of 4 numbers, found {_shown(raw)}")
    for value in raw["bbox"]:
        _number(value, f"{where}: bbox")
    _number(raw.get("timestamp"), f"{where}: timestamp")
    return BoxAt(raw["timestamp"], tuple(raw["bbox"]))


def _dialogue(raw: Any) -> tuple[str | None, tuple[DialogueTurn, ...]]:
    """Alternating human and gpt messages, a system message before them allowed."""
    if not isinstance(raw, list) or not all(isinstance(message, dict) for message in raw):
        raise InputError(f"conversations: expected a list of messages, found {_shown(raw)}")
    system_message, messages = None, list(raw)
    if messages and messages[0].get("from") == "system":
        system_message = _text(messages.pop(0).get("value"), "conversations: system")
    if not messages or len(messages) % 2:
        raise InputError(f"conversations: expected pairs of human and gpt, found {len(messages)} messages")
    turns = []
    for number in range(0, len(messages), 2):
        human, reply = messages[number : number + 2]
        for message, expected in ((human, "human"), (reply, "gpt")):
            role = message.get("from")
            if _ROLES.get(role) != expected:
                raise InputError(f"conversations: turn {number // 2 + 1}: expected {expected}, found {role!r}")
        where = f"conversations: turn {number // 2 + 1}"
        time_s = human.get("timestamps")
        turns.append(
            DialogueTurn(
                _text(human.get("value"), f"{where}: human"),
                _text(reply.get("value"), f"{where}: gpt"),
                None if time_s is None else _number(time_s, f"{where}: timestamps"),
            )
        )
    return system_message, tuple(turns)


def _check_times(turns: Sequence[DialogueTurn]) -> None:
    previous_s = 0.0
    for number, turn in enumerate(turns, start=1):
        if turn.time_s is None:
            raise InputError(f"conversations: turn {number}: expected timestamps, as in the other turns, found none")
        if turn.time_s < previous_s:
            raise InputError(
                f"conversations: turn {number}: timestamps: expected at least {previous_s:g}, the turn before's"
                f" (or the start), found {turn.time_s:g}"
            )
        previous_s = turn.time_s


def _video(row: Row, root: Location) -> dict[str, Any]:
    """Fields of a `Sample` about its video."""
    clip = row.get("clip")
    if clip is None and (row.get("start") is not None or row.get("end") is not None):
        clip = [row.get("start"), row.get("end")]
    if clip is not None:
        if not isinstance(clip, list) or len(clip) != 2:
            raise InputError(f"clip: expected start and end in seconds, found {_shown(clip)}")
        start_s, end_s = (_number(value, "clip") for value in clip)
        if not 0 <= start_s <= end_s:
            raise InputError(f"clip: expected 0 <= start <= end in seconds, found [{start_s:g}, {end_s:g}]")
        clip = (start_s, end_s)
    fps = row.get("fps")
    if fps is not None and _number(fps, "fps") <= 0:
        raise InputError(f"fps: expected a number above 0, found {fps}")
    return {
        "media": (location(_path(row, "video"), root),),
        "clip_s": clip,
        "reset_times": bool(row.get("need_reset_timestamp", False)),
        "fps": fps,
    }


def _images(row: Row, root: Location) -> tuple[Location, ...]:
    raw = row.get("image")
    if not raw:
        return ()
    names = raw if isinstance(raw, list) else [raw]
    if not all(isinstance(name, str) and name for name in names):
        raise InputError(f"image: expected a path or a list of paths, found {_shown(raw)}")
    return tuple(location(name, root) for name in names)


def _sizes(row: Row, num_images: int) -> tuple[tuple[int, int], ...]:
    """Where the row gives them for every image; InternVL's rows do, as a number or a list."""
    width, height = (value if isinstance(value, list) else [value] for value in (row.get("width"), row.get("height")))
    values = [*width, *height]
    if not len(width) == len(height) == num_images or not all(type(value) is int and value > 0 for value in values):
        return ()
    return tuple(zip(width, height, strict=True))


def _path(row: Row, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"{key}: expected a path, found {_shown(value)}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: expected a text, found {_shown(value)}")
    if len(value) > MAX_TEXT:
        raise InputError(f"{where}: expected a text of at most {MAX_TEXT:,} characters, found {len(value):,}")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{where}: expected a number, found {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
