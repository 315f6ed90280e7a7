"""What the page asks for besides its own events: how a stream is doing, pictures of what it remembers, files.

Whoever knows a stream's id may read it: the id is a secret of the page that opened the stream.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, PlainTextResponse, Response

from videochat_online.demo.conversation_file import to_json, to_srt
from videochat_online.serving.api.schemas import memory_document
from videochat_online.serving.streams.image_dialogue import LiveImages
from videochat_online.serving.streams.live_answer import UnknownStreamError
from videochat_online.serving.streams.pool import PoolEntry, StreamPool

STATIC = Path(__file__).parent / "static"


def make_page_routes(pool: StreamPool) -> APIRouter:
    """Routes below `/page`."""
    routes = APIRouter(prefix="/page")

    def find(name: str) -> PoolEntry:
        try:
            return pool.find(name)
        except UnknownStreamError as error:
            raise HTTPException(404, str(error)) from error

    @routes.get("/{file}.{kind}", include_in_schema=False)
    def static(file: str, kind: str) -> FileResponse:
        if f"{file}.{kind}" not in ("page.js", "page.css"):
            raise HTTPException(404, "no such file")
        return FileResponse(STATIC / f"{file}.{kind}", headers={"Cache-Control": "no-cache"})

    @routes.get("/streams/{name}")
    def live(name: str) -> dict[str, Any]:
        return live_view(find(name))

    @routes.get("/streams/{name}/remembered/{index}.jpg")
    def thumbnail(name: str, index: int) -> Response:
        dialogue = find(name).dialogue
        if not isinstance(dialogue, LiveImages):
            memory = dialogue.memory()
            for frame in (*memory.remembered, *memory.forgotten):
                if frame.index == index and frame.thumbnail:
                    return Response(frame.thumbnail, media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})
        raise HTTPException(404, "that frame is not remembered")

    @routes.get("/streams/{name}/images.jpg")
    def images(name: str) -> Response:
        dialogue = find(name).dialogue
        if not isinstance(dialogue, LiveImages):
            raise HTTPException(404, "these are no images")
        return Response(dialogue.picture(), media_type="image/jpeg")

    @routes.get("/streams/{name}/conversation.json")
    def as_json(name: str) -> Response:
        return _download(to_json(find(name).dialogue.answers), "conversation.json", "application/json")

    @routes.get("/streams/{name}/conversation.srt")
    def as_srt(name: str) -> Response:
        return _download(to_srt(find(name).dialogue.answers), "conversation.srt", "application/x-subrip")

    return routes


def live_view(entry: PoolEntry) -> dict[str, Any]:
    """All that the page shows about a stream, but for the pictures."""
    dialogue = entry.dialogue
    if isinstance(dialogue, LiveImages):
        return {"status": None, "player": None, "memory": None}
    player = None if entry.player is None else asdict(entry.player.status())
    return {"status": asdict(dialogue.status()), "player": player, "memory": memory_document(dialogue)}


def _download(text: str, name: str, kind: str) -> PlainTextResponse:
    return PlainTextResponse(text, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})
