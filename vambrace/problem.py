"""Errors over HTTP: problem details (RFC 9457), each with a ``hint``. Of aiohttp's services, whichever they are."""

from __future__ import annotations

import http
import json
from typing import Final

from aiohttp import web

CONTENT_TYPE: Final = "application/problem+json"
DOCUMENTATION: Final = "tag:vambrace.dev,2026:problem/"


def problem(status: int, kind: str, detail: str, hint: str) -> web.Response:
    """A response with ``application/problem+json``; ``kind`` ends the URI of its type."""
    body = {
        "type": DOCUMENTATION + kind,
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "hint": hint,
    }
    return web.Response(status=status, text=json.dumps(body), content_type=CONTENT_TYPE)
