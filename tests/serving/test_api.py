"""The HTTP API over a real server: every route, what it refuses, and what goes on while an answer is being given."""

from __future__ import annotations

import io
import json
import socket
import struct
import time
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import InvalidStatus

from api_server import WAIT_S, endless, events_of, png, problem, serving, socket_of, until_five_frames, wait_for
from videochat_online.client import StreamClient
from videochat_online.memory import MEMORIES
from videochat_online.serving.api.schemas import ApiLimits, bounded_memories
from videochat_online.serving.streams.pool import StreamPool
from videochat_online.streaming import GenerationSettings, StreamingSession

SHORT = {"max_new_tokens": 6, "min_new_tokens": 6}
LIMITS = ApiLimits(max_frame_bytes=200_000, max_frame_pixels=300 * 300, max_views=64)


@pytest.fixture(scope="module")
def server(tiny_model):
    """One for the tests that leave it as they found it."""
    with serving(StreamPool(tiny_model, max_streams=3), limits=LIMITS) as running:
        yield running


@pytest.fixture
def http(server):
    with httpx.Client(base_url=f"{server.url}/v1", timeout=WAIT_S) as client:
        yield client


@pytest.fixture
def opened(http):
    """Paths of new streams, closed at the end of the test."""
    paths = []

    def open_stream(**options):
        response = http.post("/streams", json={"generation": SHORT, **options})
        assert response.status_code == 201, response.text
        paths.append(f"/streams/{response.json()['id']}")
        return paths[-1]

    yield open_stream
    for path in paths:
        http.delete(path)


