"""The HTTP API while it lasts: sockets, views, who may use it, streams kept in use, the client, the end."""

from __future__ import annotations

import hmac
import json
import socket
import struct
import subprocess
import sys
import threading
from contextlib import ExitStack

import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api_server import (
    WAIT_S,
    endless,
    framed,
    heard,
    png,
    problem,
    serving,
    socket_of,
    until_five_frames,
    wait_for,
)
from videochat_online.client import ClientError, RemoteStream, StreamClient
from videochat_online.errors import InputError
from videochat_online.serving.api.routes import AuthMiddleware, make_api
from videochat_online.serving.api.schemas import ApiLimits
from videochat_online.serving.api.service import NUM_THREADS
from videochat_online.serving.streams.pool import StreamPool
from videochat_online.serving.streams.stream_options import StreamOptions
from videochat_online.streaming import GenerationSettings, StreamingSession
from videochat_online.streaming.generate import result_of

SHORT = {"max_new_tokens": 6, "min_new_tokens": 6}
NUM_VIEWERS = 60

assert NUM_VIEWERS > 40 > NUM_THREADS, "more viewers than the API and anyio have threads"


@pytest.fixture(scope="module")
def server(tiny_model):
    """One for the tests that leave it as they found it."""
    limits = ApiLimits(max_frame_bytes=200_000, max_views=NUM_VIEWERS + 1)
    with serving(StreamPool(tiny_model, max_streams=3), limits=limits) as running:
        yield running


@pytest.fixture
def client(server):
    client = StreamClient(server.url, timeout_s=WAIT_S)
    yield client
    client.close()


@pytest.fixture
def remote(client):
    with client.open(generation=SHORT) as stream:
        yield stream


@pytest.fixture
def changed_answers(monkeypatch):
    """Answers go another way: `endless`, or `until_five_frames`."""
    original = StreamingSession.stream_prepared

    def change(way):
        monkeypatch.setattr(StreamingSession, "stream_prepared", lambda *args: way(original, *args))

    return change


