"""Raw rows of annotation files -> one validated, frozen `Sample`, whatever the format.

Owns the formats (each a function below): LLaVA dialogues about images or a video, VideoChat2-IT questions and
answers, online dialogues whose human turns carry times, object tracks, plain text. Rows are read, never
changed. Knows nothing of frames, tokens or templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from videochat_online.data.rows.field_values import FPS_RANGE, MAX_COORDINATE, number, path, text, time_s
from videochat_online.data.rows.storage import Location, location
from videochat_online.data.rows.unknown_keys import MESSAGE, PAIR, check_part_keys, check_row_keys
from videochat_online.errors import InputError, cut, shown

Kind = Literal["text", "image", "video", "online", "tracking"]
Row = Mapping[str, Any]

ROW_KEYS = ("conversations", "QA", "image_bboxes", "query_template")
"""One of them is in each row."""

VIDEO_PLACEHOLDER = "<video>"
"""Placeholder for the frames of a video in a text."""

_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


@dataclass(frozen=True, slots=True)
class DialogueTurn:
    """One exchange as annotated: placeholders still in the text.

    Attributes:
        user: text of the human.
        assistant: text of the model's reply.
        time_s: time at which it is said, in online rows: seconds of the video (of the clip, where times are reset).
    """

    user: str
    assistant: str
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class BoxAt:
    """Box of a tracked object at a time: the annotator's numbers, as they are to be written."""

    time_s: float
    box: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One row, validated.

    Attributes:
        kind: layout of its prompt: "text", "image", "video", "online" or "tracking".
        turns: the dialogue; empty for a track, whose dialogue depends on the frame that is asked about.
        media: images in order; one video or frame folder; the image files of a track.
        clip_s: part of the video that counts; None for all of it.
        reset_times: times count from the clip's first frame.
        fps: frame rate of a frame folder, where the row says.
        system_message: None takes the checkpoint's own.
        boxes: boxes of a track, one for each of `media`.
        query: question about a track, with `<bbox>` where the asked box goes.
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
        row: the object in the annotations.
        root: folder that its paths are relative to.

    Raises:
        InputError: says what was expected and found; the caller knows the set and the row's number.
    """
    check_row_keys(row)
    if "query_template" in row or "image_bboxes" in row:
        return _tracking(row, root)
    if "QA" in row and "conversations" in row:
        raise InputError("expected conversations or QA, found both")
    if "QA" in row:
        return _questions(row, root)
    if "conversations" not in row:
        found = cut(", ".join(row)) or "an empty row"
        raise InputError(f"expected conversations, QA or image_bboxes, found {found}")
    system_message, turns = _dialogue(row["conversations"], of_video=row.get("video") not in (None, "", []))
    is_timed = any(turn.time_s is not None for turn in turns)
    media_key = _media_key(row)
    if media_key == "video":
        if is_timed:
            _check_times(turns)
        kind: Kind = "online" if is_timed else "video"
        return Sample(kind=kind, turns=turns, system_message=system_message, **_video(row, root))
    if is_timed:
        raise InputError("conversations: expected a video beside timestamps, found none")
    if media_key is None and _wants_video(row, turns):
        raise InputError(
            f"video: expected a path, as the text says {VIDEO_PLACEHOLDER}, found {shown(row.get('video', 'none'))}"
        )
    images = _images(row, root) if media_key else ()
    kind = "image" if images else "text"
    return Sample(kind=kind, turns=turns, media=images, system_message=system_message, sizes=_sizes(row, len(images)))


def _media_key(row: Row) -> Literal["image", "video"] | None:
    """Where the row names what it shows; None, an empty text and an empty list name nothing.

    Raises:
        InputError: both keys.
    """
    image, video = (row.get(key) not in (None, "", []) for key in ("image", "video"))
    if image and video:
        raise InputError("expected image or video, found both")
    return "image" if image else "video" if video else None


def _wants_video(row: Row, turns: Sequence[DialogueTurn]) -> bool:
    """Whether a text speaks of its video: at all beside an empty `video`, else with a line of its own at its beginning.

    A text about HTML may hold the same tag.
    """
    if "video" in row:
        return any(VIDEO_PLACEHOLDER in turn.user for turn in turns)
    return turns[0].user.startswith(f"{VIDEO_PLACEHOLDER}\n") or turns[0].user.endswith(f"\n{VIDEO_PLACEHOLDER}")


def _questions(row: Row, root: Location) -> Sample:
    """VideoChat2-IT: `QA: [{i, q, a}]`; the instruction `i` stands before the question."""
    pairs = row["QA"]
    if not isinstance(pairs, list) or not pairs:
        raise InputError(f"QA: expected a list of questions and answers, found {shown(pairs)}")
    turns = []
    for count, pair in enumerate(pairs, start=1):
        if not isinstance(pair, dict):
            raise InputError(f"QA {count}: expected an object with q and a, found {shown(pair)}")
        check_part_keys(pair, PAIR, f"QA {count}", of_video=row.get("video") not in (None, "", []))
        instruction, question = (text(pair.get(key, ""), f"QA {count}: {key}") for key in "iq")
        user = f"{instruction} {question}".strip()
        if not user:
            raise InputError(f"QA {count}: expected an instruction i or a question q, found neither")
        turns.append(DialogueTurn(user, text(pair.get("a"), f"QA {count}: a").strip()))
    media_key = _media_key(row)
    if media_key is None:
        raise InputError("expected video or image beside QA, found neither")
    if media_key == "video":
        return Sample(kind="video", turns=tuple(turns), **_video(row, root))
    images = _images(row, root)
    return Sample(kind="image", turns=tuple(turns), media=images, sizes=_sizes(row, len(images)))


def _tracking(row: Row, root: Location) -> Sample:
    """Object tracks: an image file and a box for each time."""
    folder = location(path(row.get("video"), "video"), root)
    names, boxes, query = row.get("all_image_files"), row.get("image_bboxes"), row.get("query_template")
    if not isinstance(names, list) or not names:
        raise InputError(f"all_image_files: expected a list of file names, found {shown(names)}")
    if not isinstance(boxes, list) or len(boxes) != len(names):
        count = len(boxes) if isinstance(boxes, list) else 0
        raise InputError(f"image_bboxes: expected {len(names)} boxes, one for each image file, found {count}")
    asked = text(query.get("value") if isinstance(query, dict) else query, "query_template")
    if "<bbox>" not in asked:
        raise InputError(f"query_template: expected <bbox> where the asked box goes, found {shown(asked)}")
    tracked = tuple(_box(box, index) for index, box in enumerate(boxes))
    for index in range(1, len(tracked)):
        before_s, now_s = tracked[index - 1].time_s, tracked[index].time_s
        if now_s < before_s:
            raise InputError(
                f"image_bboxes {index}: timestamp: expected at least {before_s:g}, the box before's, found {now_s:g}"
            )
    media = tuple(folder / path(name, f"all_image_files {index}") for index, name in enumerate(names))
    return Sample(kind="tracking", media=media, boxes=tracked, query=asked)


def _box(raw: Any, index: int) -> BoxAt:
    where = f"image_bboxes {index}"
    if not isinstance(raw, dict) or not isinstance(raw.get("bbox"), list) or len(raw["bbox"]) != 4:
        raise InputError(f"{where}: expected timestamp and bbox of 4 numbers, found {shown(raw)}")
    for value in raw["bbox"]:
        number(value, f"{where}: bbox", lowest=-MAX_COORDINATE, highest=MAX_COORDINATE)
    return BoxAt(time_s(raw.get("timestamp"), f"{where}: timestamp"), tuple(raw["bbox"]))


def _dialogue(raw: Any, *, of_video: bool) -> tuple[str | None, tuple[DialogueTurn, ...]]:
    """Alternating human and gpt messages, a system message before them allowed."""
    if not isinstance(raw, list) or not all(isinstance(message, dict) for message in raw):
        raise InputError(f"conversations: expected a list of messages, found {shown(raw)}")
    system_message, messages = None, list(raw)
    if messages and messages[0].get("from") == "system":
        _check_unsaid(messages[0], None, "conversations: system", of_video=of_video)
        system_message = text(messages.pop(0).get("value"), "conversations: system")
    if not messages or len(messages) % 2:
        raise InputError(f"conversations: expected pairs of human and gpt, found {len(messages)} messages")
    turns = []
    for first in range(0, len(messages), 2):
        where = f"conversations: turn {first // 2 + 1}"
        human, reply = messages[first : first + 2]
        for message, expected in ((human, "human"), (reply, "gpt")):
            role = message.get("from")
            if not isinstance(role, str) or _ROLES.get(role) != expected:
                raise InputError(f"{where}: expected {expected}, found {shown(role)}")
        said_s = human.get("timestamps")
        check_part_keys(human, MESSAGE, f"{where}: human", of_video=of_video)
        _check_unsaid(reply, said_s, f"{where}: gpt", of_video=of_video)
        turns.append(
            DialogueTurn(
                text(human.get("value"), f"{where}: human"),
                text(reply.get("value"), f"{where}: gpt"),
                None if said_s is None else time_s(said_s, f"{where}: timestamps"),
            )
        )
    return system_message, tuple(turns)


def _check_unsaid(message: Mapping[str, Any], said_s: Any, where: str, *, of_video: bool) -> None:
    """Refuse a time at an answer unless it repeats its question's: nothing would be done with it."""
    check_part_keys(message, MESSAGE, where, of_video=of_video, asks=False)
    if message.get("timestamps") not in (None, said_s):
        found = shown(message["timestamps"])
        raise InputError(f"{where}: timestamps: expected none but the question's, {shown(said_s)}, found {found}")


