"""The broker over HTTPS (``openapi.yaml``): the KBS protocol of Confidential Containers for Realms, an API for owners.

Realms show no certificate: their evidence is what they show. Owners show theirs in TLS.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vambrace.attest.token import MAX_TOKEN
from vambrace.broker import admin
from vambrace.broker.anchor import Anchor
from vambrace.broker.names import VOLUME, ResourceName
from vambrace.broker.platforms import Platforms
from vambrace.broker.release import Broker, read_evidence
from vambrace.broker.requests import BROKER, PROBLEMS, SETTINGS, base64_field, bounded, caller_of, json_body
from vambrace.broker.results import ResultSigner
from vambrace.broker.sessions import Session, Sessions
from vambrace.broker.settings import Settings
from vambrace.broker.store import Store
from vambrace.broker.vault import Vault
from vambrace.errors import BrokerError, NotReleased, UsageError
from vambrace.serving.doors import Bounds, serving
from vambrace.serving.openapi import get_specification
from vambrace.serving.rates import Rates
from vambrace.serving.signals import stop_signal
from vambrace.serving.tls import server_context

COOKIE: Final = "kbs-session-id"
#: Versions of the protocol: what they call things is the same as far as it is used here.
VERSIONS: Final = ("0.1.", "0.2.", "0.3.", "0.4.")
#: A token in base64, a secret in base64, and what is around them.
BODY_LIMIT: Final = MAX_TOKEN * 4 // 3 + (16 << 10)
BURST_SECONDS: Final = 2

log = logging.getLogger(__name__)


def application(broker: Broker, settings: Settings) -> web.Application:
    rates = Rates(settings.rate, settings.rate * BURST_SECONDS)
    app = web.Application(middlewares=[bounded(rates), PROBLEMS.middleware()], client_max_size=BODY_LIMIT)
    app[BROKER] = broker
    app[SETTINGS] = settings
    app.add_routes(
        [
            web.post("/kbs/v0/auth", post_auth),
            web.post("/kbs/v0/attest", post_attest),
            web.get("/kbs/v0/resource/{repository}/{type}/{tag}", get_resource),
            web.post("/v1/volumes/{repository}/{tag}/commit", post_commit),
            web.get("/v1/openapi.json", get_specification(__file__)),
            *admin.routes(),
        ]
    )
    return app


async def post_auth(request: web.Request) -> web.StreamResponse:
    """The challenge, in a new session of this connection."""
    version = (await json_body(request)).get("version")
    if not isinstance(version, str) or not version.startswith(VERSIONS):
        raise NotReleased("this version of the protocol is not known here", hint="0.1.0 to 0.4.x", status=401)
    session = request.app[BROKER].sessions.begin(_connection(request))
    response = web.json_response({"nonce": base64.b64encode(session.nonce).decode(), "extra-params": ""})
    response.set_cookie(COOKIE, session.identifier, path="/", secure=True, httponly=True, samesite="Strict")
    return response


async def post_attest(request: web.Request) -> web.StreamResponse:
    """The answer to it."""
    session = await _session(request)
    body = await json_body(request)
    runtime = body.get("runtime-data", body)  # before 0.2 what is in it stood beside the evidence
    if not isinstance(runtime, dict):
        raise UsageError("runtime-data is not an object", hint="see docs/broker.md")
    evidence = read_evidence(body.get("tee-evidence"))
    token = await request.app[BROKER].attest(session, runtime.get("tee-pubkey"), evidence, caller_of(request))
    return web.json_response({"token": token})


async def get_resource(request: web.Request) -> web.StreamResponse:
    part = request.match_info
    name = ResourceName(part["repository"], part["type"], part["tag"])
    envelope = await request.app[BROKER].release(await _session(request), name)
    return web.Response(text=envelope, content_type="application/json", headers={"Cache-Control": "no-store"})


async def post_commit(request: web.Request) -> web.StreamResponse:
    session = await _session(request)
    name = ResourceName(request.match_info["repository"], VOLUME, request.match_info["tag"])
    body = await json_body(request)
    generation = body.get("generation")
    if type(generation) is not int or not 0 < generation < 1 << 53:
        raise UsageError("generation is not a positive number", hint="the one after the volume's")
    state, ticket = base64_field(body, "state"), base64_field(body, "ticket")
    return web.json_response(
        {"generation": await request.app[BROKER].commit(session, name, generation, state, ticket)}
    )


def _connection(request: web.Request) -> object:
    if request.transport is None:
        raise ConnectionResetError
    return request.transport


async def _session(request: web.Request) -> Session:
    identifier = request.cookies.get(COOKIE, "")
    return await request.app[BROKER].session(identifier, _connection(request), caller_of(request))


def tls_context(settings: Settings) -> ssl.SSLContext:
    """TLS 1.3, a certificate asked of nobody but taken from owners. Raises ``ConfigError``."""
    context = server_context(settings.certificate, settings.key)
    if settings.owners:
        context.verify_mode = ssl.CERT_OPTIONAL
        pem = [x509.load_der_x509_certificate(owner).public_bytes(Encoding.PEM) for owner in settings.owners]
        context.load_verify_locations(cadata=b"".join(pem).decode())
    return context


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[int]:
    """A broker that serves; gives its port. Raises ``ConfigError``, ``BrokerError``."""
    context, vault = tls_context(settings), Vault.load(settings.master_key)
    # Who has a session has it on one connection: this lasts as long.
    bounds = Bounds(
        settings.connections, settings.connections_each, settings.challenge_seconds + settings.session_seconds
    )
    async with contextlib.AsyncExitStack() as stack:
        anchor = stack.enter_context(Anchor(settings.anchor, vault)) if settings.anchor else None
        store = stack.enter_context(Store(settings.database, vault, anchor))
        _tell_end(store)
        stack.callback(_tell_end, store)
        platforms = Platforms(settings.platforms)
        list(platforms)  # what is wrong with them is told now
        sessions = Sessions(settings.challenge_seconds, settings.session_seconds)
        broker = Broker(store, platforms, sessions, ResultSigner(settings.key, settings.session_seconds))
        try:
            place = settings.listen, settings.port
            app = application(broker, settings)
            port = await stack.enter_async_context(serving(app, place, bounds, context))
        except OSError as error:
            raise BrokerError(
                f"cannot listen on {settings.listen}:{settings.port}: {error.strerror}", hint="see listen and port"
            ) from error
        log.info("listening on %s port %d", settings.listen, port)
        yield port


def _tell_end(store: Store) -> None:
    """Whoever keeps these lines has a copy of the log's end that no restored database takes back."""
    log.info("the audit log ends with entry %d, %s", store.head.sequence, store.head.hash.hex())


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = stop_signal()
    async with running(settings):
        await stop.wait()
