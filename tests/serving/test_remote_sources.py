"""Sources of the network: they play, whatever ends them they come back, and nothing that is said has a password."""

from __future__ import annotations

import base64
import faulthandler
import multiprocessing
import os
import re
import signal
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from api_server import SimulatedClock
from clips import moving_square, write_clip
from rtsp_server import RtspServer
from videochat_online.errors import InputError
from videochat_online.serving.sources import remote_source
from videochat_online.serving.sources.named_sources import NamedSource
from videochat_online.serving.sources.remote_source import RemotePlayer
from videochat_online.serving.streams.fair_lock import ModelGate
from videochat_online.serving.streams.image_bytes import to_jpeg
from videochat_online.serving.streams.live_stream import LiveStream
from videochat_online.serving.streams.stream_options import StreamOptions

WAIT_S = 60.0
"""Longer than anything here takes: a hang fails instead of stopping the tests."""

LOGIN, IN_URL = ("user", "p@ss/word"), "user:p%40ss%2Fword@"


class Seen:
    """A stream that writes down what it is given."""

    def __init__(self, fps=10.0):
        self.options = SimpleNamespace(fps=fps)
        self.is_closed = False
        self.frames = []

    def receive(self, pixels_HWC, time_s):
        assert pixels_HWC.dtype == np.uint8
        self.frames.append((time_s, pixels_HWC.shape, int(pixels_HWC.argmax())))
        return True


class Tries(SimulatedClock):
    """Real time, but for the seconds between two tries, which are written down and soon over."""

    def __init__(self):
        self.waited_s, self.ahead_s = [], 0.0

    def now(self):
        return time.monotonic() + self.ahead_s

    def wait(self, condition, seconds):
        self.waited_s.append(seconds)
        condition.wait(0.01)


def wait_until(condition):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


@pytest.fixture
def watch():
    players = []

    def start(url, stream=None, **options):
        stream = stream or Seen()
        players.append(RemotePlayer(NamedSource("door", url), stream, **options))
        return players[-1], stream

    yield start
    for player in players:
        player.close()
        assert player.status().state == "ended"
    assert multiprocessing.active_children() == []


