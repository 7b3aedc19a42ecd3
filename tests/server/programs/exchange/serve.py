"""A web server that knows nothing of Realms: gives its bytes, and says the hash of those that are sent to it."""

import hashlib
import random
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SIZE = 4 << 20
DATA = random.Random(1).randbytes(SIZE)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(DATA)

    def do_POST(self) -> None:
        self.answer(hashlib.sha256(self.rfile.read(int(self.headers["Content-Length"]))).hexdigest().encode())

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


with ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler) as server:
    print("serving", hashlib.sha256(DATA).hexdigest(), flush=True)
    server.serve_forever()