def bomb(width, height):
    """A PNG that says to be that large; its zeros take next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6)))


def push(http, path, pixels, time_s=None):
    return http.post(f"{path}/frames", params={} if time_s is None else {"time_s": time_s}, content=png(pixels))


class TestStreams:
    def test_health_needs_nothing_and_says_what_there_is(self, http, tiny_model):
        health = http.get("/health").json()
        assert health["places"] == {"free": 3, "total": 3}
        assert health["frame_size"] == {"width": tiny_model.config.image_size, "height": tiny_model.config.image_size}
        assert health["memories"]["window"] == ["num_frames"]
        assert health["memories"]["star"] == ["newest_frames", "key_frames", "cluster_frames", "abstract_decay"]
        assert "keep_all" not in health["memories"]
        assert set(health["versions"]) == {"videochat_online", "torch"}

    def test_a_stream_remembers_and_answers_as_a_session_does(self, http, opened, tiny_model, frames):
        path, pixels = opened(), frames(20)
        for index in range(20):
            assert push(http, path, pixels[index], index).json()["accepted"] is True
        answer = http.post(f"{path}/ask", json={"question": "What now?"}).json()
        with http.stream("POST", f"{path}/ask", json={"question": "And then?", "stream": True}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            *pieces, (last, whole) = events_of(response)
        session = StreamingSession(tiny_model, settings=GenerationSettings(**SHORT))
        session.push(pixels, range(20))
        expected = [session.ask("What now?").text, session.ask("And then?").text]
        assert [answer["text"], whole["text"]] == expected
        assert "".join(data["text"] for _, data in pieces).strip() == expected[1]
        assert ({kind for kind, _ in pieces}, last) == ({"piece"}, "answer")
        assert (answer["state"], answer["asked_at_s"], answer["error"]) == ("answered", 19.0, None)
        assert answer["first_token_s"] > 0
        told = http.get(path).json()
        remembered = [(f["index"], f["time_s"], f["num_tokens"]) for f in told["memory"]["remembered"]]
        assert remembered == [(f.index, f.time_s, f.num_tokens) for f in session.remembered()]
        assert told["status"]["num_frames_seen"] == 20
        assert told["options"]["generation"]["max_new_tokens"] == 6
        assert told["answers"] == [answer, whole]
        assert {"first_num_tokens", "demoted_at_s", "forgotten_at_s"} < set(told["memory"]["forgotten"][0])

    def test_all_options_arrive(self, http, opened):
        options = {
            "fps": 2,
            "memory": "fifo",
            "memory_options": {"capacities": [1, 2, 3], "policy": "paper"},
            "system_message": "Be short.",
            "generation": {"max_new_tokens": 9, "temperature": 0.5, "seed": 3},
            "max_waiting": 4,
        }
        told = http.get(opened(**options)).json()["options"]
        for name in ("fps", "memory", "memory_options", "system_message", "max_waiting"):
            assert told[name] == options[name]
        assert options["generation"].items() <= told["generation"].items()
        assert http.get(opened(memory="window", memory_options={"num_frames": 2})).json()["status"]["max_tokens"] == 32

    def test_the_options_of_any_memory_arrive(self, http, opened):
        weights = {"penalty_weights": [1, 0.5, 0], "recent_frames": 2, "event_frames": 3}
        told = http.get(opened(memory="event_merging", memory_options=weights)).json()
        assert (told["options"]["memory_options"], told["status"]["max_tokens"]) == (weights, 2 * 16 + 3 * 4)
        told = http.get(opened(memory="moviechat", memory_options={"reading": "breakpoint", "long_frames": 4})).json()
        assert told["status"]["max_tokens"] == 4 + 18

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"fsp": 1}, "unknown field 'fsp': expected one of fps, "),
            ({"fps": "1"}, "fps: expected a number, found '1'"),
            ({"fps": True}, "fps: expected a number"),
            ({"fps": 0}, "fps: expected a number above 0, found 0"),
            ({"fps": 10**400}, "fps: expected a number, found 1000"),
            ({"memory": "none"}, "event_merging, found 'none'"),
            ({"memory": "keep_all"}, "found 'keep_all'"),
            ({"memory": ["pyramid"]}, "memory: expected a text"),
            ({"memory_options": [2]}, "memory_options: expected an object"),
            ({"memory_options": {"device": "meta"}}, "unknown field 'memory_options.device'"),
            ({"memory_options": {"num_frames": 3}}, "unknown field 'memory_options.num_frames': expected one of capac"),
            ({"memory_options": {"capacities": 3}}, "memory_options.capacities: expected a list"),
            ({"memory_options": {"capacities": [2, 2, 1.5]}}, "memory_options.capacities: expected a list of whole"),
            ({"memory_options": {"capacities": [200, 200, 2]}}, "at most 256 frames, got 402"),
            ({"memory_options": {"policy": "x"}}, "memory_options.policy: expected one of reference, paper"),
            (
                {"memory": "window", "memory_options": {"num_frames": 10**9}},
                "memory_options: expected at most 256 frames",
            ),
            ({"memory": "window", "memory_options": {"num_frames": 0}}, "memory_options.num_frames: expected"),
            (
                {"memory": "star", "memory_options": {"cluster_frames": 257}},
                "memory_options: expected at most 256 frames",
            ),
            ({"memory": "star", "memory_options": {"key_frames": None}}, "key_frames: expected a whole number"),
            (
                {"memory": "star", "memory_options": {"abstract_decay": "0.5"}},
                "abstract_decay: expected",
            ),
            ({"memory": "moviechat", "memory_options": {"reading": 1}}, "memory_options.reading: expected one of"),
            ({"memory": "event_merging", "memory_options": {"penalty_weights": [1, 1]}}, "expected 3 numbers of"),
            (
                {"memory": "event_merging", "memory_options": {"penalty_weights": [1, 1, "1"]}},
                "penalty_weights: expected",
            ),
            (
                {"memory": "event_merging", "memory_options": {"penalty_weights": 1}},
                "expected 3 numbers of at least 0, got 1",
            ),
            ({"system_message": 5}, "system_message: expected a text"),
            ({"system_message": "\ud800"}, "system_message: expected Unicode text, without halves"),
            ({"generation": {"max_tokens": 5}}, "unknown field 'generation.max_tokens'"),
            (
                {"generation": {"max_new_tokens": 10**6}},
                "generation.max_new_tokens: expected a number of at most 2,048, found 1000000",
            ),
            ({"generation": {"max_new_tokens": 5.0}}, "generation.max_new_tokens: expected a whole number"),
            ({"generation": {"temperature": -1}}, "generation.temperature: expected"),
            ({"generation": {"top_p": 0}}, "generation.top_p: expected a number above 0, found 0"),
            ({"generation": {"seed": -1}}, "generation.seed: expected"),
            ({"generation": None}, "generation: expected an object, found none"),
            ({"max_waiting": 0}, "max_waiting: expected a number of at least 1, found 0"),
            ({"max_waiting": 65}, "max_waiting: expected a number of at most 64, found 65"),
            ({"fps": 31}, "fps: expected a number of at most 30, found 31"),
            (
                {"generation": {"max_new_tokens": 2, "min_new_tokens": 3}},
                "min_new_tokens: expected at most max_new_tokens, 2",
            ),
        ],
    )
    def test_bad_options_are_named_and_take_no_place(self, http, options, says):
        body = json.dumps(options)  # what httpx would not send: half a pair
        assert says in problem(http.post("/streams", content=body), 422)
        assert http.get("/health").json()["places"]["free"] == 3

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            (b"{", "expected JSON, found"),
            (b"\xff\xfe{", "expected JSON, found"),
            (b'{"fps": NaN}', "expected JSON, found NaN"),
            (b'{"fps": 1e', "expected JSON"),
            (b"[" * 50_000, "expected JSON"),
            (b"[]", "expected a JSON object, found []"),
            (b"9" * 10_000, "expected"),
        ],
    )
    def test_what_is_no_json_object_is_refused(self, http, opened, body, says):
        assert says in problem(http.post("/streams", content=body), 400)
        assert says in problem(http.post(f"{opened()}/ask", content=body), 400)

    def test_a_body_that_is_too_long(self, http, opened):
        assert "at most 65,536 bytes" in problem(http.post("/streams", content=b" " * 100_000), 413)
        assert "at most 200,000 bytes" in problem(http.post(f"{opened()}/frames", content=bytes(200_001)), 413)

    def test_unknown_and_closed_streams_are_not_found(self, server, http, opened):
        path = opened()
        assert http.delete(path).status_code == 204
        for gone in (path, "/streams/nothing"):
            for method, rest in [
                ("GET", ""),
                ("DELETE", ""),
                ("POST", "/frames"),
                ("POST", "/ask"),
                ("DELETE", "/answer"),
                ("DELETE", "/dialogue"),
                ("GET", "/view"),
                ("GET", "/frame.jpg"),
            ]:
                assert "no such stream" in problem(http.request(method, gone + rest), 404)
            with pytest.raises(InvalidStatus) as refused, socket_of(server, gone.removeprefix("/streams/")):
                pass
            assert refused.value.response.status_code == 404
            assert b"no such stream" in refused.value.response.body
        assert problem(http.get("/nothing"), 404) == "Not Found"
        assert problem(http.put("/streams"), 405) == "Method Not Allowed"
        assert problem(http.get(f"{path}/ws"), 404) == "Not Found"

    def test_a_full_pool_says_when_to_come_back(self, http, opened):
        first = opened()
        opened()
        opened()
        response = http.post("/streams")
        assert "all 3 places are taken" in problem(response, 503)
        assert int(response.headers["retry-after"]) > 0
        http.delete(first)
        opened()

    def test_two_clients_do_not_see_each_other(self, http, opened, frames):
        one, two = opened(), opened()
        for number, path in enumerate((one, two)):
            for index, pixels in enumerate(frames(3, seed=number)):
                push(http, path, pixels, 10 * number + index)
        for number, path in enumerate((one, two)):
            assert http.post(f"{path}/ask", json={"question": f"Who is {number}?"}).json()["state"] == "answered"
        for number, path in enumerate((one, two)):
            told = http.get(path).json()
            assert [answer["question"] for answer in told["answers"]] == [f"Who is {number}?"]
            assert [f["time_s"] for f in told["memory"]["remembered"]] == [10.0 * number + index for index in range(3)]


class TestFrames:
    def test_frames_are_thinned_to_the_rate_of_the_stream(self, http, opened, frames):
        path = opened(fps=2)
        told = [push(http, path, frames(1)[0], time_s).json() for time_s in (0, 0.2, 0.5, 0.5, 1.1)]
        assert [frame["accepted"] for frame in told] == [True, False, True, False, True]
        assert [frame["time_s"] for frame in told] == [0, 0.2, 0.5, 0.5, 1.1]
        assert {"num_frames_waiting", "num_frames_dropped"} < set(told[0])

    def test_the_time_is_that_since_the_stream_was_opened(self, http, opened, frames):
        before = time.monotonic()
        path = opened()
        first, second = (push(http, path, frames(1)[0]).json()["time_s"] for _ in range(2))
        assert 0 <= first < second <= time.monotonic() - before + 0.1

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_each_format_is_read_and_turned_upright(self, http, opened, frames, kind):
        path, buffer, exif = opened(), io.BytesIO(), Image.Exif()
        exif[0x0112] = 6  # a camera that was held upright
        Image.fromarray(frames(1)[0]).save(buffer, kind, exif=exif)
        assert http.post(f"{path}/frames", content=buffer.getvalue()).json()["accepted"]
        shown = http.get(f"{path}/frame.jpg")
        assert Image.open(io.BytesIO(shown.content)).size == (60, 80)

    def test_bad_frames_are_refused_and_the_stream_goes_on(self, http, opened, frames):
        path, (pixels,) = opened(), frames(1)
        good, gif = png(pixels), io.BytesIO()
        Image.fromarray(pixels).save(gif, "GIF")
        for content, says in [
            (b"", "no known image format"),
            (b"hello" * 100, "no known image format"),
            (gif.getvalue(), "no known image format"),
            (good[:-1000], "the frame: expected a readable image"),
            (bomb(30_000, 30_000), "the frame: expected an image of at most 90,000 pixels, found many more"),
            (bomb(400, 300), "at most 90,000 pixels, found 400x300"),
        ]:
            assert says in problem(http.post(f"{path}/frames", content=content), 422)
        for time_s, says in [
            ("nan", "time_s: expected a finite number, found 'nan'"),
            ("-1", "time_s: expected"),
            ("inf", "time_s: expected"),
            ("1.7e9", "time_s: expected"),
            ("soon", "time_s: expected a number, found 'soon'"),
        ]:
            assert says in problem(push(http, path, pixels, time_s), 422)
        assert "unknown field 'time'" in problem(http.post(f"{path}/frames?time=3", content=good), 422)
        assert push(http, path, pixels, 5).status_code == 200
        assert "time goes backwards, from 5 s to 4 s" in problem(push(http, path, pixels, 4), 422)
        assert push(http, path, pixels, 6).json()["accepted"]

    def test_a_large_frame_is_kept_small(self, tiny_model):
        with serving(StreamPool(tiny_model)) as server, StreamClient(server.url).open(generation=SHORT) as stream:
            stream.push(np.zeros((1200, 3000, 3), np.uint8))
            entry = server.pool.find(stream.id)
            assert next(entry.stream.pictures()) is not None
            # Viewers get a JPEG; what is held for them is this array.
            assert entry.stream._picture.shape == (768, 1920, 3)

    def test_a_stream_that_has_failed_says_so(self, http, opened, frames, tiny_model, monkeypatch):
        def fail(pixels):
            raise RuntimeError("out of memory")

        path = opened()
        monkeypatch.setattr(tiny_model.network, "encode", fail)
        push(http, path, frames(1)[0])
        wait_for(lambda: http.get(path).json()["status"]["problem"])
        assert problem(push(http, path, frames(1)[0]), 409) == "the stream has failed: RuntimeError"
        refused = http.post(f"{path}/ask", json={"question": "What now?"})
        assert problem(refused, 409) == "the stream has failed: RuntimeError"


class TestAnswers:
    @pytest.mark.parametrize(
        ("document", "says"),
        [
            ({}, "question: expected a text, found none"),
            ({"question": None}, "question: expected a text, found none"),
            ({"question": " "}, "question: expected a question, got an empty one"),
            ({"question": 5}, "question: expected a text, found 5"),
            ({"question": "What?", "stream": "yes"}, "stream: expected true or false, found 'yes'"),
            ({"question": "What?", "temperature": 1}, "unknown field 'temperature'"),
            ({"question": "a\ud800"}, "question: expected Unicode text, without halves of surrogate pairs"),
        ],
    )
    def test_bad_questions_are_refused_and_the_stream_goes_on(self, http, opened, document, says):
        stream = opened()
        assert says in problem(http.post(f"{stream}/ask", content=json.dumps(document)), 422)
        assert http.get(stream).json()["status"]["problem"] is None

    def test_a_question_before_the_first_frame_fails_in_its_answer(self, http, opened):
        answer = http.post(f"{opened()}/ask", json={"question": "What now?"}).json()
        assert answer["state"] == "failed"
        assert "nothing has been seen yet" in answer["error"]

    def test_one_answer_at_a_time_and_it_can_be_stopped(self, http, opened, frames, monkeypatch):
        path, original = opened(), StreamingSession.stream_prepared
        monkeypatch.setattr(StreamingSession, "stream_prepared", lambda *args: endless(original, *args))
        push(http, path, frames(1)[0])
        with http.stream("POST", f"{path}/ask", json={"question": "What now?", "stream": True}) as response:
            events = events_of(response)
            assert next(events)[0] == "piece"
            for refused in (
                http.post(f"{path}/ask", json={"question": "And now?"}),
                http.delete(f"{path}/dialogue"),
            ):
                assert "an answer is still being given" in problem(refused, 409)
            assert http.delete(f"{path}/answer").status_code == 204
            *_, (kind, answer) = events
        assert (kind, answer["state"]) == ("answer", "stopped")
        assert http.delete(f"{path}/answer").status_code == 204  # there is none: nothing happens
        assert [one["question"] for one in http.get(path).json()["answers"]] == ["What now?"]
        assert http.delete(f"{path}/dialogue").status_code == 204
        told = http.get(path).json()
        assert told["answers"] == []
        assert len(told["memory"]["remembered"]) == 1

    @pytest.mark.parametrize("in_pieces", [True, False])
    def test_a_client_that_goes_away_stops_its_answer(self, server, http, opened, frames, monkeypatch, in_pieces):
        path, original = opened(), StreamingSession.stream_prepared
        push(http, path, frames(1)[0])
        monkeypatch.setattr(StreamingSession, "stream_prepared", lambda *args: endless(original, *args))
        body = json.dumps({"question": "What now?", "stream": in_pieces})
        with socket.create_connection(("127.0.0.1", server.port)) as leaving:
            leaving.sendall(
                f"POST /v1{path}/ask HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            wait_for(lambda: http.get(path).json()["status"]["first_token_s"])
        wait_for(lambda: not http.get(path).json()["status"]["is_answering"])
        assert http.get(path).json()["answers"][0]["state"] == "stopped"
        monkeypatch.undo()
        assert http.post(f"{path}/ask", json={"question": "And now?"}).json()["state"] == "answered"

    def test_frames_arrive_during_an_answer(self, http, opened, frames, monkeypatch):
        original, path = StreamingSession.stream_prepared, opened()
        monkeypatch.setattr(StreamingSession, "stream_prepared", lambda *args: until_five_frames(original, *args))
        push(http, path, frames(1)[0], 0)
        with http.stream("POST", f"{path}/ask", json={"question": "What now?", "stream": True}) as response:
            events = events_of(response)
            next(events)
            for index in range(1, 5):
                assert push(http, path, frames(1)[0], index).json()["accepted"]
            *_, (_, answer) = events
        assert answer["state"] == "answered"
        assert answer["asked_at_s"] == 0.0


def test_a_package_s_memory_that_cannot_be_used_is_left_out_with_a_warning(tmp_path, monkeypatch, caplog):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[videochat_online.memories]\nbroken = no_module_at_all:Bank\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert bounded_memories() == tuple(name for name in MEMORIES.built_in if name != "keep_all")
    assert "memory 'broken': expected a module no_module_at_all that can be imported" in caplog.text
