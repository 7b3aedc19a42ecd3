"""Errors over HTTP: problem details (RFC 9457), each with a ``hint``. Of aiohttp's services, whichever they are."""

from __future__ import annotations

import http
import json
from collections.abc import Iterable
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


def status_of(error: Exception, rows: Iterable[tuple[type[Exception], int, str]]) -> tuple[int, str]:
    """Status and kind of the first row whose class ``error`` is an instance of; (500, "internal") for none."""
    return next(((status, kind) for cls, status, kind in rows if isinstance(error, cls)), (500, "internal"))


def from_http(error: web.HTTPException, hint: str) -> web.Response:
    """The response for what aiohttp itself refuses (no such route, wrong method, body too large)."""
    response = problem(error.status, "request", error.reason, hint)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response