class TestSocket:
    def test_frames_and_questions_over_one_socket(self, server, remote, tiny_model, frames):
        pixels = frames(12)
        session = StreamingSession(tiny_model, settings=GenerationSettings(**SHORT))
        with socket_of(server, remote.id) as talking:
            expected = []
            for index in range(12):
                talking.send(framed(pixels[index], float(index)))
                session.push(pixels[index : index + 1], [index])
                if index in (4, 11):
                    talking.send(json.dumps({"type": "ask", "question": "What now?", "request_id": f"q{index}"}))
                    expected.append(session.ask("What now?").text)
                    *pieces, answer = heard(talking, "answer")
                    assert {piece["type"] for piece in pieces} == {"piece"}
                    assert {message["request_id"] for message in (*pieces, answer)} == {f"q{index}"}
                    assert "".join(piece["text"] for piece in pieces).strip() == answer["text"] == expected[-1]
                    assert (answer["state"], answer["asked_at_s"], answer["error"]) == ("answered", index, None)
            talking.send('{"type": "status"}')
            (status,) = heard(talking, "status")
        assert status["num_frames_seen"] == 12
        assert [answer["text"] for answer in remote.describe()["answers"]] == expected

    def test_frames_go_on_arriving_while_an_answer_is_given(self, server, remote, frames, changed_answers):
        changed_answers(until_five_frames)
        with socket_of(server, remote.id) as talking:
            talking.send(framed(frames(1)[0], 0.0))
            talking.send('{"type": "ask", "question": "What now?"}')
            heard(talking, "piece")
            for index in range(1, 5):
                talking.send(framed(frames(1)[0], float(index)))
            answer = heard(talking, "answer")[-1]
        assert (answer["state"], answer["request_id"]) == ("answered", None)
        assert answer["asked_at_s"] == 0.0

    def test_stop_ends_the_answer_and_the_socket_goes_on(self, server, remote, frames, changed_answers):
        changed_answers(endless)
        with socket_of(server, remote.id) as talking:
            talking.send(framed(frames(1)[0]))
            for request_id in (1, 2):
                talking.send(json.dumps({"type": "ask", "question": "What now?", "request_id": request_id}))
                heard(talking, "piece")
                talking.send('{"type": "ask", "question": "And now?", "request_id": "early"}')
                refused = heard(talking, "error")[-1]
                assert refused["request_id"] == "early"
                assert "an answer is still being given" in refused["message"]
                talking.send('{"type": "stop"}')
                answer = heard(talking, "answer")[-1]
                assert (answer["state"], answer["request_id"]) == ("stopped", request_id)

    def test_bad_messages_are_refused_and_the_socket_goes_on(self, server, remote, frames):
        good = png(frames(1)[0])
        with socket_of(server, remote.id) as talking:
            for message, says in [
                ("{", "expected JSON"),
                ("[]", "expected a JSON object"),
                ("{}", "type: expected a value, found none"),
                ('{"type": "sing"}', "found 'sing'"),
                ('{"type": ["ask"]}', "type: expected one of"),
                ('{"type": "stop", "now": true}', "unknown field 'now'"),
                ('{"type": "ask"}', "question: expected a text"),
                ('{"type": "ask", "question": ""}', "got an empty one"),
                ('{"type": "ask", "question": "\\ud800"}', "without halves of surrogate pairs, found"),
                (
                    '{"type": "ask", "question": "What?", "request_id": [1]}',
                    "request_id: expected a whole number or a text",
                ),
                (json.dumps({"type": "ask", "question": "a" * 70_000}), "at most 65,536 bytes"),
                (b"", "expected 8 bytes of time, then an image, got 0 bytes"),
                (struct.pack("<d", 1.0), "got 8 bytes"),
                (struct.pack("<d", 1.0) + b"hello", "no known image format"),
                (struct.pack("<d", -1.0) + good, "time_s: expected"),
                (struct.pack("<d", float("inf")) + good, "time_s: expected"),
                (struct.pack("<d", 1.0) + bytes(200_001), "at most 200,000 bytes"),
            ]:
                talking.send(message)
                (refused,) = heard(talking, "error")
                assert says in refused["message"]
                assert "\n" not in refused["message"]
            talking.send(struct.pack("<d", 3.0) + good)
            talking.send(struct.pack("<d", 2.0) + good)
            assert "time goes backwards, from 3 s to 2 s" in heard(talking, "error")[-1]["message"]
            talking.send('{"type": "ask", "question": "What now?"}')
            assert heard(talking, "answer")[-1]["state"] == "answered"

    def test_a_client_that_goes_away_stops_its_answer(self, server, remote, frames, changed_answers):
        changed_answers(endless)
        with socket_of(server, remote.id) as talking:
            talking.send(framed(frames(1)[0]))
            talking.send('{"type": "ask", "question": "What now?"}')
            heard(talking, "piece")
        wait_for(lambda: not remote.status().is_answering)
        assert remote.describe()["answers"][0]["state"] == "stopped"

    def test_a_client_that_is_too_fast_waits(self, server, remote, frames, monkeypatch):
        """While one frame is being decoded the server takes no other from the network."""
        may_go, num_taken = threading.Event(), []

        def read(data, max_pixels):
            num_taken.append(1)
            assert may_go.wait(WAIT_S)
            return np.zeros((8, 8, 3), np.uint8)

        monkeypatch.setattr("videochat_online.serving.api.service.decode_frame", read)
        large = struct.pack("<d", float("nan")) + bytes(150_000)
        num_sent = []

        def send():
            for _ in range(200):  # 30 MB: more than the buffers of both ends hold
                talking.send(large)
                num_sent.append(1)

        with socket_of(server, remote.id, compression=None) as talking:
            sender = threading.Thread(target=send)
            sender.start()
            wait_for(lambda: num_taken)
            last = -1
            while len(num_sent) > last:  # until the sender stands still
                last = len(num_sent)
                sender.join(0.3)
            assert sender.is_alive()
            assert len(num_taken) == 1
            may_go.set()
            sender.join(WAIT_S)
            assert len(num_sent) == 200

    def test_the_end_of_a_stream_ends_its_socket(self, server, remote):
        with socket_of(server, remote.id) as talking:
            talking.send('{"type": "status"}')
            heard(talking, "status")
            remote.close()
            talking.send('{"type": "status"}')
            with pytest.raises(ConnectionClosed) as closed:
                talking.recv(timeout=WAIT_S)
        assert closed.value.rcvd.reason == "the stream is closed"


