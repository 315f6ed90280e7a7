"""Rows of tracked objects: an image file and a box for each time, and a question about the object at a box."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from videochat_online.data.rows.field_types import ClockS, Coordinate, Fields, PathText
from videochat_online.data.rows.formats.base import Row
from videochat_online.data.rows.sample import BoxAt, Sample
from videochat_online.data.rows.storage import Location, location
from videochat_online.data.rows.unknown_keys import KEYS, check_row_keys
from videochat_online.documents import Text, validated
from videochat_online.errors import InputError, shown


def is_track(row: Row) -> bool:
    """Whether a row is a track, whatever dialogue it may hold besides."""
    return "query_template" in row or "image_bboxes" in row


def _value(message: Any) -> Any:
    return message.get("value") if isinstance(message, dict) else message


class _Box(Fields):
    timestamp: ClockS
    bbox: Annotated[list[Coordinate], Field(min_length=4, max_length=4)]


class _Track(Fields):
    video: PathText
    all_image_files: Annotated[list[PathText], Field(min_length=1)]
    image_bboxes: list[_Box]
    query_template: Annotated[Text, BeforeValidator(_value)]


class ObjectTracks:
    """Object tracks."""

    keys = KEYS

    def claims(self, row: Row) -> bool:
        """Rows with `image_bboxes` or `query_template`."""
        return is_track(row)

    def parse(self, row: Row, root: Location) -> Sample:
        """Validate a row; InputError names the box."""
        check_row_keys(row)
        track: _Track = validated(_Track, row)
        num_images, asked = len(track.all_image_files), track.query_template
        if len(track.image_bboxes) != num_images:
            found = len(track.image_bboxes)
            raise InputError(f"image_bboxes: expected {num_images} boxes, one for each image file, found {found}")
        if "<bbox>" not in asked:
            raise InputError(f"query_template: expected <bbox> where the asked box goes, found {shown(asked)}")
        # Prompts write whole pixels without a point: the numbers stay as they are.
        written = zip(track.image_bboxes, row["image_bboxes"], strict=True)
        boxes = tuple(BoxAt(box.timestamp, tuple(raw["bbox"])) for box, raw in written)
        folder = location(track.video, root)
        media = tuple(folder / name for name in track.all_image_files)
        return Sample(kind="tracking", media=media, boxes=boxes, query=asked)
