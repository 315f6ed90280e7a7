"""The OpenAPI document: as committed, as served, and as what the routes give and take."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest

from api_server import WAIT_S, png, serving
from openapi_document import openapi_document
from videochat_online.serving.streams.pool import StreamPool

COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"
RESOLVED = json.loads(COMMITTED.read_text("utf-8"))


@pytest.fixture(scope="module")
def http(tiny_model):
    with (
        serving(StreamPool(tiny_model, max_streams=2)) as running,
        httpx.Client(base_url=f"{running.url}/v1", timeout=WAIT_S) as client,
    ):
        yield client


def conforms(schema: dict[str, Any], content: Any) -> bool:
    """Whether JSON is what a schema of the document says."""
    whole = {**schema, "components": RESOLVED["components"]}
    return bool(jsonschema.Draft202012Validator(whole).is_valid(content))


def response_schema(path: str, method: str, status: int) -> dict[str, Any]:
    return RESOLVED["paths"][path][method]["responses"][str(status)]["content"]["application/json"]["schema"]


def request_schema(path: str) -> dict[str, Any]:
    return RESOLVED["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


def test_the_document_that_is_committed_is_that_of_the_routes_and_is_served(http):
    assert openapi_document() == RESOLVED, "run: python scripts/tools/openapi_document.py docs/openapi.json"
    assert http.get("/openapi.json").json() == RESOLVED
    page = http.get("/docs").text
    assert "/v1/openapi.json" in page
    assert "https://" not in page, "the page needs the net"
    scripts = re.findall(r'(?:src|href)="/v1(/[^"]+\.(?:js|css))"', page)
    assert len(scripts) == 2
    assert all(http.get(path).is_success for path in scripts)


def test_each_route_answers_and_refuses_as_the_document_says(http):
    opened = http.post("/streams", json={"generation": {"max_new_tokens": 4}})
    one = f"/streams/{opened.json()['id']}"
    pushed = http.post(f"{one}/frames", content=png(np.full((40, 40, 3), 90, np.uint8)))
    asked = http.post(f"{one}/ask", json={"question": "What is it?"})
    seen = {
        ("/health", "get"): http.get("/health"),
        ("/streams", "post"): opened,
        ("/streams/{id}/frames", "post"): pushed,
        ("/streams/{id}/ask", "post"): asked,
        ("/streams/{id}", "get"): http.get(one),
        ("/streams/{id}/answer", "delete"): http.delete(f"{one}/answer"),
        ("/streams/{id}/dialogue", "delete"): http.delete(f"{one}/dialogue"),
        ("/streams/{id}/frame.jpg", "get"): http.get(f"{one}/frame.jpg"),
        ("/streams/{id}/view", "get"): http.head(f"{one}/view"),
        ("/streams/{id}", "delete"): http.delete(one),
    }
    documented = {(path, method) for path, methods in RESOLVED["paths"].items() for method in methods}
    assert set(seen) == documented
    for (path, method), response in seen.items():
        said = RESOLVED["paths"][path][method]["responses"]
        assert str(response.status_code) in said, (path, method, response.text)
        kind = response.headers.get("content-type", "").partition(";")[0]
        assert not kind or kind in said[str(response.status_code)].get("content", ()), (path, method, kind)
        if kind == "application/json":
            schema = response_schema(path, method, response.status_code)
            assert conforms(schema, response.json()), response.text
            assert not conforms(schema, {**response.json(), "more": 1}) or path == "/streams/{id}/ask"
        gone = http.request(method, path.replace("{id}", "gone"), content=b"{" if path == "/streams" else b"")
        if not gone.is_success:
            assert conforms(response_schema(path, method, gone.status_code), gone.json()), gone.text


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/streams", {}),
        ("/streams", {"fps": 2.5, "memory": "window", "memory_options": {"num_frames": 3}, "system_message": None}),
        ("/streams", {"fps": 0}),
        ("/streams", {"fps": "1"}),
        ("/streams", {"memory": 1}),
        ("/streams", {"more": 1}),
        ("/streams", {"strategy": "direct"}),
        ("/streams", {"generation": {"top_p": 0.5, "seed": None}}),
        ("/streams", {"generation": {"top_p": 0}}),
        ("/streams", {"generation": {"more": 0}}),
        ("/streams", {"max_waiting": 0}),
        ("/ask", {"question": "What?", "stream": False}),
        ("/ask", {"question": 3}),
        ("/ask", {"stream": False}),
        ("/ask", {"question": "What?", "stream": 1}),
        ("/ask", {"question": "What?", "more": 1}),
    ],
)
def test_the_document_and_the_server_take_the_same_requests(http, path, document):
    opened = f"/streams/{http.post('/streams').json()['id']}"
    is_stream = path == "/streams"
    taken = http.post(path if is_stream else opened + path, json=document)
    if is_stream and taken.is_success:
        http.delete(f"/streams/{taken.json()['id']}")
    http.delete(opened)
    schema = request_schema("/streams" if is_stream else "/streams/{id}/ask")
    assert taken.is_success == conforms(schema, document), taken.text


def test_every_reference_of_the_document_leads_somewhere():
    text = json.dumps(RESOLVED)
    named = {f"#/components/schemas/{name}" for name in RESOLVED["components"]["schemas"]}
    assert {part.split('"')[0] for part in text.split('"$ref": "')[1:]} == named
