"""A judge of open answers on this machine, which replies as it is told."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def judge_server(reply, models=None):
    """Serve chat completions; gives the address and the list of requests so far, (headers, body) each.

    Args:
        reply: from the number of a request, from 0, and its body to a text, a status, (status, body), or the seconds
            (a float) to say nothing for at most, or to say blanks and then no for so long (a negative one).
        models: names that it lists; None: it has no list.
    """
    requests, over = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 (http.server names it)
            listed = json.dumps({"object": "list", "data": [{"id": name} for name in models or ()]})
            self.send_response(404 if models is None or self.path != "/v1/models" else 200)
            self.end_headers()
            self.wfile.write(listed.encode() if models is not None else b"{}")

        def do_POST(self):  # noqa: N802 (http.server names it)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, dict(self.headers), body))
            said = reply(len(requests) - 1, body)
            if isinstance(said, float) and said < 0:
                self.send_response(200)
                self.end_headers()
                with suppress(OSError):
                    for _ in range(round(-said / 0.05)):
                        over.wait(0.05)
                        self.wfile.write(b" ")
                    self.wfile.write(_completion("no").encode())
                return
            if isinstance(said, float):
                over.wait(said)
                return
            status, text = (200, _completion(said)) if isinstance(said, str) else (said, "{}")
            if isinstance(said, tuple):
                status, text = said
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", requests
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _completion(text: str) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})