class Viewer(threading.Thread):
    """Reads a view to its end, or until it has seen enough."""

    def __init__(self, server, name, num_pictures=10**9):
        super().__init__(daemon=True)
        self._url = f"{server.url}/v1/streams/{name}/view"
        self._num_pictures = num_pictures
        self.pictures, self.headers, self.error = [], None, None
        self.start()

    def run(self):
        try:
            with httpx.stream("GET", self._url, timeout=WAIT_S) as response:
                self.headers, data = response.headers, b""
                for chunk in response.iter_raw():
                    data += chunk
                    while (part := self.cut(data)) is not None:
                        picture, data = part
                        self.pictures.append(picture)
                        if len(self.pictures) == self._num_pictures:
                            return
        except Exception as error:
            self.error = error

    @staticmethod
    def cut(data):
        """The first whole picture, as its length says, and the rest."""
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            return None
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        assert head.startswith(b"--frame\r\nContent-Type: image/jpeg")
        if len(rest) < length + 2:
            return None
        assert rest[length : length + 2] == b"\r\n"
        return rest[:length], rest[length + 2 :]


class TestView:
    def test_a_view_shows_what_comes(self, server, remote, frames):
        pixels = frames(3)
        remote.push(pixels[0], 0.0)
        viewer = Viewer(server, remote.id)
        wait_for(lambda: viewer.pictures)
        remote.push(pixels[1], 0.1)
        newest = httpx.get(f"{server.url}/v1/streams/{remote.id}/frame.jpg")
        wait_for(lambda: len(set(viewer.pictures)) == 2)
        assert viewer.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
        assert newest.headers["content-type"] == "image/jpeg"
        wait_for(lambda: newest_of(server, remote) == viewer.pictures[-1])
        remote.close()
        viewer.join(WAIT_S)
        assert not viewer.is_alive()
        assert viewer.error is None

    def test_many_viewers_and_a_question_still_answered(self, server, remote, frames):
        remote.push(frames(1)[0])
        viewers = [Viewer(server, remote.id) for _ in range(NUM_VIEWERS)]
        wait_for(lambda: all(viewer.pictures for viewer in viewers))
        num_threads = sum(thread.name == "view" for thread in threading.enumerate())
        assert num_threads == 1
        assert remote.ask("What now?").state == "answered"
        for pixels in frames(3, seed=1):
            remote.push(pixels)
        wait_for(lambda: len({viewer.pictures[-1] for viewer in viewers} | {newest_of(server, remote)}) == 1)
        Viewer(server, remote.id, 1).join(WAIT_S)
        remote.close()
        for viewer in viewers:
            viewer.join(WAIT_S)
            assert viewer.error is None

    def test_places_of_viewers_are_bounded_and_come_back(self, tiny_model, frames):
        limits = ApiLimits(max_views=2)
        with serving(StreamPool(tiny_model), limits=limits) as server, StreamClient(server.url).open() as remote:
            remote.push(frames(1)[0])
            with ExitStack() as views:
                for _ in range(2):
                    sock = views.enter_context(socket.create_connection(("127.0.0.1", server.port), WAIT_S))
                    sock.sendall(f"GET /v1/streams/{remote.id}/view HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    wait_for(lambda sock=sock: b"image/jpeg" in sock.recv(10_000))
                with httpx.stream("GET", view_of(server, remote), timeout=WAIT_S) as refused:
                    assert refused.status_code == 503
                    assert "2 viewers" in refused.read().decode()
            wait_for(lambda: not is_viewed())
            again = Viewer(server, remote.id, 1)
            again.join(WAIT_S)
            assert again.pictures

    def test_a_stream_without_a_frame_shows_none(self, server, remote, monkeypatch):
        monkeypatch.setattr("videochat_online.serving.api.mjpeg.SECONDS_TO_FIRST_PICTURE", 0.05)
        refused = httpx.get(f"{server.url}/v1/streams/{remote.id}/frame.jpg")
        assert problem(refused, 404) == "the stream has no frame yet"
        assert httpx.head(view_of(server, remote)).status_code == 200


def view_of(server, remote):
    return f"{server.url}/v1/streams/{remote.id}/view"


def newest_of(server, remote):
    return httpx.get(f"{server.url}/v1/streams/{remote.id}/frame.jpg", timeout=WAIT_S).content


class TestUse:
    """A pool whose clock the test moves."""

    @pytest.fixture
    def server(self, tiny_model):
        self.now = 0.0
        pool = StreamPool(tiny_model, idle_s=0.2, now=lambda: self.now)
        with serving(pool) as running:
            yield running

    def is_kept(self, server, remote):
        """Whether a stream is used again and again by itself."""
        entry = server.pool.find(remote.id)
        for _ in range(3):
            self.now += 0.15
            wait_for(lambda: entry.used_s == self.now)
            server.pool.reap()
        return not entry.stream.is_closed

    def test_a_view_keeps_a_stream_in_use(self, server, remote, frames):
        remote.push(frames(1)[0])
        viewer = Viewer(server, remote.id)
        wait_for(lambda: viewer.pictures)
        assert self.is_kept(server, remote)

    @pytest.mark.parametrize("in_pieces", [True, False])
    def test_an_answer_keeps_a_stream_in_use(self, server, remote, frames, changed_answers, in_pieces):
        changed_answers(endless)
        remote.push(frames(1)[0])
        ask = (lambda: list(remote.stream("What now?"))) if in_pieces else (lambda: remote.ask("What now?"))
        asking = threading.Thread(target=ask)
        asking.start()
        entry = server.pool.find(remote.id)
        wait_for(lambda: entry.stream.answers and entry.stream.answers[0].text)
        assert self.is_kept(server, remote)
        entry.stream.stop_answer()
        asking.join(WAIT_S)
        assert not asking.is_alive()

    def test_a_socket_keeps_a_stream_in_use(self, server, remote):
        with socket_of(server, remote.id):
            assert self.is_kept(server, remote)

    def test_a_stream_left_alone_is_gone_and_its_view_ends(self, server, remote, frames):
        remote.push(frames(1)[0])
        Viewer(server, remote.id, 1).join(WAIT_S)
        entry = server.pool.find(remote.id)
        wait_for(lambda: not is_viewed())
        self.now += 1.0
        server.pool.reap()
        assert entry.stream.is_closed
        with pytest.raises(ClientError, match="no such stream") as gone:
            remote.ask("What now?")
        assert gone.value.status == 404


def is_viewed():
    return any(thread.name == "view" for thread in threading.enumerate())


class TestGuard:
    @pytest.fixture(scope="class")
    def server(self, tiny_model):
        with serving(StreamPool(tiny_model), password="pass word") as running:
            yield running

    @pytest.fixture
    def client(self, server):
        return StreamClient(server.url, "pass word")

    def test_without_the_password_nothing_but_health_and_pictures_in_and_out(self, server, remote, frames):
        remote.push(frames(1)[0])
        routes = [
            ("POST", "/streams"),
            ("GET", f"/streams/{remote.id}"),
            ("DELETE", f"/streams/{remote.id}"),
            ("DELETE", f"/streams/{remote.id}/frames"),
            ("POST", f"/streams/{remote.id}/ask"),
            ("DELETE", f"/streams/{remote.id}/answer"),
            ("DELETE", f"/streams/{remote.id}/dialogue"),
            ("POST", f"/streams/{remote.id}/view"),
            ("GET", "/streams/view"),
            ("GET", "/nothing"),
        ]
        for authorization in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic pass word"}):
            for method, path in routes:
                refused = httpx.request(method, f"{server.url}/v1{path}", headers=authorization)
                assert "Authorization: Bearer" in problem(refused, 401)
                assert refused.headers["www-authenticate"] == "Bearer"
        with pytest.raises(InvalidStatus) as refused, socket_of(server, remote.id):
            pass
        assert refused.value.response.status_code == 401
        with pytest.raises(ClientError, match=r"password \(status 401\)"), StreamClient(server.url, "wrong").open():
            pass
        assert httpx.get(f"{server.url}/v1/health").status_code == 200
        assert httpx.get(f"{server.url}/v1/streams/{remote.id}/frame.jpg").status_code == 200
        assert remote.status().num_frames_in == 1

    def test_a_password_of_other_letters(self, tiny_model):
        with serving(StreamPool(tiny_model), password="pässwörd") as server:
            with StreamClient(server.url, "pässwörd").open() as remote:
                assert remote.status().num_frames_in == 0
            with pytest.raises(ClientError, match="401"), StreamClient(server.url, "password").open():
                pass

    @pytest.mark.parametrize("given", ["pass wor", "pass", "p", "", "pass word2", "Pass word", "ass word", "wordpass "])
    def test_a_part_of_the_password_is_none(self, given, monkeypatch):
        compared = []
        is_same = hmac.compare_digest
        monkeypatch.setattr(hmac, "compare_digest", lambda *both: compared.append(both) or is_same(*both))
        guard = AuthMiddleware(None, "pass word")
        assert guard.is_password("Bearer pass word")
        assert not guard.is_password(f"Bearer {given}")
        # Whole, and in a time that does not tell how much of it is right.
        assert compared == [(b"pass word", b"pass word"), (given.strip().encode(), b"pass word")]

    def test_an_empty_password_is_a_mistake(self, tiny_model):
        pool = StreamPool(tiny_model)
        for password in ("", "  "):
            with pytest.raises(InputError, match="password: expected one, got an empty one"):
                make_api(pool, password=password)
        pool.close_all()

    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://[", ""])
    def test_pages_of_other_origins_are_kept_out(self, server, remote, origin):
        headers = {"Authorization": "Bearer pass word", "Origin": origin}
        path = f"{server.url}/v1/streams/{remote.id}"
        for method, url in [
            ("POST", f"{server.url}/v1/streams"),
            ("POST", f"{path}/ask"),
            ("POST", f"{path}/frames"),
            ("DELETE", path),
            ("DELETE", f"{path}/answer"),
        ]:
            assert "another origin" in problem(httpx.request(method, url, headers=headers), 403)
        told = httpx.get(path, headers=headers)
        assert told.status_code == 200
        assert not any(name.startswith("access-control") for name in told.headers)
        with pytest.raises(InvalidStatus) as refused, socket_of(server, remote.id, additional_headers=headers):
            pass
        assert refused.value.response.status_code == 403

    def test_a_page_of_the_server_itself_may(self, server, remote):
        authorization = {"Authorization": "Bearer pass word"}
        with socket_of(server, remote.id, origin=server.url.upper(), additional_headers=authorization) as talking:
            talking.send('{"type": "status"}')
            assert [message["type"] for message in heard(talking, "status")] == ["status"]


class TestClient:
    def test_it_needs_no_package_of_servers_and_models(self):
        """Where they are not installed: a program that only talks to a server need not have them."""
        absent = "torch transformers av starlette fastapi uvicorn gradio websockets"
        code = f"""
import sys
sys.modules.update(dict.fromkeys("{absent}".split()))
from videochat_online.client import RemoteStream, StreamClient
StreamClient("http://127.0.0.1:1", "password").close()
try:
    StreamClient("127.0.0.1")
except ValueError as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "expected the address of a server, such as http://127.0.0.1:7860, got '127.0.0.1'\n"

    def test_frames_as_paths_bytes_and_arrays(self, remote, tmp_path, frames):
        pixels = frames(3)
        Image.fromarray(pixels[0]).save(tmp_path / "frame.png")
        assert remote.push(tmp_path / "frame.png", 0.0)["accepted"]
        assert remote.push(png(pixels[1]), 1.0)["accepted"]
        assert remote.push(pixels[2], 2.0)["accepted"]
        wait_for(lambda: remote.status().num_frames_seen == 3)
        assert [frame["time_s"] for frame in remote.memory()["remembered"]] == [0.0, 1.0, 2.0]
        for frame, says in [
            (tmp_path / "nothing.png", "nothing.png: expected an image, found No such file"),
            (pixels, r"uint8 \[H, W, 3\]"),
            (b"hello", r"no known image format \(status 422\)"),
        ]:
            with pytest.raises(InputError, match=says):
                remote.push(frame)

    def test_an_answer_whole_and_in_pieces(self, remote, frames, tiny_model):
        remote.push(frames(1)[0], 0.0)
        session = StreamingSession(tiny_model, settings=GenerationSettings(**SHORT))
        session.push(frames(1), [0])
        assert remote.ask("What now?").text == session.ask("What now?").text
        answer = result_of(remote.stream("And then?"))
        assert answer.text == session.ask("And then?").text
        assert (answer.question, answer.asked_at_s, answer.state) == ("And then?", 0.0, "answered")
        remote.forget_dialogue()
        assert remote.describe()["answers"] == []

    def test_closing_the_pieces_stops_the_answer(self, remote, frames, changed_answers):
        changed_answers(endless)
        remote.push(frames(1)[0])
        pieces = remote.stream("What now?")
        next(pieces)
        pieces.close()
        wait_for(lambda: not remote.status().is_answering)
        again = remote.stream("And now?")
        next(again)
        remote.stop_answer()
        assert result_of(again).state == "stopped"

    def test_what_the_server_refuses_is_an_error_with_its_words(self, client, remote):
        with pytest.raises(ClientError, match="unknown field 'fsp'") as refused, client.open(fsp=2):
            pass
        assert refused.value.status == 422
        with pytest.raises(ClientError, match="no answer: .*nothing has been seen yet"):
            remote.ask("What now?")
        with pytest.raises(ClientError, match="no answer: .*nothing has been seen yet"):
            list(remote.stream("What now?"))
        with pytest.raises(ClientError, match="404"):
            RemoteStream(client, "../health").status()
        remote.close()
        remote.close()

    def test_a_server_that_is_not_there(self, server):
        nobody = StreamClient("http://127.0.0.1:9", timeout_s=WAIT_S)
        with pytest.raises(ClientError, match=r"http://127.0.0.1:9/v1/: ") as failed:
            nobody.health()
        assert failed.value.status is None
        with pytest.raises(ClientError, match=r"expected an answer of the API, found .*\(status 404\)"):
            StreamClient(f"{server.url}/elsewhere").health()
        for url in ("http://[", "http://", "ftp://example.org", "example.org", "http://example.org:port"):
            with pytest.raises(InputError, match="expected the address of a server"):
                StreamClient(url)


def test_the_server_ends_with_viewers_and_answers(tiny_model, frames, changed_answers):
    changed_answers(endless)
    before = threading.active_count()
    with serving(StreamPool(tiny_model)) as server:
        remote = StreamClient(server.url).open()
        stream = remote.__enter__()
        stream.push(frames(1)[0])
        viewers = [Viewer(server, stream.id) for _ in range(3)]
        wait_for(lambda: all(viewer.pictures for viewer in viewers))
        answers = []
        asking = threading.Thread(target=lambda: answers.append(stream.ask("What now?")))
        asking.start()
        with socket_of(server, stream.id) as talking:
            wait_for(lambda: stream.status().is_answering)
            server.stop()
            with pytest.raises(ConnectionClosed):
                talking.recv(timeout=WAIT_S)
        for thread in (*viewers, asking):
            thread.join(WAIT_S)
        assert [viewer.error for viewer in viewers] == [None] * 3
        assert [answer.state for answer in answers] == ["stopped"]
        with pytest.raises(ClientError):
            remote.__exit__(None, None, None)
    wait_for(lambda: threading.active_count() <= before)


def test_places_of_streams_opened_elsewhere_work_too(tiny_model, frames):
    """A page and the API share a pool: whoever has the id may use the stream."""
    pool = StreamPool(tiny_model)
    with serving(pool) as server:
        entry = pool.open(StreamOptions(generation=GenerationSettings(**SHORT)))
        remote = RemoteStream(StreamClient(server.url), entry.id)
        assert remote.push(frames(1)[0])["accepted"]
        assert remote.ask("What now?").state == "answered"