def problem_of(player):
    """Why a source is waited for, as soon as it is."""
    wait_until(lambda: player.status().state == "waiting")
    return player.status().problem


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(dict(self.headers))
        with suppress(BrokenPipeError, ConnectionResetError):
            self.server.answer(self)

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture
def serve():
    """Start a web server on this machine that answers with a function of its handler."""
    servers = []

    def start(answer):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.answer, server.asked = answer, []
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server, f"http://127.0.0.1:{server.server_port}/clip"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def whole(data, **headers):
    """All at once."""

    def answer(handler):
        handler.send_response(200)
        for name, value in {"Content_Length": str(len(data)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def pictures(frames, fps, *, login=None, ends=True):
    """As network cameras do: parts of one answer, each a picture."""

    def answer(handler):
        expected = None if login is None else f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"
        if expected is not None and handler.headers["Authorization"] != expected:
            handler.send_response(401)
            handler.send_header("WWW-Authenticate", 'Basic realm="camera"')
            handler.end_headers()
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=part")
        handler.end_headers()
        for pixels in frames:
            picture = to_jpeg(pixels, 1000)
            head = b"--part\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
            handler.wfile.write(head + picture + b"\r\n")
            time.sleep(1 / fps)
        while not ends:
            time.sleep(0.05)

    return answer


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return {suffix: write_clip(folder / f"clip.{suffix}", 20).read_bytes() for suffix in ("mp4", "mkv", "ts")}


@pytest.fixture
def rtsp(clips):
    servers = []

    def start(data=clips["ts"], *given, **options):
        servers.append(RtspServer(data, *given, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


class TestRtsp:
    @pytest.mark.parametrize(("login", "how"), [(None, ""), (LOGIN, "Basic"), (LOGIN, "Digest")])
    def test_a_camera_plays(self, rtsp, watch, login, how):
        server = rtsp(login=login, how=how, seconds=2.0)
        player, stream = watch(server.url(IN_URL if login else ""))
        assert player.status().state == "connecting"
        wait_until(lambda: len(stream.frames) > 5)
        status = player.status()
        assert (status.state, status.problem, status.waiting_s, status.duration_s) == ("playing", None, None, None)
        times_s = [time_s for time_s, _, _ in stream.frames]
        assert times_s == sorted(times_s)
        assert 0 < times_s[0] <= times_s[-1] <= status.position_s < 10  # the clip's own times begin at 1.4 s
        assert {shape for _, shape, _ in stream.frames} == {(48, 64, 3)}
        assert len({where for _, _, where in stream.frames}) > 3

    def test_a_hang_up_is_a_fault_and_the_memory_lives_on(self, rtsp, watch, tiny_model, caplog):
        """A camera that is back after a while goes on at the time that it is by then."""
        server = rtsp(seconds=2.0)
        stream = LiveStream(tiny_model, StreamOptions(fps=4.0), ModelGate())
        player, _ = watch(server.url(), stream)
        assert problem_of(player) == "the source has ended"
        assert 0 <= player.status().waiting_s < 60
        assert stream.drain(WAIT_S)
        first = stream.memory().remembered
        assert first
        wait_until(lambda: player.status().state == "playing")
        assert (player.status().problem, player.status().waiting_s) == (None, None)
        wait_until(lambda: server.num_plays > 2)
        assert stream.drain(WAIT_S)
        times_s = [frame.time_s for frame in stream.memory().remembered]
        assert times_s == sorted(times_s)
        assert first[0].time_s in times_s
        assert max(b - a for a, b in zip(times_s, times_s[1:], strict=False)) >= 1.0  # a gap is a gap
        stream.close()
        said = [record.message for record in caplog.records]
        assert said[:2] == [
            "source door: the source has ended; it is tried again until it is back",
            "source door: it is back",
        ]

    def test_a_stall(self, rtsp, watch):
        server = rtsp(seconds=1.0, is_stalling=True)
        player, stream = watch(server.url(), stall_s=2.0)
        assert problem_of(player) == "no frame came for 2 s"
        seen = len(stream.frames)
        assert seen > 0
        wait_until(lambda: len(stream.frames) > seen)
        assert server.num_plays == 2

    @pytest.mark.parametrize("how", ["Basic", "Digest"])
    def test_a_wrong_password_is_in_nothing_that_is_said(self, rtsp, watch, caplog, capfd, how):
        caplog.set_level(0)
        server, clock = rtsp(login=LOGIN, how=how), Tries()
        player, stream = watch(server.url("admin:hunter2@"), clock=clock)
        assert problem_of(player) == "Server returned 401 Unauthorized (authorization failed)"
        wait_until(lambda: len(clock.waited_s) == 3)
        assert min(clock.waited_s) >= 60.0  # who tries too often is locked out
        player.close()
        out, error = capfd.readouterr()
        said = f"{out}{error}{caplog.text}{player!r}{vars(player)}{player.status()}"
        assert caplog.text.count("source door: Server returned 401") == 1  # said once, however often it is tried
        for secret in ("hunter2", "admin", "127.0.0.1", str(server.port)):
            assert secret not in said
        assert stream.frames == []

    @pytest.mark.parametrize(
        ("reply", "says"),
        [
            (b"RTSP/1.0 404 Not Found\r\nCSEQ\r\n\r\n", "Server returned 404 Not Found"),
            (b"HTTP/1.1 200 OK\r\n\r\n", "no frame came for 2 s|Invalid data"),
            (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "no frame came for 2 s|Invalid data"),
            (b"RTSP/1.0 200 OK\r\nCSEQ\r\nContent-Length: 9\r\n\r\nv=0 hello", "Invalid data|no video stream"),
            (b"x" * 100_000, "no frame came for 2 s|Invalid data"),
            (b"", "no frame came for 2 s"),
        ],
        ids=["404", "http", "ssh", "sdp", "x", "silence"],
    )
    def test_what_is_no_camera(self, rtsp, watch, reply, says, capfd):
        server = rtsp(b"", replies={"DESCRIBE": reply})
        player, _ = watch(server.url("admin:hunter2@"), stall_s=2.0)
        assert re.search(says, problem_of(player))
        assert "hunter2" not in f"{player.status()}{capfd.readouterr()}"

    def test_garbage_between_frames(self, rtsp, watch, clips):
        data = bytearray(clips["ts"])
        data[2000:4000] = np.random.default_rng(0).bytes(2000)
        player, stream = watch(rtsp(bytes(data)).url())
        assert problem_of(player)
        wait_until(lambda: stream.frames)

    def test_it_is_tried_again_for_ever(self, watch):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        clock = Tries()
        player, _ = watch(f"rtsp://user:secret@127.0.0.1:{port}/s1", clock=clock)
        assert problem_of(player) == "Connection refused"
        wait_until(lambda: len(clock.waited_s) >= 8)
        least = [1, 2, 4, 8, 16, 30, 30, 30]
        for waited_s, expected_s in zip(clock.waited_s, least, strict=False):
            assert expected_s <= waited_s <= 1.2 * expected_s
        assert len({waited_s / expected_s for waited_s, expected_s in zip(clock.waited_s, least, strict=False)}) > 1

    @pytest.mark.parametrize(("played_s", "is_first_again"), [(0.0, False), (11.0, True)])
    def test_after_steady_frames_a_loss_is_the_first_again(self, rtsp, watch, played_s, is_first_again):
        clock = Tries()
        stream = Seen()
        stream.receive = lambda pixels_HWC, time_s: setattr(clock, "ahead_s", clock.ahead_s + played_s)
        watch(rtsp().url(), stream, clock=clock)
        wait_until(lambda: len(clock.waited_s) >= 3)
        assert (clock.waited_s[2] < 2) == is_first_again


class TestHttp:
    @pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
    def test_a_file_plays_in_real_time_again_and_again(self, serve, watch, clips, suffix):
        """The network delivers at once; frames come when they are due."""
        server, url = serve(whole(clips[suffix]))
        player, stream = watch(url, clock=Tries())
        assert problem_of(player) == "the source has ended"
        first = len(stream.frames)
        wait_until(lambda: len(stream.frames) > first)
        times_s = np.array([time_s for time_s, _, _ in stream.frames])[:first]
        assert 16 <= first <= 20
        assert times_s[-1] - times_s[0] >= 1.5
        assert len({where for _, _, where in stream.frames}) > 8
        assert len(server.asked) >= 2

    @pytest.mark.parametrize("login", [None, LOGIN])
    def test_a_camera_s_pictures(self, serve, watch, login):
        _, url = serve(pictures(moving_square(200), 10, login=login, ends=False))
        player, stream = watch(url if login is None else url.replace("//", f"//{IN_URL}"))
        wait_until(lambda: len(stream.frames) > 5)
        assert player.status().state == "playing"
        assert 0.2 < stream.frames[5][0] - stream.frames[0][0] < 10

    def test_a_wrong_password(self, serve, watch, capfd, caplog):
        _, url = serve(pictures([], 10, login=LOGIN))
        player, _ = watch(url.replace("//", "//admin:hunter2@"))
        assert problem_of(player) == "Server returned 401 Unauthorized (authorization failed)"
        assert "hunter2" not in f"{player.status()}{capfd.readouterr()}{caplog.text}"

    def test_only_the_newest_frame_is_kept(self, serve, watch):
        """Of what comes while the stream is busy."""
        frames = [np.full((240, 320, 3), number, np.uint8) for number in range(0, 250, 5)]  # 5 s, 230 KB each
        _, url = serve(pictures(frames, 10, ends=False))
        shown = []

        def receive(pixels_HWC, time_s):
            shown.append(int(np.median(pixels_HWC)))
            time.sleep(1.5 if len(shown) == 1 else 0.0)

        stream = Seen()
        stream.receive = receive
        watch(url, stream)
        wait_until(lambda: shown and shown[-1] >= 240)
        steps = np.diff(shown)
        # One in the pipe and one that is being sent are older; then comes one of now.
        assert steps[:3].max() >= 40, shown
        assert len(shown) < 45

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (lambda h: h.send_error(404), "Server returned 404 Not Found"),
            (whole(b"<!doctype html><html><body>hello</body></html>" * 50), "Invalid data|a kind of file that is not"),
            (whole(b""), "Invalid data|End of file|a kind of file"),
            (lambda h: h.wfile.write(b"hello\r\n" * 5), "."),
            (lambda h: None, "."),
        ],
        ids=["404", "html", "empty", "no_http", "nothing"],
    )
    def test_what_is_no_video(self, serve, watch, answer, says, capfd):
        _, url = serve(answer)
        player, _ = watch(url.replace("//", "//admin:hunter2@"))
        assert re.search(says, problem_of(player))
        assert "hunter2" not in f"{player.status()}{capfd.readouterr()}"

    @pytest.mark.parametrize(
        "head", ["#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n", "ffconcat version 1.0\nfile "]
    )
    def test_lists_open_nothing_else(self, serve, watch, clips, head):
        inner, inner_url = serve(whole(clips["ts"]))
        text = f"{head}{inner_url}.ts\n#EXT-X-ENDLIST\n"
        _, url = serve(whole(text.encode(), Content_Type="application/vnd.apple.mpegurl"))
        player, _ = watch(url)
        assert "a kind of file that is not played" in problem_of(player)
        assert inner.asked == []

    @pytest.mark.parametrize("target", ["file:///etc/hostname", "tcp://127.0.0.1:PORT", "rtsp://127.0.0.1:PORT/"])
    def test_a_redirect_to_another_protocol(self, serve, watch, rtsp, target):
        inner = rtsp()

        def answer(handler):
            handler.send_response(302)
            handler.send_header("Location", target.replace("PORT", str(inner.port)))
            handler.end_headers()

        _, url = serve(answer)
        player, stream = watch(url)
        assert problem_of(player)
        assert (inner.requests, stream.frames) == ([], [])

    @pytest.mark.parametrize(
        ("scheme", "allowed"), [("rtsp", "tcp"), ("http", "http,https,tls,tcp"), ("https", "https,tls,tcp")]
    )
    def test_ffmpeg_is_told_what_it_may_use(self, watch, monkeypatch, scheme, allowed):
        def open_nothing(address, options):
            raise InputError(options["protocol_whitelist"])

        monkeypatch.setattr(remote_source.av, "open", open_nothing)
        assert problem_of(watch(f"{scheme}://127.0.0.1/s1")[0]) == allowed

    def test_too_large(self, serve, watch, clips, monkeypatch):
        monkeypatch.setattr(remote_source, "MAX_PIXELS", 1000)
        player, _ = watch(serve(whole(clips["mkv"]))[1])
        assert problem_of(player) == "expected frames of at most 1000 pixels, found 64 x 48"

    def test_closing_hangs_up(self, serve, watch, clips):
        gone = threading.Event()

        def answer(handler):
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(clips["ts"])
            try:
                while not gone.wait(0.02):
                    handler.wfile.write(b"\0" * 10_000)
            except OSError:
                gone.set()

        player, stream = watch(serve(answer)[1])
        wait_until(lambda: stream.frames)
        player.close()
        assert gone.wait(WAIT_S)

    def test_a_decoder_that_crashes(self, serve, watch, clips, monkeypatch):
        def crash(*_):
            faulthandler.disable()  # quietly
            os.kill(os.getpid(), signal.SIGSEGV)

        monkeypatch.setattr(remote_source, "to_pixels", crash)
        player, _ = watch(serve(whole(clips["mkv"]))[1])
        assert "SIGSEGV" in problem_of(player)

    def test_a_decoder_that_hangs(self, serve, watch, clips, monkeypatch):
        monkeypatch.setattr(remote_source, "to_pixels", lambda *_: signal.pause())
        player, _ = watch(serve(whole(clips["mkv"]))[1], stall_s=1.0)
        assert problem_of(player) == "no frame came for 1 s"

    def test_a_decoder_that_takes_too_much_memory(self, serve, watch, clips, monkeypatch):
        monkeypatch.setattr(remote_source, "to_pixels", lambda *_: bytearray(2**30))
        monkeypatch.setattr(remote_source, "MAX_MEMORY_BYTES", 2**28)
        player, _ = watch(serve(whole(clips["mkv"]))[1])
        assert "takes too much memory" in problem_of(player)

    def test_an_error_that_quotes_the_address(self, serve, watch, clips, monkeypatch, capfd, caplog):
        def fail(*_):
            raise RuntimeError("http://admin:hunter2@host")

        monkeypatch.setattr(remote_source, "to_pixels", fail)
        player, _ = watch(serve(whole(clips["mkv"]))[1])
        assert problem_of(player) == "RuntimeError"
        assert "hunter2" not in f"{capfd.readouterr()}{caplog.text}"
