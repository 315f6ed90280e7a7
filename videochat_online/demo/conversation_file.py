"""A dialogue as files: JSON with every time, or subtitles that can be laid over the video."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter

from videochat_online.serving.api.schemas import answer_document
from videochat_online.serving.streams.live_answer import LiveAnswer
from videochat_online.serving.streams.stream_status import AnswerDocument

SHORTEST_S, LONGEST_S = 2.0, 7.0
"""Seconds that a subtitle stands, the next one permitting."""

CHARACTERS_PER_S = 15.0
"""Characters that people read in a second."""

_CONVERSATION = TypeAdapter(list[AnswerDocument])


def to_json(answers: Sequence[LiveAnswer]) -> str:
    """One JSON array, an object for each question, the oldest first; fields as in the HTTP API."""
    return _CONVERSATION.dump_json([answer_document(answer) for answer in answers], indent=2).decode() + "\n"


def to_srt(answers: Sequence[LiveAnswer]) -> str:
    """SubRip subtitles: question and answer from the moment of the question until they can have been read.

    Questions without a time (about images) follow each other. A subtitle never runs into the next one.
    """
    shown = [answer for answer in answers if answer.text]
    starts: list[float] = []
    for answer in shown:
        before = starts[-1] + SHORTEST_S if starts else 0.0
        starts.append(before if answer.asked_at_s is None else max(answer.asked_at_s, starts[-1] if starts else 0.0))
    blocks = []
    for number, (answer, start_s) in enumerate(zip(shown, starts, strict=True), start=1):
        text = f"{subtitle_line(answer.question)}\n{subtitle_line(answer.text)}"
        end_s = start_s + min(max(len(text) / CHARACTERS_PER_S, SHORTEST_S), LONGEST_S)
        following = starts[number] if number < len(starts) else end_s
        if following > start_s:
            end_s = min(end_s, following)
        blocks.append(f"{number}\n{stamp(start_s)} --> {stamp(end_s)}\n{text}\n")
    return "\n".join(blocks)


def subtitle_line(text: str) -> str:
    """Text without line breaks: an empty line would end a subtitle; nor may it look like the next one's times."""
    return " ".join(text.split()).replace("-->", "->")


def stamp(time_s: float) -> str:
    """`3725.5` -> `01:02:05,500`."""
    milliseconds = round(time_s * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    seconds, milliseconds = divmod(rest, 1000)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d},{milliseconds:03d}"
