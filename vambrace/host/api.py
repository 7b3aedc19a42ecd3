"""The HTTP API (architecture, section 11; ``openapi.yaml``)."""

from __future__ import annotations

import asyncio
import json
import re
import uuid as uuids
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from aiohttp import web

from vambrace.checks import check_domain_name
from vambrace.config import MAX_DISKS
from vambrace.errors import Conflict, HostError, UsageError
from vambrace.host import console
from vambrace.host.attested import Attested
from vambrace.host.channel import relay
from vambrace.host.domain import Domain
from vambrace.host.host import DomainRequest, Host
from vambrace.host.lifecycle import STEPS, State
from vambrace.host.metrics import CONTENT_TYPE
from vambrace.host.problems import PROBLEMS
from vambrace.host.realm import Realm
from vambrace.host.store import WHOLE, DomainRecord, StoredImage
from vambrace.host.vsock import Connector, connect_vsock
from vambrace.serving.openapi import get_specification
from vambrace.serving.problems import Handler

BODY_LIMIT = 64 << 10
UPLOAD_CHUNK = 1 << 20
WAIT_LIMIT = 60.0
DIGEST = re.compile(r"[0-9a-f]{64}")
MAX_BLOBS = 2 + MAX_DISKS
# Not at 0: what comes before it must be the sender's. From the digest of a beginning follow those of what continues it.
BLOB = re.compile(r"([1-9][0-9]{0,11}):([0-9a-f]{64})")
TOKEN_TYPE = "application/cmw+cbor"

HOST = web.AppKey("host", Host)
CONNECT: web.AppKey[Connector] = web.AppKey("connect")


def application(host: Host, connect: Connector = connect_vsock) -> web.Application:
    """The aiohttp application of ``host``; ``connect`` opens streams to guests."""
    app = web.Application(middlewares=[PROBLEMS.middleware(), _own_origin], client_max_size=BODY_LIMIT)
    app[HOST] = host
    app[CONNECT] = connect
    app.add_routes(
        [
            web.get("/v1/host", get_host),
            web.get("/v1/openapi.json", get_specification(__file__)),
            web.get("/v1/partition", get_partition),
            web.get("/v1/partition/verification", get_verification),
            web.get("/v1/usage", get_usage),
            web.get("/v1/platform", get_platform),
            web.put("/v1/platform/endorsement", put_endorsement),
            web.put("/v1/platform/owner", put_owner),
            web.put("/v1/platform/lifecycle", put_lifecycle),
            web.get("/v1/images", get_images),
            web.head("/v1/images/{sha256}", head_image),
            web.put("/v1/images/{sha256}", put_image),
            web.delete("/v1/images/{sha256}", delete_image),
            web.head("/v1/blobs/{sha256}", head_blob),
            web.get("/v1/volumes", get_volumes),
            web.put("/v1/volumes/{owner}/{name}", put_volume),
            web.delete("/v1/volumes/{owner}/{name}", delete_volume),
            web.get("/v1/domains", get_domains),
            web.get("/v1/domains/{uuid}", get_domain),
            web.put("/v1/domains/{uuid}", put_domain),
            web.delete("/v1/domains/{uuid}", delete_domain),
            web.get("/v1/domains/{uuid}/token", get_token),
            web.post("/v1/domains/{uuid}/verdict", post_verdict),
            web.get("/v1/domains/{uuid}/channel", get_channel),
            web.get("/v1/domains/{uuid}/console", get_console),
            web.get("/metrics", get_metrics),
        ]
    )
    return app


@web.middleware
async def _own_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    """No web page of another site speaks through a browser that has an operator's certificate: a WebSocket would be
    open to it (RFC 6455, section 10.2). Programs send no Origin. Raises ``HostError`` (403)."""
    origins = request.headers.getall("Origin", [])
    if any(origin.lower() != f"{request.scheme}://{request.host}".lower() for origin in origins):
        raise HostError(
            "the request comes from a web page of another site", hint="use vambrace, or a page of this host", status=403
        )
    return await handler(request)


# The host


async def get_host(request: web.Request) -> web.Response:
    return web.json_response(request.app[HOST].describe())


async def get_partition(request: web.Request) -> web.Response:
    return web.json_response(request.app[HOST].shares.describe())


async def get_verification(request: web.Request) -> web.Response:
    host = request.app[HOST]
    found = await host.verify()
    # No counts of page frames: how much memory a Realm has touched is its owner's to know.
    return web.json_response(
        {
            "passed": found.passed,
            "findings": list(found.findings),
            "domains": list(found.domains),
            "threads": found.threads,
            "descriptors": found.descriptors,
            "enforcement": host.shares.enforcement,
        }
    )


