"""Videos of the network: which addresses are opened, what the server may do, and how it ends."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from api_server import SimulatedClock
from clips import moving_square, write_clip
from videochat_online.errors import InputError
from videochat_online.serving.sources import network_source
from videochat_online.serving.sources.addresses import ResolvedUrl, check_url, is_public
from videochat_online.serving.sources.fetching import HttpFile
from videochat_online.serving.sources.network_source import NetworkLimits, NetworkPlayer
from videochat_online.serving.streams.fair_lock import ModelGate
from videochat_online.serving.streams.image_bytes import to_jpeg
from videochat_online.serving.streams.live_stream import LiveStream
from videochat_online.serving.streams.stream_options import StreamOptions

WAIT_S = 60.0
"""Longer than anything here takes: a hang fails instead of stopping the tests."""


def answers(*addresses):
    """A resolver that gives these, and counts how often it was asked."""

    def resolve(host, port, type):
        resolve.asked.append((host, port))
        return [(None, type, 6, "", (address, port)) for address in addresses]

    resolve.asked = []
    return resolve


class TestAddresses:
    def test_a_public_host_is_pinned(self):
        resolve = answers("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c")
        url = check_url("https://Video.Example.org:8443/a b.mp4?x=1&y=ü#part".replace(" ", "%20"), resolve=resolve)
        assert url == ResolvedUrl(
            scheme="https",
            host="video.example.org",
            port=8443,
            address="93.184.215.14",
            target="/a%20b.mp4?x=1&y=%C3%BC",
        )
        assert url.netloc == "video.example.org:8443"
        assert resolve.asked == [("video.example.org", 8443)]

    def test_a_second_answer_changes_nothing(self):
        """The name leads to the internet first and to this machine later: it is looked up once."""
        later = iter([["93.184.215.14"], ["127.0.0.1"]])
        asked = []

        def rebinding(host, port, type):
            asked.append(host)
            return [(None, type, 6, "", (address, port)) for address in next(later)]

        url = check_url("http://rebind.example/", resolve=rebinding)
        assert url.address == "93.184.215.14"
        assert asked == ["rebind.example"]

    def test_usual_ports_and_hosts(self):
        for text, host, port in [
            ("http://a.example", "a.example", 80),
            ("https://a.example/", "a.example", 443),
            ("rtsp://a.example/cam", "a.example", 554),
            ("http://93.184.215.14:8080/", "93.184.215.14", 8080),
            ("http://[2606:2800::1]:8080/", "2606:2800::1", 8080),
            ("http://bücher.example/", "xn--bcher-kva.example", 80),
        ]:
            url = check_url(text, resolve=answers("93.184.215.14"))
            assert (url.host, url.port) == (host, port)
            assert url.target.startswith("/")

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("file:///etc/passwd", "one of http://, https://, rtsp://"),
            ("ftp://a.example/a.mp4", "one of http://"),
            ("concat:http://a.example", "one of http://"),
            ("/etc/passwd", "one of http://"),
            ("", "one of http://"),
            ("http://", "a host name"),
            ("http:///a.mp4", "a host name"),
            ("http://user:secret@a.example/", "a user or a password"),
            ("http://a.example@127.0.0.1/", "a user or a password"),
            ("http://a.example:80@127.0.0.1/", "a user or a password"),
            ("http://a.example\\@127.0.0.1/", "backslashes"),
            ("http://a.example/\r\nHost: b", "controls"),
            ("http://a.exa\tmple/", "controls"),
            (" http://a.example/", "spaces"),
            ("http://a.example:0/", "port 80, 443, 554 or one from 1024 on, got 0"),
            ("http://a.example:25/", "got 25"),
            ("http://a.example:65536/", "scheme://host/path"),
            ("http://a.example:x/", "scheme://host/path"),
            ("http://[::1/", "scheme://host/path"),
            ("http://a..example/", "a host name"),
            ("http://-a.example/", "a host name"),
            ("http://a%2eexample/", "a host name"),
            ("http://[fe80::1%25eth0]/", "a host name|scheme://host"),
            ("http://2130706433/", "another spelling"),
            ("http://134744072/", "another spelling"),
            ("http://127.1/", "another spelling"),
            ("http://0x7f.0.0.1/", "another spelling"),
            ("http://0x7f000001/", "another spelling"),
            ("http://0177.0.0.1/", "another spelling"),
            ("http://127.0.0.1./", "another spelling"),
            ("http://１２７.0.0.1/", "another spelling"),  # noqa: RUF001
            ("http://" + "a" * 3000, "at most 2000 characters"),
        ],
    )
    def test_what_is_no_such_url(self, text, says):
        resolve = answers("93.184.215.14")
        with pytest.raises(InputError, match=says):
            check_url(text, resolve=resolve)
        assert resolve.asked == []

    @pytest.mark.parametrize(
        "address",
        [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.100.100.200",
            "192.0.0.192",
            "192.0.2.1",
            "198.18.0.1",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "2001:0:4136:e378::1",
            "2001:db8::1",
            "fe80::1",
            "fe80::1%eth0",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "100::1",
            "no address",
        ],
    )
    def test_what_is_not_public(self, address):
        assert not is_public(address)
        for all_of_them in [(address,), ("93.184.215.14", address), (address, "93.184.215.14")]:
            with pytest.raises(InputError, match="on the public internet") as caught:
                check_url("http://inside.example/", resolve=answers(*all_of_them))
            assert str(caught.value).endswith("found that inside.example is not, or not only")

    @pytest.mark.parametrize(
        "address",
        ["93.184.215.14", "8.8.8.8", "2606:2800:21f::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"],
    )
    def test_what_is_public(self, address):
        assert is_public(address)

    def test_a_host_that_nobody_knows(self):
        def unknown(host, port, type):
            raise socket.gaierror(-2, "Name or service not known")

        with pytest.raises(InputError, match=r"found no address of nowhere.example"):
            check_url("http://nowhere.example/", resolve=unknown)
        with pytest.raises(InputError, match="on the public internet"):
            check_url("http://nowhere.example/", resolve=answers())

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0.0.0.0"])
    def test_this_machine_by_the_system_s_resolver(self, host):
        with pytest.raises(InputError, match="on the public internet|no address"):
            check_url(f"http://{host}:8000/")


class Seen:
    """A stream that writes down what it is given."""

    def __init__(self, fps=1.0):
        self.options = SimpleNamespace(fps=fps)
        self.is_closed = False
        self.frames = []

    def receive(self, pixels_HWC, time_s):
        assert pixels_HWC.dtype == np.uint8
        self.frames.append((time_s, pixels_HWC.shape, int(pixels_HWC.argmax())))
        return True


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        with suppress(BrokenPipeError, ConnectionResetError):
            self.server.answer(self)

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture
def serve():
    """Start a web server on this machine that answers with a function of its handler; its checked address."""
    servers = []

    def start(answer):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.answer, server.asked = answer, []
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        # Written by hand: `check_url` gives none for this machine.
        url = ResolvedUrl(
            scheme="http", host="video.example", port=server.server_port, address="127.0.0.1", target="/clip"
        )
        return server, url

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def watch():
    readers = []

    def start(url, stream=None, clock=None, **limits):
        stream = stream or Seen()
        readers.append(NetworkPlayer(url, stream, limits=NetworkLimits(**limits), clock=clock))
        return readers[-1], stream

    yield start
    for reader in readers:
        reader.close()
    assert multiprocessing.active_children() == []


def whole(data, **headers):
    """All at once, whatever was asked for."""

    headers = {"Content_Length": str(len(data)), **headers}

    def answer(handler):
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def in_parts(data):
    """As servers do that files can be jumped about in."""

    def answer(handler):
        first = int(re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"])[1])
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - first))
        handler.end_headers()
        handler.wfile.write(data[first:])

    return answer


def chunked(data):
    def answer(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for offset in range(0, len(data), 700):
            part = data[offset : offset + 700]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        handler.wfile.write(b"0\r\n\r\n")

    return answer


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return {suffix: write_clip(folder / f"clip.{suffix}").read_bytes() for suffix in ("mp4", "mkv", "ts")}


class TestHttp:
    @pytest.mark.parametrize(
        ("suffix", "how"), [("mkv", whole), ("mkv", in_parts), ("mkv", chunked), ("ts", whole), ("mp4", in_parts)]
    )
    def test_a_file_plays(self, serve, watch, clips, suffix, how):
        server, url = serve(how(clips[suffix]))
        reader, stream = watch(url, Seen(fps=10.0), clock=SimulatedClock())
        assert reader.wait_until_over(WAIT_S)
        status = reader.status()
        assert (status.state, status.problem) == ("ended", None)
        times_s = [time_s for time_s, _, _ in stream.frames]
        assert times_s == pytest.approx([i / 10 for i in range(40)], abs=0.02)
        assert {shape for _, shape, _ in stream.frames} == {(48, 64, 3)}
        assert len({where for _, _, where in stream.frames}) > 10  # and they differ
        assert status.position_s == times_s[-1]
        path, headers = server.asked[0]
        assert path == "/clip"
        assert headers["Host"] == f"video.example:{url.port}"

    def test_real_time_is_kept(self, serve, watch, clips):
        """The network delivers at once; frames come when they are due, however slow the machine."""
        _, url = serve(whole(clips["mkv"]))
        start = time.monotonic()
        reader, stream = watch(url)
        assert reader.wait_until_over(WAIT_S)
        assert time.monotonic() - start >= 3.5
        for time_s, _, _ in stream.frames:
            assert time_s >= 0
        assert stream.frames[-1][0] >= 3.5

    def test_a_live_stream_sees_it(self, serve, watch, clips, tiny_model):
        stream = LiveStream(tiny_model, StreamOptions(fps=2.0), ModelGate())
        _, url = serve(whole(clips["mkv"]))
        reader, _ = watch(url, stream, clock=SimulatedClock())
        assert reader.wait_until_over(WAIT_S)
        assert stream.drain(WAIT_S)
        assert stream.status().num_frames_seen == 8
        stream.close()

    def test_a_camera_s_pictures(self, serve, watch):
        """Parts of one endless answer, shown as they come."""
        pictures = [to_jpeg(pixels, 64) for pixels in moving_square(6)]

        def answer(handler):
            handler.send_response(200)
            handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=part")
            handler.end_headers()
            for picture in pictures:
                head = b"--part\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
                handler.wfile.write(head + picture + b"\r\n")
                time.sleep(0.05)

        _, url = serve(answer)
        reader, stream = watch(url, Seen(fps=30.0))
        assert reader.wait_until_over(WAIT_S)
        assert 1 <= len(stream.frames) <= 6
        assert stream.frames[0][0] == 0

    def test_redirects_are_not_followed(self, serve, watch, clips):
        inner, inner_url = serve(whole(clips["mkv"]))

        def answer(handler):
            handler.send_response(302)
            handler.send_header("Location", f"http://127.0.0.1:{inner_url.port}/clip")
            handler.end_headers()

        _, url = serve(answer)
        reader, stream = watch(url)
        assert reader.wait_until_over(WAIT_S)
        assert reader.status().state == "failed"
        assert "a redirect to another address" in reader.status().problem
        assert inner.asked == []
        assert stream.frames == []

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (lambda h: h.send_error(404), "HTTP status 404"),
            (whole(b"<!doctype html><html><body>hello</body></html>" * 50), "expected a video"),
            (whole(b""), "expected a video|broke off"),
            (whole(b"x", Content_Length=str(10 * 2**30)), "at most 4294967296 bytes, found 10737418240"),
            (whole(b"x" * 1000, Content_Encoding="gzip"), "a compressed answer"),
            (lambda h: h.wfile.write(b"hello\r\n" * 5), "no answer|expected a video"),
            (lambda h: h.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500), "no answer"),
            (lambda h: None, "no answer"),
        ],
        ids=["404", "html", "empty", "huge", "gzip", "no_http", "headers", "nothing"],
    )
    def test_what_is_no_video(self, serve, watch, answer, says):
        _, url = serve(answer)
        reader, _ = watch(url)
        assert reader.wait_until_over(WAIT_S)
        assert reader.status().state == "failed"
        assert re.search(says, reader.status().problem)

    @pytest.mark.parametrize(
        "head", ["#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n", "ffconcat version 1.0\nfile "]
    )
    def test_lists_open_nothing_else(self, serve, watch, clips, head):
        inner, inner_url = serve(whole(clips["ts"]))
        text = f"{head}http://127.0.0.1:{inner_url.port}/clip.ts\n#EXT-X-ENDLIST\n"
        _, url = serve(whole(text.encode(), Content_Type="application/vnd.apple.mpegurl"))
        reader, _ = watch(url)
        assert reader.wait_until_over(WAIT_S)
        assert reader.status().state == "failed"
        assert inner.asked == []

    def test_too_many_bytes(self, serve, watch, clips):
        """Without a length beforehand, it is noticed on the way."""
        endless = clips["ts"] * 40
        _, url = serve(chunked(endless))
        reader, _ = watch(url, clock=SimulatedClock(), max_bytes=len(endless) // 2)
        assert reader.wait_until_over(WAIT_S)
        assert "bytes, found more" in reader.status().problem

    def test_too_long_and_too_large(self, serve, watch, clips):
        _, url = serve(whole(clips["mkv"]))
        reader, stream = watch(url, clock=SimulatedClock(), max_duration_s=1.0)
        assert reader.wait_until_over(WAIT_S)
        assert (reader.status().state, stream.frames[-1][0] <= 1.0) == ("ended", True)
        assert "at most 1 s of video" in reader.status().problem
        reader, stream = watch(url, max_pixels=1000)
        assert reader.wait_until_over(WAIT_S)
        assert reader.status().problem == "expected frames of at most 1000 pixels, found 64 x 48"

    def test_a_server_that_breaks_off(self, serve, watch, clips):
        data = clips["mkv"]
        _, url = serve(whole(data[: len(data) // 2], Content_Length=str(len(data))))
        reader, stream = watch(url, Seen(fps=10.0), clock=SimulatedClock())
        assert reader.wait_until_over(WAIT_S)
        assert reader.status().state == "ended"
        assert f"expected {len(data)} bytes, but the server broke off" in reader.status().problem
        assert 0 < len(stream.frames) < 40

    @pytest.mark.parametrize("num_bytes", [0, 200, 3000])
    def test_a_stall_ends_it(self, serve, watch, clips, num_bytes):
        """Silence before the head, before the first frame, and after some of them; a byte now and then is no help."""
        may_end = threading.Event()

        def answer(handler):
            if num_bytes:
                handler.send_response(200)
                handler.end_headers()
                handler.wfile.write(clips["ts"][:num_bytes])
            while not may_end.wait(0.05):
                handler.wfile.write(b"\0" if num_bytes else b"")
                handler.wfile.flush()

        _, url = serve(answer)
        reader, _ = watch(url, clock=SimulatedClock(), stall_s=0.6)
        assert reader.wait_until_over(WAIT_S)
        may_end.set()
        assert reader.status().problem == "video.example: no frame came for 0.6 s"

    def test_closing_hangs_up(self, serve, watch, clips):
        gone, may_end = threading.Event(), threading.Event()

        def answer(handler):
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(clips["ts"])
            try:
                while not may_end.wait(0.02):
                    handler.wfile.write(b"\0" * 10_000)
            except OSError:
                gone.set()

        _, url = serve(answer)
        reader, stream = watch(url)
        limit = time.monotonic() + WAIT_S
        while not stream.frames:
            assert time.monotonic() < limit
            time.sleep(0.01)
        assert reader.status().state == "playing"
        reader.close()
        assert gone.wait(WAIT_S)
        may_end.set()
        assert reader.status().state == "ended"

    def test_a_decoder_that_crashes(self, serve, watch, clips, monkeypatch):
        def crash(*_):
            faulthandler.disable()  # quietly
            os.kill(os.getpid(), signal.SIGSEGV)

        monkeypatch.setattr(network_source, "to_pixels", crash)
        _, url = serve(whole(clips["mkv"]))
        reader, _ = watch(url)
        assert reader.wait_until_over(WAIT_S)
        assert (reader.status().state, "SIGSEGV" in reader.status().problem) == ("failed", True)

    def test_a_decoder_that_takes_too_much_memory(self, serve, watch, clips, monkeypatch):
        monkeypatch.setattr(network_source, "to_pixels", lambda *_: bytearray(2**30))
        _, url = serve(whole(clips["mkv"]))
        reader, _ = watch(url, max_memory_bytes=2**28)
        assert reader.wait_until_over(WAIT_S)
        assert "takes too much memory" in reader.status().problem

    def test_nobody_there(self, watch):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        url = ResolvedUrl(scheme="http", host="video.example", port=port, address="127.0.0.1", target="/")
        reader, _ = watch(url)
        assert reader.wait_until_over(WAIT_S)
        assert reader.status().problem == "video.example: no answer (Connection refused)"

    def test_limits_out_of_range(self):
        with pytest.raises(InputError, match="stall_s: expected a number above 0, got 0"):
            NetworkLimits(stall_s=0)


class TestHttpFile:
    def test_reads_as_a_file_does(self, serve):
        data = np.random.default_rng(0).bytes(1_000_000)
        server, url = serve(in_parts(data))
        file = HttpFile(url, max_bytes=10**8, timeout_s=WAIT_S)
        assert file.seekable()
        rng = np.random.default_rng(1)
        for _ in range(30):
            offset, size = (int(n) for n in rng.integers(0, 1_100_000, 2))
            assert file.seek(offset) == file.tell() == offset
            got = b""
            while len(got) < size and (part := file.read(size - len(got))):
                got += part
            assert got == data[offset : offset + size]
        assert file.seek(-10, 2) == 999_990
        assert 1 < len(server.asked) <= 31
        file.close()

    def test_jumps_are_counted(self, serve, monkeypatch):
        monkeypatch.setattr("videochat_online.serving.sources.fetching.MAX_REQUESTS", 5)
        _, url = serve(in_parts(b"x" * 1000))
        file = HttpFile(url, max_bytes=10**8, timeout_s=WAIT_S)
        for offset in (900, 800, 700, 600, 500):
            file.seek(offset)
            assert file.read(10)
        file.seek(400)
        with pytest.raises(InputError, match="needs 5 requests"):
            file.read(10)
        file.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Of "video.example", and its key, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=video.example"
    )
    names = ["-addext", "subjectAltName=DNS:video.example", "-keyout", path, "-out", path.with_suffix(".crt")]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


class TestHttps:
    @pytest.mark.parametrize(
        ("host", "is_trusted", "says"),
        [
            ("video.example", True, None),
            ("other.example", True, "other.example: expected a valid certificate .*not valid for 'other.example'"),
            ("video.example", False, "video.example: expected a valid certificate .*self-signed"),
        ],
    )
    def test_the_certificate_is_the_name_s(self, serve, watch, clips, certificate, monkeypatch, host, is_trusted, says):
        if is_trusted:
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
        server, plain = serve(whole(clips["mkv"]))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = ResolvedUrl(scheme="https", host=host, port=plain.port, address="127.0.0.1", target="/clip")
        reader, stream = watch(url, clock=SimulatedClock())
        assert reader.wait_until_over(WAIT_S)
        if says is None:
            assert (reader.status().problem, len(stream.frames) > 5) == (None, True)
        else:
            assert re.search(says, reader.status().problem)
            assert server.asked == []


class RtspServer:
    """Sends an MPEG transport stream as RTP within RTSP, or whatever `replies` has for a method."""

    def __init__(self, data, replies=None):
        self.data, self.replies, self.requests = data, replies or {}, []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.talk, args=(connection,), daemon=True).start()

    def talk(self, connection):
        try:
            with connection, connection.makefile("rb") as source:
                lines = []
                for line in source:
                    if line.strip():
                        lines.append(line.decode().strip())
                    elif lines:
                        self.requests.append(lines)
                        if not self.reply(connection, lines):
                            return
                        lines = []
        except (OSError, UnicodeDecodeError):
            pass

    def reply(self, connection, lines):
        method = lines[0].split()[0]
        number = next(line for line in lines if line.lower().startswith("cseq"))
        if method in self.replies:
            connection.sendall(self.replies[method].replace(b"CSEQ", number.encode()))
            return True
        head, body = [], b""
        if method == "DESCRIBE":
            body = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track1\r\n"
            head = ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
        elif method == "SETUP":
            head = ["Session: 7;timeout=60", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1"]
        elif method == "OPTIONS":
            head = ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"]
        connection.sendall("\r\n".join(["RTSP/1.0 200 OK", number, *head, "", ""]).encode() + body)
        if method == "PLAY":
            for offset in range(0, len(self.data), 1316):
                payload = self.data[offset : offset + 1316]
                packet = struct.pack(">BBHII", 0x80, 33, offset // 1316, offset, 1) + payload
                connection.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
            return False
        return True

    @property
    def url(self):
        return ResolvedUrl(scheme="rtsp", host="camera.example", port=self.port, address="127.0.0.1", target="/cam?q=1")


@pytest.fixture
def rtsp():
    servers = []

    def start(*args, **kwargs):
        servers.append(RtspServer(*args, **kwargs))
        return servers[-1]

    yield start
    for server in servers:
        server.socket.close()


class TestRtsp:
    def test_a_camera_plays(self, rtsp, watch, clips):
        server = rtsp(clips["ts"])
        reader, stream = watch(server.url, Seen(fps=30.0))
        assert reader.wait_until_over(WAIT_S)
        assert stream.frames, reader.status()
        assert stream.frames[0][0] == 0
        assert stream.frames[0][1] == (48, 64, 3)
        methods = [lines[0].split()[0] for lines in server.requests]
        assert methods[:4] == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"]
        # The server is spoken to by its name, not by the relay's.
        for lines in server.requests:
            assert lines[0].split()[1].startswith(f"rtsp://camera.example:{server.port}/cam")

    @pytest.mark.parametrize("method", ["OPTIONS", "DESCRIBE", "SETUP"])
    @pytest.mark.parametrize(
        "before", [b"", b"$\0\0\4abcd", b"REDIRECT * RTSP/1.0\r\nCSeq: 1\r\nLocation: TARGET\r\n\r\n"]
    )
    def test_a_redirect_leads_nowhere(self, rtsp, watch, clips, method, before):
        """Some FFmpegs would follow it to any host and port."""
        inner = rtsp(clips["ts"])
        target = b"rtsp://127.0.0.1:%d/cam" % inner.port
        reply = b"RTSP/1.0 302 Moved\r\nCSEQ\r\nLocation: TARGET\r\n\r\n"
        server = rtsp(clips["ts"], replies={method: (before + reply).replace(b"TARGET", target)})
        reader, stream = watch(server.url)
        assert reader.wait_until_over(WAIT_S)
        assert inner.requests == []
        assert "a redirect to another address" in reader.status().problem
        assert stream.frames == []

    @pytest.mark.parametrize(
        ("reply", "says"),
        [
            (b"RTSP/1.0 401 Unauthorized\r\nCSEQ\r\nWWW-Authenticate: Basic realm=x\r\n\r\n", "behind a password"),
            (b"RTSP/1.0 404 Not Found\r\nCSEQ\r\n\r\n", "expected a video"),
            (b"HTTP/1.1 200 OK\r\n\r\n", "expected an RTSP server"),
            (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "expected an RTSP server"),
            (b"RTSP/1.0 200 OK\r\nCSEQ\r\nContent-Length: 99999999\r\n\r\n", "describes its video"),
            (b"x" * 100_000, "expected an RTSP server"),
            (b"RTSP/1.0 200 OK\r\n" + b"X: y\r\n" * 1000, "expected an RTSP server"),
        ],
    )
    def test_what_is_no_camera(self, rtsp, watch, reply, says):
        reader, _ = watch(rtsp(b"", replies={"DESCRIBE": reply}).url)
        assert reader.wait_until_over(WAIT_S)
        assert reader.status().state == "failed"
        assert re.search(says, reader.status().problem)

    def test_silence_ends_it(self, rtsp, watch):
        reader, _ = watch(rtsp(b"", replies={"DESCRIBE": b""}).url, stall_s=0.6)
        assert reader.wait_until_over(WAIT_S)
        assert reader.status().problem == "camera.example: no frame came for 0.6 s"