def _check_times(turns: Sequence[DialogueTurn]) -> None:
    previous_s = 0.0
    for count, turn in enumerate(turns, start=1):
        if turn.time_s is None:
            raise InputError(f"conversations: turn {count}: expected timestamps, as in the other turns, found none")
        if turn.time_s < previous_s:
            raise InputError(
                f"conversations: turn {count}: timestamps: expected at least {previous_s:g}, the turn before's, found"
                f" {turn.time_s:g}"
            )
        previous_s = turn.time_s


def _video(row: Row, root: Location) -> dict[str, Any]:
    """Fields of a `Sample` about its video."""
    clip, ends = row.get("clip"), [row.get("start"), row.get("end")]
    if ends != [None, None]:
        if clip not in (None, ends):
            raise InputError(f"expected clip or start and end, found both: {shown(clip)} and {shown(ends)}")
        clip = ends
    if clip is not None:
        if not isinstance(clip, list) or len(clip) != 2:
            raise InputError(f"clip: expected start and end in seconds, found {shown(clip)}")
        start_s, end_s = (time_s(value, "clip") for value in clip)
        if not start_s <= end_s:
            raise InputError(f"clip: expected 0 <= start <= end in seconds, found [{start_s:g}, {end_s:g}]")
        clip = (start_s, end_s)
    fps = row.get("fps")
    if fps is not None:
        number(fps, "fps", lowest=FPS_RANGE[0], highest=FPS_RANGE[1])
    resets = row.get("need_reset_timestamp")
    if resets is not None and not isinstance(resets, bool):
        raise InputError(f"need_reset_timestamp: expected true or false, found {shown(resets)}")
    return {
        "media": (location(path(row["video"], "video"), root),),
        "clip_s": clip,
        "reset_times": resets is True,
        "fps": fps,
    }


def _images(row: Row, root: Location) -> tuple[Location, ...]:
    raw = row["image"]
    names = raw if isinstance(raw, list) else [raw]
    if not all(isinstance(name, str) and name for name in names):
        raise InputError(f"image: expected a path or a list of paths, found {shown(raw)}")
    return tuple(location(path(name, "image"), root) for name in names)


def _sizes(row: Row, num_images: int) -> tuple[tuple[int, int], ...]:
    """Width and height of every image, if the row gives them all; InternVL's do, as a number or a list."""
    width, height = (value if isinstance(value, list) else [value] for value in (row.get("width"), row.get("height")))
    values = [*width, *height]
    if not len(width) == len(height) == num_images or not all(type(value) is int and value > 0 for value in values):
        return ()
    return tuple(zip(width, height, strict=True))