async def get_usage(request: web.Request) -> web.Response:
    return web.json_response(request.app[HOST].describe_usage())


async def get_platform(request: web.Request) -> web.Response:
    return web.json_response(_platform_view(request.app[HOST]))


async def put_endorsement(request: web.Request) -> web.Response:
    host = request.app[HOST]
    lock = request.query.get("lock", "0")
    if lock not in ("0", "1"):
        raise UsageError("lock must be 0 or 1")
    await host.platform.install(await request.read(), lock=lock == "1")
    return web.json_response(_platform_view(host))


async def put_owner(request: web.Request) -> web.Response:
    host = request.app[HOST]
    await host.owner.put(await request.read())
    return web.json_response(_platform_view(host))


async def put_lifecycle(request: web.Request) -> web.Response:
    host = request.app[HOST]
    await host.advance(await request.read())
    return web.json_response(_platform_view(host))


def _platform_view(host: Host) -> dict[str, Any]:
    return {
        "platform_key": host.platform.platform_key.hex(),
        "lifecycle": host.platform.lifecycle,
        "insecure": host.platform.insecure,
        "endorsed": host.platform.endorsed,
        "owner": host.owner.fingerprint,
        "owner_changes": host.owner.changes,
    }


async def get_metrics(request: web.Request) -> web.Response:
    return web.Response(body=request.app[HOST].metrics.text(), headers={"Content-Type": CONTENT_TYPE})


# Images


async def get_images(request: web.Request) -> web.Response:
    images = await asyncio.to_thread(request.app[HOST].store.list_images)
    return web.json_response({"images": [_image_view(image) for image in images]})


async def head_image(request: web.Request) -> web.Response:
    return web.Response(status=200 if request.app[HOST].store.has_image(_digest(request)) else 404)


async def put_image(request: web.Request) -> web.Response:
    chunks: AsyncIterator[bytes] = request.content.iter_chunked(UPLOAD_CHUNK)
    blobs = _blobs(request)
    image, new = await request.app[HOST].put_image(_digest(request), request.content_length, chunks, blobs)
    return web.json_response(_image_view(image), status=201 if new else 200)


async def delete_image(request: web.Request) -> web.Response:
    request.app[HOST].delete_image(_digest(request))
    return web.Response(status=204)


async def head_blob(request: web.Request) -> web.Response:
    await asyncio.to_thread(request.app[HOST].store.blob, _digest(request))
    return web.Response()


def _image_view(image: StoredImage) -> dict[str, Any]:
    return {"sha256": image.digest, "name": image.name, "size": image.size, "stored": image.stored}


# Volumes: the event loop's, as admission is; all that they do are a few calls for a file


async def get_volumes(request: web.Request) -> web.Response:
    volumes = request.app[HOST].store.lasting.volumes()
    return web.json_response({"volumes": [asdict(volume) for volume in volumes]})


async def put_volume(request: web.Request) -> web.Response:
    body = await _json_object(request, {"size"})
    if type(body["size"]) is not int:
        raise UsageError("size must be a number of bytes")
    volume = request.app[HOST].store.lasting.create(*_volume(request), body["size"])
    return web.json_response(asdict(volume))


async def delete_volume(request: web.Request) -> web.Response:
    request.app[HOST].store.lasting.remove(*_volume(request))
    return web.Response(status=204)


# Domains


async def get_domains(request: web.Request) -> web.Response:
    return web.json_response({"domains": [_domain_view(domain) for domain in request.app[HOST].domains()]})


async def get_domain(request: web.Request) -> web.Response:
    domain = request.app[HOST].domain(_uuid(request))
    seconds = _wait(request)
    if isinstance(domain, Domain) and seconds:
        await domain.lifecycle.wait(seconds, _unless(request) or domain.lifecycle.state)
    return web.json_response(_domain_view(domain))


async def put_domain(request: web.Request) -> web.Response:
    domain, new = await request.app[HOST].create(_uuid(request), await _domain_request(request))
    return web.json_response(_domain_view(domain), status=201 if new else 200)


async def delete_domain(request: web.Request) -> web.Response:
    domain = request.app[HOST].domain(_uuid(request))
    if isinstance(domain, Domain):
        domain.finish(State.DESTROYED, "destroyed by request")
        await domain.ended()
    return web.json_response(_domain_view(domain))


async def get_token(request: web.Request) -> web.Response:
    domain = request.app[HOST].domain(_uuid(request))
    token = domain.token if isinstance(domain, Domain) else None
    if token is None:
        raise Conflict("the domain has no token", hint="wait until it is loaded; a Normal VM has none", status=409)
    return web.Response(body=token, content_type=TOKEN_TYPE)


