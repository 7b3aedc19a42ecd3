"""Errors over HTTP: problem details (RFC 9457), each with a ``hint``."""

from __future__ import annotations

import asyncio
import http
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from vambrace.errors import VambraceError

CONTENT_TYPE: Final = "application/problem+json"
DOCUMENTATION: Final = "tag:vambrace.dev,2026:problem/"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Problems:
    """How the errors of one ``service`` leave it.

    The first of ``rows`` whose class an error is an instance of gives its status, unless the error has one of its own,
    and kind. An error without a hint has that of its status in ``hints``, or ``hint``.
    """

    service: str
    rows: Sequence[tuple[type[VambraceError], int, str]]
    hint: str
    hints: Mapping[int, str] = field(default_factory=dict)

    def middleware(self) -> Middleware:
        """Every error leaves as problem+json; an unexpected one says nothing of the inside."""

        @web.middleware
        async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                return await handler(request)
            except VambraceError as error:
                return self.of_error(error)
            except web.HTTPException as error:
                if error.status < 400:
                    raise
                return self.of_http(error)
            except (asyncio.CancelledError, ConnectionError):
                raise
            except Exception:
                log.exception("%s %s: internal error", request.method, _route(request))
                whose = f"the {self.service}"
                return problem(500, "internal", f"internal error of {whose}", f"see {whose}'s log")

        return answered

    def of_error(self, error: VambraceError) -> web.Response:
        """The response for an error of our tree."""
        found = ((status, kind) for cls, status, kind in self.rows if isinstance(error, cls))
        status, kind = next(found, (500, "internal"))
        status = getattr(error, "status", 0) or status
        return problem(status, kind, error.message, error.hint or self._hint(status))

    def of_http(self, error: web.HTTPException) -> web.Response:
        """The response for what aiohttp itself refuses (no such route, wrong method, body too large)."""
        response = problem(error.status, "request", error.reason, self._hint(error.status))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response

    def _hint(self, status: int) -> str:
        return self.hints.get(status, self.hint)


def _route(request: web.Request) -> str:
    """The path as the service has it, with nothing that the client chose."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else ""
