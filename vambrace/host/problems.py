"""What the daemon's errors are over HTTP."""

from __future__ import annotations

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
    VerificationError,
)
from vambrace.serving.problems import Problems

PROBLEMS = Problems(
    "host",
    rows=(
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
    ),
    hint="see the host's log",
    hints={
        400: "correct the request; see /v1/openapi.json",
        403: "sign with the owner's key, for this instance and token",
        404: "list what exists with GET /v1/domains or GET /v1/images",
        405: "see /v1/openapi.json",
        409: "look at the domain's state with GET /v1/domains/{uuid}",
        413: "make the image smaller, or raise image_limit in the host's settings",
        422: "build the image again",
        507: "destroy a domain, or use a host with more",
    },
)
