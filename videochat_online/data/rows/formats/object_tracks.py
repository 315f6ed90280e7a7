"""Rows of tracked objects: an image file and a box for each time, and a question about the object at a box."""

from __future__ import annotations

from typing import Any

from videochat_online.data.rows.field_types import check_coordinate, clock_s, path, text
from videochat_online.data.rows.formats.base import Row
from videochat_online.data.rows.sample import BoxAt, Sample
from videochat_online.data.rows.storage import Location, location
from videochat_online.data.rows.unknown_keys import KEYS, check_row_keys
from videochat_online.errors import InputError, shown


def is_track(row: Row) -> bool:
    """Whether a row is a track, whatever dialogue it may hold besides."""
    return "query_template" in row or "image_bboxes" in row


class ObjectTracks:
    """Object tracks."""

    keys = KEYS

    def claims(self, row: Row) -> bool:
        """Rows with `image_bboxes` or `query_template`."""
        return is_track(row)

    def parse(self, row: Row, root: Location) -> Sample:
        """Validate a row; InputError names the box."""
        check_row_keys(row)
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
        media = tuple(folder / path(name, f"all_image_files {index}") for index, name in enumerate(names))
        return Sample(kind="tracking", media=media, boxes=tracked, query=asked)


def _box(raw: Any, index: int) -> BoxAt:
    where = f"image_bboxes {index}"
    if not isinstance(raw, dict) or not isinstance(raw.get("bbox"), list) or len(raw["bbox"]) != 4:
        raise InputError(f"{where}: expected timestamp and bbox of 4 numbers, found {shown(raw)}")
    for value in raw["bbox"]:  # prompts write whole pixels without a point: the values stay as they are
        check_coordinate(value, f"{where}: bbox")
    return BoxAt(clock_s(raw.get("timestamp"), f"{where}: timestamp"), tuple(raw["bbox"]))
