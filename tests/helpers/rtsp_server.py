"""A camera: sends an MPEG transport stream as RTP within RTSP, behind a login where one is asked for."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import struct
import threading
import time

NONCE = "5ccc069c403ebaf9f0171e9517f40e41"


class RtspServer:
    """Sends `data` to everybody who comes, spread over some seconds, or whatever `replies` has for a method.

    Args:
        data: bytes of the transport stream.
        replies: bytes sent in place of the reply to a method; CSEQ stands for the header of that name.
        login: user and password that are asked for; None for nobody's.
        how: "Basic" or "Digest".
        seconds: how long sending takes.
        is_stalling: after the last byte nothing more is said, rather than hanging up.
    """

    def __init__(self, data, replies=None, *, login=None, how="Basic", seconds=0.0, is_stalling=False):
        self.data, self.replies, self.requests = data, replies or {}, []
        self.login, self.how, self.seconds, self.is_stalling = login, how, seconds, is_stalling
        self.num_plays = 0
        self.is_over = threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def url(self, login=""):
        """Its address; `login` is `user:password@`."""
        return f"rtsp://{login}127.0.0.1:{self.port}/cam?q=1"

    def close(self):
        """Let go of the port and of who is there."""
        self.is_over.set()
        self.socket.close()

    def _run(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection):
        try:
            with connection, connection.makefile("rb") as source:
                lines = []
                for line in source:
                    if line.strip():
                        lines.append(line.decode().strip())
                    elif lines:
                        self.requests.append(lines)
                        if not self._reply(connection, lines):
                            return
                        lines = []
        except (OSError, UnicodeDecodeError):
            pass

    def _reply(self, connection, lines):
        method = lines[0].split()[0]
        number = next((line for line in lines if line.lower().startswith("cseq")), "CSeq: 1")
        if method in self.replies:
            connection.sendall(self.replies[method].replace(b"CSEQ", number.encode()))
            return True
        status, head, body = "200 OK", [], b""
        if self.login is not None and not self._is_known(lines):
            more = f', nonce="{NONCE}"' if self.how == "Digest" else ""
            status, head = "401 Unauthorized", [f'WWW-Authenticate: {self.how} realm="camera"{more}']
        elif method == "DESCRIBE":
            body = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track1\r\n"
            head = ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
        elif method == "SETUP":
            head = ["Session: 7;timeout=60", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1"]
        elif method == "OPTIONS":
            head = ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"]
        connection.sendall("\r\n".join([f"RTSP/1.0 {status}", number, *head, "", ""]).encode() + body)
        if method == "PLAY" and status == "200 OK":
            self._send(connection)
            return False
        return True

    def _is_known(self, lines):
        """Whether a request has the right user and password."""
        given = next((line.partition(" ")[2] for line in lines if line.startswith("Authorization:")), "")
        if self.how == "Basic":
            return given == f"Basic {base64.b64encode(':'.join(self.login).encode()).decode()}"
        fields = dict(re.findall(r'(\w+)="?([^",]*)"?', given))
        method, uri = lines[0].split()[:2]
        user, password = self.login
        of_user, of_request = (_md5(text) for text in (f"{user}:camera:{password}", f"{method}:{uri}"))
        return fields.get("response") == _md5(f"{of_user}:{NONCE}:{of_request}")

    def _send(self, connection):
        self.num_plays += 1
        begun_s, offsets = time.monotonic(), range(0, len(self.data), 1316)
        for number, offset in enumerate(offsets):
            payload = self.data[offset : offset + 1316]
            packet = struct.pack(">BBHII", 0x80, 33, number % 2**16, offset, 1) + payload
            connection.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
            self.is_over.wait(max(0.0, begun_s + self.seconds * number / len(offsets) - time.monotonic()))
        if self.is_stalling:
            self.is_over.wait()


def _md5(text):
    return hashlib.md5(text.encode()).hexdigest()
