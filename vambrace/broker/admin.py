"""The API for owners of repositories: they store and replace secrets, and read the log; no call gives a value back."""

from __future__ import annotations

import json
from typing import Any, Final

from aiohttp import web

from vambrace.broker.names import ResourceName
from vambrace.broker.policy import ReleasePolicy
from vambrace.broker.requests import BROKER, SETTINGS, base64_field, caller_of, certificate_of, json_body
from vambrace.errors import NotReleased

LOG_LIMIT: Final = 1000


def routes() -> list[web.RouteDef]:
    secret = "/v1/secrets/{repository}/{type}/{tag}"
    return [
        web.get("/v1/secrets/{repository}", get_secrets),
        web.get(secret, get_secret),
        web.put(secret, put_secret),
        web.delete(secret, delete_secret),
        web.get("/v1/audit/{repository}", get_audit),
    ]


async def get_secrets(request: web.Request) -> web.StreamResponse:
    repository = await _owned(request)
    return web.json_response({"secrets": await request.app[BROKER].secrets(repository)})


async def get_secret(request: web.Request) -> web.StreamResponse:
    await _owned(request)
    return web.json_response(await request.app[BROKER].describe(_name(request)))


async def put_secret(request: web.Request) -> web.StreamResponse:
    await _owned(request)
    body = await json_body(request)
    value = base64_field(body, "value") if "value" in body else None
    policy = ReleasePolicy.parse(body.get("platform"), body["policy"]) if "policy" in body else None
    generation = await request.app[BROKER].put(_name(request), value, policy, caller_of(request))
    return web.json_response({"generation": generation})


async def delete_secret(request: web.Request) -> web.StreamResponse:
    await _owned(request)
    await request.app[BROKER].delete(_name(request), caller_of(request))
    return web.Response(status=204)


async def get_audit(request: web.Request) -> web.StreamResponse:
    """Of the log, what is about this repository, and where the whole log ends."""
    repository = await _owned(request)
    after = request.query.get("after", "0")
    if not (after.isascii() and after.isdigit()) or len(after) > 18:
        raise web.HTTPBadRequest(reason="after is the number of an entry")
    entries, head = await request.app[BROKER].entries(repository, int(after), LOG_LIMIT)
    return web.json_response(
        {"entries": [json.loads(entry.text) for entry in entries], "head": _head(head.sequence, head.hash)}
    )


def _head(sequence: int, digest: bytes) -> dict[str, Any]:
    return {"sequence": sequence, "hash": digest.hex()}


async def _owned(request: web.Request) -> str:
    """The repository, which is the caller's. Raises ``NotReleased`` (403): others' are not told from missing ones."""
    repository = request.match_info["repository"]
    certificate = certificate_of(request)
    if not certificate or certificate not in request.app[SETTINGS].repositories.get(repository, frozenset()):
        error = NotReleased(
            f"this is not the repository of who asks: {repository[:64]!a}",
            hint="show the certificate of one of its owners, as the broker's settings name them",
        )
        await request.app[BROKER].refuse("owner", error, caller_of(request))
        raise error
    return repository


def _name(request: web.Request) -> ResourceName:
    part = request.match_info
    return ResourceName(part["repository"], part["type"], part["tag"])
