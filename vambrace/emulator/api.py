"""The emulated server's API, as whoever has provisioned the server reaches it."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable
from typing import Any

from vambrace.emulator.provision import Credentials
from vambrace.errors import ServerError


class Api:
    """``port`` gives the TCP port at the moment of a request."""

    def __init__(self, credentials: Credentials, port: Callable[[], int]) -> None:
        self._credentials = credentials
        self._port = port

    def get(self, path: str, *, timeout: float = 60) -> dict[str, Any]:
        """Raises as ``request`` does."""
        answer: dict[str, Any] = json.loads(self.request("GET", path, timeout=timeout))
        return answer

    def request(self, method: str, path: str, body: bytes | None = None, *, timeout: float = 120) -> bytes:
        """Raises ``ServerError`` for a refusal, ``OSError`` or ``HTTPException`` where nobody answers."""
        context = ssl.create_default_context(cafile=str(self._credentials.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._credentials.client_certificate, self._credentials.client_key)
        connection = http.client.HTTPSConnection("127.0.0.1", self._port(), timeout=timeout, context=context)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            raise ServerError(f"{method} {path}: {response.status} {data.decode(errors='replace')[:300]}")
        return data
