"""A sample and its frames -> turns with a visual segment for each picture.

Owns the wording around pictures in training rows: where frame lines go, what stands before a turn, how a
track becomes a dialogue. Knows nothing of ids or pixels; `text.layout_prompt` goes on from here.
"""

from __future__ import annotations

from collections.abc import Sequence

from videochat_online.constants import IMAGE_PLACEHOLDER
from videochat_online.data.rows.sample import VIDEO_PLACEHOLDER, DialogueTurn, Sample
from videochat_online.errors import InputError
from videochat_online.text import INTERNVL, split_placeholders
from videochat_online.types import FrameUse, Segment, Turn
from videochat_online.video import TIME_TOLERANCE_S


def text_turns(turns: Sequence[DialogueTurn]) -> tuple[Turn, ...]:
    """A dialogue without pictures."""
    return tuple(Turn(split_placeholders(turn.user, ()), turn.assistant) for turn in turns)


def image_turns(turns: Sequence[DialogueTurn], num_tokens: Sequence[int]) -> tuple[Turn, ...]:
    """Images at their placeholders, whatever turn these are in; without any, before the first turn.

    Args:
        turns: turns as annotated.
        num_tokens: visual tokens of each image, all tiles together.

    Raises:
        InputError: the dialogue has placeholders, but not one for each image.
    """
    users = [turn.user for turn in turns]
    counts = [user.count(IMAGE_PLACEHOLDER) for user in users]
    if not any(counts):
        users[0] = f"{IMAGE_PLACEHOLDER}\n" * len(num_tokens) + users[0]
        counts[0] = len(num_tokens)
    if sum(counts) != len(num_tokens):
        raise InputError(f"expected {IMAGE_PLACEHOLDER} {len(num_tokens)} times, as images, found {sum(counts)}")
    result, first = [], 0
    for turn, user, count in zip(turns, users, counts, strict=True):
        result.append(Turn(split_placeholders(user, num_tokens[first : first + count]), turn.assistant))
        first += count
    return tuple(result)


def video_turns(turns: Sequence[DialogueTurn], frames: Sequence[FrameUse]) -> tuple[Turn, ...]:
    """All frames of a video at the placeholder of the first turn, or before it: `Frame{i}: <image>` lines.

    Raises:
        InputError: more than one placeholder, or one in a later turn.
    """
    users = [turn.user.replace(VIDEO_PLACEHOLDER, IMAGE_PLACEHOLDER) for turn in turns]
    found = [user.count(IMAGE_PLACEHOLDER) for user in users]
    if found[0] > 1 or any(found[1:]):
        raise InputError(f"expected one {VIDEO_PLACEHOLDER}, in the first turn, found {sum(found)} in all turns")
    before, placeholder, after = users[0].rpartition(IMAGE_PLACEHOLDER)
    opening: tuple[Segment, ...] = (before,) if before else ()
    # The lines end in the line break that follows the placeholder in the annotation.
    text = after.removeprefix("\n") if placeholder else after
    first = (*opening, *INTERNVL.turn(frames, text, with_times=False))
    later = (Turn(INTERNVL.turn((), turn.user, with_times=False), turn.assistant) for turn in turns[1:])
    return (Turn(first, turns[0].assistant), *later)


def last_turns(turns: Sequence[DialogueTurn]) -> tuple[DialogueTurn, ...]:
    """The turns of the last time; what a memory holds then may be without the frames that earlier ones are about."""
    return tuple(turn for turn in turns if turn.time_s == turns[-1].time_s)


def frames_until(frames: Sequence[FrameUse], time_s: float) -> Sequence[FrameUse]:
    """The frames that start at or before a time, as the prompt prints their times."""
    return [frame for frame in frames if frame.time_s <= time_s + TIME_TOLERANCE_S]


def online_turns(turns: Sequence[DialogueTurn], frames: Sequence[FrameUse]) -> tuple[Turn, ...]:
    """Each turn after the frames that arrived since the turn before: `Frame{i} at {t}s: <image>` lines.

    Frames after the last turn's time are left out.
    """
    result, first = [], 0
    for turn in turns:
        stop = len(frames_until(frames, turn.time_s or 0.0))
        result.append(online_turn(turn, frames[first:stop]))
        first = max(first, stop)
    return tuple(result)


def online_turn(turn: DialogueTurn, frames: Sequence[FrameUse]) -> Turn:
    """A turn after the frames that arrived since the turn before."""
    text = turn.user
    for placeholder in (VIDEO_PLACEHOLDER, IMAGE_PLACEHOLDER):
        text = text.replace(f"{placeholder}\n", "").replace(placeholder, "")
    return Turn(INTERNVL.turn(frames, text, with_times=True), turn.assistant)


def tracking_turns(sample: Sample, indices: Sequence[int], asked: int) -> tuple[DialogueTurn, ...]:
    """The dialogue about a track: one frame's box is asked, each later frame becomes a turn.

    Args:
        sample: a track.
        indices: indices of the images that are used, ascending.
        asked: the one of `indices` that is asked about.
    """
    # Turns stand where their frames do, and replies say their times, which are rounded as prompts print them.
    times_s = [round(sample.boxes[index].time_s, 1) for index in indices]
    lines = [f"At {time_s}s, {list(sample.boxes[index].box)}" for time_s, index in zip(times_s, indices, strict=True)]
    query = tracking_query(sample, indices[asked])
    later = (
        DialogueTurn("", line, time_s) for line, time_s in zip(lines[asked + 1 :], times_s[asked + 1 :], strict=True)
    )
    return (DialogueTurn(query, "\n".join(lines[: asked + 1]), times_s[asked]), *later)


def tracking_query(sample: Sample, index: int) -> str:
    """The question about a track's box."""
    return sample.query.replace("<bbox>", str(list(sample.boxes[index].box)))
