"""What handlers of both APIs have in common: who asks, what they send, and how they are refused."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from vambrace.broker.release import Broker, Caller
from vambrace.broker.settings import Settings
from vambrace.errors import (
    BrokerError,
    ConfigError,
    Conflict,
    NotFound,
    NotReleased,
    UsageError,
    VerificationError,
)
from vambrace.serving.problems import Handler, Problems
from vambrace.serving.rates import Rates, too_often

BROKER: Final = web.AppKey("broker", Broker)
SETTINGS: Final = web.AppKey("settings", Settings)
BODY_SECONDS: Final = 20.0

_HINT: Final = "see docs/broker.md"
PROBLEMS: Final = Problems(
    "broker",
    rows=(
        (NotReleased, 403, "not-released"),
        (BrokerError, 503, "broker"),
        (NotFound, 404, "not-found"),
        (Conflict, 409, "conflict"),
        (VerificationError, 401, "evidence"),
        (ConfigError, 422, "configuration"),
        (UsageError, 400, "request"),
    ),
    hint=_HINT,
)


async def json_body(request: web.Request) -> dict[str, Any]:
    """The JSON object that was sent. Raises ``UsageError``."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            data = await request.read()
    except TimeoutError:
        raise UsageError("the request did not come in time", hint="send it at once") from None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise UsageError("the request is not JSON", hint=_HINT) from None
    if not isinstance(value, dict):
        raise UsageError("the request is not a JSON object", hint=_HINT)
    return value


def base64_field(body: dict[str, Any], key: str) -> bytes:
    """Raises ``UsageError``."""
    try:
        return base64.b64decode(body.get(key, ""), validate=True)
    except (TypeError, ValueError):
        raise UsageError(f"{key} is not base64", hint=_HINT) from None


def certificate_of(request: web.Request) -> bytes:
    """The certificate (DER) that was shown in TLS, whose key was proven; empty where none was."""
    tls = request.transport.get_extra_info("ssl_object") if request.transport else None
    return (tls.getpeercert(binary_form=True) if tls else None) or b""


def caller_of(request: web.Request) -> Caller:
    certificate = certificate_of(request)
    return Caller(hashlib.sha256(certificate).hexdigest() if certificate else "", request.remote or "")


def bounded(rates: Rates) -> Middleware:
    """Refuses who asks too often."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = too_often(rates, request)
        return await handler(request) if refusal is None else refusal

    return middleware