async def post_verdict(request: web.Request) -> web.Response:
    domain = _living(request)
    if not isinstance(domain, Realm):
        raise Conflict(f"a {domain.config.kind} awaits no verdict", status=409)
    domain.accept_verdict(await request.read())
    return web.json_response(_domain_view(domain))


async def get_channel(request: web.Request) -> web.StreamResponse:
    host, domain = request.app[HOST], _living(request)
    if not isinstance(domain, Attested):
        raise Conflict(f"a {domain.config.kind} has no agent", status=409)
    return await relay(request, domain, request.app[CONNECT], host.settings.channels)


async def get_console(request: web.Request) -> web.StreamResponse:
    domain = _living(request)
    if domain.terminal is None:
        raise Conflict(f"the console of a {domain.config.kind} is nobody's", status=409)
    if domain.lifecycle.state is State.DESTROYING:  # whoever comes now would be told of no end
        raise Conflict("the domain is being destroyed", status=409)
    return await console.serve(request, domain.terminal, domain.closers)


def _living(request: web.Request) -> Domain:
    domain = request.app[HOST].domain(_uuid(request))
    if isinstance(domain, DomainRecord):
        raise Conflict(f"the domain is {domain.state}", hint="create a new one", status=409)
    return domain


def _domain_view(domain: Domain | DomainRecord) -> dict[str, Any]:
    record = domain if isinstance(domain, DomainRecord) else domain.record
    # The state in memory: the one on the disk is written a moment before it is entered.
    state = State(record.state) if isinstance(domain, DomainRecord) else domain.lifecycle.state
    return {
        "uuid": record.uuid,
        "name": record.name,
        "class": record.kind,
        "image": record.image,
        "nonce": record.nonce,
        "state": state.value,
        "step": STEPS[state],
        "final": state.final,
        "reason": record.reason,
        "executed": record.executed,
        "instance": record.instance or None,
        "measurement": record.measurement or None,
        "memory": record.memory,
        "agent": record.agent or None,
        "created": record.created,
        "deadline": domain.deadline if isinstance(domain, Domain) else None,
        "token": isinstance(domain, Domain) and domain.token is not None,
        "events": list(record.events),
    }


# Arguments


def _digest(request: web.Request) -> str:
    digest = request.match_info["sha256"]
    if not DIGEST.fullmatch(digest):
        raise UsageError("an image is named by its SHA-256, 64 lower-case hexadecimal digits")
    return digest


def _blobs(request: web.Request) -> list[tuple[int, str]]:
    """What the body leaves out: offset in the bundle, and SHA-256."""
    said = [BLOB.fullmatch(text) for text in request.query.getall("blob", [])]
    blobs = [(int(match[1]), match[2]) for match in said if match]
    # No bundle holds a part twice, and a small request must not become a large image.
    if len(said) > MAX_BLOBS or len({digest for _, digest in blobs}) != len(said):
        raise UsageError("a blob that is left out is named once, by its offset and SHA-256", hint=WHOLE)
    return blobs


def _uuid(request: web.Request) -> str:
    text = request.match_info["uuid"]
    try:
        canonical = str(uuids.UUID(text))
    except ValueError:
        canonical = ""
    if canonical != text:
        raise UsageError("a domain is named by a UUID in lower case, with hyphens")
    return text


def _wait(request: web.Request) -> float:
    try:
        seconds = float(request.query.get("wait", "0"))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= WAIT_LIMIT:
        raise UsageError(f"wait must be 0 to {WAIT_LIMIT:g} seconds")
    return seconds


def _unless(request: web.Request) -> State | None:
    if not (text := request.query.get("unless")):
        return None
    try:
        return State(text)
    except ValueError:
        raise UsageError(f"unless must be one of {', '.join(state.value for state in State)}") from None


def _volume(request: web.Request) -> tuple[str, str]:
    """The owner and the name of a volume."""
    return request.match_info["owner"], request.match_info["name"]


async def _json_object(request: web.Request, keys: set[str]) -> dict[str, Any]:
    """The body, which has these keys."""
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise UsageError("the body is not JSON") from None
    if not isinstance(body, dict) or set(body) != keys:
        raise UsageError(f"the body must be an object with {', '.join(sorted(keys))}, and nothing else")
    return body


async def _domain_request(request: web.Request) -> DomainRequest:
    body = await _json_object(request, {"name", "image", "nonce"})
    name, image, nonce = body["name"], body["image"], body["nonce"]
    check_domain_name(name)
    for key, value in (("image", image), ("nonce", nonce)):
        if not isinstance(value, str) or not DIGEST.fullmatch(value):
            raise UsageError(f"{key} must be 64 lower-case hexadecimal digits")
    return DomainRequest(name, image, nonce)
