"""Errors as RFC 9457 problem details, each with a ``hint``."""

from __future__ import annotations

from aiohttp import web

from vambrace import problem
from vambrace.errors import (
    CapacityError,
    ConfigError,
    Conflict,
    HostError,
    ImageError,
    MessageRefused,
    NotFound,
    PartitionError,
    TrustZoneError,
    UsageError,
    VambraceError,
    VerificationError,
)

# The first class that an error is an instance of decides.
STATUS: tuple[tuple[type[VambraceError], int, str], ...] = (
    (NotFound, 404, "not-found"),
    (CapacityError, 507, "capacity"),
    (Conflict, 409, "conflict"),
    (MessageRefused, 403, "message-refused"),
    (VerificationError, 403, "message-refused"),
    (ImageError, 422, "image"),
    (ConfigError, 422, "configuration"),
    (UsageError, 400, "request"),
    (TrustZoneError, 503, "trustzone"),
    (PartitionError, 503, "partition"),
    (HostError, 503, "host"),
)


def from_error(error: VambraceError) -> web.Response:
    """The response for an error of our tree; ``HostError.status`` overrides the class's own."""
    status, kind = problem.status_of(error, STATUS)
    if isinstance(error, HostError) and error.status:
        status = error.status
    return problem.problem(status, kind, error.message, error.hint or HINTS.get(status, "see the host's log"))


def from_http(error: web.HTTPException) -> web.Response:
    """The response for what aiohttp itself refuses."""
    return problem.from_http(error, HINTS.get(error.status, "see /v1/openapi.json"))


HINTS = {
    400: "correct the request; see /v1/openapi.json",
    403: "sign with the owner's key, for this instance and token",
    404: "list what exists with GET /v1/domains or GET /v1/images",
    405: "see /v1/openapi.json",
    409: "look at the domain's state with GET /v1/domains/{uuid}",
    413: "make the image smaller, or raise image_limit in the host's settings",
    422: "build the image again",
    507: "destroy a domain, or use a host with more",
}
