"""One request of HTTP, for clients in Python."""

from __future__ import annotations

import http.client

from examples.gallery.exhibit import Address
from examples.gallery.load import CALL_SECONDS
from vambrace.errors import VambraceError


def request(address: Address, path: str, content: bytes | None = None) -> bytes:
    """What is served at ``path``; ``content`` is sent there first, if there is any.

    Raises ``VambraceError`` for anything but an answer with 200.
    """
    connection = http.client.HTTPConnection(*address, timeout=CALL_SECONDS)
    try:
        connection.request("GET" if content is None else "POST", path, content)
        answer = connection.getresponse()
        served = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise VambraceError(f"no answer to a request: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise VambraceError(f"a request was answered with {answer.status}")
    return served
