"""The HTTP API of the verifier (``openapi.yaml``)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from vambrace.attest import ear
from vambrace.doors import Bounds, client_of, listening
from vambrace.errors import ConfigError, HostError, UsageError, VambraceError, VerificationError
from vambrace.problem import from_http, problem, status_of
from vambrace.rates import Rates
from vambrace.verifier.questions import MAX_REQUEST, parse_question
from vambrace.verifier.service import NotReady, Service, UnknownPolicy
from vambrace.verifier.settings import Settings

REQUEST_SECONDS: Final = 20.0
#: A connection is closed after this long, whatever it does: who sends slowly keeps nobody else out.
CONNECTION_SECONDS: Final = 60.0

log = logging.getLogger(__name__)

SERVICE = web.AppKey("service", Service)
RATES = web.AppKey("rates", Rates)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# The first class that an error is an instance of decides.
_STATUS: Final[tuple[tuple[type[VambraceError], int, str], ...]] = (
    (UnknownPolicy, 404, "not-found"),
    (NotReady, 503, "not-ready"),
    (VerificationError, 422, "evidence"),
    (UsageError, 400, "request"),
)


def specification() -> str:
    """The OpenAPI description as JSON: ``openapi.yaml`` is in YAML's JSON subset, so no parser is needed."""
    return Path(__file__).with_name("openapi.yaml").read_text()


def application(service: Service, rates: Rates) -> web.Application:
    app = web.Application(middlewares=[_problems], client_max_size=MAX_REQUEST)
    app[SERVICE] = service
    app[RATES] = rates
    app.add_routes(
        [
            web.get("/v1/verifier", get_verifier),
            web.get("/v1/openapi.json", get_specification),
            web.get("/.well-known/jwks.json", get_keys),
            web.post("/v1/appraisals", post_appraisal),
        ]
    )
    return app


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error leaves as problem+json (RFC 9457); an unexpected one says nothing of the inside."""
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            return await handler(request)
    except VambraceError as error:
        return _from_error(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return from_http(error, "see /v1/openapi.json")
    except TimeoutError:
        return problem(408, "request", "the request came too slowly", "send it again")
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        log.exception("%s %s: internal error", request.method, request.path)
        return problem(500, "internal", "internal error of the verifier", "see the verifier's log")


async def get_verifier(request: web.Request) -> web.Response:
    return web.json_response(request.app[SERVICE].describe())


async def get_keys(request: web.Request) -> web.Response:
    return web.json_response(request.app[SERVICE].keys())


async def get_specification(request: web.Request) -> web.Response:
    return web.Response(text=specification(), content_type="application/json")


async def post_appraisal(request: web.Request) -> web.Response:
    wait = request.app[RATES].take(client_of(request.remote or ""))
    if wait:
        response = problem(429, "rate", "too many appraisals", "wait for as long as Retry-After says")
        response.headers["Retry-After"] = str(math.ceil(wait))
        return response
    if request.content_type != "application/json":
        raise UsageError("the body is not application/json", hint="see /v1/openapi.json")
    cbor = "application/eat-cwt" in request.headers.get("Accept", "")
    result = request.app[SERVICE].answer(parse_question(await request.read()), cbor=cbor)
    kind = ear.CWT_TYPE if cbor else ear.JWT_TYPE
    body = result if isinstance(result, bytes) else result.encode()
    return web.Response(body=body, headers={"Content-Type": kind, "Cache-Control": "no-store"})


def _from_error(error: VambraceError) -> web.Response:
    status, kind = status_of(error, _STATUS)
    return problem(status, kind, error.message, error.hint or "see /v1/openapi.json")


# --- the server -----------------------------------------------------------------------------------------


async def serve(settings: Settings, ready: Callable[[int], None] = lambda port: None) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads all files anew. ``ready`` is told the port.

    Raises ``VambraceError``.
    """
    service = Service(settings)
    service.load()
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, service.reload)
    async with _listening(settings, service) as port, _reloading(settings, service):
        log.info("listening on %s:%d", settings.listen, port)
        ready(port)
        await stop.wait()


@contextlib.asynccontextmanager
async def _listening(settings: Settings, service: Service) -> AsyncIterator[int]:
    runner = web.AppRunner(application(service, Rates(settings.rate, settings.burst)), access_log=None)
    await runner.setup()
    assert runner.server is not None
    bounds = Bounds(settings.connections, settings.connections_each, CONNECTION_SECONDS)
    place = settings.listen, settings.port
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(runner.cleanup)
        try:
            port = await stack.enter_async_context(listening(runner.server, place, bounds, tls_context(settings)))
        except OSError as error:
            where = f"{settings.listen}:{settings.port}"
            raise HostError(f"cannot listen on {where}: {error.strerror}", hint="choose another port") from None
        yield port


@contextlib.asynccontextmanager
async def _reloading(settings: Settings, service: Service) -> AsyncIterator[None]:
    async def again() -> None:
        while True:
            await asyncio.sleep(settings.reload_seconds)
            service.reload()

    task = asyncio.create_task(again())
    try:
        yield
    finally:
        task.cancel()


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS 1.3, with certificates of clients where ``client_ca`` is given. Raises ``ConfigError``."""
    if settings.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # who comes back shows the certificate again
    try:
        context.load_cert_chain(settings.certificate, settings.key)
        if settings.client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(settings.client_ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"TLS cannot be set up: {error}", hint="see certificate, key, client_ca") from None
    return context
