"""A file server on this machine that plays the upstream: Kaggle, TF Hub, the Hugging Face hub, Keras' weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Upstream:
    """What it holds and how it behaves.

    Attributes:
        url: its address.
        files: path -> content.
        headers: more headers for all answers.
        redirects: path -> path.
        break_after: bytes after which a connection breaks off; one number for each of the next answers.
        ranges: whether it can go on in the middle of a file.
        calls: path -> function of the JSON that is posted there, giving the content of the answer.
        asked: (method, path, Range header or None) of every request.
    """

    def __init__(self):
        self.url = ""
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.break_after: list[int] = []
        self.ranges = True
        self.calls: dict[str, Callable[[dict], bytes]] = {}
        self.asked: list[tuple[str, str, str | None]] = []

    def etag(self, path: str) -> str:
        return f'"{hashlib.sha256(self.files[path]).hexdigest()}"'


@contextlib.contextmanager
def serve() -> Iterator[Upstream]:
    """Run the server in a thread until the block ends."""
    upstream = Upstream()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def do_POST(self):
            posted = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            upstream.asked.append((self.command, self.path, None))
            content = upstream.calls[self.path](posted) if self.path in upstream.calls else None
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.send_header("Content-Type", "application/json" if content and content[:1] in b"[{" else "binary")
            self.end_headers()
            self.wfile.write(content or b"")

        def answer(self, with_body: bool):
            path, wanted = urlsplit(self.path).path, self.headers.get("Range")
            upstream.asked.append((self.command, self.path, wanted))
            if path in upstream.redirects:
                self.send_response(302)
                self.send_header("Location", upstream.redirects[path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if path not in upstream.files:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content, start = upstream.files[path], 0
            same = self.headers.get("If-Range") in (None, upstream.etag(path))
            if wanted and upstream.ranges and same:
                start = int(wanted.removeprefix("bytes=").rstrip("-").split("-")[0])
            if start and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", upstream.etag(path))
            for name, value in upstream.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                stop = upstream.break_after.pop(0) if upstream.break_after else len(content)
                self.wfile.write(content[start : start + stop])
                if start + stop < len(content):
                    self.wfile.flush()
                    self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    upstream.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield upstream
    finally:
        server.shutdown()
        server.server_close()
