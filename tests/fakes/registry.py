"""A registry that holds what it is given and says what it likes: the read half of OCI's distribution API, over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
#: Answers a request in its own way.
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HostileRegistry

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        for end, answer in self.server.answers.items():
            if self.path.endswith(end):
                return answer(self)
        for end, content in self.server.contents.items():
            if self.path.endswith(end):
                return self.give(content, MANIFEST if "/manifests/" in self.path else "application/octet-stream")
        if self.path == "/v2/":
            return self.give(b"{}", "application/json")
        return self.give(b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}', "application/json", 404)

    do_HEAD = do_GET

    def give(self, content: bytes, kind: str, status: int = 200, length: int | None = None) -> None:
        """An answer with ``content``, of which its header says that it has ``length`` bytes."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def endlessly(self, kind: str) -> None:
        """An answer without end."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chunk = b" " * (1 << 16)
        try:
            while self.command == "GET":
                self.server.sent += len(chunk)
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        except OSError:
            self.close_connection = True

    def redirect(self, where: str) -> None:
        self.send_response(307)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the tests look at ``requests``."""


class HostileRegistry(ThreadingHTTPServer):
    """``contents`` by the end of their path, ``answers`` that go before them; ``sent`` counts endless bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents: dict[str, bytes] = {}
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []
        self.sent = 0

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


@contextmanager
def hostile_registry() -> Iterator[HostileRegistry]:
    with HostileRegistry() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
