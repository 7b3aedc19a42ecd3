"""A WebSocket to a host, over TLS with our client certificate."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from vambrace.client.host import Host, problem, unreachable

CONNECT_SECONDS = 30
MAX_MESSAGE = 1 << 20


@contextlib.contextmanager
def open_websocket(host: Host, url: str) -> Iterator[ClientConnection]:
    """Raises ``HostUnreachable``, and what the host refuses with."""
    with contextlib.ExitStack() as stack:
        with explained(host):
            # A socket of our own: no proxy of the environment's comes between.
            stream = socket.create_connection(place_of(host), timeout=CONNECT_SECONDS)
            stack.callback(stream.close)
            opened = stack.enter_context(connect(url, sock=stream, **terms(host)))
        yield opened


def terms(host: Host) -> dict[str, Any]:
    """How either kind of connection is made."""
    return {
        "ssl": host.tls,
        "server_hostname": place_of(host)[0],
        "compression": None,
        "max_size": MAX_MESSAGE,
        "open_timeout": CONNECT_SECONDS,
    }


def place_of(host: Host) -> tuple[str, int]:
    """Its name or address, and its port."""
    place = urlsplit(host.url)
    return place.hostname or "", place.port or 443


@contextlib.contextmanager
def explained(host: Host) -> Iterator[None]:
    """What fails while a WebSocket to ``host`` is opened, as errors of our tree."""
    try:
        yield
    except InvalidStatus as error:
        raise problem(error.response.status_code, bytes(error.response.body or b"")) from error
    except (WebSocketException, OSError) as error:
        raise unreachable(host.url, error) from error
